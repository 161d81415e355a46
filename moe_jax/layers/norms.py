"""Root-mean-square norm. B batch, S sequence, D model width."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class RMSNorm(nn.Module):
    """x / rms(x) * scale, in float32 (Zhang and Sennrich 2019); flax's own fails under strict dtype promotion.

    Attributes:
      dtype: of the result.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        inverse_rms = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        return (x * inverse_rms * scale[None, None]).astype(self.dtype)
