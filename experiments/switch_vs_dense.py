"""Dense against Switch at equal FLOPs per token, on real text: who reaches which loss when.

The headline comparison of Fedus et al. 2021 (section 3.1): the same decoder with dense feed-forward layers, and with
every other one a Switch layer of 4, 16 and 64 experts, on the same data with the same seeds.

    python -m experiments.switch_vs_dense                      # three seeds, about 10 minutes each
    python -m experiments.switch_vs_dense --preset quick       # for a look, under 2 minutes once the text is prepared
    python -m experiments.switch_vs_dense --preset gpu         # larger, bfloat16, on one GPU

Interrupted, the same command goes on where it stopped. Each seed fixes the order of the data and the start of all that
the models share, so models are compared pair by pair.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from configs.gpu import switch_vs_dense as gpu
from configs.laptop import switch_vs_dense as laptop
from moe_jax.configuration import ConfigError
from moe_jax.reports.comparison import headline, write_report
from moe_jax.reports.tables import format_table
from moe_jax.results.rows import Row
from moe_jax.runtime.host_memory import keep_freed_memory
from moe_jax.study.command_line import output_folder, study_parser
from moe_jax.study.sweep import run_sweep, seeded
from moe_jax.study.workers import train_here
from moe_jax.training.result import DivergenceError

TITLE = "Dense against Switch at equal FLOPs per token"


class Preset(NamedTuple):
    """Configurations by model name, which models, and how many seeds."""

    get_config: Callable[[str], ConfigDict]
    models: tuple[str, ...]
    seeds: int


PRESETS = {
    "quick": Preset(laptop.get_quick_config, ("dense", "switch-16"), 1),
    "laptop": Preset(laptop.get_config, ("dense", "switch-4", "switch-16", "switch-64"), 3),
    "gpu": Preset(gpu.get_config, ("dense", "switch-4", "switch-16", "switch-64"), 3),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study and returns the exit status."""
    parser = study_parser("switch_vs_dense", __doc__, PRESETS)
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    seeds = options.seeds or preset.seeds
    output = output_folder("switch_vs_dense", options)
    command = f"python -m experiments.switch_vs_dense --preset {options.preset} --seeds {seeds}"
    configs = seeded(preset.get_config, preset.models, seeds)

    def show(rows: list[Row]) -> None:
        print(f"\n{len(rows)} of {len(configs)} runs\n{format_table(rows)}\n", flush=True)

    try:
        rows = run_sweep(configs, output / "results.jsonl", output / "runs", train_here, show)
        report = write_report(rows, output, title=TITLE, command=command)
    except ConfigError as error:
        print(f"switch_vs_dense: {error}", file=sys.stderr)
        return 2
    except DivergenceError as error:
        print(f"switch_vs_dense: {error}", file=sys.stderr)
        return 1
    print(f"{headline(rows)}\n\nReport: {report}")
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
