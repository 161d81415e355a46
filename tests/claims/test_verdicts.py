import math

import pytest

from moe_jax.claims.verdicts import Outcome, decide, on_side, percent, plain, signed


@pytest.mark.parametrize(
    ("interval", "low", "high", "expected"),
    [
        ((0.1, 0.2), 0.0, math.inf, Outcome.SUPPORTED),
        ((0.0, 0.2), 0.0, math.inf, Outcome.INCONCLUSIVE),
        ((-0.2, 0.0), 0.0, math.inf, Outcome.NOT_SUPPORTED),
        ((0.0, 0.0), 0.0, math.inf, Outcome.NOT_SUPPORTED),
        ((0.0, 0.0), -math.inf, 0.0, Outcome.NOT_SUPPORTED),
        ((-0.1, 0.1), -0.2, 0.2, Outcome.SUPPORTED),
        ((-0.1, 0.2), -0.2, 0.2, Outcome.INCONCLUSIVE),
        ((-0.3, 0.3), -0.2, 0.2, Outcome.INCONCLUSIVE),
        ((0.2, 0.3), -0.2, 0.2, Outcome.NOT_SUPPORTED),
        (None, 0.0, math.inf, Outcome.INCONCLUSIVE),
    ],
)
def test_an_interval_decides_whether_a_claimed_range_holds(interval, low, high, expected):
    assert decide(interval, low, high) is expected


def test_a_side_is_a_range_without_an_end():
    assert on_side((0.1, 0.2), "above", 0.05) is Outcome.SUPPORTED
    assert on_side((0.1, 0.2), "below", 0.05) is Outcome.NOT_SUPPORTED
    assert on_side((-0.1, 0.2), "below") is Outcome.INCONCLUSIVE


def test_figures_have_their_interval_where_there_is_one():
    assert signed(-0.1, (-0.2, 0.05)) == "-0.1000 [-0.2000, +0.0500]"
    assert plain(1.5, None) == "1.50"
    assert percent(0.2, (-0.1, 0.5)) == "20% [-10%, 50%]"
