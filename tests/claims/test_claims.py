from pathlib import Path

import pytest

from moe_jax.claims.claims import judge, read_claim, read_claims
from moe_jax.claims.comparison_rules import Difference
from moe_jax.claims.verdicts import Outcome
from moe_jax.configuration import ConfigError
from moe_jax.results.rows import append_row
from tests.results.fake_rows import fake_row, fake_rows

CLAIM = """\
statement = "Sixteen experts are better than none."
paper = "Fedus et al. 2021, arXiv:2101.03961"
place = "Figure 1"
figure = "-1.5 against -1.7"
study = "switch/experts"
command = "python -m experiments.switch"
"""
RULE = """
[rule]
kind = "difference"
model = "switch-16"
baseline = "dense"
"""
OPPOSED = """
[opposed]
statement = "They are worse."
paper = "Nobody 2020, arXiv:2001.00001"
place = "Table 1"
figure = "-1.8 against -1.7"

[opposed.rule]
kind = "difference"
model = "switch-16"
baseline = "dense"
claimed = "above"
"""


def write(folder: Path, text: str, name: str = "sixteen") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def judged(folder: Path, text: str, rows=()):
    for row in rows:
        append_row(folder / "switch" / "experts" / "results.jsonl", row)
    return judge(read_claim(write(folder, text)), folder)


def test_a_claim_is_read_with_its_rule(tmp_path):
    claim = read_claim(write(tmp_path, CLAIM + RULE + OPPOSED))
    assert (claim.id, claim.place, claim.accelerator) == ("sixteen", "Figure 1", False)
    assert claim.rule == Difference(model="switch-16", baseline="dense")
    assert claim.opposed.rule == Difference(model="switch-16", baseline="dense", claimed="above")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CLAIM, r"sixteen.toml: rule is missing"),
        (CLAIM.replace("place", "plaice") + RULE, r"sixteen.toml: plaice is not a field; .*did you mean 'place'"),
        (CLAIM.replace('place = "Figure 1"\n', "") + RULE, r"sixteen.toml: place is missing"),
        (CLAIM.replace('"Figure 1"', "1") + RULE, r"sixteen.toml: place is 1; accepted: str"),
        ('id = "x"\n' + CLAIM + RULE, r"sixteen.toml: id is 'x'; accepted: none"),
        (CLAIM + 'rule = "difference"', r"sixteen.toml: rule.model is missing"),
        (CLAIM + RULE.replace("kind", "sort"), r"sixteen.toml: rule.kind is None; accepted: difference, diverges, "),
        (
            CLAIM + RULE.replace('"difference"', '"diference"'),
            r"sixteen.toml: rule is 'diference'.*did you mean 'difference'",
        ),
        (CLAIM + RULE + "margin = 0.1", r"sixteen.toml: rule.margin is not a field; accepted: model, baseline"),
        (CLAIM + RULE.replace('baseline = "dense"', ""), r"sixteen.toml: rule.baseline is missing"),
        (CLAIM + RULE + 'claimed = "under"', r"rule.claimed is 'under'; accepted: 'below', 'above'"),
        (
            CLAIM + RULE.replace('"switch-16"', '"dense"'),
            r"sixteen.toml: rule.baseline is 'dense'; accepted: models that",
        ),
        (CLAIM + RULE + OPPOSED + "margin = 0.1", r"sixteen.toml: opposed.rule.margin is not a field"),
        (CLAIM + RULE + OPPOSED.replace("place", "plaice"), r"sixteen.toml: opposed.plaice is not a field"),
        (CLAIM + "rule = ", r"sixteen.toml: Invalid value"),
    ],
)
def test_files_that_are_no_claims_are_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_claim(write(tmp_path, text))


def test_claims_are_read_by_study_and_name(tmp_path):
    write(tmp_path, CLAIM + RULE, "b")
    write(tmp_path, CLAIM + RULE, "a")
    write(tmp_path, CLAIM.replace("switch/experts", "glam") + RULE, "c")
    assert [claim.id for claim in read_claims(tmp_path)] == ["c", "a", "b"]


def test_a_folder_without_claims_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="accepted: a folder with claims"):
        read_claims(tmp_path)


def test_the_study_decides(tmp_path):
    found = judged(tmp_path, CLAIM + RULE, fake_rows(3))
    assert found.verdict.outcome is Outcome.SUPPORTED
    assert found.verdict.seeds == 3
    assert found.agrees == ()


def test_a_study_that_did_not_run_decides_nothing(tmp_path):
    for text in (CLAIM + RULE, CLAIM + RULE + OPPOSED):
        assert judged(tmp_path, text).verdict.outcome is Outcome.NOT_RUN
    assert judged(tmp_path, CLAIM + RULE + OPPOSED, [fake_row("dense")]).verdict.outcome is Outcome.NOT_RUN


def test_only_an_accelerator_decides_what_needs_one(tmp_path):
    text = CLAIM + "accelerator = true\n" + RULE
    assert judged(tmp_path, text).verdict.outcome is Outcome.NEEDS_ACCELERATOR
    rows = fake_rows(3)
    assert judged(tmp_path, text, rows).verdict.outcome is Outcome.NEEDS_ACCELERATOR
    for row in rows:
        row["host"]["platform"] = "gpu"
        row["seed"] += 10
    found = judged(tmp_path, text, rows)
    assert (found.verdict.outcome, found.verdict.seeds) == (Outcome.SUPPORTED, 3)


@pytest.mark.parametrize(
    ("model", "agrees"),
    [
        ("switch-16", ("Fedus et al. 2021, arXiv:2101.03961",)),
        ("switch-4", ()),
        ("switch-64", ("Nobody 2020, arXiv:2001.00001",)),
    ],
)
def test_of_two_papers_our_figure_supports_one_or_none(tmp_path, model, agrees):
    rows = [row for row in fake_rows(3) if row["name"] in ("dense", model)]
    for row in rows:
        if row["name"] != "dense":
            row["name"] = "switch-16"
            if model == "switch-64":
                row["curve"][-1]["validation_loss"] += 9
            elif model == "switch-4":
                row["curve"][-1]["validation_loss"] += (row["seed"] - 1) * 9
    found = judged(tmp_path, CLAIM + RULE + OPPOSED, rows)
    assert found.verdict.outcome is Outcome.PAPERS_DISAGREE
    assert found.verdict.figure.endswith("(switch-16 - dense)")
    assert found.agrees == agrees


def test_a_table_that_cannot_decide_names_the_claim(tmp_path):
    rows = fake_rows(2)
    rows[-1]["corpus"]["digest"] = "other"
    with pytest.raises(ConfigError, match=r"^sixteen: corpus is"):
        judged(tmp_path, CLAIM + RULE, rows)
