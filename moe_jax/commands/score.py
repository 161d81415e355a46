"""Command `moe-jax score`: asks a trained model questions, with and without demonstrations."""

import argparse
import json
from pathlib import Path
from typing import Any

from moe_jax.commands.printing import print_table
from moe_jax.configuration import require


def add(commands: Any) -> None:
    """Adds the command to the subparsers of `moe-jax`."""
    score = commands.add_parser(
        "score",
        help="score a trained model on questions, zero-shot or few-shot",
        description="Prints zero-, one- and few-shot results of a trained decoder on multiple-choice or cloze "
        "questions. Accuracies have Wilson's 95% intervals over the questions; with several seeds, the mean has "
        "Student's 95% interval over the seeds.",
        epilog="examples:\n  moe-jax score runs/switch-16 corpus:continuation --examples 200 --shots 0,1,4\n"
        "  moe-jax score runs/switch-16 questions.jsonl --shots 0,4 --seeds 0,1,2 --json\n"
        "  moe-jax score runs/switch-16 tfds:piqa --context goal --choices sol1,sol2 --answer label --join ' '",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    score.add_argument("workdir", metavar="WORKDIR", type=Path, help="directory of a trained run")
    score.add_argument(
        "task",
        metavar="TASK",
        help="corpus:continuation or corpus:last_word, made of the run's validation documents; tfds:NAME[/CONFIG], a "
        'prepared data set; or FILE.jsonl, each line {"context": TEXT, "choices": [TEXT, ...], "answer": INDEX} or '
        '{"context": TEXT, "target": TEXT}',
    )
    integers: dict[str, Any] = {"metavar": "N[,N...]", "type": _integers, "default": [0]}
    score.add_argument("--shots", **integers, help="demonstrations (solved examples) before each question; default: 0")
    score.add_argument("--seeds", **integers, help="seeds of the draws of demonstrations; default: 0")
    score.add_argument(
        "--examples", metavar="N", type=int, help="largest number of questions; default: 200 of corpus:, else all"
    )
    score.add_argument("--demonstrations", metavar="TASK", help="source of demonstrations; default: TASK itself")
    score.add_argument(
        "--normalisation",
        choices=["sum", "per_token", "per_byte", "unconditional"],
        default="per_token",
        help="normalisation of the choices' log-probabilities before they are compared; default: per_token",
    )
    score.add_argument(
        "--neutral", metavar="TEXT", default="Answer:", help="context of normalisation unconditional; default: Answer:"
    )
    score.add_argument("--lines", metavar="N", type=int, default=4, help="lines of a context of corpus:; default: 4")
    score.add_argument("--split", metavar="NAME", default="validation", help="split of tfds:; default: validation")
    score.add_argument(
        "--demonstrations-split", metavar="NAME", default="train", help="split of its demonstrations; default: train"
    )
    for name, says in (
        ("context", "context"),
        ("answer", "index of the right choice"),
        ("target", "answer of a cloze"),
    ):
        score.add_argument(f"--{name}", metavar="FIELD", default=name, help=f"field with the {says}; default: {name}")
    score.add_argument(
        "--choices",
        metavar="FIELD[,...]",
        default="choices",
        help="field that lists the choices, or one field for each choice; default: choices",
    )
    score.add_argument("--join", metavar="TEXT", default="", help="text between a context and a choice; default: none")
    score.add_argument("--batch-size", metavar="N", type=int, default=16, help="sequences scored at once; default: 16")
    score.add_argument("--json", action="store_true", help="one JSON object per line")
    score.set_defaults(run=_score)


def _integers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of integers; accepted: integers of at least 0, separated by commas"
        )
    return [int(part) for part in parts]


def _score(options: argparse.Namespace) -> int:
    from moe_jax.data.corpora import load_corpus
    from moe_jax.evaluation.examples import spread
    from moe_jax.evaluation.few_shot import score_rows, scorer_of
    from moe_jax.training.trained import load_run

    require(options.batch_size >= 1, "--batch-size", options.batch_size, "an integer of at least 1")
    run = load_run(options.workdir)
    corpus = load_corpus(run.config.data)
    scorer = scorer_of(run, corpus, options.batch_size)
    examples, pool = _questions(options, corpus)
    examples = spread(examples, options.examples)
    rows = score_rows(scorer, examples, pool, options.shots, options.seeds, options.normalisation, options.neutral)
    name, step = run.config.name, int(run.state.step)
    if options.json:
        print("\n".join(json.dumps({"name": name, "step": step, "task": options.task} | row) for row in rows))
        return 0
    first = rows[0]
    kind = f"choices {first['normalisation']}, chance {first['chance']:.3f}" if first["chance"] else "cloze"
    print(f"{name} after {step} steps; {options.task}: {len(examples)} examples, {kind}")
    columns = (
        "shots",
        "seeds",
        "accuracy",
        "interval",
        "reciprocal rank",
        "perplexity",
        "bits/byte",
        "demonstrations",
        "cut",
    )
    print_table([columns, *map(_score_cells, rows)])
    return 0


def _questions(options: argparse.Namespace, corpus: Any) -> tuple[list[Any], list[Any]]:
    """Reads or makes the questions of a task and the pool of their demonstrations."""
    from moe_jax.evaluation.examples import Fields, read_examples
    from moe_jax.evaluation.questions import corpus_task

    others = options.demonstrations
    if options.task.startswith("corpus:"):
        require(
            others is None, "--demonstrations", others, "no --demonstrations with a task corpus:, which has its own"
        )
        count = 200 if options.examples is None else options.examples
        return corpus_task(options.task.removeprefix("corpus:"), corpus, count, options.lines)
    fields = Fields(options.context, tuple(options.choices.split(",")), options.answer, options.target, options.join)
    examples = read_examples(options.task, fields, options.split)
    return examples, examples if others is None else read_examples(others, fields, options.demonstrations_split)


def _score_cells(row: dict[str, Any]) -> list[str]:
    low, high = row["interval"]
    rank = row["mean_reciprocal_rank"]
    return [
        str(row["shots"]),
        ",".join(map(str, row["seeds"])) or "-",
        f"{row['accuracy']:.3f}",
        f"{low:.3f} to {high:.3f}",
        "-" if rank is None else f"{rank:.3f}",
        f"{row['perplexity']:.2f}",
        f"{row['bits_per_byte']:.3f}",
        f"{row['demonstrations']:.1f}",
        str(row["truncated"]),
    ]
