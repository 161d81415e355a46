"""What one expert computes, written once over a `matmul`: of batches, of groups, or of one expert.

D model width, F expert width.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Matmul = Callable[[Float[Array, "..."], Float[Array, "..."]], Float[Array, "..."]]
# "up" and, if gated, "gate" [..., D, F]; "down" [..., F, D]; vectors of a network as matrices of one row.
Weights = Mapping[str, Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class FFNKind:
    """A two-layer network: down(unit(up(x))), or with a gate, down(unit(gate(x), up(x))).

    Attributes:
      unit: from the first layer to the hidden values.
      gated: whether the first layer has two matrices.
      biased: whether every product has a bias, "gate_bias", "up_bias" [..., 1, F] and "down_bias" [..., 1, D].
      scaled: whether hidden values are multiplied by a vector, "hidden_scale" [..., 1, F].
    """

    unit: Callable[..., Float[Array, "..."]]
    gated: bool
    biased: bool = False
    scaled: bool = False

    def shapes(self, model_dim: int, expert_dim: int) -> dict[str, tuple[int, int]]:
        """Name and shape of each weight of one network of D = `model_dim` and F = `expert_dim`."""
        shapes = {"gate": (model_dim, expert_dim)} if self.gated else {}
        shapes |= {"up": (model_dim, expert_dim), "down": (expert_dim, model_dim)}
        if self.biased:
            shapes |= {f"{name}_bias": (1, width) for name, (_, width) in shapes.items()}
        return shapes | ({"hidden_scale": (1, expert_dim)} if self.scaled else {})


def _gelu_exact(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.nn.gelu(x, approximate=False)


def _clamped_swiglu(gate: Float[Array, "..."], up: Float[Array, "..."]) -> Float[Array, "..."]:
    """gpt-oss's unit: gate at most 7, up between -7 and 7, (up + 1) * gate * sigmoid(1.702 * gate)."""
    gate, up = jnp.minimum(gate, 7.0), jnp.clip(up, -7.0, 7.0)
    return (up + 1.0) * gate * jax.nn.sigmoid(1.702 * gate)


FFN_KINDS: dict[str, FFNKind] = {
    "relu": FFNKind(jax.nn.relu, gated=False),
    "gelu": FFNKind(_gelu_exact, gated=False),
    "swiglu": FFNKind(lambda gate, up: jax.nn.silu(gate) * up, gated=True),
    "geglu": FFNKind(lambda gate, up: _gelu_exact(gate) * up, gated=True),
    # gpt-oss (OpenAI 2025).
    "gpt_oss": FFNKind(_clamped_swiglu, gated=True, biased=True),
    # With ST-MoE's multiplicative bias (Zoph et al. 2022, table 17).
    "geglu_scaled": FFNKind(lambda gate, up: _gelu_exact(gate) * up, gated=True, scaled=True),
}


def feed_forward(x: Float[Array, "... D"], weights: Weights, kind: FFNKind, matmul: Matmul) -> Float[Array, "... D"]:
    """Applies a network of `kind`; `matmul(x, w)` says which rows of x meet which expert's matrix."""
    ones = jnp.ones((*x.shape[:-1], 1), x.dtype) if kind.biased or kind.scaled else None

    def project(rows: Float[Array, "..."], name: str) -> Float[Array, "..."]:
        product = matmul(rows, weights[name])
        return product + matmul(ones, weights[f"{name}_bias"]) if kind.biased else product

    first = [project(x, name) for name in (("gate", "up") if kind.gated else ("up",))]
    hidden = kind.unit(*first)
    if kind.scaled:
        hidden *= matmul(ones, weights["hidden_scale"])
    return project(hidden, "down")
