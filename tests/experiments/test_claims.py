"""The claims' files, and that the committed report is what they and the committed results give."""

import importlib.util
import re
from pathlib import Path

import pytest

from experiments.claims import HERE, figures, main
from moe_jax.claims.claims import Claim, read_claims
from moe_jax.results.rows import append_row
from tests.results.fake_rows import fake_rows

CLAIM = """\
statement = "Sixteen experts are better than none."
paper = "Fedus et al. 2021, arXiv:2101.03961"
place = "Figure 1"
figure = "-1.5 against -1.7"
study = "switch"
command = "python -m experiments.switch"
[rule]
kind = "difference"
model = "switch-16"
baseline = "dense"
"""
CLAIMS = read_claims(HERE / "claims", figures())


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    """The arguments for a folder with one claim, and one with no results."""
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "sixteen.toml").write_text(CLAIM)
    return ["--claims", str(tmp_path / "claims"), "--results", str(tmp_path / "results")]


def test_the_committed_report_is_what_the_committed_tables_give(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["--check"])
    assert status == 0, capsys.readouterr().err


def test_links_of_the_committed_report_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (HERE / "results" / "CLAIMS.md").read_text())
    assert links
    for link in links:
        assert link.startswith("https://arxiv.org/abs/") or (HERE / "results" / link).exists(), link


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_claims_name_a_paper_and_where_they_read(claim: Claim) -> None:
    assert re.search(r" \d{4}, arXiv:\d{4}\.\d{5}$", claim.paper)
    assert claim.accelerator == claim.study.partition("/")[0].endswith("-gpu")
    assert claim.statement.endswith(".")


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_a_study_with_results_has_a_command_that_exists(claim: Claim) -> None:
    if (HERE / "results" / claim.study / "results.jsonl").exists():
        module = re.fullmatch(r"python -m (\S+).*", claim.command)[1]
        assert importlib.util.find_spec(module) is not None


def test_the_report_is_written_and_checked(folders: list[str], tmp_path: Path) -> None:
    report = tmp_path / "results" / "CLAIMS.md"
    assert main([*folders, "--check"]) == 1
    assert not report.exists()
    assert main(folders) == 0
    assert "(../claims/sixteen.toml)" in report.read_text()
    assert main([*folders, "--check"]) == 0
    for row in fake_rows(3):
        append_row(tmp_path / "results" / "switch" / "results.jsonl", row)
    before = report.read_text()
    assert main([*folders, "--check"]) == 1
    assert report.read_text() == before
    assert main(folders) == 0
    assert "**supported**" in report.read_text()


def test_a_wrong_claim_is_named(folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "claims" / "sixteen.toml").write_text(CLAIM + "margin = 0.1\n")
    assert main(folders) == 2
    assert "claims: sixteen.toml: rule.margin is not a field" in capsys.readouterr().err
