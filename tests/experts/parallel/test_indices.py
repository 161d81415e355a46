"""Where rows go when devices exchange them, against loops; and `ragged`, whose exchange CPU is taught for that.

G groups of one device, S tokens of a group, A assignments of a group, E experts of all devices, L experts of one, P
devices on the expert axis, R rows that a device may send to another, M rows received, D model width.
"""

import functools
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.interpreters import mlir
from jax.sharding import PartitionSpec

from moe_jax.experts.ffn import FFN_KINDS
from moe_jax.experts.parallel import indices
from moe_jax.experts.parallel.run import apply_on_mesh
from moe_jax.experts.parallel.strategy import ParallelConfig
from moe_jax.native.sorting import NOWHERE
from moe_jax.routing.assignment import Assignment
from moe_jax.runtime.mesh import current_mesh
from tests.comparison import assert_close, assert_each_close
from tests.experts.parallel.test_strategies import COMBINES, SHAPE, on_mesh, reference
from tests.experts.test_against_oracle import along_experts, draw, route
from tests.meshes import MESHES, make_mesh

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


jitted_buffer_places = jax.jit(indices.buffer_places, static_argnums=(1, 2))
jitted_experts_of_runs = jax.jit(indices.experts_of_runs, static_argnums=(1, 2))
jitted_transfers = jax.jit(indices.transfers)
jitted_local_part = jax.jit(indices.local_part, static_argnums=2)


@pytest.mark.parametrize("shape", SHAPES)
@given(data=st.data())
def test_places_in_buffers(shape, data):
    """Each device's buffer has its kept assignments from row 0 on, sorted by expert, each once, as far as it goes."""
    *_, experts, devices = shape
    assignment = data.draw(assignments(shape), "assignment")
    rows = data.draw(st.sampled_from([1, 3, shape[0] * assignment.token.shape[1]]), "rows")
    place, sizes = jitted_buffer_places(assignment, devices, rows)
    asked = {device: [] for device in range(devices)}
    buffers = {device: {} for device in range(devices)}
    for g, a in np.ndindex(*assignment.token.shape):
        expert, row = int(assignment.expert[g, a]), int(place[g, a])
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
    assert int((place == NOWHERE).sum()) == place.size - sum(min(count, rows) for count in by_device)


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


# `ragged` itself. jax knows types and gradients of its exchange on all platforms, but runs it on GPU and TPU only. So
# CPU is taught to, from the docstring of jax.lax.ragged_all_to_all; what that leaves undefined gives NaN.


def spelt_out(operand, output, starts, sent, starts_there, received, *, axis_name, axis_index_groups):
    """What this device has after the exchange, from what all devices put into it."""
    assert axis_index_groups is None
    everyone = functools.partial(jax.lax.all_gather, axis_name=axis_name)
    operands, starts, sent, starts_there = map(everyone, (operand, starts, sent, starts_there))
    me = jax.lax.axis_index(axis_name)
    row = jnp.arange(output.shape[0], dtype=jnp.int32)
    result, defined = output, jnp.ones((), bool)
    for source in range(operands.shape[0]):
        start, size, place = starts[source, me], sent[source, me], starts_there[source, me]
        written = (row >= place) & (row < place + size)
        rows = operands[source].at[row - place + start].get(mode="clip")
        result = jnp.where(written.reshape(-1, *(1,) * (output.ndim - 1)), rows, result)
        fits = (start >= 0) & (start + size <= operand.shape[0]) & (place >= 0) & (place + size <= output.shape[0])
        defined &= (size == received[source]) & fits
    return jnp.where(defined, result, jnp.full((), jnp.nan, result.dtype))


@pytest.fixture(scope="module")
def ragged_on_cpu():
    """Lets CPU exchange ragged arrays, and `ragged` take it for a platform that does."""
    mlir.register_lowering(
        jax.lax.ragged_all_to_all_p, mlir.lower_fun(spelt_out, multiple_results=False), platform="cpu"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_jax.experts.parallel.run.platform_of", lambda mesh: "tpu")
        yield


@pytest.mark.usefixtures("ragged_on_cpu")
@pytest.mark.parametrize("breach", [None, "sizes", "room"])
def test_the_exchange_is_what_jax_documents(breach):
    """The example of its docstring; and NaN where sizes contradict each other, or there is no room."""
    fields = [[[0, 1], [0, 1]], [[1, 2], [1, 1]], [[0, 0], [1, 2]], [[1, 1], [2, 1]]]
    if breach:
        fields[3 if breach == "sizes" else 2][0] = [2, 1] if breach == "sizes" else [0, 3]

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=jax.make_mesh((2,), ("i",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=PartitionSpec("i"),
        out_specs=PartitionSpec("i"),
    )
    def run(operand, output, *fields):
        moved = jax.lax.ragged_all_to_all(operand[0], output[0], *(field[0] for field in fields), axis_name="i")
        return moved[None]

    operand, output = jnp.asarray([[1.0, 2, 2], [3, 4, 0]]), jnp.zeros((2, 4))
    result = np.asarray(run(operand, output, *(jnp.asarray(field, jnp.int32) for field in fields)))
    if breach:
        assert np.isnan(result[0 if breach == "sizes" else 1]).all()
    else:
        np.testing.assert_array_equal(result, [[1, 3, 0, 0], [2, 2, 4, 0]])


# Each is compiled for each mesh it is tried on: all of them where many devices exchange.
ROUTERS = dict.fromkeys(MESHES, ("gshard_all",)) | dict.fromkeys(
    ("8 expert", "2x4 data-expert"), ("switch", "gshard_all", "expert_choice")
)


def assert_ragged_equals_the_reference(mesh, router, kind, combine, favour, valid, seed):
    x, kernel, weights, cotangent = draw(SHAPE, kind, seed)
    assignment = route(router, 1.0 if router == "expert_choice" else None, x, kernel, favour, valid)
    cotangent = along_experts(kind, x, assignment, weights, cotangent)
    expected = reference(kind, combine, x, assignment, weights, cotangent)
    *actual, metrics = on_mesh(mesh, "ragged", kind, combine, "dropless", 1.0)(x, assignment, weights, cotangent)
    for one, other, what in zip(actual[:3], expected[:3], ("output", "input", "weight"), strict=True):
        assert_close(one, other, what=f"ragged on {mesh}: {what}")
    for name, gradient in expected[3].items():
        assert_each_close(actual[3][name], gradient, what=f"ragged on {mesh}: {name}")
    assert metrics == {}
    return assignment, actual


@pytest.mark.usefixtures("ragged_on_cpu")
@pytest.mark.parametrize("mesh", MESHES)
@settings(max_examples=6)
@given(data=st.data())
def test_ragged_equals_the_reference(mesh, data):
    groups, tokens, *_, experts = SHAPE
    router = data.draw(st.sampled_from(ROUTERS[mesh]), "router")
    share = data.draw(st.sampled_from([0.0, 0.7, 1.0]), "share valid")
    seed = data.draw(st.integers(0, 99), "seed")
    valid = jnp.asarray(np.random.default_rng(seed).random((groups, tokens)) < share)
    favour = data.draw(st.sampled_from([0.0, 3.0, 50.0]), "skew") * jax.nn.one_hot(0, experts)
    assert_ragged_equals_the_reference(mesh, router, "swiglu", "output", favour, valid, seed)


@pytest.mark.usefixtures("ragged_on_cpu")
@pytest.mark.parametrize(
    ("kind", "combine"), [("gpt_oss", "output"), *(("swiglu", combine) for combine in COMBINES if combine != "output")]
)
def test_ragged_with_biases_and_every_way_of_applying_weights(kind, combine):
    favour, valid = jnp.zeros(SHAPE[-1]), jnp.ones(SHAPE[:2], bool).at[:, 2].set(False)
    mesh = "2x2x2 data-expert-tensor"
    assert_ragged_equals_the_reference(mesh, "gshard_all", kind, combine, favour, valid, 2)


@pytest.mark.usefixtures("ragged_on_cpu")
@pytest.mark.parametrize("mesh", ["8 expert", "2x4 data-expert"])
def test_ragged_with_every_token_on_one_expert(mesh):
    favour, valid = 100.0 * jax.nn.one_hot(5, SHAPE[-1]), jnp.ones(SHAPE[:2], bool)
    assignment, (y, *_, gradients) = assert_ragged_equals_the_reference(
        mesh, "switch", "swiglu", "output", favour, valid, 3
    )
    assert assignment.kept.all()
    assert (jnp.abs(y).max(axis=-1) > 0).all()
    for gradient in gradients.values():
        assert (gradient.at[5].set(0) == 0).all()


@pytest.mark.usefixtures("ragged_on_cpu")
@pytest.mark.parametrize("wire", ["bfloat16", "float32"])
def test_the_ragged_wire_has_the_type_asked_for(wire):
    """Each way, values are the reference's, to the precision of what travels."""
    x, kernel, weights, cotangent = draw(SHAPE, "swiglu")
    assignment = route("gshard_all", None, x, kernel, jnp.zeros(8), jnp.ones(SHAPE[:2], bool))
    dtype = jnp.bfloat16 if wire == "float32" else jnp.float32

    def run(x, weights):
        config = ParallelConfig("ragged", wire=wire)
        kind = FFN_KINDS["swiglu"]
        return apply_on_mesh(x, assignment, weights, kind, "dropless", "output", current_mesh(), config, 2.0)[0]

    tree = jax.tree.map(lambda leaf: leaf.astype(dtype), (x, weights))
    with jax.set_mesh(make_mesh("8 expert")):
        sent = [line for line in str(jax.make_jaxpr(run)(*tree)).splitlines() if "ragged_all_to_all[" in line]
        y = jax.jit(run)(*tree)
    assert len(sent) == 2
    assert all(("bf16[" if wire == "bfloat16" else "f32[") in line for line in sent)
    assert y.dtype == dtype
    assert_close(y, reference("swiglu", "output", x, assignment, weights, cotangent)[0], 3e-2)
