"""Mixture-of-Depths: blocks that only some tokens run, the others pass by (Raposo et al. 2024).

B batch, S sequence, C tokens of a sequence that run, D model width, H heads.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped

from moe_jax.layers.positions import RotaryAngles
from moe_jax.models.block import Block
from moe_jax.routing.statistics import Statistic, mean_where, report
from moe_jax.runtime.remat import decided


class DepthBlock(Block):
    """x + r * (block(x) - x) for the tokens that run, x for the others; r is the router's score, a product with x.

    In training each sequence's best tokens run, as in expert choice with one expert, so who runs depends on later
    tokens. The score is trained, by a loss with `config.depth.coefficient`, to be positive for those alone, and in
    evaluation the tokens with a positive score run: a causal decision (section 3.5). Tokens that run see only those
    that do.

    Sows into `routing`: depth_loss; depth_accuracy, how many tokens the sign of the score decides as in training;
    depth_share, of the tokens that run.
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        angles: RotaryAngles | None,
        mask: Bool[Array, "B 1 S S"],
        bias: Float[Array, "#B H S S"] | None,
        token_valid: Bool[Array, "B S"],
        ids: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        memory: None = None,
        memory_mask: None = None,
    ) -> Float[Array, "B S D"]:
        kernel = self.param("depth_kernel", nn.initializers.normal(0.02), (x.shape[-1],), jnp.float32)
        score = jnp.matmul(x.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)
        index, best = best_tokens(score, token_valid, self.config.depth.capacity)
        positive = decided(score > 0) & token_valid
        runs = best if self.training else positive
        report(self, depth_metrics(score, best, positive, runs, token_valid))
        if not self.training:
            seen = mask & (runs[:, None, None] | jnp.eye(x.shape[1], dtype=bool)[None, None])
            y = super().__call__(x, angles, seen, bias, runs, ids, positions)
            return x + self._weighted(y, x, score, runs)

        def take(values: Shaped[Array, "B S ..."]) -> Shaped[Array, "B C ..."]:
            return jax.vmap(lambda row, chosen: row[chosen])(values, index)

        def take_pairs(values: Shaped[Array, "#B N S S"]) -> Shaped[Array, "B N C C"]:
            whole = jnp.broadcast_to(values, (x.shape[0], *values.shape[1:]))
            return jax.vmap(lambda row, chosen: row[:, chosen[:, None], chosen[None]])(whole, index)

        rows = take(x)
        y = super().__call__(
            rows,
            None if angles is None else tuple(take(table) for table in angles),
            take_pairs(mask),
            None if bias is None else take_pairs(bias),
            take(runs),
            take(ids),
            take(positions),
        )
        change = self._weighted(y, rows, take(score), take(runs))
        return jax.vmap(lambda row, chosen, more: row.at[chosen].add(more))(x, index, change)

    def _weighted(self, y: Array, x: Array, score: Array, runs: Array) -> Array:
        """What the block changes in the tokens that run it, times their scores."""
        weight = jnp.where(runs, score, 0.0)[..., None].astype(x.dtype)
        return weight * (y - x)


def best_tokens(
    score: Float[Array, "B S"], token_valid: Bool[Array, "B S"], share: float
) -> tuple[Int[Array, "B C"], Bool[Array, "B S"]]:
    """The C = ceil(share * S) valid tokens of the largest scores, in order of their places, and a mask of them.

    Where fewer are valid, the first list goes on with some that are not, and the mask does not.
    """
    count = math.ceil(round(share * score.shape[1], 6))
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
    """See `DepthBlock`; means over valid tokens."""
    loss = optax.sigmoid_binary_cross_entropy(score, best.astype(jnp.float32))
    return {
        "depth_loss": mean_where(loss, token_valid),
        "depth_accuracy": mean_where((positive == best).astype(jnp.float32), token_valid),
        "depth_share": mean_where(runs.astype(jnp.float32), token_valid),
    }
