"""Ways of running experts, by name."""

import functools
from collections.abc import Callable

from jaxtyping import Array, Float

from moe_jax.experts.dropless import dropless
from moe_jax.experts.ffn import FFNKind, Weights
from moe_jax.experts.kernels.choice import KernelChoice, is_as_fast_as_dense
from moe_jax.experts.one_hot import one_hot
from moe_jax.experts.oracle import oracle
from moe_jax.experts.padded import padded
from moe_jax.routing.assignment import Assignment
from moe_jax.runtime.mesh import current_mesh, current_platform

Execution = Callable[[Float[Array, "G S D"], Assignment, Weights, FFNKind], Float[Array, "G S O"]]

EXECUTIONS: dict[str, Execution] = {
    "oracle": oracle,
    "one_hot": one_hot,
    "padded": padded,
    "dropless": dropless,
}


def choose_execution(execution: str) -> str:
    """A name in EXECUTIONS: `execution`, or for `auto` the fastest.

    That is `dropless` on one device that has a kernel for groups of any size, and else `padded`, of which XLA makes
    batched products, and whose exchange between devices sends seats and not the worst case.
    """
    if execution != "auto":
        return execution
    return "dropless" if current_mesh() is None and is_as_fast_as_dense(current_platform()) else "padded"


def make_execution(execution: str, kernel: KernelChoice) -> Execution:
    """A way of running experts with the kernel for its grouped products, if it has any."""
    if execution == "dropless":
        return functools.partial(dropless, kernel=kernel)
    return EXECUTIONS[execution]
