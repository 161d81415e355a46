"""Routers against each other under equal conditions, on real text: loss, balance, and what each costs.

One model, one corpus, the same seeds, the same active FLOPs per token, and, but for the dense models, the same number
of parameters: 8 * k experts of width 1 / k. A causal decoder for all that are causal, and an encoder that says what was
hidden for those that are not, with some of the others beside them.

    python -m experiments.compare_routers                       # three seeds
    python -m experiments.compare_routers --preset quick        # for a look
    python -m experiments.compare_routers --routers switch,top_k,deepseek
    python -m experiments.compare_routers --preset gpu          # larger, bfloat16, on one GPU

Interrupted, the same command goes on where it stopped. Each seed fixes the order of the data and the start of all that
models share, so every router is compared with the dense model seed by seed.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from configs.gpu import compare_routers as gpu
from configs.laptop import compare_routers as laptop
from moe_jax.configuration import ConfigError, require_name
from moe_jax.reports.routers import write_router_report
from moe_jax.reports.tables import format_table
from moe_jax.results.rows import Row
from moe_jax.runtime.host_memory import keep_freed_memory
from moe_jax.study.command_line import output_folder, study_parser
from moe_jax.study.router_times import time_routers
from moe_jax.study.sweep import run_sweep, seeded
from moe_jax.study.workers import train_here
from moe_jax.training.result import DivergenceError

# Those that see later tokens while they train, or always.
NONCAUSAL = ("expert_choice", "expert_choice-capped", "vmoe-batch", "base", "sinkhorn", "soft_moe")
CAUSAL = tuple(variant for variant in laptop.VARIANTS if variant not in NONCAUSAL)
MODELS = CAUSAL + tuple(f"masked/{variant}" for variant in ("dense", "switch", "top_k", "vmoe", *NONCAUSAL))


class Preset(NamedTuple):
    """A configuration for each model, and how many seeds."""

    get_config: Callable[[str], ConfigDict]
    seeds: int


PRESETS = {
    "quick": Preset(laptop.get_quick_config, 1),
    "laptop": Preset(laptop.get_config, 3),
    "gpu": Preset(gpu.get_config, 3),
}


def chosen_models(routers: str | None) -> tuple[str, ...]:
    """All of MODELS, or those of the variants named in a comma-separated list, with the dense models.

    Raises:
      ConfigError: there is no such variant.
    """
    if routers is None:
        return MODELS
    names = routers.split(",")
    for name in names:
        require_name(name, laptop.VARIANTS, "--routers")
    chosen = [model for model in MODELS if _variant(model) in names]
    baselines = {model.removesuffix(_variant(model)) + "dense" for model in chosen}
    return tuple(model for model in MODELS if model in baselines or model in chosen)


def _variant(model: str) -> str:
    return model.rpartition("/")[2]


def by_task(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows of the decoder and rows of the encoder, whose losses do not compare."""
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row["config"]["data"]["task"], []).append(row)
    return tasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study and returns the exit status."""
    parser = study_parser("compare_routers", __doc__, PRESETS)
    parser.add_argument("--routers", metavar="A,B,...", help=f"variants, default: all of {', '.join(laptop.VARIANTS)}")
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    seeds = options.seeds or preset.seeds
    output = output_folder("compare_routers", options)
    command = f"python -m experiments.compare_routers --preset {options.preset} --seeds {seeds}"
    command += f" --routers {options.routers}" if options.routers else ""
    try:
        configs = seeded(preset.get_config, chosen_models(options.routers), seeds)

        def show(rows: list[Row]) -> None:
            for task, part in by_task(rows).items():
                print(f"\n{task}\n{format_table(part)}")
            print(f"\n{len(rows)} of {len(configs)} runs\n", flush=True)

        rows = run_sweep(configs, output / "results.jsonl", output / "runs", train_here, show)
        times = time_routers([config for config in configs if config.seed == 0], output / "router_times.json")
        report = write_router_report(by_task(rows), times, output, command)
    except ConfigError as error:
        print(f"compare_routers: {error}", file=sys.stderr)
        return 2
    except DivergenceError as error:
        print(f"compare_routers: {error}", file=sys.stderr)
        return 1
    print(f"\nReport: {report}")
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
