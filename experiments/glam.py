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

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from configs.gpu import glam as gpu
from configs.laptop import glam as laptop
from moe_jax.configuration import ConfigError, override, require
from moe_jax.reports.sizes import write_size_report
from moe_jax.reports.tables import format_table
from moe_jax.results.rows import Row, read_study
from moe_jax.results.sizes import by_size, with_dense
from moe_jax.runtime.host_memory import keep_freed_memory
from moe_jax.study.command_line import add_run_options, given, output_folder, study_parser
from moe_jax.study.few_shot_scores import Questions, require_questions, score_runs
from moe_jax.study.step_costs import measure_step_costs
from moe_jax.study.sweep import run_sweep, seeded
from moe_jax.study.workers import default_jobs, train_here
from moe_jax.training.result import DivergenceError

TITLE = "Dense against GLaM at equal active FLOPs and parameters"
PAPER = (
    "GLaM (Du et al. 2021) sets decoders with two of 64 experts per token in every other layer against dense ones and "
    "against GPT-3 (175 billion parameters). Its largest has 1.2 trillion parameters, of which a token uses 96.6 "
    "billion. It needs 180 billion FLOPs per token where GPT-3 needs 350, took 456 MWh to train where GPT-3 took 1287, "
    "and averages 62.7, 65.5 and 68.1 zero-, one- and few-shot over 29 tasks where GPT-3 averages 56.9, 61.6 and 65.2. "
    "At equal active parameters more experts are better in general, from 1 to 256 at 1.7 billion; the gain over dense "
    "models grows with scale; and fewer tokens give an equal score."
)


class Preset(NamedTuple):
    """What there is to run.

    Attributes:
      get_config: configurations by model name.
      models: which of them.
      seeds: how many.
      questions: what the models are asked.
      watts: the power that is assumed: of a laptop's processor 15 W is what most are made to sustain, of a data-centre
        GPU 700 W what an H100 or H200 may draw at most.
      seeds_of: how many instead, of some sizes.
    """

    get_config: Callable[[str], ConfigDict]
    models: tuple[str, ...]
    seeds: int
    questions: Questions
    watts: float
    seeds_of: Mapping[str, int] = {}

    def seeds_of_model(self, model: str) -> int:
        return self.seeds_of.get(laptop.parse_model(model)[0], self.seeds)


# With a line or two of context there is room for some solved examples in 128 tokens.
FEW_LINES = {"continuation": 1, "last_word": 2}
PRESETS = {
    "quick": Preset(laptop.get_quick_config, ("dense-small", "glam-small-16"), 1, Questions(FEW_LINES, 100), 15.0),
    # The small size's losses differ most over seeds.
    "laptop": Preset(laptop.get_config, laptop.MODELS, 3, Questions(FEW_LINES, 500), 15.0, {"small": 6}),
    "gpu": Preset(gpu.get_config, laptop.MODELS, 3, Questions({"continuation": 4, "last_word": 4}, 1000), 700.0),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the study and returns the exit status."""
    parser = study_parser("glam", __doc__, PRESETS)
    add_run_options(parser)
    parser.add_argument("--watts", type=float, help="power to assume for the stated energy; default: the preset's")
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    watts = preset.watts if options.watts is None else options.watts
    if not 0 < watts < float("inf"):
        parser.error(f"--watts is {watts}; accepted: a positive number")
    output = output_folder("glam", options)
    command = ["python", "-m", "experiments.glam", *given(options), "--watts", f"{watts:g}"]

    def get_config(model: str) -> ConfigDict:
        return ConfigDict(override(preset.get_config(model).to_dict(), options.set))

    def show(rows: list[Row]) -> None:
        # Side by side with others, a dense model need not end first.
        for size in by_size(with_dense(rows)):
            print(f"\n{format_table(size.rows, size.dense.name)}")
        print(f"\n{len(rows)} of {len(configs)} runs\n", flush=True)

    jobs = options.jobs or default_jobs()
    try:
        configs = [
            config
            for model in options.models or preset.models
            for config in seeded(get_config, [model], options.seeds or preset.seeds_of_model(model))
        ]
        for size in {config.name.split("-")[1] for config in configs}:
            names = [config.name for config in configs]
            accepted = f"dense-{size}, that others of its size are compared with, among them"
            require(f"dense-{size}" in names, "--models", " ".join(names), accepted)
        to_score = (configs, output / "runs", output / "scores.jsonl", preset.questions)
        require_questions(*to_score)
        trained = run_sweep(configs, output / "results.jsonl", output / "runs", train_here, show, jobs=jobs)
        scores = score_runs(*to_score)
        measure_step_costs([config for config in configs if config.seed == 0], output / "step_costs.json")
        ran = [row["config"] for row in trained]
        report = write_size_report(
            [row for row in read_study(output) if row["config"] in ran],
            scores,
            output,
            title=TITLE,
            paper=PAPER,
            watts=watts,
            counter=json.loads((output / "step_costs.json").read_text())["counter"],
            command=shlex.join(command),
        )
    except ConfigError as error:
        print(f"glam: {error}", file=sys.stderr)
        return 2
    except DivergenceError as error:
        print(f"glam: {error}", file=sys.stderr)
        return 1
    print(f"\nReport: {report}")
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
