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

from configs.gpu import compare_routers as gpu
from configs.laptop import compare_routers as laptop
from moe_jax.reports.routers import write_router_report
from moe_jax.runtime.host_memory import keep_freed_memory
from moe_jax.study.run import run_study
from moe_jax.study.study import Finished, Model, Preset, Study

BASELINES = {"causal": "dense", "masked": "masked/dense"}
"""The dense model of each task."""
BALANCED = {"switch-unbalanced": "switch", "top_k-unbalanced": "top_k", "deepseek-unbalanced": "deepseek"}
"""Variants without balancing, and their twins with it."""


def report(finished: Finished) -> str:
    """Writes the report and returns where it is."""
    path = write_router_report(
        finished.groups, finished.router_times, finished.directory, finished.command, balanced=BALANCED
    )
    return f"Report: {path}"


STUDY = Study(
    name="compare_routers",
    models=tuple(
        Model(key, kind.variant, baseline=BASELINES[kind.task], group=kind.task) for key, kind in laptop.MODELS.items()
    ),
    presets={
        "quick": Preset(laptop.get_quick_config, 1),
        "laptop": Preset(laptop.get_config, 3),
        "gpu": Preset(gpu.get_config, 3),
    },
    report=report,
    jobs=1,
    times_routers=True,
    chooser="routers",
)

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(run_study(STUDY, __doc__))
