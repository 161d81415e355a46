import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.results.curves import budget_to_reach, curve_frame, reached_at
from moe_jax.results.rows import final_loss
from tests.results.fake_rows import fake_row

curves = st.lists(st.floats(0.1, 10), min_size=2, max_size=20).map(np.array)


def test_curve_frame_has_a_line_per_evaluation():
    rows = [fake_row("dense", points=6), fake_row("switch-4", points=6)]
    frame = curve_frame(rows)
    assert len(frame) == 12
    last = frame[frame.name == "switch-4"].iloc[-1]
    assert last.step == 1000
    assert last.flops == 1000 * 4096 * rows[1]["flops_per_token"]
    assert last.validation_loss == final_loss(rows[1])
    assert last.fraction_dropped == 0.02
    assert pd.isna(frame[frame.name == "dense"].fraction_dropped).all()


@pytest.mark.parametrize(
    ("target", "expected"),
    [(5.0, 0.0), (4.0, 0.0), (3.0, 50.0), (2.0, 100.0), (1.5, 250.0), (1.0, 300.0), (0.5, None)],
)
def test_reached_at_interpolates_the_running_minimum(target, expected):
    # The loss rises from 2 to 2.5 at 200; the running minimum stays at 2 there.
    assert reached_at(np.array([0, 100, 200, 300]), np.array([4.0, 2.0, 2.5, 1.0]), target) == expected


@pytest.mark.parametrize(
    ("target", "expected"), [(3.0, 100), (2.5, 100 * 2**0.5), (2.0, 200), (1.75, 200 * 2**0.5), (3.5, 100), (1.0, None)]
)
def test_the_budget_of_a_loss_is_between_those_of_complete_runs(target, expected):
    """Losses 3, 2 and 1.5 after 100, 200 and 400 steps, in any order."""
    found = budget_to_reach(np.array([400, 100, 200]), np.array([1.5, 3.0, 2.0]), target)
    assert found == (None if expected is None else pytest.approx(expected))


@given(st.floats(0.1, 1.0), st.floats(0.0, 3.0), st.floats(1.0, 8.0))
def test_the_budget_is_not_underestimated_where_losses_fall_by_a_power_law(exponent, floor, share):
    """At budgets of 1/8, 1/4, 1/2 and all of the steps; it is overestimated by at most 7%."""
    costs = np.array([125.0, 250.0, 500.0, 1000.0])
    losses = floor + 10 * costs**-exponent
    true = 1000 / share
    found = budget_to_reach(costs, losses, floor + 10 * true**-exponent)
    assert true * (1 - 1e-6) <= found <= true * 1.07


def test_a_diverged_evaluation_reaches_nothing():
    curve = np.array([math.nan, 2.0, math.nan])
    assert reached_at(np.arange(3), curve, 2.5) == 1
    assert reached_at(np.arange(3), curve, 1.0) is None


@given(curves, st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_lower_loss_is_reached_no_earlier(curve, one, other):
    positions = [reached_at(np.arange(len(curve)), curve, target) for target in sorted((one, other))]
    if positions[0] is not None:
        assert positions[0] >= positions[1]


@given(curves, st.floats(0.1, 10), st.floats(1e-3, 1e12))
def test_the_unit_of_x_does_not_matter(curve, target, unit):
    x = np.arange(len(curve))
    plain, scaled = reached_at(x, curve, target), reached_at(x * unit, curve, target)
    assert (plain is None) == (scaled is None)
    assert plain is None or scaled == pytest.approx(plain * unit)


@given(curves, st.data())
def test_every_loss_of_a_curve_is_reached_by_its_step(curve, data):
    step = data.draw(st.integers(0, len(curve) - 1))
    assert reached_at(np.arange(len(curve)), curve, curve[step]) <= step
