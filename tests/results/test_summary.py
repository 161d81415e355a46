import pytest

from moe_jax.configuration import ConfigError
from moe_jax.results.rows import final_loss
from moe_jax.results.summary import require_baseline, summarize
from tests.results.fake_rows import SPEED, fake_row, fake_rows


def by_name(rows, baseline="dense"):
    return {summary.name: summary for summary in summarize(rows, baseline)}


def straight_row(name, seed, start, end, steps=100, step_seconds=1.0):
    """A run whose loss falls on a straight line, so that speed-ups can be worked out by hand."""
    row = fake_row(name, seed, steps=steps, points=2)
    row["seconds"] = steps * step_seconds
    for point, loss in zip(row["curve"], (start, end), strict=True):
        point |= {"validation_loss": loss, "seconds": point["step"] * step_seconds}
    return row


def test_speed_up_worked_by_hand():
    """The dense model ends at 2 after 100 steps; the sparse one falls twice as fast, in steps of 1.5 times the time."""
    rows = [straight_row("dense", 0, 4.0, 2.0), straight_row("switch-4", 0, 4.0, 0.0, step_seconds=1.5)]
    summary = by_name(rows)["switch-4"]
    assert summary.difference.mean == -2.0
    assert summary.step_time.mean == 1.5
    assert {cost: s.ratio.mean for cost, s in summary.speed_up.items()} == pytest.approx(
        {"step": 2.0, "flops": 2.0, "seconds": 2 / 1.5}
    )


def test_with_arms_speed_ups_are_of_complete_runs():
    """The dense model ends at 2 after 100 steps; a complete sparse run of 50 steps ends there, too.

    On the curve of the sparse model's whole run that loss comes only after 90 steps.
    """
    dense, sparse = straight_row("dense", 0, 4.0, 2.0), straight_row("switch-4", 0, 4.0, 1.5, step_seconds=1.5)
    sparse["curve"].insert(1, sparse["curve"][1] | {"step": 90, "tokens": 90 * 4096, "validation_loss": 2.0})
    dense["arms"] = [straight_row("dense@1of2", 0, 4.0, 2.5, steps=50)]
    sparse["arms"] = [straight_row("switch-4@1of2", 0, 4.0, 2.0, steps=50, step_seconds=1.5)]
    assert {cost: s.ratio.mean for cost, s in by_name([dense, sparse])["switch-4"].speed_up.items()} == pytest.approx(
        {"step": 2.0, "flops": 2.0, "seconds": 2 / 1.5}
    )
    del dense["arms"], sparse["arms"]
    assert by_name([dense, sparse])["switch-4"].speed_up["step"].ratio.mean == pytest.approx(100 / 90)


def test_speed_up_counts_more_flops_per_token():
    rows = [straight_row("dense", 0, 4.0, 2.0), straight_row("switch-4", 0, 4.0, 0.0)]
    rows[1]["flops_per_token"] *= 4
    assert by_name(rows)["switch-4"].speed_up["flops"].ratio.mean == pytest.approx(0.5)


def test_no_speed_up_is_claimed_unless_every_seed_reached_the_loss():
    rows = [straight_row("dense", seed, 4.0, 2.0) for seed in (0, 1)]
    rows += [straight_row("switch-4", 0, 4.0, 1.0), straight_row("switch-4", 1, 4.0, 3.0)]
    steps = by_name(rows)["switch-4"].speed_up["step"]
    assert (steps.reached, steps.seeds, steps.ratio) == (1, 2, None)


def test_a_baseline_that_got_worse_is_timed_when_it_first_was_as_good():
    dense = fake_row("dense", points=3)
    for point, loss in zip(dense["curve"], (4.0, 2.0, 3.0), strict=True):
        point["validation_loss"] = loss
    rows = [dense, straight_row("switch-4", 0, 4.0, 2.0, steps=1000)]
    assert by_name(rows)["switch-4"].speed_up["step"].ratio.mean == pytest.approx(250 / 500)


def test_seeds_are_paired_whatever_the_order_of_rows():
    rows = fake_rows(3)
    summary = by_name(rows[::-1])["switch-16"]
    losses = {(row["name"], row["seed"]): final_loss(row) for row in rows}
    differences = [losses["switch-16", seed] - losses["dense", seed] for seed in range(3)]
    assert summary.difference.mean == pytest.approx(sum(differences) / 3)
    assert summary.seeds == (0, 1, 2)


def test_known_speed_is_found_again():
    summaries = by_name(fake_rows(3))
    for name in ("switch-4", "switch-16", "switch-64"):
        assert summaries[name].speed_up["step"].ratio.mean == pytest.approx(SPEED[name], rel=0.05)


def test_only_common_seeds_are_compared():
    rows = [fake_row("dense", 0), fake_row("switch-4", 0), fake_row("switch-4", 1)]
    summary = by_name(rows)["switch-4"]
    assert (summary.loss.n, summary.difference.n) == (2, 1)
    assert by_name([fake_row("dense", 0), fake_row("switch-4", 1)])["switch-4"].difference is None


def test_models_are_ordered_by_experts():
    assert list(by_name(fake_rows(1)[::-1])) == ["dense", "switch-4", "switch-16", "switch-64"]


def test_dense_models_have_no_routing():
    dense = by_name(fake_rows(1))["dense"]
    assert (dense.experts, dense.routing, dense.speed_up) == (0, {}, {})


def test_an_unknown_baseline_gets_the_nearest_name():
    with pytest.raises(ConfigError, match=r"baseline is 'dens'; accepted: dense, switch-16.*did you mean 'dense'"):
        require_baseline(fake_rows(1), "dens")
