import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moe_jax.claims.comparison_rules import Difference, Equal, Order, Pairs
from moe_jax.claims.gain_rules import Monotone, ShareOfGain, SpeedUp
from moe_jax.claims.seed_rules import Diverges, Spread
from moe_jax.claims.verdicts import Outcome
from moe_jax.configuration import ConfigError
from moe_jax.results.rows import final_loss
from moe_jax.results.summary import summarize
from tests.results.fake_rows import fake_row, fake_rows

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE = Outcome.SUPPORTED, Outcome.NOT_SUPPORTED, Outcome.INCONCLUSIVE
NAMES = ("dense", "switch-4", "switch-16", "switch-64")
losses = st.lists(st.floats(1, 9).map(lambda value: round(value, 3)), min_size=3, max_size=6)


def rows_of(**final):
    """A row for each final loss; `a`, `b`, `c`, `d` are dense and 4, 16 and 64 experts."""
    rows = []
    for letter, values in final.items():
        for seed, loss in enumerate(values):
            row = fake_row(NAMES["abcd".index(letter)], seed, points=2)
            row["name"] = letter
            row["curve"][-1]["validation_loss"] = loss
            rows.append(row)
    return rows


def outcome(rule, **final):
    return rule.verdict(rows_of(**final)).outcome


BELOW = Difference(model="b", baseline="a")


@given(losses, st.data())
def test_a_difference_is_judged_by_scipys_paired_t_test(values, data):
    other = data.draw(st.lists(st.floats(1, 9), min_size=len(values), max_size=len(values)))
    verdict = BELOW.verdict(rows_of(b=values, a=other))
    test = stats.ttest_rel(values, other)
    if np.std(np.subtract(values, other)) < 1e-6 or abs(test.pvalue - 0.05) < 1e-6:
        return
    expected = INCONCLUSIVE if test.pvalue > 0.05 else SUPPORTED if test.statistic < 0 else NOT_SUPPORTED
    assert verdict.outcome is expected
    assert verdict.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert verdict.estimate == pytest.approx(np.mean(np.subtract(values, other)))


def test_figures_of_a_difference_are_in_its_words():
    verdict = BELOW.verdict(rows_of(a=[4.0, 4.1, 4.2], b=[3.9, 4.0, 4.1]))
    assert verdict.figure == "-0.1000 [-0.1000, -0.1000] nats (b - a)"
    assert (verdict.seeds, verdict.test) == (3, "paired t")


def test_a_difference_must_pass_the_threshold_not_only_zero():
    final = {"a": [4.0, 4.1, 4.2], "b": [3.89, 4.0, 4.11]}
    assert outcome(BELOW, **final) is SUPPORTED
    assert outcome(Difference(model="b", baseline="a", threshold=-0.05), **final) is SUPPORTED
    assert outcome(Difference(model="b", baseline="a", threshold=-0.1), **final) is INCONCLUSIVE
    assert outcome(Difference(model="b", baseline="a", threshold=-0.2), **final) is NOT_SUPPORTED
    assert outcome(Difference(model="b", baseline="a", claimed="above"), **final) is NOT_SUPPORTED


def test_what_is_the_same_is_not_below():
    assert outcome(BELOW, a=[4.0, 4.1], b=[4.0, 4.1]) is NOT_SUPPORTED


@pytest.mark.parametrize(
    "rule",
    [
        BELOW,
        Equal(model="b", baseline="a", margin=9.0),
        Order(order=("a", "b")),
        Pairs(pairs=(("b", "a"),)),
        Monotone(sizes=("a", "b", "c")),
        SpeedUp(model="b", baseline="a"),
        ShareOfGain(model="b", base="a", best="c", low=0.0),
        Diverges(model="a", threshold=0.99, claimed="below"),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_one_seed_supports_nothing(rule):
    verdict = rule.verdict(rows_of(a=[4.0], b=[3.0], c=[2.0]))
    assert (verdict.outcome, verdict.reason, verdict.seeds) == (INCONCLUSIVE, "one seed", 1)
    assert verdict.figure


def test_only_common_seeds_are_compared():
    rows = rows_of(a=[4.0, 4.1, 4.2], b=[3.9, 4.0, 4.1])
    assert BELOW.verdict([row for row in rows if row["name"] == "a" or row["seed"]]).seeds == 2
    apart = [row for row in rows if (row["name"] == "a") == (row["seed"] == 0)]
    assert BELOW.verdict(apart).reason == "no seed in common"
    assert BELOW.verdict(rows[::-1]).interval == BELOW.verdict(rows).interval


def test_models_that_did_not_run_are_named():
    verdict = Pairs(pairs=(("b", "a"), ("c", "a"))).verdict(rows_of(a=[4.0, 4.1]))
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_RUN, "no runs of b, c")


@pytest.mark.parametrize("how", ["marked", "nan", "empty"])
def test_runs_that_diverged_leave_no_loss_to_compare(how):
    rows = rows_of(a=[4.0, 4.1, 4.2], b=[3.9, 4.0, 4.1])
    if how == "marked":
        rows[-1]["diverged"] = True
    elif how == "nan":
        rows[-1]["curve"][-1]["validation_loss"] = math.nan
    else:
        rows[-1]["curve"] = []
    verdict = BELOW.verdict(rows)
    assert (verdict.outcome, verdict.reason) == (INCONCLUSIVE, "diverged: 1 of 3 runs of b")


def test_a_metric_may_be_a_score_or_of_the_routing():
    rows = rows_of(b=[3.9, 4.0, 4.1], c=[4.0, 4.1, 4.2])
    for row in rows:
        row["scores"] = {"accuracy": {"b": 70.0, "c": 80.0}[row["name"]] + row["seed"]}
        row["curve"][-1]["routing"] = {"fraction_dropped": {"b": 0.1, "c": 0.3}[row["name"]]}
    scored = Difference(model="c", baseline="b", claimed="above", metric="accuracy").verdict(rows)
    assert (scored.outcome, scored.figure) == (SUPPORTED, "+10.0000 [+10.0000, +10.0000] accuracy (c - b)")
    routed = Difference(model="c", baseline="b", claimed="above", metric="routing.fraction_dropped").verdict(rows)
    assert routed.estimate == pytest.approx(0.2)
    with pytest.raises(ConfigError, match=r"metric of c is 'acuracy'; accepted: accuracy, loss.*did you mean 'acc"):
        Difference(model="c", baseline="b", metric="acuracy").verdict(rows)


@given(losses, st.data(), st.floats(0.01, 3))
def test_equality_is_two_one_sided_tests(values, data, margin):
    other = data.draw(st.lists(st.floats(1, 9), min_size=len(values), max_size=len(values)))
    difference = np.subtract(values, other)
    if np.std(difference) < 1e-6:
        return
    verdict = Equal(model="b", baseline="a", margin=margin).verdict(rows_of(b=values, a=other))
    above = stats.ttest_1samp(difference, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(difference, margin, alternative="less").pvalue
    assert (verdict.outcome is SUPPORTED) == (max(above, below) < 0.05)
    # Outside: significantly beyond one of the margins, two-sided.
    assert (verdict.outcome is NOT_SUPPORTED) == (min(1 - above, 1 - below) < 0.025)


def test_equality_needs_less_than_a_whole_interval():
    """The standard error is 0.00577: the 90% interval is 0.0169 to both sides, the 95% one 0.0248."""
    final = {"a": [4.0, 4.1, 4.2], "b": [3.99, 4.1, 4.21]}
    assert outcome(Equal(model="b", baseline="a", margin=0.02), **final) is SUPPORTED
    assert outcome(Equal(model="b", baseline="a", margin=0.016), **final) is INCONCLUSIVE


@pytest.mark.parametrize(
    ("c", "expected"),
    [
        ([3.8, 3.91, 4.0], SUPPORTED),
        ([3.91, 3.95, 4.1], INCONCLUSIVE),
        ([4.5, 4.61, 4.7], NOT_SUPPORTED),
    ],
)
def test_an_order_holds_only_if_every_neighbour_does(c, expected):
    assert outcome(Order(order=("a", "b", "c")), a=[4.0, 4.11, 4.2], b=[3.9, 4.0, 4.1], c=c) is expected


def test_an_order_of_scores_rises():
    final = {"a": [1.0, 1.11, 1.2], "b": [2.0, 2.1, 2.2], "c": [3.0, 3.11, 3.2]}
    assert outcome(Order(order=("a", "b", "c"), better="higher"), **final) is SUPPORTED
    assert outcome(Order(order=("a", "b", "c")), **final) is NOT_SUPPORTED


def test_several_comparisons_are_held_to_more_than_one():
    """Each alone has p = 0.035, which is not enough for both."""
    a, b = np.array([4.0, 4.1, 4.2, 4.3]), np.array([-0.02, -0.01, -0.04, -0.05])
    final = {"a": a.tolist(), "b": (a + b).tolist(), "c": (a + b).tolist()}
    p = stats.ttest_1samp(b, 0).pvalue
    assert 0.025 < p < 0.05
    assert outcome(BELOW, **final) is SUPPORTED
    verdict = Pairs(pairs=(("b", "a"), ("c", "a"))).verdict(rows_of(**final))
    assert verdict.outcome is INCONCLUSIVE
    assert f"b - a, p {2 * p:.3f}" in verdict.figure


def test_the_estimate_of_pairs_is_that_of_the_least_sure():
    final = {"a": [4.0, 4.11, 4.2], "b": [3.9, 4.0, 4.1], "c": [3.95, 4.3, 4.1]}
    verdict = Pairs(pairs=(("b", "a"), ("c", "a"))).verdict(rows_of(**final))
    assert verdict.estimate == pytest.approx(np.mean(np.subtract(final["c"], final["a"])))


def test_a_slope_is_per_doubling_and_a_dense_model_is_one_expert():
    """1, 4, 16 experts are 0, 2 and 4 doublings; the losses fall by 0.05 for each."""
    verdict = Monotone(sizes=("a", "b", "c")).verdict(rows_of(a=[4.0, 4.2], b=[3.9, 4.1], c=[3.8, 4.0]))
    assert verdict.estimate == pytest.approx(-0.05)
    assert verdict.interval == pytest.approx((-0.05, -0.05))
    assert verdict.outcome is SUPPORTED
    final = {"a": [4.0, 4.2, 4.1], "b": [3.9, 4.3, 4.0], "c": [4.1, 4.1, 4.2]}
    expected = [np.polyfit([0, 2, 4], [final[name][seed] for name in "abc"], 1)[0] for seed in range(3)]
    verdict = Monotone(sizes=("a", "b", "c")).verdict(rows_of(**final))
    assert verdict.interval == pytest.approx(tuple(stats.ttest_1samp(expected, 0).confidence_interval(0.95)))
    assert verdict.outcome is INCONCLUSIVE


def test_a_speed_up_is_that_of_the_report():
    rows = fake_rows(3)
    (summary,) = [summary for summary in summarize(rows, "dense") if summary.name == "switch-16"]
    for cost, expected in summary.speed_up.items():
        verdict = SpeedUp(model="switch-16", baseline="dense", cost=cost).verdict(rows)
        assert (verdict.estimate, verdict.interval) == (expected.ratio.mean, expected.ratio.interval)
    rule = SpeedUp(model="switch-16", baseline="dense", threshold=1000.0)
    assert rule.verdict(rows).outcome is NOT_SUPPORTED
    assert SpeedUp(model="switch-16", baseline="dense").verdict(rows).outcome is SUPPORTED


@pytest.mark.parametrize(("b", "expected"), [([4.5, 4.61, 4.7], NOT_SUPPORTED), ([4.5, 4.0, 4.7], INCONCLUSIVE)])
def test_a_loss_that_is_not_reached_has_no_speed_up(b, expected):
    verdict = SpeedUp(model="b", baseline="a").verdict(rows_of(a=[4.0, 4.1, 4.2], b=b))
    assert (verdict.outcome, verdict.estimate) == (expected, None)
    assert "seeds reach the final loss of a" in verdict.figure


GAIN = {"a": [4.0, 4.1, 4.2], "c": [3.0, 3.1, 3.21]}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, None, SUPPORTED), (0.1, 0.3, SUPPORTED), (None, 0.1, NOT_SUPPORTED), (0.2, None, INCONCLUSIVE)],
)
def test_a_share_of_the_gain_lies_in_its_range(low, high, expected):
    rule = ShareOfGain(model="b", base="a", best="c", low=low, high=high)
    verdict = rule.verdict(rows_of(b=[3.8, 3.91, 3.99], **GAIN))
    assert verdict.outcome is expected
    assert verdict.estimate == pytest.approx(0.6 / 2.99)


def test_a_share_of_a_score_is_that_of_the_loss():
    final = GAIN | {"b": [3.8, 3.91, 3.99]}
    rule = ShareOfGain(model="b", base="a", best="c", low=0.1)
    as_score = ShareOfGain(model="b", base="a", best="c", low=0.1, better="higher", metric="score")
    rows = rows_of(**final)
    for row in rows:
        row["scores"] = {"score": 9 - final_loss(row)}
    assert as_score.verdict(rows).interval == pytest.approx(rule.verdict(rows).interval)


def test_there_is_no_share_of_a_gain_that_is_none():
    rule = ShareOfGain(model="b", base="a", best="c", low=0.0)
    verdict = rule.verdict(rows_of(a=[3.0, 3.1, 3.2], b=[4.0, 4.1, 4.2], c=[4.0, 4.1, 4.2]))
    assert (verdict.outcome, verdict.reason) == (INCONCLUSIVE, "c is not certain to be better than a")
    assert (verdict.figure, verdict.estimate) == ("no certain gain to share", None)


@pytest.mark.parametrize(
    ("b", "expected"),
    [
        ([4.00, 4.01, 3.99, 4.0, 4.02], SUPPORTED),
        ([1.0, 9.0, 4.0, 2.0, 8.0], INCONCLUSIVE),
        ([9.0, 900.0, 1.0, 500.0, 0.0], NOT_SUPPORTED),
    ],
)
def test_a_spread_is_told_from_another(b, expected):
    a = [4.0, 6.0, 3.0, 8.0, 5.0]
    verdict = Spread(model="b", baseline="a").verdict(rows_of(a=a, b=b))
    assert verdict.outcome is expected
    assert verdict.estimate == pytest.approx(np.std(b, ddof=1) / np.std(a, ddof=1))


def test_two_seeds_have_no_spread_to_compare():
    verdict = Spread(model="b", baseline="a").verdict(rows_of(a=[4.0, 6.0], b=[4.0, 4.01]))
    assert verdict.outcome is INCONCLUSIVE
    assert "three seeds" in verdict.reason


@pytest.mark.parametrize(
    ("runs", "count", "claimed", "threshold", "expected"),
    [
        (3, 3, "above", 0.25, SUPPORTED),
        (3, 3, "above", 0.5, INCONCLUSIVE),
        (6, 6, "above", 0.5, SUPPORTED),
        (6, 0, "above", 0.5, NOT_SUPPORTED),
        (6, 0, "below", 0.5, SUPPORTED),
        (6, 3, "below", 0.5, INCONCLUSIVE),
    ],
)
def test_divergence_is_counted(runs, count, claimed, threshold, expected):
    rows = rows_of(a=[4.0] * runs)
    for row in rows[:count]:
        row["diverged"] = True
    verdict = Diverges(model="a", claimed=claimed, threshold=threshold).verdict(rows)
    assert (verdict.outcome, verdict.seeds) == (expected, runs)
    assert f"{count} of {runs} runs of a diverge" in verdict.figure


def test_the_interval_of_a_share_of_runs_is_exact():
    """For none of n it ends at 1 - 0.025^(1/n) (Clopper and Pearson 1934)."""
    verdict = Diverges(model="a").verdict(rows_of(a=[4.0] * 5))
    assert verdict.interval == pytest.approx((0, 1 - 0.025 ** (1 / 5)))


@pytest.mark.parametrize(
    ("rule", "values", "message"),
    [
        (Difference, {"model": "a", "baseline": "a"}, "baseline is 'a'; accepted: models that differ"),
        (Equal, {"model": "a", "baseline": "b", "margin": 0.0}, "margin is 0.0; accepted: a number above 0"),
        (Pairs, {"pairs": (("a", "b", "c"),)}, "pairs is .*; accepted: one or more pairs of two models"),
        (Pairs, {"pairs": ()}, "pairs"),
        (Order, {"order": ("a",)}, "order is .*; accepted: two models or more"),
        (Order, {"order": ("a", "b", "a")}, "order is 'a'"),
        (Monotone, {"sizes": ("a", "b")}, "sizes is .*; accepted: three models or more"),
        (SpeedUp, {"model": "a", "baseline": "b", "threshold": 0.5}, "threshold is 0.5; accepted: .* at least 1"),
        (ShareOfGain, {"model": "a", "base": "b", "best": "c"}, "low is None; accepted: a number, or high"),
        (ShareOfGain, {"model": "a", "base": "b", "best": "c", "low": 0.3, "high": 0.2}, "high is 0.2"),
        (Spread, {"model": "a", "baseline": "b", "threshold": 2.0}, "threshold is 2.0"),
        (Diverges, {"model": "a", "threshold": 1.0}, "threshold is 1.0"),
    ],
)
def test_rules_that_cannot_decide_are_refused(rule, values, message):
    with pytest.raises(ConfigError, match=message):
        rule(**values)


def test_sizes_must_differ_in_experts():
    rows = rows_of(a=[4.0, 4.1], b=[4.0, 4.1], c=[4.0, 4.1])
    for row in rows:
        row["config"]["model"]["moe_layers"] = []
    with pytest.raises(ConfigError, match="models that differ in their number of experts"):
        Monotone(sizes=("a", "b", "c")).verdict(rows)
