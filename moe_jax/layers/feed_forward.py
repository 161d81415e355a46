"""Dense feed-forward layer: its configuration and the module that it makes.

B batch, S sequence, D model width, F inner width.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.configuration import require, require_name
from moe_jax.experts.ffn import FFN_KINDS, feed_forward, products_by
from moe_jax.layers.dropout import with_dropout
from moe_jax.layers.initialization import network_params
from moe_jax.layers.mode import Mode
from moe_jax.layers.rows import apply_by_row
from moe_jax.runtime.parameters import Parameter


@dataclasses.dataclass(frozen=True)
class Network:
    """One network that every token runs.

    Attributes:
      width: F.
      kind: its unit, a name in `moe_jax.experts.ffn.FFN_KINDS`.
    """

    width: int
    kind: str

    def __post_init__(self) -> None:
        require(self.width >= 1, "width", self.width, "an integer of at least 1")
        require_name(self.kind, FFN_KINDS, "kind")

    def parameters(self, model_dim: int) -> dict[str, Parameter]:
        """Declares the matrices up, down and, if gated, gate, and the vectors of the kind."""
        return FFN_KINDS[self.kind].parameters(model_dim, self.width)

    def make(self, mode: Mode, name: str) -> "FeedForward":
        """Makes the module."""
        return FeedForward(self, mode, name=name)


class FeedForward(nn.Module):
    """The module of `Network`.

    Attributes:
      network: its shape.
      mode: how it computes.
    """

    network: Network
    mode: Mode

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Applies the network to every token."""
        kind, dtype = FFN_KINDS[self.network.kind], self.mode.dtype
        params = network_params(self, kind, x.shape[-1], self.network.width, self.mode.init_scale, dtype)
        unit, products = with_dropout(kind, self.mode.active(self.mode.dropout)), products_by(jnp.matmul)
        return apply_by_row(lambda rows: feed_forward(rows, params, unit, products), x.astype(dtype))
