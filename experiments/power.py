"""The power of a study: what its seeds can show of each model against its baseline, and what more would take.

    python -m experiments.power switch_vs_dense                       # from the committed results
    python -m experiments.power experts --results runs/pilot/experts  # from a pilot's
    python -m experiments.power experts --protocol laptop             # where its runs depart from the protocol

The spread is the standard deviation over seeds of the difference paired by seed, pooled over all models of a study that
are compared with one baseline. Detectable is the difference that the study's seeds find with 80% power at 5%; the seeds
of the last columns find the difference that was measured. Minutes are those of the runs of these seeds, one after the
other, of the model and its baseline.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import compare_routers, glam, switch_vs_dense
from experiments.switch_transformer import studies
from moe_jax.commands.printing import print_table
from moe_jax.configuration import ConfigError, require, require_name
from moe_jax.data.pipeline import load_text
from moe_jax.results.measures import differences, diverged
from moe_jax.results.rows import ARM, Row, read_study
from moe_jax.statistics.power import detectable_effect, pooled_spread, seeds_needed
from moe_jax.study.protocol import departures
from moe_jax.study.selection import select_runs
from moe_jax.study.study import Study

RESULTS = Path(__file__).parent / "results"
STUDIES = {study.name: study for study in (switch_vs_dense.STUDY, compare_routers.STUDY, glam.STUDY, *studies.STUDIES)}
COLUMNS = ("task", "model", "baseline", "seeds", "difference", "spread", "detectable", "seeds needed", "minutes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the power of one study and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", metavar="STUDY", help=f"one of {', '.join(STUDIES)}")
    parser.add_argument("--results", type=Path, help="folder of results.jsonl; default: the committed one")
    parser.add_argument("--protocol", metavar="PRESET", help="check the runs of a preset instead of reading results")
    parser.add_argument("--metric", default="loss", help="loss, routing.NAME or a score; default: loss")
    options = parser.parse_args(arguments)
    try:
        require_name(options.study, STUDIES, "STUDY")
        study = STUDIES[options.study]
        if options.protocol is not None:
            require_name(options.protocol, study.presets, "--protocol")
            print("\n".join(protocol_lines(study, options.protocol)))
            return 0
        folder = options.results or _committed(study)
        print_table([COLUMNS, *power_rows(study, folder, options.metric)])
    except ConfigError as error:
        print(f"power: {error}", file=sys.stderr)
        return 2
    return 0


def power_rows(study: Study, folder: Path, metric: str = "loss") -> list[list[str]]:
    """Returns the cells of the table, a row for each model with at least two seeds in common with its baseline.

    Raises:
      ConfigError: the folder holds no such runs of the study.
    """
    names = {model.key: model.name for model in study.models}
    pairs = dict.fromkeys((model.name, names[model.baseline]) for model in study.models if model.key != model.baseline)
    rows = []
    # Models of one name may run on several tasks.
    for task, runs in _by_task(read_study(folder)).items():
        samples = {}
        for pair in pairs:
            seeds = sorted(set.intersection(*(set(runs.get(name, ())) for name in pair)))
            if len(seeds) > 1:
                samples[pair] = differences(
                    {name: [runs[name][seed] for seed in seeds] for name in pair}, *pair, metric
                )
        for (name, baseline), values in samples.items():
            spread = pooled_spread([other for (_, of), other in samples.items() if of == baseline])
            mean = sum(values) / len(values)
            needed = seeds_needed(mean / spread) if spread else 2
            minutes = sum(_minutes(runs[one]) for one in (name, baseline))
            figures = f"{mean:+.4f}", f"{spread:.4f}", f"{spread * detectable_effect(len(values)):.4f}"
            cost = ("over 1000", "-") if needed is None else (str(needed), f"{needed * minutes:.0f}")
            rows.append([task, name, baseline, str(len(values)), *figures, *cost])
    accepted = f"a folder with two seeds or more of a model of {study.name} and its baseline"
    require(bool(rows), "--results", str(folder), accepted)
    return rows


def protocol_lines(study: Study, preset: str) -> list[str]:
    """Returns a line for each model of a preset: where it departs from the protocol of `moe_jax.study.protocol`."""
    lines, loaded = [], {}
    for entry in select_runs([study], preset, [study.name], seeds=1).tables[study.name]:
        if ARM not in entry.model.name:
            data = entry.named.data
            loaded[data] = loaded.get(data) or load_text(data)
            found = departures(entry.named, loaded[data])
            lines.append(f"{entry.model.name}: {'; '.join(found) or 'keeps the protocol'}")
    return lines


def _by_task(rows: Sequence[Row]) -> dict[str, dict[str, dict[int, Row]]]:
    """Returns the runs that ended with a loss by their task, model and seed."""
    found: dict[str, dict[str, dict[int, Row]]] = {}
    for row in rows:
        if not diverged(row):
            task = row["config"]["data"].get("task", "next_token")
            task = task if isinstance(task, str) else task["kind"]
            found.setdefault(task, {}).setdefault(row["name"], {})[row["seed"]] = row
    return found


def _committed(study: Study) -> Path:
    """Returns the folder of a study's committed results."""
    return next(path.parent for path in RESULTS.rglob("results.jsonl") if path.parent.name == study.name)


def _minutes(runs: dict[int, Row]) -> float:
    """Returns the minutes of a run of one model, compilation included, on average."""
    return sum(row["seconds"] + row["compile_seconds"] for row in runs.values()) / len(runs) / 60


if __name__ == "__main__":
    sys.exit(main())
