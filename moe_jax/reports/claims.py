"""The report on claims: the number of each verdict, a table for each study, and a discussion."""

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
    "The claims of papers on sparse models, and their outcome on our runs. Each claim links to its file, which has the "
    "rule that decides it. Intervals are of 95%, over seeds; models are compared seed by seed. Losses are in nats per "
    "token, and a paper's negative log perplexity is minus the loss. A single seed supports nothing. Inconclusive "
    "means that we have too few seeds, or that the effect is too small, to tell."
)


def claims_report(judged: Sequence[Judged], results: Path, claims: str) -> str:
    """Returns the report in Markdown, for the folder of all results.

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
    """Counts the claims of each verdict."""
    outcomes = [item.verdict.outcome for item in judged]
    counts = [f"{outcome} {outcomes.count(outcome)}" for outcome in Outcome if outcome in outcomes]
    return f"Of {len(judged)} claims: {', '.join(counts)}."


def _sources(study: str, judged: Sequence[Judged], results: Path) -> str:
    """Links a study's report, figures and table, and gives the commands that run it."""
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
    """Names authors, year and place, with a link to the paper if it has an arXiv number."""
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
    """Writes a claim's discussion and the opposed statement as an item of a list; empty if there is neither."""
    claim = judged.claim
    opposed = f"{_name(claim.opposed.paper)}: {claim.opposed.statement}" if claim.opposed else ""
    said = " ".join(filter(None, (opposed, claim.discussion)))
    return f"- [{claim.statement}]({claims}/{claim.id}.toml) {said}" if said else ""
