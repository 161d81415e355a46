"""Schedules at steps computed by hand; AdamW against torch's, Adafactor against the paper's algorithm."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from moe_jax.configuration import ConfigError
from moe_jax.training.config import OptimizerConfig
from moe_jax.training.optimizer import make_optimizer, make_schedule

STEPS = 110
COSINE = {"learning_rate": 0.2, "schedule": "cosine", "warmup_steps": 10, "final_fraction": 0.1}
CONSTANT = {"learning_rate": 0.2, "schedule": "constant", "warmup_steps": 10}
INVERSE_SQRT = {"learning_rate": 0.2, "schedule": "inverse_sqrt", "warmup_steps": 16}


@pytest.mark.parametrize(
    ("fields", "step", "expected"),
    [
        (COSINE, 1, 0.02),
        (COSINE, 5, 0.1),
        (COSINE, 10, 0.2),
        (COSINE, 35, 0.02 + 0.18 * (1 + math.cos(math.pi / 4)) / 2),
        (COSINE, 60, 0.11),
        (COSINE, 110, 0.02),
        (COSINE | {"final_fraction": 0.0}, 110, 0.0),
        (CONSTANT, 5, 0.1),
        (CONSTANT, 110, 0.2),
        # The last 11 of 110 steps fall in twelfths.
        (CONSTANT | {"decay_share": 0.1}, 99, 0.2),
        (CONSTANT | {"decay_share": 0.1}, 100, 0.2 * 11 / 12),
        (CONSTANT | {"decay_share": 0.1}, 110, 0.2 / 12),
        (INVERSE_SQRT | {"decay_share": 0.5}, 64, 0.1 * 47 / 56),
        (COSINE | {"decay_share": 1.0}, 60, 0.11 * 51 / 111),
        (INVERSE_SQRT, 1, 0.0125),
        (INVERSE_SQRT, 4, 0.05),
        (INVERSE_SQRT, 16, 0.2),
        (INVERSE_SQRT, 64, 0.1),
        (INVERSE_SQRT, 100, 0.08),
    ],
)
def test_the_learning_rate_is_as_by_hand(fields, step, expected):
    """Of step 1 when none is done."""
    schedule = make_schedule(OptimizerConfig(**fields), STEPS)
    assert float(schedule(jnp.int32(step - 1))) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def random_trees(count, scale=1.0):
    rng = np.random.default_rng(0)
    shapes = {"kernel": (5, 3), "scale": (4,)}
    return [{k: (scale * rng.normal(size=v)).astype(np.float32) for k, v in shapes.items()} for _ in range(count)]


def run(config, params, gradients):
    """Parameters after each gradient."""
    optimizer = make_optimizer(config, STEPS)
    state, history = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        history.append(jax.device_get(params))
    return history


@pytest.mark.parametrize(
    ("clip_norm", "scale"), [(None, 3.0), (1.0, 3.0), (1.0, 0.01)], ids=["unclipped", "clipped", "below the clip"]
)
def test_adamw_is_torch_s(clip_norm, scale):
    config = OptimizerConfig(learning_rate=0.05, warmup_steps=2, beta1=0.8, beta2=0.95, weight_decay=0.3)
    config = dataclasses.replace(config, clip_norm=clip_norm)
    params, *gradients = random_trees(7, scale)
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    groups = [{"params": [tensors["kernel"]], "weight_decay": 0.3}, {"params": [tensors["scale"]], "weight_decay": 0.0}]
    oracle = torch.optim.AdamW(groups, lr=0.0, betas=(0.8, 0.95))
    schedule = make_schedule(config, STEPS)
    for step, (gradient, ours) in enumerate(zip(gradients, run(config, params, gradients), strict=True)):
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[name])
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(tensors.values(), clip_norm)
        for group in oracle.param_groups:
            group["lr"] = float(schedule(step))
        oracle.step()
        for name, tensor in tensors.items():
            np.testing.assert_allclose(ours[name], tensor.detach().numpy(), rtol=1e-5, atol=2e-6)


def adafactor(config, params, gradients, decay_exponent=0.8, epsilon=1e-30, clip=1.0, epsilon_scale=1e-3):
    """Shazeer and Stern 2018, algorithms 4 (matrices from 128 x 128 on, factored) and 5, with relative step sizes."""
    schedule = make_schedule(config, STEPS)
    x = params.astype(np.float64)
    row, column, whole = np.zeros(x.shape[0]), np.zeros(x.shape[1]), np.zeros(x.shape)
    history = []
    for step, gradient in enumerate(gradients):
        beta = 1 - (step + 1.0) ** -decay_exponent
        square = gradient.astype(np.float64) ** 2 + epsilon
        if min(x.shape) >= 128:
            row = beta * row + (1 - beta) * square.mean(axis=1)
            column = beta * column + (1 - beta) * square.mean(axis=0)
            second = np.outer(row, column) / row.mean()
        else:
            second = whole = beta * whole + (1 - beta) * square
        update = gradient / np.sqrt(second)
        update /= max(1.0, np.sqrt(np.mean(update**2)) / clip)
        size = float(schedule(step))
        decay = size * config.weight_decay * x
        x = x - size * max(epsilon_scale, np.sqrt(np.mean(x**2))) * update - decay
        history.append(x)
    return history


@pytest.mark.parametrize("shape", [(128, 160), (6, 160)], ids=["factored", "too small to factor"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_adafactor_is_the_paper_s(shape, weight_decay):
    rng = np.random.default_rng(1)
    params, *gradients = (rng.normal(size=shape).astype(np.float32) for _ in range(5))
    gradients[2] *= 10  # So that the update is clipped.
    config = OptimizerConfig("adafactor", 0.1, warmup_steps=2, weight_decay=weight_decay, clip_norm=None)
    ours = run(config, {"kernel": params}, [{"kernel": gradient} for gradient in gradients])
    for one, other in zip(ours, adafactor(config, params, gradients), strict=True):
        np.testing.assert_allclose(one["kernel"], other, rtol=1e-4, atol=1e-5)


def test_adafactor_remembers_a_row_and_a_column_of_a_matrix():
    state = make_optimizer(OptimizerConfig("adafactor"), STEPS).init({"kernel": jnp.ones((128, 160))})
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(state))
    assert sizes[-2:] == [128, 160]


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_weight_decay_leaves_the_scales_of_norms_alone(name):
    params, gradient = random_trees(2)
    config = OptimizerConfig(name, warmup_steps=1)
    plain = run(config, params, [gradient] * 3)[-1]
    decayed = run(dataclasses.replace(config, weight_decay=1.0), params, [gradient] * 3)[-1]
    np.testing.assert_array_equal(plain["scale"], decayed["scale"])
    assert np.all(np.abs(plain["kernel"] - decayed["kernel"]) > 0)


OTHER_VALUES = {
    "name": "adafactor",
    "learning_rate": 0.02,
    "schedule": "inverse_sqrt",
    "warmup_steps": 3,
    "final_fraction": 0.5,
    "decay_share": 1.0,
    "beta1": 0.5,
    "beta2": 0.5,
    "weight_decay": 0.1,
    "clip_norm": None,
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(OptimizerConfig)])
def test_every_field_changes_the_training(field):
    params, *gradients = random_trees(7)
    config = OptimizerConfig(learning_rate=0.01, warmup_steps=2, clip_norm=3.0)
    plain = run(config, params, gradients)[-1]
    changed = run(dataclasses.replace(config, **{field: OTHER_VALUES[field]}), params, gradients)[-1]
    assert not np.array_equal(plain["kernel"], changed["kernel"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("warmup_steps", 0),
        ("final_fraction", 1.5),
        ("decay_share", 1.5),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("weight_decay", -1.0),
        ("clip_norm", 0.0),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=rf"^{field} is "):
        OptimizerConfig(**{field: value})
