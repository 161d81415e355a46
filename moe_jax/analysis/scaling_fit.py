"""Scaling laws fitted to losses, robustly and with intervals."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats
from scipy.optimize import OptimizeResult, least_squares, lsq_linear
from tqdm import tqdm

from moe_jax.analysis.scaling_laws import LAWS, Coefficients, Columns, Law
from moe_jax.analysis.scaling_tables import law_columns
from moe_jax.configuration import require

HUBER = 0.01
"""The residual in log10 L, 2.3% of the loss, above which a run's pull on the fit no longer grows."""

LARGEST = 1e9
"""Positive coefficients stay between 1 / LARGEST and LARGEST. An interval that ends there has no end in the data."""

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A value, or an array of values, and the ends of its 95% interval."""

    value: Float[np.ndarray, "*n"]
    low: Float[np.ndarray, "*n"]
    high: Float[np.ndarray, "*n"]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law with the coefficients that a table of losses gives it.

    Attributes:
      name: of the law, in LAWS.
      coefficients: by name.
      resampled: the coefficients of each bootstrap sample.
      residuals: log10 of the table's losses less that of the law's.
    """

    name: str
    coefficients: Coefficients
    resampled: tuple[Coefficients, ...]
    residuals: Float[np.ndarray, " runs"]

    @property
    def law(self) -> Law:
        """The formula."""
        return LAWS[self.name]

    @property
    def rmse(self) -> float:
        """Root of the mean squared residual, in log10 L."""
        return float(np.sqrt(np.mean(self.residuals**2)))

    def loss(self, columns: Columns) -> Quantity:
        """The law's loss for each row of `columns`; the interval is of the curve, not of a further run."""
        return self.quantity(lambda coefficients: 10.0 ** self.law.log_loss(coefficients, columns))

    def quantity(self, of: Callable[[Coefficients], Float[np.ndarray, "*n"] | float]) -> Quantity:
        """What `of` makes of the coefficients, with its percentile interval.

        The percentiles are those that Student's t asks for, so that few rows give a wide interval (Hesterberg 2015,
        "What teachers should know about the bootstrap", section 5).
        """
        values = np.array([of(coefficients) for coefficients in self.resampled], float)
        tail = stats.norm.cdf(stats.t.ppf((1 - LEVEL) / 2, len(self.residuals) - len(self.coefficients)))
        # Between a finite and an infinite sample there is nothing to interpolate.
        method = "linear" if np.isfinite(values).all() else "nearest"
        low, high = np.quantile(values, [tail, 1 - tail], axis=0, method=method)
        return Quantity(np.asarray(of(self.coefficients), float), np.asarray(low), np.asarray(high))


def fit_law(table: pd.DataFrame, law: str, bootstrap: int = 200, seed: int = 0, progress: bool = False) -> Fit:
    """Fits a law by Huber's loss of the residuals in log10 L, from several starts.

    Intervals come from the bootstrap of residuals: the law's losses with residuals drawn again are fitted anew. Runs
    are not drawn, because a table is a designed grid, of which a sample of runs would lose whole sizes; so no
    replicates are needed, and those there are count as further runs. It takes the law for true and the residuals for
    independent; `moe_jax.analysis.scaling_report.shared_errors` says where they are not.

    Args:
      table: a row for each run, with the law's columns and `loss` in nats per token.
      law: a name in `moe_jax.analysis.scaling_laws.LAWS`.
      bootstrap: samples for the intervals, at least 40, so that one of them is in each tail.
      seed: of the samples.
      progress: show a bar if it takes long.

    Raises:
      ConfigError: `bootstrap` or `seed` is out of range, or the table cannot determine the law; see `law_columns`.
    """
    require(bootstrap >= 40, "bootstrap", bootstrap, "an integer of at least 40")
    require(seed >= 0, "seed", seed, "an integer of at least 0")
    columns = law_columns(table, law)
    formula, observed = LAWS[law], np.log10(columns["loss"])
    starts = [_start(formula, columns, shape) for shape in itertools.product(*formula.shape.values())]
    best = min((_minimize(formula, columns, observed, start) for start in starts), key=lambda solution: solution.cost)
    coefficients = _decode(formula, best.x)
    fitted = formula.log_loss(coefficients, columns)
    residuals = observed - fitted
    # A fit leaves smaller residuals than the noise: it has as many fewer degrees of freedom as coefficients.
    spread = np.sqrt(len(observed) / (len(observed) - len(coefficients))) * (residuals - residuals.mean())
    random = np.random.default_rng(seed)
    resampled = tuple(
        _decode(formula, _minimize(formula, columns, fitted + random.choice(spread, len(spread)), best.x).x)
        for _ in tqdm(range(bootstrap), "Bootstrap", delay=1, leave=False, unit=" fits", disable=not progress)
    )
    return Fit(law, coefficients, resampled, residuals)


def _start(law: Law, columns: Columns, shape: tuple[float, ...]) -> Float[np.ndarray, " coefficients"]:
    """From where to search with given coefficients within the terms: those of the terms by linear least squares."""
    names = dict(zip(law.shape, shape, strict=True))
    terms = np.stack(law.terms(names, columns), axis=1)
    if law.logarithmic:
        linear = np.linalg.lstsq(terms, np.log10(columns["loss"]))[0]
    else:
        relative = terms / columns["loss"][:, None]
        scale = np.linalg.norm(relative, axis=0)
        found = lsq_linear(relative / scale, np.ones(len(relative)), bounds=(1e-6, np.inf)).x / scale
        linear = np.log(np.clip(found, 2 / LARGEST, LARGEST / 2))
    previous = np.array([0.0, *shape[:-1]]) if law.increasing else 0.0
    return np.concatenate([linear, np.log(np.asarray(shape) - previous)])


def _decode(law: Law, x: Float[np.ndarray, " coefficients"]) -> dict[str, float]:
    """Coefficients from what is searched: logarithms of those that are positive, or of what one has over another."""
    linear, shape = x[: len(law.linear)], np.exp(x[len(law.linear) :])
    if not law.logarithmic:
        linear = np.exp(linear)
    if law.increasing:
        shape = np.cumsum(shape)
    return dict(zip(law.coefficients, np.concatenate([linear, shape]).tolist(), strict=True))


def _minimize(
    law: Law, columns: Columns, observed: Float[np.ndarray, " runs"], start: Float[np.ndarray, " coefficients"]
) -> OptimizeResult:
    """scipy's solution for `observed` log10 losses."""
    limit = np.full(len(start), np.log(LARGEST))
    if law.logarithmic:
        limit[: len(law.linear)] = np.inf
    return least_squares(
        lambda x: law.log_loss(_decode(law, x), columns) - observed,
        np.clip(start, -limit, limit),
        bounds=(-limit, limit),
        loss="huber",
        f_scale=HUBER,
        x_scale="jac",
        max_nfev=400,
    )
