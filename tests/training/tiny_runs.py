"""A run so small that it takes seconds: its corpus, its configuration and its batches."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe_jax.configuration import override
from moe_jax.models.parameters import init_params, init_router_state
from moe_jax.training.config import TrainConfig
from moe_jax.training.mesh import state_shardings
from moe_jax.training.state import TrainState

B, S, V = 4, 16, 257


def write_corpus(folder: Path) -> Path:
    """Forty files of text with something to learn in it."""
    folder.mkdir()
    for i in range(40):
        lines = (f"{hashlib.sha256(bytes([i, j])).hexdigest()[:12]} word{j % 7}\n" for j in range(30))
        (folder / f"{i:02}.txt").write_text("".join(lines))
    return folder


def write_assignments(folder: Path) -> Path:
    """Forty files of assignments that all use the same three names of a file."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(40):
        pairs = rng.integers(0, 3, (30, 2))
        (folder / f"{i:02}.txt").write_text("".join(f"name{i}_{a} = name{i}_{b}\n" for a, b in pairs))
    return folder


def tiny_values(corpus: Path | None = None, sets: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Nested values of a sparse run whose router draws, with `sets` by dotted name."""
    values = {
        "name": "tiny",
        "steps": 24,
        "eval_every": 8,
        "eval_batches": 2,
        "log_every": 1,
        "checkpoint_every": 4,
        "data": {
            "corpus": f"text_files:{corpus}/*.txt",
            "sequence_length": S,
            "batch_size": B,
            "validation_fraction": 0.2,
        },
        "optimizer": {"learning_rate": 1e-2, "warmup_steps": 4},
        "model": {
            "vocab_size": V,
            "num_layers": 1,
            "model_dim": 8,
            "attention": {"heads": 1},
            "ffn_dim": 16,
            "moe_layers": (0,),
            "moe": {
                "num_experts": 4,
                "router": {"kind": "gshard", "second_policy": "random", "second_threshold": 0.5},
                "k": 2,
            },
        },
    }
    return override(values, [f"{key}={value!r}" for key, value in (sets or {}).items()])


def tiny_config(corpus: Path | None = None, sets: Mapping[str, Any] | None = None) -> TrainConfig:
    return TrainConfig.from_dict(tiny_values(corpus, sets))


# By the text of the model's configuration, which holds dictionaries and cannot be a key itself.
_DRAWN = {}


def first_state(
    config: TrainConfig, optimizer: optax.GradientTransformation, mesh: jax.sharding.Mesh | None = None
) -> TrainState:
    """Makes the state of `init_state`, on `mesh` if given; each model is drawn once, in one program."""
    init_rng, rng = jax.random.split(jax.random.key(config.seed))
    key = repr(config.model), config.seed
    if key not in _DRAWN:
        _DRAWN[key] = jax.jit(lambda rng: (init_params(config.model, rng), init_router_state(config.model)))(init_rng)
    params, router_state = _DRAWN[key]
    state = TrainState(jnp.int32(0), params, optimizer.init(params), router_state, rng)
    return state if mesh is None else jax.device_put(state, state_shardings(state, config.model, mesh))


def write_config(path: Path, values: Mapping[str, Any]) -> Path:
    """A configuration file whose get_config() gives `values`."""
    path.write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({values!r})\n"
    )
    return path


def random_batch(seed: int = 0, rows: int = B) -> dict[str, np.ndarray]:
    """Two documents in each sequence, as the pipeline packs them."""
    rng = np.random.default_rng(seed)
    place = np.tile(np.arange(S, dtype=np.int32), (rows, 1))
    cut = S // 2
    return {
        "tokens": rng.integers(0, V, (rows, S), dtype=np.int32),
        "targets": rng.integers(0, V, (rows, S), dtype=np.int32),
        "segment_ids": 1 + (place >= cut).astype(np.int32),
        "positions": place % cut,
        "loss_mask": np.ones((rows, S), bool),
    }


# An encoder-decoder with mixtures in both places of its layers.
PAIRED = {
    "data.task": {"kind": "span_corruption", "target_length": 8, "sentinels": 3},
    "model.architecture": "encoder_decoder",
    "model.attention.positions": "t5",
    "model.vocab_size": V + 3,
    "model.moe.places": ("feed_forward", "attention"),
}


def random_pairs(seed: int = 0, rows: int = B) -> dict[str, np.ndarray]:
    """Pairs as the pipeline makes them, of different lengths."""
    rng = np.random.default_rng(seed)

    def text(length: int) -> dict[str, np.ndarray]:
        place = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
        valid = place < rng.integers(length // 2, length + 1, (rows, 1))
        tokens = rng.integers(0, V, (rows, length), dtype=np.int32)
        return {"tokens": tokens * valid, "segment_ids": valid.astype(np.int32), "positions": place * valid}

    decoder, encoder = text(8), text(S)
    targets = {"targets": np.roll(decoder["tokens"], -1, axis=1), "loss_mask": decoder["segment_ids"] != 0}
    return decoder | targets | {f"encoder_{name}": values for name, values in encoder.items()}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train_in_process(folder: Path, workdir: Path) -> None:
    """What a process that is to be killed does: the command line on `folder`/config.py, its output in a file."""
    os.environ["MOE_JAX_CACHE"] = str(folder / "cache")
    log = os.open(f"{workdir}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from moe_jax.cli import main

    raise SystemExit(main(["train", str(folder / "config.py"), "--workdir", str(workdir)]))
