"""Positions: rotary embeddings and T5's relative bias. B batch, S sequence, H heads, N width of a head."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Cosine and sine, M = N / 2 frequencies.
RotaryAngles = tuple[Float[Array, "B S 1 M"], Float[Array, "B S 1 M"]]


def rotary_angles(positions: Int[Array, "B S"], width: int, theta: float) -> RotaryAngles:
    """Cosine and sine of each position times each of the width / 2 = M frequencies, float32, once for all layers.

    Args:
      positions: position of each token in its document.
      width: N.
      theta: base of the frequencies.
    """
    half = width // 2
    frequencies = theta ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "B S H N"], angles: RotaryAngles) -> Float[Array, "B S H N"]:
    """Rotary position embedding (Su et al. 2021, equation 34), the head's first half against its second.

    Args:
      x: queries or keys.
      angles: of `rotary_angles`.
    """
    cos, sin = (table.astype(x.dtype) for table in angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def relative_bucket(
    distance: Int[Array, "*shape"], causal: bool, num_buckets: int = 32, max_distance: int = 128
) -> Int[Array, "*shape"]:
    """T5's bucket of a distance back to an earlier token: exact when near, logarithmic up to `max_distance`, then one.

    Raffel et al. 2020, section 2.1. If `causal`, distances to later tokens share bucket 0; else these, which are
    negative, have the second half of the buckets.
    """
    if not causal:
        half = num_buckets // 2
        return jnp.where(distance < 0, half, 0) + relative_bucket(jnp.abs(distance), True, half, max_distance)
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
      causal: whether only earlier tokens are seen.
      num_buckets: rows of the table.
      init_std: standard deviation of the table's start.
    """

    num_heads: int
    causal: bool = True
    num_buckets: int = 32
    init_std: float = 0.02

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "1 H S S"]:
        start = nn.initializers.normal(self.init_std)
        table = self.param("table", start, (self.num_buckets, self.num_heads), jnp.float32)
        place = jnp.arange(length, dtype=jnp.int32)
        buckets = relative_bucket(place[:, None] - place[None, :], self.causal, self.num_buckets)
        return table[buckets].transpose(2, 0, 1)[None]
