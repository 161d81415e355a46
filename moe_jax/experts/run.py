"""Ways of running experts, by name."""

from collections.abc import Callable

from jaxtyping import Array, Float

from moe_jax.experts.dropless import dropless
from moe_jax.experts.ffn import FFNKind, Weights
from moe_jax.experts.one_hot import one_hot
from moe_jax.experts.oracle import oracle
from moe_jax.experts.padded import padded
from moe_jax.routing.assignment import Assignment

Execution = Callable[[Float[Array, "G S D"], Assignment, Weights, FFNKind], Float[Array, "G S D"]]

EXECUTIONS: dict[str, Execution] = {
    "oracle": oracle,
    "one_hot": one_hot,
    "padded": padded,
    "dropless": dropless,
}
