"""What became of the claims, in Markdown: how many of each verdict, a table for each study, and what is to discuss."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from moe_jax.claims.claims import Claim, Judged, Opposed
from moe_jax.claims.verdicts import Outcome
from moe_jax.reports.document import Document
from moe_jax.reports.tables import NOTHING, markdown_rows

HEADER = ("claim", "paper", "its figure", "ours", "seeds", "test", "verdict")
UNMEASURED = (Outcome.NOT_RUN, Outcome.NEEDS_ACCELERATOR)
INTRODUCTION = (
    "What papers on sparse models claim, and what our runs say of it. The rule that decides a claim is in its file, to "
    "which the claim links. Intervals are of 95%, over seeds, models compared seed by seed; losses are in nats per "
    "token, and a paper's negative log perplexity is minus that. A single seed supports nothing, and inconclusive says "
    "that ours are too few, or the effect too small, to tell."
)


def claims_report(judged: Sequence[Judged], results: Path, claims: str) -> str:
    """The report as Markdown, to be written into the folder of all results.

    Args:
      judged: in the order of their studies, as `read_claims` gives them.
      results: the folder of all results; what lies in it is linked.
      claims: the folder of the claims' files, as a link from there.
    """
    document = Document("Claims")
    document.add(summary_line(judged), INTRODUCTION)
    studies = [list(group) for _, group in itertools.groupby(judged, key=lambda item: item.claim.study)]
    # Those that have something to show first.
    for items in sorted(studies, key=lambda items: all(item.verdict.outcome in UNMEASURED for item in items)):
        study = items[0].claim.study
        document.add(f"## {study}", _sources(study, items, results), _table(items, claims))
    discussions = [_discussion(item, claims) for item in judged]
    if any(discussions):
        document.add("## Discussion", "\n".join(filter(None, discussions)))
    return document.text()


def summary_line(judged: Sequence[Judged]) -> str:
    """How many claims have each verdict."""
    outcomes = [item.verdict.outcome for item in judged]
    counts = [f"{outcome} {outcomes.count(outcome)}" for outcome in Outcome if outcome in outcomes]
    return f"Of {len(judged)} claims: {', '.join(counts)}."


def _sources(study: str, judged: Sequence[Judged], results: Path) -> str:
    """Links to what the study left, and the commands that run it."""
    folder = results / study
    report = [f"[report]({study}/README.md)"] if (folder / "README.md").exists() else []
    plots = [f"[{path.stem}]({study}/{path.name})" for path in sorted(folder.glob("*.png"))]
    table = [f"[results]({study}/results.jsonl)"] if (folder / "results.jsonl").exists() else ["not run yet"]
    commands = dict.fromkeys(f"`{item.claim.command}`" for item in judged)
    return " · ".join([*report, *plots, *table, *commands])


def _table(judged: Sequence[Judged], claims: str) -> str:
    cells = [HEADER, *(_cells(item, claims) for item in judged)]
    return markdown_rows(cells, right=[HEADER.index("seeds")])


def _cells(judged: Judged, claims: str) -> tuple[str, ...]:
    claim, verdict = judged.claim, judged.verdict
    against = f"; against it {_paper(claim.opposed)}" if claim.opposed else ""
    contrary = f"; against it {claim.opposed.figure}" if claim.opposed else ""
    cells = (
        f"[{claim.statement}]({claims}/{claim.id}.toml)",
        f"{_paper(claim)}{against}",
        f"{claim.figure}{contrary}",
        verdict.figure or NOTHING,
        str(verdict.seeds or NOTHING),
        verdict.test or NOTHING,
        _verdict(judged),
    )
    return tuple(cell.replace("|", "\\|") for cell in cells)


def _paper(source: Claim | Opposed) -> str:
    """Authors, year and place, linked to the paper where it has an arXiv number."""
    number = re.search(r",? *arXiv:(\S+)", source.paper)
    if number is None:
        return f"{source.paper}, {source.place}"
    return f"[{source.paper[: number.start()]}](https://arxiv.org/abs/{number[1]}), {source.place}"


def _verdict(judged: Judged) -> str:
    verdict = judged.verdict
    text = (
        f"**{verdict.outcome}**" if verdict.outcome in (Outcome.SUPPORTED, Outcome.NOT_SUPPORTED) else verdict.outcome
    )
    if verdict.outcome is Outcome.PAPERS_DISAGREE:
        sides = " and ".join(_name(paper) for paper in judged.agrees)
        text = f"{text}; ours {f'supports {sides}' if sides else 'decides for neither'}"
    return f"{text} ({verdict.reason})" if verdict.reason else str(text)


def _name(paper: str) -> str:
    return paper.partition(", arXiv:")[0]


def _discussion(judged: Judged, claims: str) -> str:
    """The claim's discussion and what an opposed paper says, as an item of a list; empty where there is neither."""
    claim = judged.claim
    opposed = f"{_name(claim.opposed.paper)}: {claim.opposed.statement}" if claim.opposed else ""
    said = " ".join(filter(None, (opposed, claim.discussion)))
    return f"- [{claim.statement}]({claims}/{claim.id}.toml) {said}" if said else ""
