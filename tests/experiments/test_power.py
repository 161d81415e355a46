"""The power of a study, from its rows."""

import re

import numpy as np
import pytest

from experiments.power import main
from moe_jax.data.pipeline import load_text
from moe_jax.results.rows import append_row, final_loss
from tests.results.fake_rows import fake_rows
from tests.training.tiny_runs import tiny_config, write_corpus


def test_a_row_says_what_a_pair_s_seeds_can_show(tmp_path, capsys):
    rows = fake_rows(4)
    for row in rows:
        append_row(tmp_path / "results.jsonl", row)
    assert main(["switch_vs_dense", "--results", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    losses = {(row["name"], row["seed"]): final_loss(row) for row in rows}
    paired = {
        name: np.array([losses[name, seed] - losses["dense", seed] for seed in range(4)])
        for name in ("switch-4", "switch-16", "switch-64")
    }
    # Equally many differences of each model.
    spread = np.sqrt(np.mean([values.var(ddof=1) for values in paired.values()]))
    by_model = {line[1]: line for line in lines[1:]}
    assert list(by_model) == list(paired)
    for name, values in paired.items():
        _, _, baseline, seeds, difference, found, detectable, needed, _ = by_model[name]
        assert (baseline, seeds) == ("dense", "4")
        assert float(difference) == pytest.approx(values.mean(), abs=6e-5)
        assert float(found) == pytest.approx(spread, abs=6e-5)
        # Four seeds show 2.13 standard deviations; a gain a hundred times the spread needs two.
        assert float(detectable) == pytest.approx(2.13 * spread, abs=1e-4)
        assert needed == "2"
    # A run takes 0.2 s a step, 10% more for each root of an expert, 4.5 s of compilation; of both, two seeds.
    assert int(by_model["switch-16"][-1]) == round(2 * (1000 * 0.2 * (1 + 1.4) + 9) / 60)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["expert"], "STUDY is 'expert'; accepted: .*, experts, .*did you mean 'experts'"),
        (
            ["glam", "--results", "{folder}"],
            r"--results is .*; accepted: a folder with two seeds or more of a model of",
        ),
    ],
)
def test_what_has_no_power_is_one_line(tmp_path, capsys, arguments, says):
    assert main([argument.format(folder=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(says, error), error


def test_where_the_runs_of_a_preset_depart_from_the_protocol(tmp_path, capsys, monkeypatch):
    data = load_text(tiny_config(write_corpus(tmp_path / "corpus")).data, tmp_path / "cache")
    monkeypatch.setattr("experiments.power.load_text", lambda config: data)
    assert main(["switch_vs_dense", "--protocol", "laptop"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["dense", "switch-4", "switch-16", "switch-64"]
    assert all("it sees 0.3 tokens per active parameter" in line for line in lines)
    assert main(["switch_vs_dense", "--protocol", "notebook"]) == 2
    assert "--protocol is 'notebook'; accepted: " in capsys.readouterr().err
