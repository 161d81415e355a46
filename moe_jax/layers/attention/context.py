"""Context: everything that the layers of a stack share in one call.

B batch, S sequence, C tokens of a sequence that are taken, R sequence of an encoder, D model width, H heads.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Shaped

from moe_jax.layers.positions import RotaryAngles
from moe_jax.runtime.arguments import typed


@struct.dataclass
class Attending:
    """Keys that tokens see, and their positions; the same for all layers with one kind of attention.

    Attributes:
      mask: true where a token (third axis) may see a key (last axis); each sees one at least.
      angles: by which queries and keys turn; None without rotary positions.
      bias: added to the logits of attention; None without relative positions.
    """

    # Read by jaxtyping: tree maps rebuild the value with other things than arrays, so its fields are not enforced.
    __no_type_check__ = True

    mask: Bool[Array, "B 1 S R"]
    angles: RotaryAngles | None = None
    bias: Float[Array, "#B H S R"] | None = None

    def take(self, index: Int[Array, "B C"]) -> "Attending":
        """Keeps the tokens and keys at `index` of each sequence."""
        return Attending(
            _take_pairs(self.mask, index),
            None if self.angles is None else tuple(take(table, index) for table in self.angles),
            None if self.bias is None else _take_pairs(self.bias, index),
        )

    def hide(self, runs: Bool[Array, "B S"]) -> "Attending":
        """Hides the tokens that do not run from all others."""
        itself = jnp.eye(runs.shape[1], dtype=bool)[None, None]
        return self.replace(mask=self.mask & (runs[:, None, None] | itself))


@struct.dataclass
class Context:
    """Tokens of a call, and what each kind of attention sees of them.

    Attributes:
      ids: the tokens.
      positions: place of each in its document.
      token_valid: false for padding.
      attending: one value for each of `kinds`.
      memory: values of an encoder to attend to; None without one.
      memory_attending: what tokens see of these.
      kinds: the kinds of attention of the stack (static).
    """

    # Read by jaxtyping: tree maps rebuild the value with other things than arrays, so its fields are not enforced.
    __no_type_check__ = True

    ids: Int[Array, "B S"]
    positions: Int[Array, "B S"]
    token_valid: Bool[Array, "B S"]
    attending: tuple[Attending, ...] = ()
    memory: Float[Array, "B R D"] | None = None
    memory_attending: Attending | None = None
    kinds: tuple[Any, ...] = struct.field(pytree_node=False, default=())

    def of(self, kind: Any) -> Attending:
        """Returns what attention of this kind sees."""
        return self.attending[self.kinds.index(kind)]

    def take(self, index: Int[Array, "B C"], runs: Bool[Array, "B S"]) -> "Context":
        """Keeps the tokens at `index` of each sequence; those of them that do not run count as padding."""
        return self.replace(
            ids=take(self.ids, index),
            positions=take(self.positions, index),
            token_valid=take(runs, index),
            attending=tuple(attending.take(index) for attending in self.attending),
        )

    def hide(self, runs: Bool[Array, "B S"]) -> "Context":
        """Keeps all tokens; those that do not run are seen by no other and count as padding."""
        return self.replace(token_valid=runs, attending=tuple(attending.hide(runs) for attending in self.attending))


@typed
def take(values: Shaped[Array, "B S ..."], index: Int[Array, "B C"]) -> Shaped[Array, "B C ..."]:
    """Keeps the values at `index` of each sequence."""
    return jax.vmap(lambda row, chosen: row[chosen])(values, index)


def _take_pairs(values: Shaped[Array, "#B N S S"], index: Int[Array, "B C"]) -> Shaped[Array, "B N C C"]:
    by_sequence = jnp.broadcast_to(values, (index.shape[0], *values.shape[1:]))
    return jax.vmap(lambda row, chosen: row[:, chosen[:, None], chosen[None]])(by_sequence, index)
