"""The studies of the Switch Transformer paper, each a table with the paper's figures beside ours (Fedus et al. 2021).

    python -m experiments.switch_transformer architectures                  # one study: Table 1
    python -m experiments.switch_transformer                                # all of them
    python -m experiments.switch_transformer exploration --preset quick     # for a look, minutes
    python -m experiments.switch_transformer experts --preset gpu           # larger, bfloat16, on one GPU
    python -m experiments.switch_transformer experts --preset gpu --models dense switch-64 --set steps=5000

Interrupted, the same command goes on where it stopped. A model that several studies have is trained once, and so are
those that others start from or learn from. Each seed fixes the order of the data and the start of all that models
share, so models are compared pair by pair.
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs.gpu import switch_transformer as gpu
from configs.laptop import switch_transformer as laptop
from moe_jax.configuration import ConfigError, override, require, require_name, to_dict
from moe_jax.reports.paper import PaperTable, paper_markdown, write_paper_report
from moe_jax.results.rows import Row, append_row, read_rows, read_study
from moe_jax.runtime.files import write_whole
from moe_jax.runtime.host_memory import keep_freed_memory
from moe_jax.study.command_line import add_run_options, given, output_folder, study_parser
from moe_jax.study.step_costs import measure_step_costs
from moe_jax.study.sweep import run_directory, run_sweep
from moe_jax.study.workers import default_jobs, train_here
from moe_jax.training.config import TrainConfig

PAPER = "Fedus et al. 2021"
TIMED = ("experts", "experts_longer", "architectures", "precision", "attention")
"""Studies whose paper says how fast its models are."""

LOSS = "negative log perplexity on C4, higher is better"
BY_EXPERTS = {"dense": "-1.636", "switch-4": "-", "switch-16": "-1.505", "switch-64": "-1.444"}
SPEED_UPS = {
    "step_speed_up": {"switch-64": "7.5"},
    "seconds_speed_up": {"switch-64": "about 7"},
    "examples_per_second": {},
}
"""The paper's figures of more experts, for both lengths of training."""

TABLES = {
    "experts": PaperTable(
        title="More experts at equal FLOPs",
        place=f"{PAPER}, sections 3.1 and 3.2, Table 7",
        figures=f"{LOSS}, of Switch-Base with 16, 64 and 256 experts and of T5-Base, 223M active parameters; speed-ups "
        "are to what T5-Base reaches in 450k steps",
        values=BY_EXPERTS | {"switch-256": "-1.427"},
        baseline="dense",
        others={
            "parameters": {
                "dense": "223M",
                "switch-16": "1.1B",
                "switch-64": "3.8B",
                "switch-256": "14.7B",
            }
        }
        | SPEED_UPS,
        notes={
            "switch-4, switch-16, switch-64": "not told from dense, whose seeds vary by more than they gain. With "
            "three more seeds (`--seeds 6`) 4 and 16 experts are below it by 0.026 [0.001, 0.051] and 0.025 [0.005, "
            "0.046], 64 by 0.010 [-0.006, 0.026]. So short a training is why: after 2,000 steps these six seeds gain "
            "0.009, 0.002 and -0.013, and after twice as many as here 64 experts are the best (study "
            "`experts_longer`). Rounding counts as another seed does: on a machine without AVX-512 seeds 0 to 2 ended "
            "up to 0.04 nats elsewhere, and 16 experts gained 0.045 there. Texts of 20 tokens do not seem to be why: "
            "with 120 (`--set data.sequence_length=120 --set data.target_length=30 --set data.batch_size=16`) seed 0 "
            "has 2.615 nats dense and 2.683 with 16 experts. Nor do tokens without a seat, 9% in training with 64 "
            "experts: with `--set steps=2000 --set model.moe.capacity_factor=None --set "
            "model.moe.eval_capacity_factor=None` seed 0 has 2.314 nats, with the capacity 2.307 after as many steps.",
            "switch-256": "worse than dense with each seed, where the paper's is the best. Its router costs half of an "
            "expert's width, 4% in the paper, which may be a part of the cause: after 2,000 steps seed 0 has "
            "2.362 nats, 2.340 with experts as wide as the dense network (`--set model.moe.expert_dim=256`, more "
            "FLOPs), 2.356 without a capacity, dense 2.339. One seed is too few to tell; the rest is unknown.",
        },
    ),
    "experts_longer": PaperTable(
        title="More experts at equal FLOPs, twice the steps",
        place=f"{PAPER}, sections 3.1 and 3.2, Table 7",
        figures=f"{LOSS}, of Switch-Base with 16 and 64 experts and of T5-Base; speed-ups are to what T5-Base reaches "
        "in 450k steps",
        values=BY_EXPERTS,
        baseline="dense",
        others=SPEED_UPS,
        notes={
            "switch-64": "the gain comes with training: 64 experts are above dense by 0.020 nats after 2,000 steps, "
            "below it by 0.005 after 6,000 and by 0.042 at the end, 16 above by 0.004, below by 0.016 and by 0.039. "
            "The paper's train 37 times as many steps, each of over 400 times as many tokens; that more training "
            "would bring its figures is not tested. Four seeds do not tell 64 experts from 16.",
            "switch-4": "below dense with three seeds of four.",
            "the length": "chosen when twice the steps of `experts` had been seen of seed 0 (dense, 16 and 64 "
            "experts) and of seed 1 (dense and, but for the last steps, 64). Seeds 2 and 3, unseen then, have 16 "
            "experts below dense by 0.047 and 0.035, 64 by 0.041 and 0.031.",
            "examples/s": "a step of 64 experts takes 1.54 times that of dense on two CPU cores, so that they need "
            "more seconds for its quality, not less.",
        },
    ),
    "architectures": PaperTable(
        title="Dense, top-2 and Switch by capacity factor",
        place=f"{PAPER}, Table 1",
        figures=f"{LOSS}, after 100k steps, 128 experts (ours 16); hours to -1.50 on 32 TPU v3 cores (ours: "
        "seconds to what dense ends with); the capacity factor counts the seats of all of a token's choices. "
        "`top2-matched` is ours alone: two experts that cost what one of Switch's does",
        values={
            "dense": "-1.731",
            "dense-large": "-1.550",
            "top2-2.0": "-1.547",
            "switch-2.0": "-1.554",
            "top2-1.25": "-1.559",
            "switch-1.25": "-1.553",
            "top2-1.0": "-1.572",
            "switch-1.0": "-1.561",
            "switch-wide-1.0": "-1.534",
            "top2-matched-1.25": "-",
        },
        baseline="dense",
        others={
            "seconds_to_baseline": {
                "dense": "not reached",
                "dense-large": "131.1",
                "top2-2.0": "68.7",
                "switch-2.0": "72.8",
                "top2-1.25": "80.7",
                "switch-1.25": "65.0",
                "top2-1.0": "80.1",
                "switch-1.0": "62.8",
                "switch-wide-1.0": "67.6",
            },
            "examples_per_second": {
                "dense": "1600",
                "dense-large": "470",
                "top2-2.0": "840",
                "switch-2.0": "860",
                "top2-1.25": "790",
                "switch-1.25": "910",
                "top2-1.0": "860",
                "switch-1.0": "1000",
                "switch-wide-1.0": "780",
            },
        },
        notes={
            "dense-large": "below dense, where the paper's is far above. The learning rate, the same for all, seems to "
            "suit the smaller model: with half of it (`--set optimizer.learning_rate=0.035`) seed 0 has 2.291 nats and "
            "dense 2.346, with the study's 2.361 and 2.307.",
            "switch-2.0, switch-1.25, switch-1.0, top2": "no better than dense by more than seeds vary, where the "
            "paper's are. Training is short, 2,000 steps for 100k, which is a part of the cause: with 12,000 steps "
            "the same 16 experts are 0.039 nats better than dense (study `experts_longer`, 95% interval 0.012 to "
            "0.066). So the seeds cannot tell capacity factors, or one expert from two, apart either. With half the "
            "learning rate seed 0 of switch-1.25 has 2.357 nats and dense 2.346, so the rate does not seem to be why.",
            "examples/s": "on two CPU cores a sparse step takes 1.15 to 1.35 times the dense one's, dense-large's 2.2; "
            "the paper's, where devices exchange tokens, 1.6 to 2.05, and 3.4.",
        },
    ),
    "precision": PaperTable(
        title="Selective precision",
        place=f"{PAPER}, Table 2",
        figures=f"{LOSS}, early in training, 32 experts (ours 16)",
        values={"float32": "-1.718", "bfloat16": "-3.780 (diverged)", "selective": "-1.716"},
        baseline="float32",
        others={"examples_per_second": {"float32": "1160", "bfloat16": "1390", "selective": "1390"}},
        notes={
            "bfloat16": "no run diverged, and none is worse than float32 by more than seeds vary, so there is nothing "
            "for selective precision to mend. A cause was not tested; what differs is two layers a stack for twelve, a "
            "width of 64 for 768, and fewer steps.",
            "examples/s": "bfloat16 is slower on these two cores; why was not tested.",
        },
    ),
    "initialization": PaperTable(
        title="A smaller scale of the initialisation",
        place=f"{PAPER}, Table 3",
        figures=f"{LOSS}, mean of three seeds at 3.5k steps, 32 experts (ours 16)",
        values={"scale-0.1": "-2.72", "scale-1.0": "-3.60"},
        baseline="scale-1.0",
        others={"standard_deviation": {"scale-0.1": "0.01", "scale-1.0": "0.68"}},
        notes={
            "scale-1.0": "no run went astray as the paper's did, so there is nothing for the smaller scale to mend. A "
            "cause was not tested; what differs is two layers a stack for twelve, and a width of 64 for 768.",
        },
    ),
    "fine_tuning": PaperTable(
        title="Dropout in fine-tuning, and more of it inside experts",
        place=f"{PAPER}, Table 4",
        figures="GLUE / CNN-DailyMail / SQuAD / SuperGLUE (ours: share of a function's name's tokens that are right)",
        values={
            "dense-0.1": "82.9 / 19.6 / 83.5 / 72.4",
            "switch-0.1": "84.7 / 19.1 / 83.7 / 73.0",
            "switch-0.2": "84.4 / 19.2 / 83.9 / 73.2",
            "switch-0.3": "83.9 / 19.6 / 83.4 / 70.7",
            "switch-0.1-expert-0.4": "85.2 / 19.6 / 83.7 / 73.0",
        },
        baseline="dense-0.1",
        metric="token_accuracy",
        notes={
            "switch-0.1": "above dense, as the paper's is in three tasks of four, but by no more than seeds vary.",
            "switch-0.1-expert-0.4": "as good as with 0.1 everywhere; the paper's is better in two tasks of four and "
            "equal in the others. The loss of neither has begun to rise, so there is as yet no overfitting for it to "
            "mend; whether that is why was not tested.",
        },
    ),
    "distillation": PaperTable(
        title="Distillation of a sparse model into a dense one",
        place=f"{PAPER}, Table 6",
        figures=f"{LOSS}, T5-Base taught by Switch-Base of 3.8B parameters",
        values={
            "student": "-1.636",
            "teacher": "-1.444",
            "distilled": "-1.631",
            "distilled-init": "-1.598",
            "distilled-init-mix": "-1.580",
            "init-only": "-1.639",
        },
        baseline="student",
        others={"share_of_gain": {"distilled": "3%", "distilled-init": "20%", "distilled-init-mix": "29%"}},
        teachers=dict.fromkeys(("distilled", "distilled-init", "distilled-init-mix", "init-only"), "teacher"),
        notes={
            "teacher": "not certain to be better than the student after 6,000 steps (study `experts`), so that a share "
            "of its gain says nothing, where the paper's gains 0.19 nats.",
            "distilled, distilled-init": "their loss falls sooner than the student's and stops falling sooner: 0.10 "
            "and 0.15 nats ahead after 2,000 steps, with every seed behind after 6,000. The cause is unknown.",
            "init-only, distilled-init-mix": "better than the teacher, where the paper's keep none and 29% of its "
            "gain. They begin with weights of 6,000 steps and train for 6,000 more, which still pays at this size: "
            "dense models of 12,000 steps have 2.000 nats (study `experts_longer`).",
            "the last steps": "students read texts in their teacher's order. On the last 80 steps', which it learned "
            "last, too, the training loss of distilled is 0.15 below that of steps 5,600 to 5,840 in the mean, that of "
            "dense models 0.06, and by the end the validation loss of distilled-init-mix has risen by 0.02 with every "
            "seed. Another order was not tried.",
        },
    ),
    "distillation_sizes": PaperTable(
        title="Teachers of different sizes",
        place=f"{PAPER}, Table 7",
        figures=f"{LOSS}, T5-Base taught by Switch-Base with 16, 64 and 256 experts",
        values={
            "student": "-1.636",
            "teacher-16": "-1.505",
            "distilled-16": "-1.587",
            "teacher-64": "-1.444",
            "distilled-64": "-1.579",
            "teacher-256": "-1.427",
            "distilled-256": "-1.578",
        },
        baseline="student",
        others={
            "share_of_gain": {"distilled-16": "37%", "distilled-64": "30%", "distilled-256": "28%"},
            "compression": {"distilled-16": "82%", "distilled-64": "95%", "distilled-256": "99%"},
        },
        teachers={f"distilled-{experts}": f"teacher-{experts}" for experts in (16, 64, 256)},
        notes={
            "teacher": "none is certain to be better than the student after 6,000 steps (study `experts`), so that a "
            "share of its gain says nothing.",
            "distilled": "with every seed better than their teachers, where the paper's keep a third of the gain: as "
            "in Table 6 they begin with weights of 6,000 steps and train for 6,000 more. Which teacher is best three "
            "seeds do not tell, and the paper's differ by 0.009 nats.",
        },
    ),
    "distillation_fine_tuned": PaperTable(
        title="Distillation of a fine-tuned model",
        place=f"{PAPER}, Table 8",
        figures="SuperGLUE (ours: share of a function's name's tokens that are right)",
        values={"student": "74.6", "teacher": "81.3", "distilled": "76.6"},
        baseline="student",
        metric="token_accuracy",
        others={"share_of_gain": {"distilled": "30%"}},
        teachers={"distilled": "teacher"},
        notes={
            "teacher": "above the student in the mean, by less than seeds vary; in nats better with every seed, by "
            "0.06 in the mean.",
            "distilled": "none of the teacher's gain, where the paper keeps 30%, in accuracy and in nats alike. The "
            "cause is unknown.",
        },
    ),
    "attention": PaperTable(
        title="Experts in the attention",
        place=f"{PAPER}, Table 10",
        figures=f"{LOSS}, after 100k steps, 32 experts (ours 16)",
        values={
            "experts-ffn": "-1.548",
            "experts-attention": "-1.524",
            "experts-both": "-1.513",
            "experts-attention-bfloat16": "diverges",
            "experts-both-bfloat16": "diverges",
        },
        baseline="experts-ffn",
        others={
            # The paper's after 16 hours.
            "loss_at_equal_time": {
                "experts-ffn": "-1.614",
                "experts-attention": "-1.606",
                "experts-both": "-1.607",
            },
            "examples_per_second": {"experts-ffn": "1480", "experts-attention": "1330", "experts-both": "1240"},
        },
        notes={
            "experts-attention": "worse than experts in the feed-forward layers, where the paper's is better after as "
            "many steps and, after as long, by less; the cause is unknown.",
            "experts-both": "three seeds do not tell it from experts in the feed-forward layers alone.",
            "bfloat16": "no run of six diverged. A cause was not tested; what differs is two layers a stack for "
            "twelve, a width of 64 for 768, and fewer steps.",
        },
    ),
    "exploration": PaperTable(
        title="Exploration",
        place=f"{PAPER}, Table 11",
        figures=LOSS,
        values={"argmax": "-1.471", "sample": "-1.570", "dropout": "-1.480", "jitter": "-1.468"},
        baseline="argmax",
        notes={
            "dropout": "three seeds do not tell it from argmax; the paper's is 0.009 worse, less than ours vary.",
        },
    ),
    "no_token_left_behind": PaperTable(
        title="No token left behind",
        place=f"{PAPER}, appendix B",
        figures="says that asking again where an expert is full gains nothing",
        values={"switch-1.0": "-", "rerouted-1.0": "no gain"},
        baseline="switch-1.0",
    ),
}


class Preset(NamedTuple):
    """A configuration for each study's model, and how many seeds; of some studies another number."""

    get_config: Callable[[str], ConfigDict]
    seeds: int
    seeds_of: Mapping[str, int] = {}


PRESETS = {
    "quick": Preset(laptop.get_quick_config, 1),
    # A spread over seeds needs more of them than a mean, and so do means that differ by less than seeds do.
    "laptop": Preset(laptop.get_config, 3, {"experts_longer": 4, "initialization": 6}),
    "gpu": Preset(gpu.get_config, 3),
}


class Plan(NamedTuple):
    """What to train for some studies.

    Attributes:
      runs: each model once, those that others start from or learn from first.
      tables: by study the configuration of each of its rows, and which of `runs` the row is.
    """

    runs: list[TrainConfig]
    tables: dict[str, list[tuple[TrainConfig, TrainConfig]]]


def make_plan(
    preset: Preset,
    studies: Sequence[str],
    seeds: int | None,
    only: Sequence[str] = (),
    assignments: Sequence[str] = (),
) -> Plan:
    """What the preset trains for `studies`.

    A run that several studies have is called as the first one of all calls it, whichever are asked for.

    Args:
      preset: makes the configurations.
      studies: names in `laptop.STUDIES`.
      seeds: how many, from 0; None takes the preset's number.
      only: of each study only these of its models; all if empty.
      assignments: `KEY=VALUE` for all configurations, those of runs that others start from or learn from too.

    Raises:
      ConfigError: `only` has no model of a study's that others are compared with, or one that no study has.
    """
    for baseline in {TABLES[study].baseline for study in studies} if only else ():
        require(baseline in only, "--models", " ".join(only), f"{baseline}, that others are compared with, among them")
    for model in only:
        require_name(model, sorted({model for study in studies for model in laptop.STUDIES[study]}), "--models")
    fields = {
        f"{study}/{model}": override(preset.get_config(f"{study}/{model}").to_dict(), assignments)
        for study, models in laptop.STUDIES.items()
        for model in models
    }
    first: dict[str, str] = {}
    for model, values in fields.items():
        first.setdefault(_unnamed(values), model)
    runs: dict[tuple[str, int], TrainConfig] = {}

    def run(model: str, seed: int) -> TrainConfig:
        """The run that `model` is, after those that it needs."""
        model = first[_unnamed(fields[model])]
        if (model, seed) not in runs:
            values = fields[model] | {"seed": seed}
            for part in {"start", "distillation"} & values.keys():
                needed = run(values[part]["run"].removeprefix("../"), seed)
                values[part] = values[part] | {"run": run_directory(needed, Path()).name}
            runs[model, seed] = TrainConfig.from_dict(values)
        return runs[model, seed]

    tables = {
        study: [
            (TrainConfig.from_dict(fields[f"{study}/{model}"] | {"seed": seed}), run(f"{study}/{model}", seed))
            for seed in range(seeds or preset.seeds_of.get(study, preset.seeds))
            for model in laptop.STUDIES[study]
            if not only or model in only
        ]
        for study in studies
    }
    return Plan(list(runs.values()), tables)


def _unnamed(values: Mapping[str, Any]) -> str:
    return _identity({field: value for field, value in values.items() if field != "name"})


def write_table(rows: Sequence[Row], table: Sequence[tuple[TrainConfig, TrainConfig]], path: Path) -> None:
    """Writes a study's results, each a run's row under the study's own name for it; a run that is not done is left out.

    Another run that it starts from or learns from is called as in the studies, the same for every seed.
    """
    by_config = {_identity(row["config"]): row for row in rows}
    lines = []
    for named, config in table:
        row = by_config.get(_identity(to_dict(config)))
        if row is not None:
            lines.append(json.dumps(row | {"name": named.name, "config": to_dict(named)}) + "\n")
    write_whole(path, "".join(lines))


def restore_rows(plan: Plan, output: Path) -> None:
    """Adds to the table of runs, `results.jsonl`, what the studies' tables have of them and it lacks.

    It holds nothing that these do not, so a repository keeps only them.
    """
    path = output / "results.jsonl"
    known = {_identity(row["config"]) for row in read_rows(path)}
    for study, table in plan.tables.items():
        runs = {_identity(to_dict(named)): to_dict(run) for named, run in table}
        for row in read_rows(output / study / "results.jsonl"):
            run = runs.get(_identity(row["config"]))
            if run is not None and _identity(run) not in known:
                known.add(_identity(run))
                append_row(path, row | {"name": run["name"], "config": run})


def _identity(config: Mapping[str, Any]) -> str:
    return json.dumps(config, sort_keys=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs studies and returns the exit status."""
    parser = study_parser("switch_transformer", __doc__, PRESETS)
    parser.add_argument("study", nargs="*", metavar="STUDY", help=f"some of {', '.join(laptop.STUDIES)}; default: all")
    add_run_options(parser)
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    output = output_folder("switch_transformer", options)
    more = given(options)
    try:
        for study in options.study:
            require_name(study, laptop.STUDIES, "STUDY")
        plan = make_plan(preset, options.study or list(laptop.STUDIES), options.seeds, options.models, options.set)

        def show(rows: list[Row]) -> None:
            for study, table in plan.tables.items():
                write_table(rows, table, output / study / "results.jsonl")
            print(f"{len(rows)} of {len(plan.runs)} runs", flush=True)

        restore_rows(make_plan(preset, list(laptop.STUDIES), options.seeds, assignments=options.set), output)
        where, jobs = (output / "results.jsonl", output / "runs"), options.jobs or default_jobs()
        rows = run_sweep(plan.runs, *where, train_here, show, may_diverge=True, jobs=jobs)
        for study, table in plan.tables.items():
            write_table(rows, table, output / study / "results.jsonl")
            if study in TIMED:
                measure_step_costs([named for named, _ in table], output / study / "step_costs.json")
            found = read_study(output / study)
            command = shlex.join(["python", "-m", "experiments.switch_transformer", study, *more])
            # The notes are on what the laptop's preset gives.
            paper = TABLES[study] if more == ["--preset", "laptop"] else dataclasses.replace(TABLES[study], notes={})
            report = write_paper_report(found, output / study, paper, command)
            print(f"\n{paper.title}\n{paper_markdown(found, paper)}\n\nReport: {report}", flush=True)
    except ConfigError as error:
        print(f"switch_transformer: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
