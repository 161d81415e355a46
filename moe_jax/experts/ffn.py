"""What one expert computes, written once over a `matmul`: of batches, of groups, or of one expert.

D model width, F expert width.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
from jaxtyping import Array, Float

Matmul = Callable[[Float[Array, "..."], Float[Array, "..."]], Float[Array, "..."]]
# "up" and, if gated, "gate" [..., D, F]; "down" [..., F, D].
Weights = Mapping[str, Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class FFNKind:
    """A two-layer network: down(activation(up(x))), or with a gate, down(activation(gate(x)) * up(x))."""

    activation: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    gated: bool

    def shapes(self, model_dim: int, expert_dim: int) -> dict[str, tuple[int, int]]:
        """Name and shape of each weight of one network of D = `model_dim` and F = `expert_dim`."""
        inner = {"gate": (model_dim, expert_dim)} if self.gated else {}
        return inner | {"up": (model_dim, expert_dim), "down": (expert_dim, model_dim)}


def _gelu_exact(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.nn.gelu(x, approximate=False)


FFN_KINDS: dict[str, FFNKind] = {
    "relu": FFNKind(jax.nn.relu, gated=False),
    "gelu": FFNKind(_gelu_exact, gated=False),
    "swiglu": FFNKind(jax.nn.silu, gated=True),
    "geglu": FFNKind(_gelu_exact, gated=True),
}


def feed_forward(x: Float[Array, "... D"], weights: Weights, kind: FFNKind, matmul: Matmul) -> Float[Array, "... D"]:
    """Applies a network of `kind`; `matmul(x, w)` says which rows of x meet which expert's matrix."""
    if kind.gated:
        hidden = kind.activation(matmul(x, weights["gate"])) * matmul(x, weights["up"])
    else:
        hidden = kind.activation(matmul(x, weights["up"]))
    return matmul(hidden, weights["down"])
