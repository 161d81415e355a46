"""Mode: how the layers of a model compute in one call."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Mode:
    """Everything that layers share and that is not their shape.

    Attributes:
      training: whether the training capacity holds, values drop out, and routers draw and explore.
      dtype: compute type; routers and softmaxes are float32.
      init_scale: see `moe_jax.layers.initialization.kernel_init`.
      dropout: share of values that training sets to 0.
    """

    training: bool = False
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    init_scale: float = 1.0
    dropout: float = 0.0

    def drop(self) -> nn.Dropout:
        """Makes the dropout of whole values, which does nothing in evaluation."""
        return nn.Dropout(self.dropout, deterministic=not self.training)

    def active(self, rate: float) -> float:
        """Returns the dropout `rate` in training, 0 in evaluation."""
        return rate if self.training else 0.0
