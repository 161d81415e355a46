"""A checkpoint gives back what it was given, bit for bit, or is not there."""

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe_jax.checkpoints import manager
from moe_jax.checkpoints.manager import Checkpoints, read_newest
from moe_jax.configuration import ConfigError
from moe_jax.training.state import TrainState


def state_of(seed):
    """A state with all that one can have: params, an optimizer's moments, a router's memory, a key."""
    draws = iter(jax.random.split(jax.random.key(seed), 8))
    params = {"layer_0": {"up": jax.random.normal(next(draws), (3, 5)), "scale": jnp.full(3, 1e-40, jnp.float32)}}
    optimizer = optax.adam(0.1)
    gradient = jax.tree.map(lambda x: jax.random.normal(next(draws), x.shape), params)
    with jax.numpy_dtype_promotion("standard"):
        _, opt_state = optimizer.update(gradient, optimizer.init(params), params)
    return TrainState(
        step=jnp.int32(7 + seed),
        params=params,
        opt_state=opt_state,
        router_state={"layer_0": {"bias": jax.random.normal(next(draws), (4,)).astype(jnp.bfloat16)}},
        rng=next(draws),
    )


def leaves(state):
    """Bytes, type and place of each array."""
    plain = state.replace(rng=jax.random.key_data(state.rng))
    flat, _ = jax.tree_util.tree_flatten_with_path(plain)
    return {jax.tree_util.keystr(path): (str(x.dtype), np.asarray(x).tobytes()) for path, x in flat}


POSITION = {"data": {"next_index": 12, "nested": {"epoch": None, "names": ["a", "b"]}}, "clock": {"seconds": 0.1 + 0.2}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoints")
    checkpoints = Checkpoints(directory)
    for step in (1, 3, 6):
        checkpoints.save(step, state_of(step), {**POSITION, "step": step})
    checkpoints.close()
    return directory


def test_the_newest_state_and_position_come_back_to_the_bit(saved):
    checkpoints = Checkpoints(saved)
    state, position = checkpoints.restore(state_of(0))
    assert leaves(state) == leaves(state_of(6))
    assert jax.tree.structure(state) == jax.tree.structure(state_of(6))
    assert jnp.issubdtype(state.rng.dtype, jax.dtypes.prng_key)
    assert position == checkpoints.position() == {**POSITION, "step": 6}
    checkpoints.close()


def test_only_the_newest_two_stay(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["3", "6"]


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def turn_over(folder):
    """Turns 64 bytes over in the middle of the largest file."""
    content = bytearray(largest(folder).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(255 - byte for byte in content[middle : middle + 64])
    largest(folder).write_bytes(content)


def cut(folder):
    content = largest(folder).read_bytes()
    largest(folder).write_bytes(content[: len(content) // 2])


DAMAGES = {
    "has another checksum": turn_over,
    "bytes for": cut,
    " is missing": lambda folder: largest(folder).unlink(),
    "checksums.json or a file that it names cannot": lambda folder: (folder / "checksums.json").write_text("[]"),
}


@pytest.mark.parametrize("says", DAMAGES)
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_taken(saved, tmp_path, capsys, says):
    shutil.copytree(saved, tmp_path / "copy")
    DAMAGES[says](tmp_path / "copy" / "6")
    state = read_newest(tmp_path / "copy", state_of(0))
    said = capsys.readouterr().err
    assert "checkpoint of step 6 is damaged: " in said
    assert says in said
    assert said.endswith("; the checkpoint of step 3 is taken\n")
    assert leaves(state) == leaves(state_of(3))
    # Reading changes nothing; going on from there removes what is damaged.
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["3", "6"]
    checkpoints = Checkpoints(tmp_path / "copy")
    assert "checkpoint of step 6 is damaged: " in capsys.readouterr().err
    restored, position = checkpoints.restore(state_of(0))
    assert (leaves(restored), position["step"]) == (leaves(state_of(3)), 3)
    checkpoints.save(6, state_of(6), POSITION)
    checkpoints.close()
    assert leaves(read_newest(tmp_path / "copy", state_of(0))) == leaves(state_of(6))
    assert capsys.readouterr().err == ""


def test_a_checkpoint_that_vanishes_while_it_is_read_is_damaged(saved, monkeypatch):
    def gone(path):
        raise FileNotFoundError(f"no such file: {path.name}")

    monkeypatch.setattr(manager, "_checksum", gone)
    assert "cannot be read (no such file" in manager.find_damage(saved / "6")


def test_where_all_are_damaged_nothing_is_touched(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    for step in ("3", "6"):
        turn_over(tmp_path / "copy" / step)
    for read in (Checkpoints, lambda directory: read_newest(directory, state_of(0))):
        with pytest.raises(
            ConfigError, match=r"copy': checkpoint of step 6 is damaged: .* another checksum, and so are all before"
        ):
            read(tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["3", "6"]


def test_what_is_half_written_does_not_count_and_goes(tmp_path):
    (tmp_path / "9.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest_step() is None
    checkpoints.save(9, {"x": jnp.ones(3)}, POSITION)
    assert checkpoints.position() == POSITION
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["9"]


def test_a_state_that_cannot_be_written_is_one_error_with_the_folder_and_the_reason(tmp_path):
    """In a process that may write no file above four thousand bytes."""
    code = (
        "import resource, sys, jax.numpy as jnp\n"
        "from pathlib import Path\n"
        "from moe_jax.checkpoints.manager import Checkpoints\n"
        "from moe_jax.runtime.files import WriteError\n"
        "checkpoints = Checkpoints(Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "for act in (lambda: checkpoints.save(1, {'x': jnp.arange(9000.0)}, {}), checkpoints.close):\n"
        "    try:\n"
        "        act()\n"
        "    except WriteError as error:\n"
        "        print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said
    assert all(line == f"'{tmp_path}/checkpoints' cannot be written: File too large" for line in said)
    assert "orbax" not in done.stderr
