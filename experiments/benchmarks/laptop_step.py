"""Draft."""

import statistics
import sys
import time

import jax
import jax.numpy as jnp

from configs.laptop.switch_vs_dense import get_config
from moe_jax.accounting.flops import flops_per_token
from moe_jax.configuration import override
from moe_jax.data.pipeline import load_text
from moe_jax.training.config import TrainConfig
from moe_jax.training.loop import compile_steps
from moe_jax.training.optimizer import make_optimizer, make_schedule
from moe_jax.training.state import init_state


def prep(name, sets):
    c = TrainConfig.from_dict(override(get_config(name).to_dict(), sets))
    o = make_optimizer(c.optimizer, c.steps)
    data = load_text(c.data)
    b = next(data.train_batches(0))
    b = jax.device_put(b)
    s = init_state(c, o)
    step, _ = compile_steps(c, o, make_schedule(c.optimizer, c.steps), s, b)
    holder = [s]

    def run():
        t = time.perf_counter()
        holder[0], m = step(holder[0], b)
        jax.block_until_ready(holder[0])
        return time.perf_counter() - t

    fl = flops_per_token(c.model, c.data.sequence_length).training * c.data.batch_size * c.data.sequence_length
    return run, fl, c, step


names = sys.argv[1].split(",")
sets = sys.argv[2:]
P = {n: prep(n, sets) for n in names}
c = P[names[0]][2]
T = c.data.batch_size * c.data.sequence_length


def mm(M, K, N):
    a = jax.random.normal(jax.random.key(0), (M, K))
    b = jax.random.normal(jax.random.key(0), (K, N))
    f = jax.jit(jnp.matmul)
    f(a, b)

    def run():
        t = time.perf_counter()
        jax.block_until_ready(f(a, b))
        return time.perf_counter() - t

    return run, 2 * M * K * N


P["mm square"] = (*mm(2048, 2048, 2048),)
P["mm layer"] = (*mm(T, c.model.model_dim, c.model.ffn_dim),)
R = {n: [] for n in P}
for i in range(12):
    for n in P:
        R[n].append(P[n][0]())
med = {n: statistics.median(r[2:]) for n, r in R.items()}
rate = {n: P[n][1] / med[n] / 1e9 for n in P}
best = max(rate["mm square"], rate["mm layer"])
for n in P:
    print(
        f"{n:12s} {med[n] * 1e3:8.1f} ms min {min(R[n]) * 1e3:8.1f} {rate[n]:6.1f} GF/s {rate[n] / best:.2f} x{med[n] / med[names[0]]:.2f}"
    )
