"""The network that an expert is, written once for batched products, grouped products and those of one expert.

D model width, F expert width, N output width: D, or F for a linear network.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.runtime.parameters import Parameter
from moe_jax.runtime.remat import saveable

FFNParams = Mapping[str, Float[Array, "..."]]
"""Parameters of one network, or of several with an axis for them in front.

"up" and, if gated, "gate" [..., D, F]; "down" [..., F, D]; for a linear network "map" [..., D, F]. Vectors are matrices
of one row.
"""


# The start of the name of a parameter with an axis for experts, within its layer.
EXPERTS = "experts_"

# The mesh axes that divide the dimensions of a network's matrices, and the last one of experts' vectors.
MATRIX_AXES: dict[str, tuple[str | None, str | None]] = {
    "gate": ("fsdp", "tensor"),
    "up": ("fsdp", "tensor"),
    "down": ("tensor", "fsdp"),
    "map": ("fsdp", None),
}
EXPERT_VECTOR_AXES = {"gate_bias": "tensor", "up_bias": "tensor", "down_bias": "fsdp", "hidden_scale": "tensor"}


@dataclasses.dataclass(frozen=True)
class FFNKind:
    """A network of two layers, down(unit(up(x))) or gated down(unit(gate(x), up(x))), or of one matrix, map(x).

    Attributes:
      unit: function from the products of the first layer to the hidden values.
      gated: whether the first layer has two matrices.
      biased: whether every product has a bias, "gate_bias", "up_bias" [..., 1, F] and "down_bias" [..., 1, D].
      scaled: whether hidden values are multiplied by a vector, "hidden_scale" [..., 1, F].
      linear: whether it is one matrix from D to F; the other attributes then do not matter.
    """

    unit: Callable[..., Float[Array, "..."]]
    gated: bool
    biased: bool = False
    scaled: bool = False
    linear: bool = False

    def shapes(self, model_dim: int, expert_dim: int) -> dict[str, tuple[int, int]]:
        """Returns the name and shape of each parameter of one network with D = `model_dim` and F = `expert_dim`."""
        if self.linear:
            return {"map": (model_dim, expert_dim)}
        shapes = {"gate": (model_dim, expert_dim)} if self.gated else {}
        shapes |= {"up": (model_dim, expert_dim), "down": (expert_dim, model_dim)}
        if self.biased:
            shapes |= {f"{name}_bias": (1, width) for name, (_, width) in shapes.items()}
        return shapes | ({"hidden_scale": (1, expert_dim)} if self.scaled else {})

    def parameters(self, model_dim: int, hidden_dim: int, num_experts: int | None = None) -> dict[str, Parameter]:
        """Declares the parameters of one network, or of `num_experts` as `experts_NAME` with an axis for them in front.

        Args:
          model_dim: D.
          hidden_dim: F, the width of hidden values; for a linear network the width of its results.
          num_experts: E; None for one network.
        """
        parameters = {}
        for name, shape in self.shapes(model_dim, hidden_dim).items():
            matrix = name in MATRIX_AXES
            if num_experts is None:
                axes = MATRIX_AXES[name] if matrix else (None, None)
                parameters[name] = Parameter(shape, axes, matrix)
            else:
                parameters[EXPERTS + name] = Parameter((num_experts, *shape), expert_axes(name), matrix)
        return parameters


def expert_axes(name: str) -> tuple[str | None, ...]:
    """Returns the mesh axis that divides each dimension of the experts' parameter `name`; None for an undivided one."""
    return ("expert", *(MATRIX_AXES[name] if name in MATRIX_AXES else (None, EXPERT_VECTOR_AXES[name])))


def _gelu_exact(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jax.nn.gelu(x, approximate=False)


def _clamped_swiglu(gate: Float[Array, "..."], up: Float[Array, "..."]) -> Float[Array, "..."]:
    """Computes gpt-oss's unit: (up + 1) * gate * sigmoid(1.702 * gate), with gate at most 7 and up from -7 to 7."""
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

LINEAR = FFNKind(lambda x: x, gated=False, linear=True)
"""The network of experts that take the place of a projection; it is no feed-forward network."""

EXPERT_KINDS: dict[str, FFNKind] = FFN_KINDS | {"linear": LINEAR}
"""The networks that experts may be, by name."""


class Products(NamedTuple):
    """The matrix products of a network, by functions that bring rows and the matrices of their experts together.

    Attributes:
      rows: x -> the rows that meet matrices.
      into: (x, matrices) -> for each matrix, its product with these rows.
      out: pairs of rows and a matrix -> the sum of their products.
    """

    rows: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    into: Callable[[Float[Array, "..."], tuple[Float[Array, "..."], ...]], tuple[Float[Array, "..."], ...]]
    out: Callable[[tuple[tuple[Float[Array, "..."], Float[Array, "..."]], ...]], Float[Array, "..."]]


def products_by(matmul: Callable[[Float[Array, "..."], Float[Array, "..."]], Float[Array, "..."]]) -> Products:
    """Makes the products of one function `matmul(x, w)`: batched, or of one expert."""

    def out(pairs: tuple[tuple[Float[Array, "..."], Float[Array, "..."]], ...]) -> Float[Array, "..."]:
        first, *others = (matmul(x, w) for x, w in pairs)
        return sum(others, start=first)

    return Products(lambda x: x, lambda x, ws: tuple(matmul(x, w) for w in ws), out)


def feed_forward(
    x: Float[Array, "... D"],
    params: FFNParams,
    kind: FFNKind,
    products: Products,
    row_weight: Float[Array, "..."] | None = None,
) -> Float[Array, "... N"]:
    """Applies a network, or several.

    Args:
      x: inputs.
      params: parameters of one network or of several.
      kind: the network.
      products: the matrix products.
      row_weight: float32 factor of each row's output; None is 1. It is applied to the hidden values, which are stored
        anyway, so that the outputs of single experts need not be stored for its gradient.
    """
    if kind.linear:
        hidden = products.rows(x)
        factor = 1.0 if row_weight is None else row_weight[..., None].astype(hidden.dtype)
        return products.out(((hidden * factor, params["map"]),))
    ones = jnp.ones((*x.shape[:-1], 1), x.dtype) if kind.biased or kind.scaled else None
    names = ("gate", "up") if kind.gated else ("up",)
    first = products.into(x, tuple(params[name] for name in names))
    if kind.biased:
        biases = products.into(ones, tuple(params[f"{name}_bias"] for name in names))
        first = tuple(product + bias for product, bias in zip(first, biases, strict=True))
    hidden = kind.unit(*(saveable(product, "ffn_inner") for product in first))
    if kind.scaled:
        (scale,) = products.into(ones, (params["hidden_scale"],))
        hidden *= scale
    factor = None if row_weight is None else row_weight[..., None].astype(hidden.dtype)
    pairs = [(saveable(hidden if factor is None else hidden * factor, "ffn_hidden"), params["down"])]
    if kind.biased:
        column = jnp.ones((*hidden.shape[:-1], 1), hidden.dtype) if factor is None else factor
        pairs.append((column, params["down_bias"]))
    return products.out(tuple(pairs))
