"""Block: one layer, attention and a dense or sparse feed-forward part.

B batch, S sequence, D model width, M width of a mixture's results.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from moe_jax.layers.attention.context import Context, take
from moe_jax.layers.depth import best_tokens, depth_metrics
from moe_jax.layers.mode import Mode
from moe_jax.layers.moe import MoE
from moe_jax.models.layer_spec import ATTENTION, CROSS_ATTENTION, FEED_FORWARD, MOE, LayerSpec
from moe_jax.routing.statistics import report
from moe_jax.runtime.remat import decided

Sublayer = Callable[[Float[Array, "B S D"]], Float[Array, "B S M"]]


class Block(nn.Module):
    """Attention, then a feed-forward part, each on a normed copy added to the residual stream.

    Attributes:
      spec: the layer.
      mode: how it computes.
      causal: whether no token sees a later one.
    """

    spec: LayerSpec
    mode: Mode
    causal: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], context: Context) -> Float[Array, "B S D"]:
        """Runs tokens; with an encoder's values in the context they attend to these, too."""
        return self.run(x, context)

    def run(self, x: Float[Array, "B S D"], context: Context) -> Float[Array, "B S D"]:
        """Runs all tokens of the context."""
        spec, mode, drop = self.spec, self.mode, self.mode.drop()
        mixtures = {name: self._mixture(name, context) for name in spec.mixtures}
        attention = spec.attention.make(mode, self.causal, mixtures if spec.projections else None, ATTENTION)
        x = x + drop(attention(self._normed(x, ATTENTION), context.of(spec.attention)))
        if context.memory is not None:
            cross = spec.attention.as_cross_attention().make(mode, False, None, CROSS_ATTENTION)
            normed = self._normed(x, CROSS_ATTENTION)
            x = x + drop(cross(normed, context.memory_attending, context.memory))
        normed = self._normed(x, FEED_FORWARD)
        network = mixtures[MOE] if MOE in mixtures else spec.feed_forward.make(mode, FEED_FORWARD)
        return x + drop(network(normed))

    def _normed(self, x: Float[Array, "B S D"], part: str) -> Float[Array, "B S D"]:
        return self.spec.norm.make(self.mode.dtype, f"{part}_norm")(x)

    def _mixture(self, name: str, context: Context) -> Sublayer:
        mixture, mode = self.spec.mixtures[name], self.mode

        def run(x: Float[Array, "B S D"]) -> Float[Array, "B S M"]:
            moe = MoE(mixture, mode, name=name, parent=self)
            return moe(x, context.token_valid, context.ids, context.positions)

        return run


class DepthBlock(Block):
    """A block that only some tokens run; see `moe_jax.layers.depth.DepthConfig`."""

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], context: Context) -> Float[Array, "B S D"]:
        """Runs the tokens that the router chooses; the others pass by."""
        depth, valid = self.spec.depth, context.token_valid
        kernel = self.param("depth_kernel", nn.initializers.normal(0.02), (x.shape[-1],), jnp.float32)
        score = jnp.matmul(x.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST)
        index, best = best_tokens(score, valid, depth.capacity)
        positive = decided(score > 0) & valid
        runs = best if self.mode.training else positive
        report(self, depth_metrics(score, best, positive, runs, valid))
        if not self.mode.training:
            y = self.run(x, context.hide(runs))
            return x + _weighted(y - x, score, runs)
        rows, chosen = take(x, index), context.take(index, runs)
        change = _weighted(self.run(rows, chosen) - rows, take(score, index), chosen.token_valid)
        return jax.vmap(lambda row, place, more: row.at[place].add(more))(x, index, change)


def _weighted(change: Float[Array, "B S D"], score: Float[Array, "B S"], runs: Bool[Array, "B S"]) -> Array:
    """Returns the layer's change of the tokens that run it, times their scores."""
    return jnp.where(runs, score, 0.0)[..., None].astype(change.dtype) * change
