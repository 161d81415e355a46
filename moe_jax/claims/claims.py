"""Claims of papers, each with the rule that decides whether our runs agree.

A claim is a TOML file, named as the claim is. Its fields are those of `Claim`. Its `[rule]` has a `kind`, a name in
`moe_jax.claims.rules.RULES`, and that rule's own fields. If another paper says otherwise, `[opposed]` says what, and
`[opposed.rule]` decides that.
"""

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from moe_jax.claims.figures import refer
from moe_jax.claims.rule import Rule
from moe_jax.claims.rules import RULES
from moe_jax.claims.verdicts import Outcome, Verdict
from moe_jax.configuration import ConfigError, build, require
from moe_jax.results.rows import Row, read_study, require_comparable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opposed:
    """The statement of another paper against a claim.

    Attributes:
      statement: one sentence.
      paper: authors, year and arXiv number.
      place: section, table or figure in it.
      figure: its number, in words.
      rule: decides the statement.
    """

    statement: str
    paper: str
    place: str
    figure: str
    rule: Annotated[Rule, RULES]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of one paper.

    Attributes:
      id: the name of its file.
      statement: the claim in one sentence.
      paper: authors, year and arXiv number.
      place: section, table or figure in it.
      figure: its number, in words.
      study: folder of the results that decide it, within the folder of all results.
      command: runs the study.
      rule: decides the claim; written before the study ran.
      opposed: the statement of another paper against it, if there is one.
      discussion: one sentence on a difference between our figure and the paper's: the cause that was tested, or that
        the cause is unknown.
      accelerator: true if runs on a CPU cannot decide it.
    """

    id: str
    statement: str
    paper: str
    place: str
    figure: str
    study: str
    command: str
    rule: Annotated[Rule, RULES]
    opposed: Opposed | None = None
    discussion: str = ""
    accelerator: bool = False


@dataclasses.dataclass(frozen=True)
class Judged:
    """A claim with its verdict.

    If another paper says otherwise, the outcome of `verdict` is that papers disagree, and `agrees` names the papers
    that our figure supports.
    """

    claim: Claim
    verdict: Verdict
    agrees: tuple[str, ...] = ()


def read_claims(folder: Path, figures: Mapping[str, str] | None = None) -> list[Claim]:
    """Reads the claims of all TOML files in `folder`, sorted by study and then name.

    Args:
      folder: with a file for each claim.
      figures: of papers' tables, which a claim's `figure` may refer to; see `moe_jax.claims.figures`.

    Raises:
      ConfigError: there is none, or one is not a claim; it names the file and the field.
    """
    paths = sorted(folder.glob("*.toml"))
    require(bool(paths), "claims", str(folder), "a folder with claims in TOML files")
    return sorted((read_claim(path, figures) for path in paths), key=lambda claim: (claim.study, claim.id))


def read_claim(path: Path, figures: Mapping[str, str] | None = None) -> Claim:
    """Reads the claim in one TOML file.

    Args:
      path: the file; its name is the claim's.
      figures: see `read_claims`. A reference may leave out the claim's study.

    Raises:
      ConfigError: it is not TOML, has a field that is unknown, missing or wrong, or refers to a figure that no table
        has; it names the file and the field.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        require("id" not in values, "id", values.get("id"), "none: a claim is called as its file")
        claim = build(Claim, values | {"id": path.stem})
        return dataclasses.replace(claim, figure=refer(claim.figure, figures or {}, claim.study))
    except (ConfigError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path.name}: {error}") from error


def judge(claim: Claim, results: Path) -> Judged:
    """Applies the claim's rule to its study's table `results/STUDY/results.jsonl`.

    Raises:
      ConfigError: the table's rows do not belong in one, or lack the rule's metric; it names the claim.
    """
    rows = read_study(results / claim.study)
    if claim.accelerator:
        rows = [row for row in rows if row["host"]["platform"] != "cpu"]
        if not rows:
            return Judged(claim, Verdict(Outcome.NEEDS_ACCELERATOR))
    if not rows:
        return Judged(claim, Verdict(Outcome.NOT_RUN))
    try:
        return _judge_rows(claim, rows)
    except ConfigError as error:
        raise ConfigError(f"{claim.id}: {error}") from error


def _judge_rows(claim: Claim, rows: Sequence[Row]) -> Judged:
    require_comparable(rows)
    verdict = claim.rule.verdict(rows)
    if claim.opposed is None or verdict.outcome is Outcome.NOT_RUN:
        return Judged(claim, verdict)
    verdicts = {claim.paper: verdict, claim.opposed.paper: claim.opposed.rule.verdict(rows)}
    agrees = tuple(paper for paper, found in verdicts.items() if found.outcome is Outcome.SUPPORTED)
    return Judged(claim, dataclasses.replace(verdict, outcome=Outcome.PAPERS_DISAGREE), agrees)
