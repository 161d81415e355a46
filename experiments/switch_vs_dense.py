"""Dense against Switch at equal FLOPs per token, on real text: which model reaches which loss when.

The headline comparison of Fedus et al. 2021 (section 3.1): the same decoder with dense feed-forward layers, and with
every other one a Switch layer of 4, 16 and 64 experts, on the same data with the same seeds.

    python -m experiments.switch_vs_dense                      # three seeds, about 10 minutes each
    python -m experiments.switch_vs_dense --preset quick       # for a look, under 2 minutes once the text is prepared
    python -m experiments.switch_vs_dense --preset gpu         # larger, bfloat16, on one GPU

Interrupted, the same command goes on where it stopped. Each seed fixes the order of the data and the start of all that
the models share, so models are compared pair by pair.
"""

import sys

from configs.gpu import switch_vs_dense as gpu
from configs.laptop import switch_vs_dense as laptop
from moe_jax.reports.comparison import headline, write_report
from moe_jax.runtime.host_memory import keep_freed_memory
from moe_jax.study.run import run_study
from moe_jax.study.study import Finished, Model, Preset, Study

TITLE = "Dense against Switch at equal FLOPs per token"


def report(finished: Finished) -> str:
    """Writes the report and returns its headline."""
    path = write_report(finished.rows, finished.directory, title=TITLE, command=finished.command)
    return f"{headline(finished.rows)}\n\nReport: {path}"


STUDY = Study(
    name="switch_vs_dense",
    models=tuple(Model(name, name, baseline="dense") for name in laptop.EXPERTS),
    presets={
        "quick": Preset(laptop.get_quick_config, 1, models=("dense", "switch-16")),
        "laptop": Preset(laptop.get_config, 3),
        "gpu": Preset(gpu.get_config, 3),
    },
    report=report,
    jobs=1,
)

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(run_study(STUDY, __doc__))
