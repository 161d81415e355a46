"""Tables of losses that follow a law but for noise."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from moe_jax.analysis.scaling_laws import LAWS

CLARK_TABLE = Path(__file__).parents[2] / "experiments/data/clark_2022.csv"
OUR_RESULTS = Path(__file__).parents[2] / "experiments/results/switch_vs_dense/results.jsonl"

S_BASE = LAWS["routed"].published["S-BASE"]
FINE_GRAINED = LAWS["fine_grained"].published["Krajewski"]
CLARK_SIZES = {"N": [15e6, 25e6, 55e6, 130e6, 370e6, 870e6, 1.3e9], "E": [2.0**i for i in range(10)]}
KRAJEWSKI_SIZES = {
    "N": [129e6, 350e6, 800e6, 1.6e9, 3.7e9],
    "D": [16e9, 33e9, 66e9, 130e9],
    "G": [1.0, 2.0, 4.0, 8.0, 16.0],
}
TRUTHS = {
    "routed": (S_BASE, CLARK_SIZES),
    "bilinear": ({"a": -0.08, "b": -0.1, "c": 0.01, "d": 1.1}, {"N": [1e6, 4e6, 16e6], "E": [1.0, 4.0, 16.0]}),
    "experts": ({"b": -0.03, "d": 0.6}, {"E": [1.0, 4.0, 16.0, 64.0]}),
    "fine_grained": (FINE_GRAINED, KRAJEWSKI_SIZES),
    "dense": (LAWS["dense"].published["Krajewski"], {name: KRAJEWSKI_SIZES[name] for name in "ND"}),
    "power": ({"a": -0.078, "d": 1.06}, {"N": CLARK_SIZES["N"]}),
}
"""By law: coefficients and the sizes of a grid."""


def losses(law: str, truth: Mapping[str, float], sizes: Mapping[str, list[float]], noise=0.0, seed=0) -> pd.DataFrame:
    """A run for each cell of the grid of sizes, each loss off by a normal factor of relative size `noise`."""
    table = pd.DataFrame(list(itertools.product(*sizes.values())), columns=list(sizes))
    exact = 10 ** LAWS[law].log_loss(truth, {name: table[name].to_numpy() for name in sizes})
    return table.assign(loss=exact * np.exp(noise * np.random.default_rng(seed).standard_normal(len(table))))
