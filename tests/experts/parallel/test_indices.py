"""Index arithmetic of exchanges between devices, against loops.

G groups of one device, S tokens of a group, A assignments of a group, E experts of all devices, L experts of one, P
devices on the expert axis, R rows that a device may send to another, M rows received.
"""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_jax.experts.parallel import indices
from moe_jax.native.sorting import NOWHERE
from moe_jax.routing.assignment import Assignment

# G, S, K, E, P: few, because each is compiled anew.
SHAPES = [(2, 5, 2, 6, 3), (1, 4, 2, 4, 4), (2, 4, 1, 4, 1)]


def assignment_of(expert, requested, seat, capacity, num_tokens, num_experts):
    count = expert.shape[1]
    return Assignment(
        token=jnp.asarray(np.tile(np.arange(count) % num_tokens, (len(expert), 1)), jnp.int32),
        expert=jnp.asarray(expert, jnp.int32),
        weight=jnp.asarray(np.arange(1, expert.size + 1).reshape(expert.shape), jnp.float32),
        requested=jnp.asarray(requested),
        seat=jnp.asarray(seat, jnp.int32),
        capacity=capacity,
        num_tokens=num_tokens,
        num_experts=num_experts,
        choices=count // num_tokens,
    )


@st.composite
def assignments(draw, shape):
    """Experts of any skew, some choices not asked for, seats in order with a capacity that may bind."""
    groups, tokens, choices, experts, _ = shape
    size = (groups, tokens * choices)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), "seed"))
    expert = rng.integers(0, draw(st.integers(1, experts), "popular experts"), size)
    expert = (expert + draw(st.integers(0, experts - 1), "first of them")) % experts
    requested = rng.random(size) < draw(st.sampled_from([0.0, 0.7, 1.0]), "share requested")
    seat = np.zeros(size, int)
    for g, a in np.ndindex(*size):
        seat[g, a] = sum(requested[g, i] and expert[g, i] == expert[g, a] for i in range(a))
    return assignment_of(expert, requested, seat, draw(st.sampled_from([2, tokens]), "capacity"), tokens, experts)


def kept_by(assignment, g, a):
    return bool(assignment.requested[g, a]) and int(assignment.seat[g, a]) < assignment.capacity


def flat(array):
    return np.asarray(array).reshape(-1).tolist()


jitted_buffer_rows = jax.jit(indices.buffer_rows, static_argnums=(1, 2))
jitted_experts_of_runs = jax.jit(indices.experts_of_runs, static_argnums=(1, 2))
jitted_transfers = jax.jit(indices.transfers)
jitted_local_part = jax.jit(indices.local_part, static_argnums=2)


@pytest.mark.parametrize("shape", SHAPES)
@given(data=st.data())
def test_rows_of_buffers(shape, data):
    """Each device's buffer has its kept assignments from row 0 on, sorted by expert, each once, as far as it goes."""
    *_, experts, devices = shape
    assignment = data.draw(assignments(shape), "assignment")
    rows = data.draw(st.sampled_from([1, 3, shape[0] * assignment.token.shape[1]]), "rows")
    row_of, sizes = jitted_buffer_rows(assignment, devices, rows)
    asked = {device: [] for device in range(devices)}
    buffers = {device: {} for device in range(devices)}
    for g, a in np.ndindex(*assignment.token.shape):
        expert, row = int(assignment.expert[g, a]), int(row_of[g, a])
        device = expert // (experts // devices)
        if not kept_by(assignment, g, a):
            assert row == NOWHERE
            continue
        asked[device].append(expert)
        if row != NOWHERE:
            assert row // rows == device
            assert row % rows not in buffers[device]
            buffers[device][row % rows] = expert
    for device, buffer in buffers.items():
        assert dict(enumerate(sorted(asked[device])[:rows])) == buffer
    all_asked = list(itertools.chain(*asked.values()))
    assert flat(sizes) == [all_asked.count(expert) for expert in range(experts)]
    by_device = [len(asked[device]) for device in range(devices)]
    assert flat(indices.rows_by_device(sizes, devices)) == by_device
    assert flat(indices.starts(sizes)) == [sum(flat(sizes)[:expert]) for expert in range(experts)]
    assert int((row_of == NOWHERE).sum()) == row_of.size - sum(min(count, rows) for count in by_device)


@pytest.mark.parametrize(("experts", "runs", "rows"), [(1, 1, 4), (2, 6, 9), (3, 6, 5)])
@given(data=st.data())
def test_experts_of_runs(experts, runs, rows, data):
    sizes = data.draw(st.lists(st.sampled_from([0, 0, 1, 2, 5]), min_size=runs, max_size=runs), "sizes")
    expected = [run % experts for run, size in enumerate(sizes) for _ in range(size)][:rows]
    expert, present = jitted_experts_of_runs(jnp.asarray(sizes, jnp.int32), experts, rows)
    assert flat(present) == [row < len(expected) for row in range(rows)]
    assert flat(expert)[: len(expected)] == expected
    assert set(flat(expert)) <= set(range(experts))


def exchange(operands, outputs, transfers):
    """`jax.lax.ragged_all_to_all` of NumPy arrays, one for each device, as its docstring says it."""
    results = [output.copy() for output in outputs]
    for sender, receiver in np.ndindex(len(operands), len(operands)):
        start, sent, place, _ = (flat(field)[receiver] for field in transfers[sender])
        assert sent == flat(transfers[receiver].received)[sender]
        assert start + sent <= len(operands[sender])
        assert place + sent <= len(results[receiver])
        results[receiver][place : place + sent] = operands[sender][start : start + sent]
    return results


@pytest.mark.parametrize("devices", [1, 2, 5])
@given(data=st.data())
def test_rows_arrive_in_order_of_device_and_come_back(devices, data):
    sizes = st.lists(st.sampled_from([0, 0, 1, 2, 7]), min_size=devices, max_size=devices)
    rows = [data.draw(sizes, f"rows of {device}") for device in range(devices)]
    # A row knows its sender, its receiver and its number; each device has room to spare.
    runs = [[[(p, q, n) for n in range(1, rows[p][q] + 1)] for q in range(devices)] for p in range(devices)]
    room = 7 * devices + 1

    def filled(runs):
        array = np.zeros((room, 3), int)
        entries = list(itertools.chain(*runs))
        array[: len(entries)] = np.reshape(entries, (-1, 3))
        return array

    both = [jitted_transfers(jnp.asarray(rows, jnp.int32), jnp.int32(device)) for device in range(devices)]
    sent, empty = [filled(runs[p]) for p in range(devices)], [filled([])] * devices
    received = exchange(sent, empty, [there for there, _ in both])
    for q in range(devices):
        np.testing.assert_array_equal(received[q], filled([runs[p][q] for p in range(devices)]))
    np.testing.assert_array_equal(exchange(received, empty, [back for _, back in both]), sent)


@pytest.mark.parametrize("shape", SHAPES)
@given(data=st.data())
def test_each_device_takes_its_own_part(shape, data):
    """Each kept assignment is kept by the device of its expert, under its number there, and by no other."""
    *_, experts, devices = shape
    assignment = data.draw(assignments(shape), "assignment")
    count = experts // devices
    for device in range(devices):
        part = jitted_local_part(assignment, jnp.int32(device), devices)
        assert part.num_experts == count
        assert (part.num_tokens, part.capacity, part.choices) == (shape[1], assignment.capacity, shape[2])
        for g, a in np.ndindex(*assignment.token.shape):
            owner, local = divmod(int(assignment.expert[g, a]), count)
            assert kept_by(part, g, a) == (kept_by(assignment, g, a) and owner == device)
            assert 0 <= int(part.expert[g, a]) < count
            if owner == device:
                assert int(part.expert[g, a]) == local
        assert (part.token == assignment.token).all()
        assert (part.weight == assignment.weight).all()


@given(data=st.data())
def test_rows_that_have_arrived(data):
    """Row m is a token of its own, that its expert runs with weight 1 where there is a row, and nobody elsewhere."""
    experts, rows = 3, 7
    expert = data.draw(st.lists(st.integers(0, experts - 1), min_size=rows, max_size=rows), "expert")
    present = data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows), "present")
    assignment = indices.local_rows(jnp.asarray(expert, jnp.int32), jnp.asarray(present), experts)
    expected = np.zeros((1, rows, experts))
    for row in range(rows):
        expected[0, row, expert[row]] = present[row]
    dense = np.zeros_like(expected)
    for a in range(rows):
        dense[0, int(assignment.token[0, a]), int(assignment.expert[0, a])] += kept_by(assignment, 0, a) * float(
            assignment.weight[0, a]
        )
    np.testing.assert_array_equal(dense, expected)
    assert (assignment.num_tokens, assignment.num_experts, assignment.choices) == (rows, experts, 1)


def some_assignment(groups, count, experts, capacity):
    zeros = np.zeros((groups, count), int)
    return assignment_of(zeros, zeros == 0, zeros, capacity, count, experts)


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("capacity", [1, 2, 3, 5])
def test_the_most_rows_for_one_device_are_met_and_not_exceeded(capacity, devices):
    """Over all ways in which the assignments of a group may choose experts."""
    count, experts = 5, 4
    most = 0
    for chosen in itertools.product(range(experts), repeat=count):
        seated = [min(chosen.count(expert), capacity) for expert in range(experts)]
        most = max(most, *(sum(seated[expert] for expert in part) for part in np.arange(experts).reshape(devices, -1)))
    for groups in (1, 3):
        assignment = some_assignment(groups, count, experts, capacity)
        assert indices.most_rows_to_one_device(assignment, devices) == groups * most


@given(data=st.data())
def test_bounded_rows_have_room_for_the_slack(data):
    """The least whole number that slack times an even share does not exceed, from one row to as many as may come."""
    groups, count = data.draw(st.integers(1, 4), "groups"), data.draw(st.integers(1, 9), "assignments")
    devices, capacity = data.draw(st.sampled_from([1, 2, 4, 8]), "devices"), data.draw(st.integers(1, 9), "capacity")
    slack = data.draw(st.integers(8, 40), "slack in eighths") / 8
    assignment = some_assignment(groups, count, 8, capacity)
    wanted = math.ceil(Fraction(slack) * groups * count / devices)
    most = indices.most_rows_to_one_device(assignment, devices)
    assert indices.bounded_rows(assignment, devices, slack) == min(max(wanted, 1), most)
