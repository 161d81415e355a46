"""Positions: rotary embeddings and T5's relative bias. B batch, S sequence, H heads, N width of one head."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotate(x: Float[Array, "B S H N"], positions: Int[Array, "B S"], theta: float) -> Float[Array, "B S H N"]:
    """Rotary position embedding (Su et al. 2021, equation 34), first half of the head's width against the second.

    Args:
      x: queries or keys.
      positions: position of each token in its document.
      theta: base of the frequencies.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None]
    cos = jnp.cos(angles)[:, :, None].astype(x.dtype)
    sin = jnp.sin(angles)[:, :, None].astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def relative_bucket(
    distance: Int[Array, "*shape"], num_buckets: int = 32, max_distance: int = 128
) -> Int[Array, "*shape"]:
    """T5's bucket of a distance back to an earlier token: exact when near, logarithmic up to `max_distance`, then one.

    Raffel et al. 2020, section 2.1, for causal attention; distances to later tokens share bucket 0.
    """
    distance = jnp.maximum(distance, 0)
    exact = num_buckets // 2
    scale = (num_buckets - exact) / math.log(max_distance / exact)
    logarithm = jnp.log(jnp.maximum(distance, exact).astype(jnp.float32) / exact)
    far = exact + (logarithm * scale).astype(jnp.int32)
    return jnp.where(distance < exact, distance, jnp.minimum(far, num_buckets - 1))


class RelativeBias(nn.Module):
    """A learned bias of each head's attention logits by bucket of distance, one table for all layers.

    Attributes:
      num_heads: H.
    """

    num_heads: int
    num_buckets: int = 32

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "1 H S S"]:
        table = self.param("table", nn.initializers.normal(0.02), (self.num_buckets, self.num_heads), jnp.float32)
        place = jnp.arange(length, dtype=jnp.int32)
        buckets = relative_bucket(place[:, None] - place[None, :], self.num_buckets)
        return table[buckets].transpose(2, 0, 1)[None]
