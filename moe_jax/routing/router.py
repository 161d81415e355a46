"""What every router's Linen module shares: a float32 projection, capacity, and the metrics it sows.

G groups, S tokens of a group, D model width, E experts, C capacity.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from moe_jax.routing.assignment import Assignment
from moe_jax.routing.capacity import capacity_per_expert
from moe_jax.routing.losses import z_loss
from moe_jax.routing.metrics import assignment_metrics, probability_metrics

METRICS = "routing"
RNG = "routing"


class Router(nn.Module):
    """Turns tokens into an Assignment; a subclass says how in `decide`.

    Sows into the collection `routing`: the metrics of `moe_jax.routing.metrics`, `capacity_factor` (as realised, after
    rounding), and each loss in `losses`, unweighted.

    Attributes:
      num_experts: E.
      k: experts per token.
      capacity_factor: seats relative to even load; None drops nothing.
      choices_allowed: the values of `k` a router takes; None takes any.
      causal: whether a token's experts and weights are free of later tokens' content.
      has_parameters: whether the router learns a projection.
      losses: names of the losses the router sows.
      paper: where the router comes from.
    """

    num_experts: int
    k: int
    capacity_factor: float | None

    choices_allowed: ClassVar[tuple[int, ...] | None] = None
    causal: ClassVar[bool] = True
    has_parameters: ClassVar[bool] = True
    losses: ClassVar[tuple[str, ...]] = ("balance_loss", "z_loss")
    paper: ClassVar[str] = ""

    def decide(
        self, logits: Float[Array, "G S E"], token_valid: Bool[Array, "G S"], capacity: int
    ) -> tuple[Assignment, dict[str, Float[Array, ""]]]:
        """The decision on float32 `logits`, and the router's own losses by name."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x: Float[Array, "G S D"], token_valid: Bool[Array, "G S"]) -> Assignment:
        """Routes tokens `x`; `token_valid` is false for padding, which takes no seat and counts in no loss."""
        logits = self._logits(x)
        capacity = capacity_per_expert(self.capacity_factor, x.shape[1], self.k, self.num_experts)
        assignment, losses = self.decide(logits, token_valid, capacity)
        metrics = assignment_metrics(assignment, token_valid) | losses
        metrics["capacity_factor"] = jnp.float32(capacity * self.num_experts / (x.shape[1] * self.k))
        if self.has_parameters:
            metrics |= probability_metrics(jax.nn.softmax(logits), token_valid)
            metrics["z_loss"] = z_loss(logits, token_valid)
        for name, value in metrics.items():
            self.sow(METRICS, name, value, init_fn=lambda: None, reduce_fn=_last)
        return assignment

    def _logits(self, x: Float[Array, "G S D"]) -> Float[Array, "G S E"]:
        if not self.has_parameters:
            return jnp.zeros((*x.shape[:2], self.num_experts), jnp.float32)
        kernel = self.param("kernel", nn.initializers.normal(0.02), (x.shape[-1], self.num_experts), jnp.float32)
        # Accelerators round float32 operands of a matmul unless told otherwise, and routing must not be rounded.
        return jnp.matmul(x.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)


def _last(_: Any, new: Any) -> Any:
    return new
