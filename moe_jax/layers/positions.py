"""Positions: how attention knows where tokens are. Each kind, and the module of the one that learns.

B batch, S sequence, H heads, N width of a head, M = N / 2 frequencies.
"""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.configuration import Kinds, require
from moe_jax.runtime.parameters import Parameter

# Cosine and sine.
RotaryAngles = tuple[Float[Array, "B S 1 M"], Float[Array, "B S 1 M"]]


@dataclasses.dataclass(frozen=True)
class Positions:
    """Base of the kinds of positions."""

    def check(self, head_dim: int) -> None:
        """Raises ConfigError where heads of this width cannot have these positions."""

    def parameters(self, heads: int) -> dict[str, Parameter]:
        """Declares the parameters of positions for H `heads`."""
        return {}

    def angles(self, positions: Int[Array, "B S"], width: int) -> RotaryAngles | None:
        """Returns the angles by which queries and keys turn; None where nothing turns."""
        return None


@dataclasses.dataclass(frozen=True)
class NoPositions(Positions):
    """No positions: attention sees a set of tokens, but for its mask (NoPE)."""


@dataclasses.dataclass(frozen=True)
class Rope(Positions):
    """Rotary positions (Su et al. 2021).

    Attributes:
      theta: base of the frequencies.
    """

    theta: float = 10000.0

    def __post_init__(self) -> None:
        require(self.theta > 0, "theta", self.theta, "a positive number")

    def check(self, head_dim: int) -> None:
        """Raises ConfigError unless a head has pairs of numbers to turn."""
        require(head_dim % 2 == 0, "head_dim", head_dim, "an even number, with rope")

    def angles(self, positions: Int[Array, "B S"], width: int) -> RotaryAngles | None:
        """Returns `rotary_angles`."""
        return rotary_angles(positions, width, self.theta)


@dataclasses.dataclass(frozen=True)
class T5Bias(Positions):
    """T5's relative positions (Raffel et al. 2020, section 2.1): a learned bias of each head by bucket of distance.

    Layers of a stack that have the same kind share one table.

    Attributes:
      init_std: standard deviation of the table's start, which is model_dim**-0.5 in T5.
      num_buckets: rows of the table.
      max_distance: distance from which on all share the last bucket.
    """

    init_std: float = 0.02
    num_buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        require(self.init_std > 0, "init_std", self.init_std, "a positive number")
        accepted = "an even integer of at least 4"
        require(self.num_buckets >= 4 and self.num_buckets % 2 == 0, "num_buckets", self.num_buckets, accepted)
        accepted = f"an integer above num_buckets ({self.num_buckets})"
        require(self.max_distance > self.num_buckets, "max_distance", self.max_distance, accepted)

    def parameters(self, heads: int) -> dict[str, Parameter]:
        """Declares the table [buckets, H]."""
        return {"table": Parameter((self.num_buckets, heads), (None, None), multiplies=False)}


POSITIONS: dict[str, type[Positions]] = {"none": NoPositions, "rope": Rope, "t5": T5Bias}

AnyPositions = Annotated[Positions, Kinds(POSITIONS)]


def rotary_angles(positions: Int[Array, "B S"], width: int, theta: float) -> RotaryAngles:
    """Computes cosine and sine of each position times each of the width / 2 = M frequencies, in float32.

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
    """Turns each head by its position (Su et al. 2021, equation 34), the first half against the second.

    Args:
      x: queries or keys.
      angles: the result of `rotary_angles`.
    """
    cos, sin = (table.astype(x.dtype) for table in angles)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def relative_bucket(
    distance: Int[Array, "*shape"], causal: bool, num_buckets: int = 32, max_distance: int = 128
) -> Int[Array, "*shape"]:
    """Returns T5's bucket of a distance back: exact when near, logarithmic up to `max_distance`, then the last.

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
    """The module of `T5Bias`.

    Attributes:
      positions: its kind.
      heads: H.
      causal: whether only earlier tokens are seen.
    """

    positions: T5Bias
    heads: int
    causal: bool = True

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "1 H S S"]:
        """Returns the bias of each pair of tokens in a sequence of S = `length`."""
        kind = self.positions
        shape = kind.parameters(self.heads)["table"].shape
        table = self.param("table", nn.initializers.normal(kind.init_std), shape, jnp.float32)
        place = jnp.arange(length, dtype=jnp.int32)
        distance = place[:, None] - place[None, :]
        buckets = relative_bucket(distance, self.causal, kind.num_buckets, kind.max_distance)
        return table[buckets].transpose(2, 0, 1)[None]
