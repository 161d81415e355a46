"""The interface of a way of running experts on one device.

G groups, S tokens of a group, E experts, K choices per token, C capacity, D model width, O output width (D; F for
linear experts).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from moe_jax.experts.ffn import FFNKind, FFNParams
from moe_jax.routing.assignment import Assignment

Run = Callable[[Float[Array, "G S D"], Assignment, FFNParams, FFNKind], Float[Array, "G S O"]]
"""(x, assignment, params, kind) -> y: runs the kept assignments of each token and sums their weighted results."""


class Work(NamedTuple):
    """The numbers of a layer from which the operations of an execution follow.

    Attributes:
      tokens: S.
      choices: K.
      num_experts: E.
      capacity: C.
      expert_flops: operations of one expert on one token.
      width: D + O, the width of a token and of its result.
    """

    tokens: int
    choices: int
    num_experts: int
    capacity: int
    expert_flops: int
    width: int

    @property
    def seats_per_token(self) -> float:
        """Seats of all experts in a group, for each of its tokens."""
        return self.num_experts * self.capacity / self.tokens


@dataclasses.dataclass(frozen=True)
class Execution:
    """A way of running experts on one device.

    Attributes:
      run: the function, a `Run`; if the execution has kernels, with the keyword `kernel`.
      flops_per_token: operations of matrix products in the forward pass, for each token.
      has_kernels: whether it computes grouped matrix products, by a kernel that can be chosen.
    """

    run: Callable[..., Float[Array, "G S O"]]
    flops_per_token: Callable[[Work], float]
    has_kernels: bool = False

    def with_kernel(self, kernel: str | None) -> Run:
        """Returns `run` with the kernel of its grouped products, None for an execution without kernels."""
        return functools.partial(self.run, kernel=kernel) if self.has_kernels else self.run
