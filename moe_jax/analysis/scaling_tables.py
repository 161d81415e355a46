"""Tables of losses for fits of scaling laws: from a CSV file, or from the results of a study."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moe_jax.analysis.scaling_laws import LAWS, Columns
from moe_jax.configuration import ConfigError, require, require_name
from moe_jax.results.rows import Row, final_loss, read_rows, require_comparable

VARIABLES = {
    "N": "parameters without embeddings",
    "E": "experts per sparse layer, 1 for a dense model",
    "G": "granularity",
    "D": "tokens of training",
    "loss": "nats per token",
}


def read_losses(path: Path) -> pd.DataFrame:
    """Reads a table with a row for each run, from a CSV file with a header or from a study's `results.jsonl`.

    Lines of a CSV file that begin with # are comments. The rows of a study give
      N      active parameters without embeddings, output projection and routers: a sparse model has the N of its dense
             twin (Clark et al. 2022),
      N_all  N with all experts (the N of Krajewski et al. 2024),
      E      experts of a sparse layer; 1 for a dense model,
      G      width of the dense network over that of an expert; 1 for a dense model,
      D      tokens of training,
      loss   validation loss after the last step, in nats per token,
      seed   seed of the run.

    Raises:
      ConfigError: no such file, or it is not a table of losses.
    """
    require(path.is_file(), "TABLE", str(path), "a file: CSV, or the results.jsonl of a study")
    if path.suffix == ".jsonl":
        rows = read_rows(path)
        require(bool(rows), "TABLE", str(path), "a table with at least one row")
        try:
            require_comparable(rows)
            return pd.DataFrame([_run(row) for row in rows])
        except KeyError as error:
            raise ConfigError(
                f"TABLE is {str(path)!r}, which has a row without {error}; accepted: the results.jsonl of a study"
            ) from error
    try:
        return pd.read_csv(path, comment="#", skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"TABLE is {str(path)!r}; accepted: CSV with a header, or results.jsonl; {reason}") from error


def choose_law(table: pd.DataFrame) -> str:
    """Chooses the law with the most variables whose coefficients the table determines."""
    order = ("routed", "bilinear", "experts", "fine_grained", "dense", "power")
    several = {name: table[name].nunique() for name in VARIABLES if name in table}
    for name in order:
        law = LAWS[name]
        enough = all(several.get(column, 0) >= count for column, count in law.columns.items())
        if enough and len(table) > len(law.coefficients) and not _unexplained(table, name):
            return name
    found = ", ".join(f"{count} of {name}" for name, count in several.items()) or "none of them"
    raise ConfigError(
        f"TABLE has {len(table)} rows with distinct values {found}; accepted: a table with loss and several values of "
        "N, of E, of both, of N and D, or of N, D and G"
    )


def law_columns(table: pd.DataFrame, law: str) -> Columns:
    """Returns the law's columns and `loss`, as floats.

    Raises:
      ConfigError: no such law; a column is missing or has an impossible value; too few rows, or too few distinct values
        in a column, for the law's coefficients; or experts or granularity differ and are no variables of the law.
    """
    require_name(law, LAWS, "law")
    formula = LAWS[law]
    columns = {name: _numbers(table, name) for name in (*formula.columns, "loss")}
    if law == "fine_grained" and "N_all" in table:
        columns["N"] = _numbers(table, "N_all")
    least = len(formula.coefficients) + 1
    require(
        len(table) >= least, "rows of TABLE", len(table), f"at least {least} with law {law!r}, which has {least - 1}"
    )
    for name, count in formula.columns.items():
        distinct = len(np.unique(columns[name]))
        require(distinct >= count, f"distinct {name} of TABLE", distinct, f"at least {count} with law {law!r}")
    for name, values in _unexplained(table, law).items():
        raise ConfigError(f"{name} is {values}; accepted: a single value with law {law!r}, which has no {name}")
    return columns


def _unexplained(table: pd.DataFrame, law: str) -> dict[str, str]:
    """Returns the first values of each column that differs between models and is no variable of the law."""
    unknown = [name for name in ("E", "G") if name in table and name not in LAWS[law].columns]
    if law == "experts" and "N" in table:
        unknown.append("N")
    found = {name: table[name].drop_duplicates().tolist() for name in unknown}
    return {name: ", ".join(f"{value:g}" for value in values[:4]) for name, values in found.items() if len(values) > 1}


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    if name not in table:
        raise ConfigError(
            f"{name} is not a column of TABLE, which has {', '.join(map(str, table))}; {name} is {VARIABLES[name]}"
        )
    values = pd.to_numeric(table[name], errors="coerce").to_numpy(float)
    least, accepted = (1.0, "a number of at least 1") if name in ("E", "G") else (0.0, "a positive number")
    good = np.isfinite(values) & ((values >= least) if least else (values > 0))
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise ConfigError(f"{name} is {table[name].iloc[row]} in row {row + 1} of TABLE; accepted: {accepted}")
    return values


def _run(row: Row) -> dict[str, float]:
    """Makes a row of the table from a run of a study."""
    model, count = row["config"]["model"], row["parameters"]
    moe = model["moe"] if model["moe_layers"] else None
    network = count["network"] if "network" in count else _network_parameters(model, count["active"])
    return {
        "N": float(network),
        "N_all": float(network + count["total"] - count["active"]),
        "E": float(moe["num_experts"]) if moe else 1.0,
        "G": model["ffn_dim"] / (moe["expert_dim"] or model["ffn_dim"]) if moe else 1.0,
        "D": float(row["curve"][-1]["tokens"]),
        "loss": final_loss(row),
        "seed": row["seed"],
    }


def _network_parameters(model: Mapping[str, Any], active: int) -> int:
    """Computes N of a decoder with routers that are matrices [D, E], for a row whose `parameters` do not count it."""
    vocabulary = model["vocab_size"] * model["model_dim"] * (1 if model["tie_embeddings"] else 2)
    routers = len(model["moe_layers"]) * model["model_dim"] * model["moe"]["num_experts"] if model["moe_layers"] else 0
    return active - vocabulary - routers
