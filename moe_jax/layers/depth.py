"""Mixture-of-Depths: layers that only some tokens run, the others pass by (Raposo et al. 2024).

B batch, S sequence, C tokens of a sequence that run, D model width.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from moe_jax.configuration import lists_to_tuples, require
from moe_jax.routing.statistics import Statistic, mean_where
from moe_jax.runtime.parameters import Parameter
from moe_jax.runtime.remat import decided


@dataclasses.dataclass(frozen=True)
class DepthConfig:
    """Mixture-of-Depths: x + r * (layer(x) - x) for the tokens that run a layer, x for the others.

    r is the router's score, a product with x. In training each sequence's best tokens run, as in expert choice with one
    expert, so who runs depends on later tokens. The score learns, by a loss, to be positive for those alone, and in
    evaluation the tokens with a positive score run: a causal decision (section 3.5). Tokens that run see only each
    other. Metrics: depth_loss; depth_accuracy, the share of tokens that the sign of the score decides as in training;
    depth_share, of the tokens that run.

    Attributes:
      layers: their indices; dense ones.
      capacity: share of a sequence's tokens that run them in training.
      coefficient: weight of the loss by which the router learns to decide without a look at later tokens.
    """

    layers: tuple[int, ...]
    capacity: float = 0.125
    coefficient: float = 0.01

    def __post_init__(self) -> None:
        lists_to_tuples(self)
        require(0 < self.capacity <= 1, "capacity", self.capacity, "above 0, to 1")
        require(self.coefficient >= 0, "coefficient", self.coefficient, "a number of at least 0")

    def parameters(self, model_dim: int) -> dict[str, Parameter]:
        """Declares the router's matrix [D]."""
        return {"kernel": Parameter((model_dim,), (None,))}


def tokens_that_run(share: float, length: int) -> int:
    """Counts the tokens of a sequence of `length` that run in training, at least one."""
    return math.ceil(round(share * length, 6))


def best_tokens(
    score: Float[Array, "B S"], token_valid: Bool[Array, "B S"], share: float
) -> tuple[Int[Array, "B C"], Bool[Array, "B S"]]:
    """Finds the C = ceil(share * S) valid tokens with the largest scores.

    Returns:
      Their indices, increasing; where fewer tokens are valid, filled up with some that are not.
      A mask of the valid ones among them.
    """
    count = tokens_that_run(share, score.shape[1])
    _, index = jax.lax.top_k(jnp.where(token_valid, jax.lax.stop_gradient(score), -jnp.inf), count)
    index = decided(jnp.sort(index, axis=1).astype(jnp.int32))
    chosen = jax.vmap(lambda row: jnp.zeros(score.shape[1], bool).at[row].set(True))(index)
    return index, chosen & token_valid


def depth_metrics(
    score: Float[Array, "B S"],
    best: Bool[Array, "B S"],
    positive: Bool[Array, "B S"],
    runs: Bool[Array, "B S"],
    token_valid: Bool[Array, "B S"],
) -> dict[str, Statistic]:
    """Returns depth_loss, depth_accuracy and depth_share, means over valid tokens; see `DepthConfig`."""
    loss = optax.sigmoid_binary_cross_entropy(score, best.astype(jnp.float32))
    return {
        "depth_loss": mean_where(loss, token_valid),
        "depth_accuracy": mean_where((positive == best).astype(jnp.float32), token_valid),
        "depth_share": mean_where(runs.astype(jnp.float32), token_valid),
    }
