import json

import pytest

from moe_jax.configuration import ConfigError
from moe_jax.results.rows import append_row, read_rows, read_study, require_comparable
from tests.results.fake_rows import fake_row, fake_rows


def test_rows_come_back_as_they_were_appended(tmp_path):
    rows, path = fake_rows(1), tmp_path / "deep" / "results.jsonl"
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows


def test_a_study_s_rows_have_the_arms_of_their_model_seed_and_task(tmp_path):
    whole = [fake_row("dense", seed) for seed in (0, 1)]
    arms = [fake_row(f"dense@1of{divisor}", 1, steps=1000 // divisor) for divisor in (4, 2)]
    masked = fake_row("dense", 1)
    masked["config"]["data"] = masked["config"]["data"] | {"task": "masked"}
    for row in [*arms, *whole, masked, fake_row("switch-4@1of2")]:
        append_row(tmp_path / "results.jsonl", row)
    (tmp_path / "step_costs.json").write_text('{"models": {"dense": {"seconds": 0.5, "joules": null}}}')
    costs = {"step_seconds": 0.5, "step_joules": None}
    expected = [whole[0] | costs, whole[1] | costs | {"arms": [arm | costs for arm in arms]}, masked | costs]
    assert read_study(tmp_path) == expected


def test_no_file_is_no_rows(tmp_path):
    assert read_rows(tmp_path / "results.jsonl") == []


@pytest.mark.parametrize("kept", [1, 100, -1])
def test_half_a_line_is_ignored_and_removed_by_the_next_append(tmp_path, kept):
    path = tmp_path / "results.jsonl"
    first, second, third = (fake_row("dense", seed) for seed in range(3))
    append_row(path, first)
    with path.open("ab") as file:
        file.write((json.dumps(second) + "\n").encode()[:kept])
    assert read_rows(path) == [first]
    append_row(path, third)
    assert read_rows(path) == [first, third]


def test_rows_of_two_corpora_do_not_compare():
    with pytest.raises(ConfigError, match=r"'python_source' with digest aaaa and 'python_source' with digest bbbb"):
        require_comparable([fake_row("dense", digest="aaaa"), fake_row("switch-4", digest="bbbb")])


def test_one_name_is_one_configuration():
    other = fake_row("dense", seed=1)
    other["config"]["steps"] = 7
    with pytest.raises(ConfigError, match="name is 'dense' in rows of two configurations"):
        require_comparable([fake_row("dense"), other])


def test_a_seed_counts_once():
    with pytest.raises(ConfigError, match="seed is 0 in two rows of 'dense'"):
        require_comparable([fake_row("dense"), fake_row("dense")])
