"""Collectives of programs whose traffic is counted by hand, and of lines as XLA writes them on other platforms."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from moe_jax.accounting.communication import ArrayType, Collective, collectives, least_bytes_per_token

BOTH = ("outer", "inner")
BY_BOTH = PartitionSpec(BOTH)


def make_mesh(outer, inner):
    return jax.make_mesh((outer, inner), BOTH, axis_types=(AxisType.Auto,) * 2)


def compiled(function, mesh, dtype=jnp.float32, out_specs=BY_BOTH):
    """The collectives of `function` of [8, 16] on each device."""
    with jax.set_mesh(mesh):
        divided = jax.shard_map(function, in_specs=BY_BOTH, out_specs=out_specs, check_vma=False)
        return collectives(jax.jit(divided).lower(jax.ShapeDtypeStruct((64, 16), dtype)).compile().as_text())


# What a device has: 8 * 16 float32, hence 512 bytes. The axes have 2 and 4 devices.
PROGRAMS = {
    # Of 2 or 4 or 8 equal parts all but one leave.
    "all-to-all over 2": (lambda x: jax.lax.all_to_all(x, "outer", 0, 0, tiled=True), "all-to-all", 2, 256),
    "all-to-all over 4": (lambda x: jax.lax.all_to_all(x, "inner", 0, 0, tiled=True), "all-to-all", 4, 384),
    "all-to-all over 8": (lambda x: jax.lax.all_to_all(x, BOTH, 0, 0, tiled=True), "all-to-all", 8, 448),
    "all-to-all of columns": (lambda x: jax.lax.all_to_all(x, "inner", 1, 0, tiled=True), "all-to-all", 4, 384),
    # All of it goes round a ring of 4, passed on by all but the last.
    "all-gather over 4": (lambda x: jax.lax.all_gather(x, "inner", tiled=True), "all-gather", 4, 1536),
    "all-gather over 8": (lambda x: jax.lax.all_gather(x, BOTH, tiled=True), "all-gather", 8, 3584),
    # A quarter at a time, three times.
    "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, "inner", tiled=True), "reduce-scatter", 4, 384),
    # That, and the gathering of the quarters.
    "all-reduce over 4": (lambda x: jax.lax.psum(x, "inner"), "all-reduce", 4, 768),
    "all-reduce of maxima": (lambda x: jax.lax.pmax(x, "outer"), "all-reduce", 2, 512),
    "collective-permute": (lambda x: jax.lax.ppermute(x, "outer", [(0, 1), (1, 0)]), "collective-permute", 2, 512),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_bytes_are_those_counted_by_hand(name):
    function, kind, devices, expected = PROGRAMS[name]
    (found,) = compiled(function, make_mesh(2, 4))
    assert (found.kind, found.group_size, found.bytes_sent, found.branches) == (kind, devices, expected, ())
    assert sum(operand.num_bytes for operand in found.operands) == 512
    assert {array.dtype for array in (*found.operands, *found.results)} == {"f32"}


@pytest.mark.parametrize(
    ("function", "growth"),
    [
        (lambda x: jax.lax.all_to_all(x, "inner", 0, 0, tiled=True), 1),
        (lambda x: jax.lax.all_gather(x, "inner", tiled=True), 4),
        (lambda x: jax.lax.psum_scatter(x, "inner", tiled=True), 0.25),
        (lambda x: jax.lax.psum(x, "inner"), 1),
    ],
)
def test_results_have_the_size_that_they_must(function, growth):
    (found,) = compiled(function, make_mesh(2, 4))
    assert sum(result.num_bytes for result in found.results) == 512 * growth


def test_integers_and_bytes_travel_at_their_width():
    def function(x):
        numbers = jax.lax.all_gather(x.astype(jnp.int8), "inner", tiled=True)
        return jax.lax.all_gather(numbers.astype(jnp.int32), "outer", tiled=True)

    first, second = compiled(function, make_mesh(2, 4))
    assert (first.operands[0].dtype, first.bytes_sent) == ("s8", 3 * 128)
    assert (second.operands[0].dtype, second.bytes_sent) == ("s32", 4 * 512)


def test_bfloat16_is_counted_as_what_xla_sends():
    (found,) = compiled(lambda x: jax.lax.all_gather(x, "inner", tiled=True), make_mesh(2, 4), jnp.bfloat16)
    widths = {"bf16": 2, "f32": 4}
    assert found.bytes_sent == 3 * 128 * widths[found.operands[0].dtype]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.lax.all_to_all(x, "inner", 0, 0, tiled=True),
        lambda x: jax.lax.all_gather(x, "inner", tiled=True),
        lambda x: jax.lax.psum_scatter(x, "inner", tiled=True),
        lambda x: jax.lax.psum(x, "inner"),
        lambda x: jax.lax.ppermute(x, "inner", [(0, 0)]),
    ],
)
def test_a_group_of_one_device_sends_nothing(function):
    assert sum(found.bytes_sent for found in compiled(function, make_mesh(8, 1))) == 0


def test_every_collective_is_listed_once_and_none_of_a_program_without():
    def function(x):
        y = jax.lax.all_gather(x, "inner", tiled=True)
        z = jax.lax.psum_scatter(jnp.sin(y), "inner", tiled=True)
        return jax.lax.all_to_all(z, "outer", 0, 0, tiled=True)

    found = compiled(function, make_mesh(2, 4))
    assert [one.kind for one in found] == ["all-gather", "reduce-scatter", "all-to-all"]
    assert sum(one.bytes_sent for one in found) == 3 * 512 + 3 * 512 + 256
    assert compiled(jnp.sin, make_mesh(2, 4)) == []


@pytest.mark.parametrize(
    ("before", "after", "kinds", "expected"),
    [
        # The groups that XLA's partitioner makes of shardings; [16, 16] float32 on each of 4 devices, 1024 bytes.
        (("inner", None), (None, None), ["all-gather"], 3 * 1024),
        (("inner", None), (None, "inner"), ["all-to-all"], 768),
        ((BOTH, None), ("outer", None), ["all-gather"], 3 * 512),
    ],
)
def test_what_the_partitioner_adds_is_counted(before, after, kinds, expected):
    mesh = make_mesh(2, 4)
    before, after = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (before, after))
    program = jax.jit(jnp.sin, in_shardings=before, out_shardings=after)
    found = collectives(program.lower(jax.ShapeDtypeStruct((64, 16), jnp.float32)).compile().as_text())
    assert [one.kind for one in found] == kinds
    assert sum(one.bytes_sent for one in found) == expected


def test_branches_are_told_apart():
    """A maximum for the predicate; where false a sum over 2 devices, where true a gathering from 4, and a cond more."""

    def gathers(x):
        seen = jax.lax.all_gather(x, "inner", tiled=True)
        return jax.lax.cond(seen.max() > 5, lambda y: jax.lax.all_to_all(y, "inner", 0, 0), jnp.cos, seen[:4])

    def function(x):
        largest = jax.lax.pmax(x.max(), BOTH)
        return jax.lax.cond(largest > 1, gathers, lambda x: jax.lax.psum(x, "outer")[:4], x)

    sent = {one.branches: (one.kind, one.bytes_sent) for one in compiled(function, make_mesh(2, 4))}
    assert sent == {
        (): ("all-reduce", 2 * 4 * 7 / 8),
        (0,): ("all-reduce", 512),
        (1,): ("all-gather", 3 * 512),
        (1, 1): ("all-to-all", 256 * 3 / 4),
    }


def module(*lines, devices=8, computations=""):
    """A module as XLA writes it, around a few instructions of its entry."""
    body = "".join(f"  {line}\n" for line in lines)
    header = f"HloModule m, is_scheduled=true, num_partitions={devices}\n\n"
    return f"{header}{computations}ENTRY %main (p: f32[8]) -> f32[8] {{\n{body}}}\n"


P0 = "%p0 = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)"
P1 = "%p1 = f32[64]{0} parameter(1)"
IN, OTHER = ArrayType("bf16", (8, 16)), ArrayType("f32", (64,))


def out(*shape, dtype="bf16"):
    return ArrayType(dtype, shape)


# Written by hand after what XLA prints for GPUs and TPUs. 256 bytes of %p0, 256 of %p1.
LINES = {
    "asynchronous all-gather": (
        "%s = (bf16[8,16]{1,0}, bf16[32,16]{1,0}) all-gather-start(%p0), replica_groups=[2,4]<=[8], dimensions={0}",
        Collective("all-gather", (IN,), (out(32, 16),), 4),
        768,
    ),
    "asynchronous all-reduce": (
        "%s = bf16[8,16]{1,0} all-reduce-start(%p0), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add",
        Collective("all-reduce", (IN,), (IN,), 2),
        256,
    ),
    "combined all-reduce": (
        "%s = (bf16[8,16]{1,0}, f32[64]{0}) all-reduce(%p0, %p1), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add",
        Collective("all-reduce", (IN, OTHER), (IN, OTHER), 4),
        768,
    ),
    "asynchronous permute": (
        "%s = (bf16[8,16]{1,0}, bf16[8,16]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p0), "
        "channel_id=3, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}",
        Collective("collective-permute", (IN,), (IN,), 2),
        256,
    ),
    "permute to itself": (
        "%s = bf16[8,16]{1,0} collective-permute(%p0), source_target_pairs={{0,0},{1,1}}",
        Collective("collective-permute", (IN,), (IN,), 1),
        0,
    ),
    "asynchronous reduce-scatter": (
        "%s = ((bf16[8,16]{1,0}), bf16[1,16]{1,0}) reduce-scatter-start(%p0), "
        "replica_groups=mesh['axis_0'=1,'axis_1'=8] {'axis_1'}, dimensions={0}, to_apply=%add",
        Collective("reduce-scatter", (IN,), (out(1, 16),), 8),
        224,
    ),
    "all-to-all in parts": (
        "ROOT %s = (bf16[8,16]{1,0}, /*index=1*/bf16[8,16]{1,0}) all-to-all(%p0, /*index=1*/%p0), "
        "replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}",
        Collective("all-to-all", (IN, IN), (IN, IN), 2),
        256,
    ),
    "axes and a part of one": (
        "%s = bf16[8,16]{1,0} all-to-all(%p0), replica_groups=mesh['x'=2,'y'=4] {'x','y':(1)2}, dimensions={0}",
        Collective("all-to-all", (IN,), (IN,), 4),
        192,
    ),
    "operands with their types": (
        "%s = bf16[8,16]{1,0} all-to-all(bf16[8,16]{1,0} %p0), replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}",
        Collective("all-to-all", (IN,), (IN,), 4),
        192,
    ),
    "all devices, unwritten": (
        "%s = bf16[64,16]{1,0} all-gather(%p0), replica_groups={}, dimensions={0}",
        Collective("all-gather", (IN,), (out(64, 16),), 8),
        1792,
    ),
    "uneven groups": (
        "%s = bf16[8,16]{1,0} all-reduce(%p0), replica_groups={{0},{1,2,3,4}}, to_apply=%add",
        Collective("all-reduce", (IN,), (IN,), 4),
        384,
    ),
    "ragged": (
        "%s = f32[64]{0} ragged-all-to-all(%p0, %p1, %p1, %p1, %p1, %p1), replica_groups={{0,1,2,3,4,5,6,7}}",
        Collective("ragged-all-to-all", (IN,), (OTHER,), 8),
        224,
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_lines_as_xla_writes_them(name):
    line, expected, sent = LINES[name]
    done = '%d = bf16[8,16]{1,0} all-gather-done(%s), metadata={op_name="all-gather(x)"}'
    add = "%add (a: f32[], b: f32[]) -> f32[] {\n  ROOT %c = f32[] parameter(0)\n}\n\n"
    assert collectives(module(P0, P1, line, done, computations=add)) == [expected]
    assert expected.bytes_sent == sent


def test_what_is_wrapped_is_counted_once_for_each_call():
    wrapped = (
        "%wrapped (q: f32[64]) -> f32[8] {\n  %q = f32[64]{0} parameter(0)\n"
        "  ROOT %r = f32[8]{0} reduce-scatter(%q), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add\n}\n\n"
        "%unused (q: f32[64]) -> f32[64] {\n  %q = f32[64]{0} parameter(0)\n"
        "  ROOT %r = f32[64]{0} all-reduce(%q), replica_groups=[1,8]<=[8], to_apply=%add\n}\n\n"
        "%add (a: f32[], b: f32[]) -> f32[] {\n  ROOT %c = f32[] parameter(0)\n}\n\n"
    )
    lines = [
        P1,
        "%s = ((f32[64]{0}), f32[8]{0}, u32[]) async-start(%p1), calls=%wrapped",
        "%d = f32[8]{0} async-done(%s)",
        "%t = ((f32[64]{0}), f32[8]{0}, u32[]) async-start(%p1), calls=%wrapped",
    ]
    expected = Collective("reduce-scatter", (OTHER,), (ArrayType("f32", (8,)),), 8)
    assert collectives(module(*lines, computations=wrapped)) == [expected, expected]


def test_branches_of_a_predicate_are_numbered_as_those_of_an_index():
    branches = "".join(
        f"%{name} (q: f32[64]) -> f32[64] {{\n  %q = f32[64]{{0}} parameter(0)\n"
        f"  ROOT %r = f32[64]{{0}} all-to-all(%q), replica_groups={groups}, dimensions={{0}}\n}}\n\n"
        for name, groups in (("yes", "[1,8]<=[8]"), ("no", "[4,2]<=[8]"))
    )
    line = "%c = f32[64] conditional(%p, %p1, %p1), true_computation=%yes, false_computation=%no"
    found = collectives(module(P1, line, computations=branches))
    assert {one.branches: one.group_size for one in found} == {(0,): 2, (1,): 8}


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (ArrayType("pred", (3, 5)), 15),
        (ArrayType("bf16", (3, 5)), 30),
        (ArrayType("f8e4m3fn", (3, 5)), 15),
        (ArrayType("s4", (3, 5)), 8),
        (ArrayType("c64", ()), 8),
        (ArrayType("u32", (0, 5)), 0),
    ],
)
def test_sizes_of_arrays(array, expected):
    assert array.num_bytes == expected


def test_a_type_without_a_width_is_refused():
    with pytest.raises(ValueError, match="dtype is 'opaque'; accepted: pred, or a number"):
        ArrayType("opaque", ()).num_bytes  # noqa: B018


def test_a_text_that_is_no_module_is_refused():
    with pytest.raises(ValueError, match="hlo has no entry computation"):
        collectives("module @jit_f attributes {} {\n}\n")


def test_the_least_is_that_of_tokens_sent_one_by_one():
    """Every token to every pair of experts on two of four devices: rows that cross, both ways."""
    devices, model_dim = 4, 3
    crossing = [
        2 * model_dim * 2 * ((home != first) + (home != second))
        for home in range(devices)
        for first in range(devices)
        for second in range(devices)
    ]
    assert least_bytes_per_token(2, model_dim, 2, devices) == sum(crossing) / len(crossing)
    assert least_bytes_per_token(8, 7168, 1, 1) == 0
