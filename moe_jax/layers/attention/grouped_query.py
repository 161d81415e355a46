"""Grouped-query attention, which with as many key-value heads as query heads is multi-head attention.

B batch, S sequence, R sequence of the keys, D model width, H query heads, K key-value heads, N width of a head, M width
of a projection.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.configuration import require
from moe_jax.layers.attention.attend import attend
from moe_jax.layers.attention.context import Attending
from moe_jax.layers.attention.masks import attention_mask, computed_keys, key_ranges
from moe_jax.layers.initialization import kernel_init
from moe_jax.layers.mode import Mode
from moe_jax.layers.positions import AnyPositions, NoPositions, Rope, rotate
from moe_jax.layers.rows import apply_by_row
from moe_jax.runtime.parameters import Parameter
from moe_jax.runtime.remat import saveable

# The mixtures that may take the place of the projection to queries, and of that to keys and values.
QUERY_MOE, KEY_VALUE_MOE = "query_moe", "key_value_moe"

Project = Callable[[Float[Array, "B S D"]], Float[Array, "B S M"]]


@dataclasses.dataclass(frozen=True)
class GroupedQuery:
    """Grouped-query attention (Ainslie et al. 2023).

    Attributes:
      heads: H, query heads.
      kv_heads: K, key and value heads, each of which serves H / K query heads; None takes H (multi-head attention).
      head_dim: N; None takes D / H.
      positions: how it knows where tokens are.
    """

    heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    positions: AnyPositions = Rope()

    # Tokens that a token sees at most; None does not limit.
    window: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "head_dim"):
            value, optional = getattr(self, name), name != "heads"
            accepted = f"an integer of at least 1{', or None' * optional}"
            require((value is None and optional) or value >= 1, name, value, accepted)
        require(self.heads % self.key_value_heads == 0, "kv_heads", self.kv_heads, f"a divisor of heads ({self.heads})")
        if self.head_dim is not None:
            self.positions.check(self.head_dim)

    @property
    def key_value_heads(self) -> int:
        """K."""
        return self.kv_heads or self.heads

    def resolve(self, model_dim: int) -> "GroupedQuery":
        """Returns the kind with `head_dim` set.

        Raises:
          ConfigError: D is not a multiple of H, or positions do not go with the width of a head.
        """
        if self.head_dim is not None:
            return self
        accepted = f"a divisor of model_dim ({model_dim}), or set head_dim"
        require(model_dim % self.heads == 0, "heads", self.heads, accepted)
        return dataclasses.replace(self, head_dim=model_dim // self.heads)

    def as_cross_attention(self) -> "GroupedQuery":
        """Returns the attention to another text: the same heads, without positions."""
        return GroupedQuery(self.heads, self.kv_heads, self.head_dim, NoPositions())

    def parameters(self, model_dim: int, projects: bool = True) -> dict[str, Parameter]:
        """Declares the matrices: query [D, H * N], key and value [D, K * N], output [H * N, D].

        Args:
          model_dim: D.
          projects: false leaves the output alone, where mixtures project to queries, keys and values.
        """
        width, kv_width = self.heads * self.head_dim, self.key_value_heads * self.head_dim
        output = {"output/kernel": Parameter((width, model_dim), ("tensor", "fsdp"))}
        widths = {"query": width, "key": kv_width, "value": kv_width} if projects else {}
        into = {f"{name}/kernel": Parameter((model_dim, size), ("fsdp", "tensor")) for name, size in widths.items()}
        return into | output

    @property
    def mixture_widths(self) -> dict[str, int]:
        """Widths of the results of the mixtures that may project: to queries, and to keys and values together."""
        return {QUERY_MOE: self.heads * self.head_dim, KEY_VALUE_MOE: 2 * self.key_value_heads * self.head_dim}

    def pair_flops(self) -> int:
        """Counts the operations of one query and one key: H scores, and H values weighted and summed."""
        return 4 * self.heads * self.head_dim

    def computed_keys(self, length: int, causal: bool) -> float:
        """Returns the mean number of keys that are computed for a query of a sequence of `length`."""
        return computed_keys(length, causal, self.window)

    def attending(
        self,
        segment_ids: Int[Array, "B S"],
        positions: Int[Array, "B S"],
        causal: bool,
        bias: Float[Array, "1 H S S"] | None,
    ) -> Attending:
        """Prepares what all layers of this kind share: the mask, rotary angles, and the bias as it is given."""
        mask = attention_mask(segment_ids, causal, self.window)
        return Attending(mask, self.positions.angles(positions, self.head_dim), bias)

    def make(self, mode: Mode, causal: bool, mixtures: Mapping[str, Project] | None, name: str) -> nn.Module:
        """Makes the module; see `Attention`."""
        return Attention(self, mode, causal, mixtures, name=name)


class Attention(nn.Module):
    """The module of `GroupedQuery`.

    Attributes:
      kind: its shape.
      mode: how it computes.
      causal: whether no token sees a later one.
      mixtures: QUERY_MOE and KEY_VALUE_MOE, which take the place of the projections to queries, and to keys and values
        (Switch Transformer, appendix A); None has plain projections.
    """

    kind: GroupedQuery
    mode: Mode
    causal: bool
    mixtures: Mapping[str, Project] | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], attending: Attending, memory: Float[Array, "B R D"] | None = None
    ) -> Float[Array, "B S D"]:
        """Mixes the values that tokens see.

        Args:
          x: tokens.
          attending: what they see of the keys, and where these are.
          memory: another text to attend to; None is the tokens themselves.
        """
        source = x if memory is None else memory
        query, key, value = (
            saveable(y.reshape(*y.shape[:2], -1, self.kind.head_dim), "attention_heads")
            for y in self._projections(x, source)
        )
        if attending.angles is not None:
            query, key = rotate(query, attending.angles), rotate(key, attending.angles)
        ranges = key_ranges(x.shape[1], source.shape[1], self.causal, self.kind.window)
        mixed = attend(query, key, value, attending.mask, attending.bias, ranges, self.mode.drop())
        return self._project(mixed.reshape(*x.shape[:2], -1), x.shape[-1], "output")

    def _projections(
        self, x: Float[Array, "B S D"], source: Float[Array, "B R D"]
    ) -> tuple[Float[Array, "B S M"], Float[Array, "B R N"], Float[Array, "B R N"]]:
        if self.mixtures is not None:
            query = self.mixtures[QUERY_MOE](x)
            return query, *jnp.split(self.mixtures[KEY_VALUE_MOE](source), 2, axis=-1)
        width, kv_width = self.kind.heads * self.kind.head_dim, self.kind.key_value_heads * self.kind.head_dim
        query = self._project(x, width, "query")
        return query, self._project(source, kv_width, "key"), self._project(source, kv_width, "value")

    def _project(self, x: Float[Array, "B S M"], width: int, name: str) -> Float[Array, "B S N"]:
        start = kernel_init(self.mode.init_scale)
        return apply_by_row(nn.Dense(width, use_bias=False, dtype=self.mode.dtype, kernel_init=start, name=name), x)
