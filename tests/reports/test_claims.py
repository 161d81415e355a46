import re
from pathlib import Path

import pytest

from moe_jax.claims.claims import Claim, Judged, Opposed
from moe_jax.claims.comparison_rules import Difference
from moe_jax.claims.verdicts import Outcome, Verdict
from moe_jax.reports.claims import claims_report, summary_line

RULE = Difference(model="a", baseline="b")
OPPOSED = Opposed(
    statement="They are not.", paper="Nobody 2020, arXiv:2001.00001", place="Table 1", figure="-1.8", rule=RULE
)
MEASURED = {"figure": "-0.1 [-0.2, -0.05] nats", "test": "paired t", "seeds": 3}


def item(name, outcome, study="switch", reason="", agrees=(), **fields):
    claim = Claim(
        id=name,
        statement=f"{name} is | so.",
        paper="Fedus et al. 2021, arXiv:2101.03961",
        place="Table 1",
        figure="-1.5",
        study=study,
        command="python -m experiments.switch",
        rule=RULE,
        **fields,
    )
    measured = {} if outcome in (Outcome.NOT_RUN, Outcome.NEEDS_ACCELERATOR) else MEASURED
    return Judged(claim, Verdict(outcome, reason=reason, **measured), agrees)


def row(report: str, name: str) -> list[str]:
    """The cells of a claim in its table."""
    (line,) = [line for line in report.splitlines() if line.startswith(f"| [{name} ")]
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_first_line_counts_verdicts():
    judged = [item("x", Outcome.NOT_RUN), item("y", Outcome.SUPPORTED), item("z", Outcome.NOT_RUN)]
    assert summary_line(judged) == "Of 3 claims: supported 1, not run 2."
    assert claims_report(judged, Path("nowhere"), "claims").splitlines()[2] == summary_line(judged)


def test_a_claim_stands_beside_its_figure_and_ours():
    report = claims_report([item("x", Outcome.SUPPORTED)], Path("nowhere"), "../claims")
    assert row(report, "x") == [
        r"[x is \| so.](../claims/x.toml)",
        "[Fedus et al. 2021](https://arxiv.org/abs/2101.03961), Table 1",
        "-1.5",
        "-0.1 [-0.2, -0.05] nats",
        "3",
        "paired t",
        "**supported**",
    ]
    assert "## Discussion" not in report


def test_what_was_not_measured_has_no_figure():
    report = claims_report([item("x", Outcome.NEEDS_ACCELERATOR)], Path("nowhere"), "claims")
    assert row(report, "x")[3:] == ["-", "-", "-", "needs an accelerator"]
    assert "not run yet · `python -m experiments.switch`" in report


def test_reasons_are_given():
    report = claims_report([item("x", Outcome.INCONCLUSIVE, reason="one seed")], Path("nowhere"), "claims")
    assert row(report, "x")[-1] == "inconclusive (one seed)"


@pytest.mark.parametrize(
    ("agrees", "said"),
    [(("Nobody 2020, arXiv:2001.00001",), "ours supports Nobody 2020"), ((), "ours decides for neither")],
)
def test_papers_that_disagree_are_both_there(agrees, said):
    judged = [item("x", Outcome.PAPERS_DISAGREE, agrees=agrees, opposed=OPPOSED, discussion="The cause is unknown.")]
    report = claims_report(judged, Path("nowhere"), "claims")
    cells = row(report, "x")
    assert "against it [Nobody 2020](https://arxiv.org/abs/2001.00001), Table 1" in cells[1]
    assert cells[2] == "-1.5; against it -1.8"
    assert cells[-1] == f"papers disagree; {said}"
    assert report.endswith("(claims/x.toml) Nobody 2020: They are not. The cause is unknown.\n")


def test_what_was_measured_comes_first_and_is_linked(tmp_path):
    (tmp_path / "switch").mkdir()
    for name in ("README.md", "loss.png", "results.jsonl"):
        (tmp_path / "switch" / name).touch()
    judged = [item("x", Outcome.NOT_RUN, study="glam"), item("y", Outcome.SUPPORTED)]
    report = claims_report(judged, tmp_path, "claims")
    assert report.index("## switch") < report.index("## glam")
    links = "[report](switch/README.md) · [loss](switch/loss.png) · [results](switch/results.jsonl)"
    assert f"{links} · `python -m experiments.switch`" in report
