"""Scaling laws: formulas for a model's loss by its size, its experts and its training.

N parameters without embeddings, E experts per sparse layer (1: a dense model), G granularity (width of the dense
network over that of an expert), D tokens of training, L loss in nats per token.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

Coefficients = Mapping[str, float]
Columns = Mapping[str, Float[np.ndarray, " runs"]]


@dataclasses.dataclass(frozen=True)
class Law:
    """A formula for log10 L or L: a sum of terms, each with a coefficient.

    Attributes:
      formula: the formula as text.
      paper: the paper that the law is from.
      columns: variables of the law, with the number of distinct values of each that determines its coefficients.
      linear: names of the terms' coefficients.
      shape: names of the coefficients within the terms, all positive, with the starting values of fits.
      terms: function (coefficients of `shape`, columns) -> the terms, in the order of `linear`.
      logarithmic: true if the terms sum to log10 L; else they sum to L and their coefficients are positive.
      increasing: true if each coefficient of `shape` is larger than the one before.
      published: the papers' coefficients, by the name of the router or the authors.
    """

    formula: str
    paper: str
    columns: Mapping[str, int]
    linear: tuple[str, ...]
    shape: Mapping[str, tuple[float, ...]]
    terms: Callable[[Coefficients, Columns], tuple[Float[np.ndarray, " runs"], ...]]
    logarithmic: bool
    increasing: bool = False
    published: Mapping[str, Coefficients] = dataclasses.field(default_factory=dict)

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Names of all coefficients, those of the terms first."""
        return (*self.linear, *self.shape)

    def log_loss(self, coefficients: Coefficients, columns: Columns) -> Float[np.ndarray, " runs"]:
        """Computes log10 of the loss for each row of the columns."""
        terms = self.terms(coefficients, columns)
        total = sum(coefficients[name] * term for name, term in zip(self.linear, terms, strict=True))
        return total if self.logarithmic else np.log10(total)


def effective_experts(experts: Float[np.ndarray, "*n"], e_start: float, e_max: float) -> Float[np.ndarray, "*n"]:
    """Computes the saturating number of experts Ehat of Clark et al. 2022.

    Ehat is `e_start` for one expert, about E for a moderate number, and never above `e_max`.

    Args:
      experts: E, at least 1.
      e_start, e_max: limits of Ehat, 0 < e_start < e_max.
    """
    return 1.0 / (1.0 / (experts - 1.0 + 1.0 / (1.0 / e_start - 1.0 / e_max)) + 1.0 / e_max)


def effective_parameters(
    coefficients: Coefficients, parameters: Float[np.ndarray, "*n"], experts: Float[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n"]:
    """Computes the effective parameter count: the size of the dense model with the loss of N parameters and E experts.

    It solves L(Nbar, 1) = L(N, E) (Clark et al. 2022, section 4).

    Args:
      coefficients: coefficients of the law `routed` or `bilinear`.
      parameters: N.
      experts: E.
    """
    a, b, c = (coefficients[name] for name in "abc")
    sparse, dense = _log_experts(coefficients, experts), _log_experts(coefficients, np.ones_like(experts))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return 10.0 ** (((a + c * sparse) * np.log10(parameters) + b * (sparse - dense)) / (a + c * dense))


def cutoff_parameters(coefficients: Coefficients) -> float:
    """Computes the N from which more experts no longer lower the loss, 10 ** (-b / c); infinite if there is none.

    Args:
      coefficients: coefficients of the law `routed` or `bilinear`.
    """
    b, c = coefficients["b"], coefficients["c"]
    if c <= 0:
        return np.inf
    with np.errstate(over="ignore"):
        return float(np.power(10.0, -b / c))


def _log_experts(coefficients: Coefficients, experts: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """Computes log10 of Ehat, or of E with a law that does not saturate."""
    if "E_start" not in coefficients:
        return np.log10(experts)
    return np.log10(effective_experts(experts, coefficients["E_start"], coefficients["E_max"]))


def _bilinear(shape: Coefficients, x: Columns) -> tuple[Float[np.ndarray, " runs"], ...]:
    parameters, experts = np.log10(x["N"]), _log_experts(shape, x["E"])
    return parameters, experts, parameters * experts, np.ones_like(parameters)


def _fine_grained(shape: Coefficients, x: Columns) -> tuple[Float[np.ndarray, " runs"], ...]:
    by_size, by_tokens, constant = _dense(shape, x)
    return by_size, by_tokens, by_size * x["G"] ** -shape["gamma"], constant


def _dense(shape: Coefficients, x: Columns) -> tuple[Float[np.ndarray, " runs"], ...]:
    return x["N"] ** -shape["alpha"], x["D"] ** -shape["beta"], np.ones_like(x["N"])


CLARK = "Clark et al. 2022, Unified scaling laws for routed language models, arXiv:2202.01169"
KRAJEWSKI = "Krajewski et al. 2024, Scaling laws for fine-grained mixture of experts, arXiv:2402.07871"
EXPONENT = (0.1, 0.5)

LAWS = {
    "routed": Law(
        formula="log10 L = a log10 N + b log10 Ehat + c log10 N log10 Ehat + d, Ehat saturating at E_start and E_max",
        paper=CLARK,
        columns={"N": 2, "E": 4},
        linear=("a", "b", "c", "d"),
        shape={"E_start": (1.2, 4.0), "E_max": (50.0, 400.0, 10000.0)},
        terms=_bilinear,
        logarithmic=True,
        increasing=True,
        published={
            "S-BASE": {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "E_start": 1.847, "E_max": 314.478},
            "RL-R": {"a": -0.083, "b": -0.126, "c": 0.012, "d": 1.111, "E_start": 1.880, "E_max": 469.982},
            "HASH": {"a": -0.087, "b": -0.136, "c": 0.012, "d": 1.157, "E_start": 4.175, "E_max": 477.741},
        },
    ),
    "bilinear": Law(
        formula="log10 L = a log10 N + b log10 E + c log10 N log10 E + d",
        paper=CLARK,
        columns={"N": 2, "E": 2},
        linear=("a", "b", "c", "d"),
        shape={},
        terms=_bilinear,
        logarithmic=True,
    ),
    "experts": Law(
        formula="log10 L = b log10 E + d, at one N",
        paper=CLARK,
        columns={"E": 2},
        linear=("b", "d"),
        shape={},
        terms=lambda shape, x: (np.log10(x["E"]), np.ones_like(x["E"])),
        logarithmic=True,
    ),
    "fine_grained": Law(
        formula="L = c + (g / G^gamma + a) / N^alpha + b / D^beta",
        paper=KRAJEWSKI,
        columns={"N": 3, "D": 3, "G": 3},
        linear=("a", "b", "g", "c"),
        shape={"alpha": EXPONENT, "beta": EXPONENT, "gamma": EXPONENT},
        terms=_fine_grained,
        logarithmic=False,
        published={
            "Krajewski": {"a": 18.1, "b": 30.8, "g": 2.1, "c": 0.47, "alpha": 0.115, "beta": 0.147, "gamma": 0.58}
        },
    ),
    "dense": Law(
        formula="L = c + a / N^alpha + b / D^beta",
        paper=KRAJEWSKI,
        columns={"N": 3, "D": 3},
        linear=("a", "b", "c"),
        shape={"alpha": EXPONENT, "beta": EXPONENT},
        terms=_dense,
        logarithmic=False,
        published={"Krajewski": {"a": 16.3, "b": 26.7, "c": 0.47, "alpha": 0.126, "beta": 0.127}},
    ),
    "power": Law(
        formula="log10 L = a log10 N + d",
        paper=CLARK,
        columns={"N": 2},
        linear=("a", "d"),
        shape={},
        terms=lambda shape, x: (np.log10(x["N"]), np.ones_like(x["N"])),
        logarithmic=True,
    ),
}
"""The laws by name: Clark's with and without saturation, at one N, and at one E; Krajewski's with and without G."""
