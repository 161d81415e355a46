"""Dense against GLaM's mixtures at equal active FLOPs and parameters: quality, training energy, few-shot results.

The comparison of Du et al. 2021: decoders with dense feed-forward layers in three sizes, and the smaller two with
mixtures of 4, 16 and 64 experts in every other layer, the largest with 16, on the same data with the same seeds.

    python -m experiments.glam                      # ten models, three seeds or six
    python -m experiments.glam --preset quick       # for a look: two models, one seed
    python -m experiments.glam --preset gpu         # larger, bfloat16, on one GPU
    python -m experiments.glam --preset gpu --models dense-tiny glam-tiny-64 --set steps=5000

Interrupted, the same command goes on where it stopped: it trains, times and scores what is missing. Each seed fixes the
order of the data and the start of all that the models of a size share, so models are compared pair by pair. Energy is
what the machine counts, where it counts any, and the power of --watts by the seconds of a step.
"""

import sys

from configs.gpu import glam as gpu
from configs.laptop import glam as laptop
from moe_jax.reports.sizes import write_size_report
from moe_jax.runtime.host_memory import keep_freed_memory
from moe_jax.study.few_shot_scores import Questions
from moe_jax.study.run import run_study
from moe_jax.study.study import Finished, Model, Preset, Study

TITLE = "Dense against GLaM at equal active FLOPs and parameters"
PAPER = (
    "GLaM (Du et al. 2021) sets decoders with two of 64 experts per token in every other layer against dense ones and "
    "against GPT-3 (175 billion parameters). Its largest has 1.2 trillion parameters, of which a token uses 96.6 "
    "billion. It needs 180 billion FLOPs per token where GPT-3 needs 350, took 456 MWh to train where GPT-3 took 1287, "
    "and averages 62.7, 65.5 and 68.1 zero-, one- and few-shot over 29 tasks where GPT-3 averages 56.9, 61.6 and 65.2. "
    "At equal active parameters more experts are better in general, from 1 to 256 at 1.7 billion; the gain over dense "
    "models grows with scale; and fewer tokens give an equal score."
)

# With a line or two of context there is room for some solved examples in 128 tokens.
FEW_LINES = {"continuation": 1, "last_word": 2}
LAPTOP_WATTS = 15.0
"""Power that most laptops' processors are made to sustain."""
GPU_WATTS = 700.0
"""Power that an H100 or H200 may draw at most."""


def report(finished: Finished) -> str:
    """Writes the report and returns where it is."""
    path = write_size_report(
        finished.groups,
        finished.scores,
        finished.directory,
        title=TITLE,
        paper=PAPER,
        watts=finished.watts,
        counter=finished.energy_counter,
        command=finished.command,
    )
    return f"Report: {path}"


STUDY = Study(
    name="glam",
    models=tuple(
        Model(name, name, baseline=f"dense-{kind.size}", group=kind.size) for name, kind in laptop.MODELS.items()
    ),
    presets={
        "quick": Preset(
            laptop.get_quick_config,
            1,
            models=("dense-small", "glam-small-16"),
            questions=Questions(FEW_LINES, 100),
            watts=LAPTOP_WATTS,
        ),
        "laptop": Preset(
            laptop.get_config,
            3,
            # The small size's losses differ most over seeds.
            seeds_of={name: 6 for name, kind in laptop.MODELS.items() if kind.size == "small"},
            questions=Questions(FEW_LINES, 500),
            watts=LAPTOP_WATTS,
        ),
        "gpu": Preset(
            gpu.get_config, 3, questions=Questions({"continuation": 4, "last_word": 4}, 1000), watts=GPU_WATTS
        ),
    },
    report=report,
    times_steps=True,
)

if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(run_study(STUDY, __doc__))
