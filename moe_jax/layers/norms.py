"""Norms: each kind, and the module that it makes. B batch, S sequence, D model width."""

import dataclasses
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.configuration import Kinds, require
from moe_jax.runtime.parameters import Parameter


@dataclasses.dataclass(frozen=True)
class RMS:
    """Root-mean-square norm (Zhang and Sennrich 2019): x / rms(x) * scale.

    Attributes:
      eps: added to the mean square.
    """

    eps: float = 1e-6

    def __post_init__(self) -> None:
        require(self.eps > 0, "eps", self.eps, "a positive number")

    def parameters(self, model_dim: int) -> dict[str, Parameter]:
        """Declares the scale [D]."""
        return {"scale": Parameter((model_dim,), (None,), multiplies=False)}

    def make(self, dtype: jnp.dtype, name: str) -> "RMSNorm":
        """Makes the module."""
        return RMSNorm(self, dtype, name=name)


@dataclasses.dataclass(frozen=True)
class Layer:
    """Layer norm (Ba et al. 2016): (x - mean(x)) / std(x) * scale + bias.

    Attributes:
      eps: added to the variance.
      bias: whether there is a bias.
    """

    eps: float = 1e-5
    bias: bool = True

    def __post_init__(self) -> None:
        require(self.eps > 0, "eps", self.eps, "a positive number")

    def parameters(self, model_dim: int) -> dict[str, Parameter]:
        """Declares the scale [D] and the bias [D]."""
        names = ("scale", "bias") if self.bias else ("scale",)
        return {name: Parameter((model_dim,), (None,), multiplies=False) for name in names}

    def make(self, dtype: jnp.dtype, name: str) -> "LayerNorm":
        """Makes the module."""
        return LayerNorm(self, dtype, name=name)


NORMS: dict[str, type] = {"rms": RMS, "layer": Layer}

AnyNorm = Annotated[RMS | Layer, Kinds(NORMS, default="rms")]


class RMSNorm(nn.Module):
    """The module of `RMS`, in float32; flax's own fails under strict dtype promotion.

    Attributes:
      norm: its kind.
      dtype: type of the result.
    """

    norm: RMS
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Normalises each token."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x = x.astype(jnp.float32)
        inverse_rms = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.norm.eps)
        return (x * inverse_rms * scale[None, None]).astype(self.dtype)


class LayerNorm(nn.Module):
    """The module of `Layer`, in float32.

    Attributes:
      norm: its kind.
      dtype: type of the result.
    """

    norm: Layer
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Normalises each token."""
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        inverse_std = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.norm.eps)
        y = centred * inverse_std * self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)[None, None]
        if self.norm.bias:
            y += self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)[None, None]
        return y.astype(self.dtype)
