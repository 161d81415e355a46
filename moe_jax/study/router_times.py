"""The cost of routing: routers timed alone, by turns, forward and backward. G groups, S tokens of a group, D width."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from moe_jax.routing.router import RNG, STATE, Tokens
from moe_jax.routing.statistics import METRICS
from moe_jax.runtime.files import write_whole
from moe_jax.training.config import TrainConfig


def time_routers(configs: Sequence[TrainConfig], path: Path, repeats: int = 15) -> dict[str, float]:
    """Returns the median milliseconds of one sparse layer's router for a batch, with gradients, by `task/name`.

    Routers take turns, so that a machine whose speed drifts is as fast for one as for another. What `path` already
    holds for the same routers is read, not measured again.

    Args:
      configs: runs with different routers; dense ones are left out.
      path: a JSON file to keep the times in.
      repeats: turns.
    """
    sparse = {f"{c.data.task_name}/{c.name}": c for c in configs if c.model.moe_layers}
    if path.exists():
        times = json.loads(path.read_text())
        if times.keys() == sparse.keys():
            return times
    steps = {name: _router_step(config) for name, config in tqdm(sparse.items(), "Compiling routers", delay=2)}
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for _ in tqdm(range(repeats), "Timing routers", delay=2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            spent[name].append(time.perf_counter() - started)
    times = {name: 1000 * float(np.median(seconds)) for name, seconds in spent.items()}
    write_whole(path, json.dumps(times, indent=1) + "\n")
    return times


def _router_step(config: TrainConfig) -> Callable[[], None]:
    """Compiles one decision on a batch of random tokens, with the gradients of its weights and losses."""
    moe, data = config.model.moe, config.data
    group = moe.group_size or data.sequence_length
    shape = (data.batch_size * data.sequence_length // group, group)
    rng = np.random.default_rng(0)
    tokens = Tokens(
        x=jnp.asarray(rng.normal(size=(*shape, config.model.model_dim)), config.model.dtype),
        valid=jnp.ones(shape, bool),
        ids=jnp.asarray(rng.integers(0, config.model.vocab_size, shape), jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(group, dtype=jnp.int32), shape),
        sequence_length=data.sequence_length,
    )
    router = moe.router.module(moe.setting(), training=True)
    start = router.init({"params": jax.random.key(0), RNG: jax.random.key(0)}, tokens)
    params, state = start.get("params", {}), start.get(STATE, {})

    def total(params: dict, x: Float[Array, "G S D"]) -> Float[Array, ""]:
        variables = {"params": params, STATE: state}
        rngs = {RNG: jax.random.key(1)}
        decision, sown = router.apply(variables, tokens.replace(x=x), rngs=rngs, mutable=[METRICS])
        weights = [x for x in jax.tree.leaves(decision) if jnp.issubdtype(x.dtype, jnp.floating)]
        losses = [sown[METRICS][name].value for name in moe.coefficients]
        return sum((jnp.sum(x**2) for x in weights), sum(losses, jnp.float32(0.0)))

    step = jax.jit(jax.grad(total, argnums=(0, 1))).lower(params, tokens.x).compile()
    jax.block_until_ready(step(params, tokens.x))
    return lambda: jax.block_until_ready(step(params, tokens.x))
