"""Rows of runs that never happened but look as if: losses fall by a power law, faster with more experts."""

from collections.abc import Sequence

import numpy as np

from moe_jax.results.rows import ARM

SPEED = {"dense": 1.0, "switch-4": 1.5, "switch-16": 2.2, "switch-64": 3.0}
"""Steps of the dense model per step of the model, to one loss."""


def fake_row(name: str, seed: int = 0, steps: int = 1000, points: int = 21, digest: str = "5eed") -> dict:
    model = name.partition(ARM)[0]
    experts = int(model.partition("-")[2] or 0)
    return {
        "name": name,
        "seed": seed,
        "config": fake_config(experts, seed),
        "corpus": {"name": "python_source", "digest": digest},
        "git_revision": "abc1234",
        "host": {"cpu": "Imaginary 9000", "cores": 2, "platform": "cpu", "device": "cpu", "devices": 1},
        "versions": {"python": "3.11.0", "jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8", "moe_jax": "0.1.0"},
        "finished": "2026-01-01T00:00:00+00:00",
        "seconds": steps * _step_seconds(experts),
        "compile_seconds": 4.5,
        "parameters": {"total": 1_800_000 + 524_288 * experts, "active": 1_800_000},
        "flops_per_token": 12_000_000,
        "curve": [
            _point(model, experts, seed, step) for step in np.linspace(0, steps, points).round().astype(int).tolist()
        ],
    }


def fake_rows(seeds: int = 3, **options) -> list[dict]:
    return [fake_row(name, seed, **options) for seed in range(seeds) for name in SPEED]


def fake_config(experts: int, seed: int) -> dict:
    moe = {"num_experts": experts} if experts else None
    model = {"num_layers": 4, "model_dim": 64, "moe_layers": [1, 3] if experts else [], "moe": moe}
    return {"seed": seed, "steps": 1000, "data": {"batch_size": 16, "sequence_length": 256}, "model": model}


def _step_seconds(experts: int) -> float:
    return 0.2 * (1 + 0.1 * experts**0.5)


def _point(name: str, experts: int, seed: int, step: int) -> dict:
    random = np.random.default_rng([seed, experts, step])
    loss = 1.1 + 4.4 / (1 + 0.02 * SPEED[name] * step) ** 0.5 + 0.01 * seed + 0.004 * random.standard_normal()
    load = {f"layer_{layer}": random.dirichlet(np.full(experts, 2.0 + step / 20)).tolist() for layer in (1, 3)}
    routing = {"fraction_dropped": 0.02, "load_max_over_mean": max(load["layer_3"]) * experts if experts else 0.0}
    return {
        "step": step,
        "tokens": step * 4096,
        "seconds": step * _step_seconds(experts),
        "validation_loss": float(loss),
        "bits_per_byte": float(loss / np.log(2)),
        "routing": routing if experts else {},
        "training": routing | {"load_max_over_mean": 1.5} if experts and step else {},
        "load": load if experts else {},
    }


def fake_size_rows(
    seeds: int = 3, sizes: Sequence[str] = ("tiny", "small", "medium"), digest: str = "5eed"
) -> list[dict]:
    """Dense models and mixtures; larger sizes have lower losses, dearer steps and larger gains."""
    rows = []
    for seed in range(seeds):
        for place, size in enumerate(sizes):
            for name in SPEED:
                row = fake_row(name, seed, digest=digest)
                experts = int(name.partition("-")[2] or 0)
                row["name"] = f"glam-{size}-{experts}" if experts else f"dense-{size}"
                row["config"]["model"] |= {"model_dim": 32 * (place + 1), "num_layers": 4}
                row["flops_per_token"] *= 2**place
                row["step_seconds"] = row["seconds"] / 1000 * 2**place
                row["step_joules"] = 7.0 * 2**place * (2 if experts else 1)
                for point in row["curve"]:
                    gain = 0.02 * place * point["step"] / 1000 if experts else 0.0
                    point["validation_loss"] -= 0.3 * place + gain
                rows.append(row)
    return rows


def by_label(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Rows of `fake_size_rows` by their size."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row["name"].split("-")[1], []).append(row)
    return groups


def fake_scores(rows: Sequence[dict], shots: Sequence[int] = (0, 1, 4)) -> list[dict]:
    """Answers to a multiple choice and a cloze; sparse models answer a tenth more of the questions."""
    return [
        {
            "run": f"{row['name']}-seed{row['seed']}-0",
            "name": row["name"],
            "seed": row["seed"],
            "task": task,
            "shots": k,
            "lines": 1,
            "asked": 200,
            "examples": 200,
            "accuracy": base
            + 0.01 * k
            + 0.02 * row["seed"] * (k + 1)
            + (0.1 if row["name"].startswith("glam") else 0.0),
            "chance": chance,
            "demonstrations": 0.75 * k,
        }
        for row in rows
        for task, base, chance in (("continuation", 0.3, 0.25), ("last_word", 0.1, None))
        for k in shots
    ]
