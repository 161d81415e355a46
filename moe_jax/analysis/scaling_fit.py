"""Robust fits of scaling laws to losses, with bootstrap intervals."""

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
"""Threshold of Huber's loss: a residual in log10 L (2.3% of the loss) above which a run's pull no longer grows."""

LARGEST = 1e9
"""Bound of positive coefficients, from 1 / LARGEST to LARGEST. The data give no end to an interval that ends there."""

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A value or an array of values, with the ends of its 95% interval."""

    value: Float[np.ndarray, "*n"]
    low: Float[np.ndarray, "*n"]
    high: Float[np.ndarray, "*n"]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law with coefficients fitted to a table of losses.

    Attributes:
      name: name of the law in LAWS.
      coefficients: fitted coefficients by name.
      resampled: coefficients of each bootstrap sample.
      residuals: log10 of the table's losses minus log10 of the law's.
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
        """Returns the law's loss for each row of `columns`; the interval is of the curve, not of a further run."""
        return self.quantity(lambda coefficients: 10.0 ** self.law.log_loss(coefficients, columns))

    def quantity(self, of: Callable[[Coefficients], Float[np.ndarray, "*n"] | float]) -> Quantity:
        """Applies `of` to the coefficients; returns the result with its percentile interval.

        The percentiles are widened as Student's t is against the normal distribution, so that few rows give a wide
        interval (Hesterberg 2015, "What teachers should know about the bootstrap", section 5).
        """
        values = np.array([of(coefficients) for coefficients in self.resampled], float)
        tail = stats.norm.cdf(stats.t.ppf((1 - LEVEL) / 2, len(self.residuals) - len(self.coefficients)))
        # Between a finite and an infinite sample there is nothing to interpolate.
        method = "linear" if np.isfinite(values).all() else "nearest"
        low, high = np.quantile(values, [tail, 1 - tail], axis=0, method=method)
        return Quantity(np.asarray(of(self.coefficients), float), np.asarray(low), np.asarray(high))


def fit_law(table: pd.DataFrame, law: str, bootstrap: int = 200, seed: int = 0, progress: bool = False) -> Fit:
    """Fits a law by Huber's loss of the residuals in log10 L, from several starting points.

    Intervals come from a bootstrap of residuals: resampled residuals are added to the law's losses, and the law is
    fitted again. Runs are not resampled, because a table is a designed grid and a sample of runs would lose whole
    sizes. Replicates are not needed; they count as further runs. The method assumes that the law is true and the
    residuals independent; `moe_jax.analysis.scaling_report.shared_errors` tests the second.

    Args:
      table: a row for each run, with the law's columns and `loss` in nats per token.
      law: a name in `moe_jax.analysis.scaling_laws.LAWS`.
      bootstrap: number of samples for the intervals, at least 40, so that at least one lies in each tail.
      seed: seed of the samples.
      progress: shows a progress bar if fitting takes long.

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
    # Residuals are smaller than the noise: each coefficient takes one degree of freedom.
    spread = np.sqrt(len(observed) / (len(observed) - len(coefficients))) * (residuals - residuals.mean())
    random = np.random.default_rng(seed)
    resampled = tuple(
        _decode(formula, _minimize(formula, columns, fitted + random.choice(spread, len(spread)), best.x).x)
        for _ in tqdm(range(bootstrap), "Bootstrap", delay=1, leave=False, unit=" fits", disable=not progress)
    )
    return Fit(law, coefficients, resampled, residuals)


def _start(law: Law, columns: Columns, shape: tuple[float, ...]) -> Float[np.ndarray, " coefficients"]:
    """Makes a starting point: given `shape` coefficients, linear least squares gives the coefficients of the terms."""
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
    """Inverts the parametrisation of the search: logarithms of positive coefficients, or of their differences."""
    linear, shape = x[: len(law.linear)], np.exp(x[len(law.linear) :])
    if not law.logarithmic:
        linear = np.exp(linear)
    if law.increasing:
        shape = np.cumsum(shape)
    return dict(zip(law.coefficients, np.concatenate([linear, shape]).tolist(), strict=True))


def _minimize(
    law: Law, columns: Columns, observed: Float[np.ndarray, " runs"], start: Float[np.ndarray, " coefficients"]
) -> OptimizeResult:
    """Minimizes Huber's loss to `observed` log10 losses with scipy."""
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
