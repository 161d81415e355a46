"""Every router with its settings: the one list for tests that hold whatever the router, and how they run it."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from moe_jax.configuration import KIND
from moe_jax.routing import KINDS, ROUTERS, Assignment, Setting
from moe_jax.routing.capacity import capacity_per_expert
from moe_jax.routing.expert_choice import expert_choice
from moe_jax.routing.gshard import gshard
from moe_jax.routing.router import FLOAT32, STATE, Tokens
from moe_jax.routing.soft_moe import SoftMoE
from moe_jax.routing.statistics import METRICS, values
from moe_jax.routing.switch import switch
from moe_jax.routing.uniform_random import uniform_random

G, S, D, E = 2, 12, 5, 4

# Routers whose decision is an Assignment.
ASSIGNING = [name for name, router in ROUTERS.items() if router.decision is Assignment]


def choices(router):
    """Experts per token: as many as the router requires, else two."""
    if router is SoftMoE:
        return 1
    return {None: 2, "all": E}.get(router.choices_allowed) or router.choices_allowed[0]


# Experts per token of each router.
K = {name: choices(router) for name, router in ROUTERS.items()}

# Every option of every router, away from its default.
OPTIONS = [
    ("switch", {"exploration": "sample"}),
    ("switch", {"exploration": "jitter"}),
    ("switch", {"exploration": "jitter", "jitter": 0.5}),
    ("switch", {"exploration": "dropout"}),
    ("switch", {"exploration": "dropout", "dropout": 0.5}),
    ("switch", {"priority": "probability"}),
    ("switch", {"rounds": 2}),
    ("gshard", {"second_policy": "all"}),
    ("gshard", {"second_policy": "none"}),
    ("gshard", {"second_policy": "threshold"}),
    ("gshard", {"second_threshold": 0.9}),
    ("gshard", {"second_policy": "threshold", "second_threshold": 0.4}),
    ("st_moe", {"threshold": 0.9}),
    ("st_moe", {"priority": "probability"}),
    ("st_moe", {"priority": "batch"}),
    ("vmoe", {"priority": "probability"}),
    ("vmoe", {"priority": "batch"}),
    ("top_k", {"score": "sigmoid"}),
    ("top_k", {"renormalize": False}),
    ("top_k", {"score": "sigmoid", "renormalize": False}),
    ("top_k", {"bias": True}),
    ("top_k", {"priority": "probability"}),
    ("deepseek", {"score": "softmax"}),
    ("deepseek", {"num_groups": 2}),
    ("deepseek", {"num_groups": 2, "group_score": "max"}),
    ("deepseek", {"renormalize": False}),
    ("deepseek", {"scale": 2.5}),
    ("deepseek", {"bias_rate": 0.0}),
    ("sparse_mixer", {"tolerance": 0.5}),
    ("expert_choice", {"among": "seen"}),
    ("expert_choice", {"most": 2}),
    ("expert_choice", {"most": 2, "entropy": 0.1}),
    ("expert_choice", {"most": 2, "iterations": 2}),
    ("base", {"tolerance": 0.9}),
    ("sinkhorn", {"iterations": 1}),
    ("hash", {"by": "position"}),
    ("hash", {"seed": 1}),
    ("hash", {"by": "balanced", "counts": tuple(range(50, 0, -1))}),
    ("hierarchical", {"outer_k": 1}),
    ("hierarchical", {"outer": "switch", "outer_k": 1}),
    ("hierarchical", {"inner": "switch"}),
    ("hierarchical", {"inner": {"kind": "top_k", "score": "sigmoid", "renormalize": False}}),
    ("hierarchical", {"outer": {"kind": "top_k", "score": "sigmoid", "renormalize": False}}),
]


RNG = jax.random.key(7)

# Decisions as functions of logits: name -> (experts per token, None for any; function of logits, valid, capacity, k).
DECISIONS: dict[str, tuple[int | None, Callable[..., Assignment]]] = {
    "switch": (1, lambda logits, valid, capacity, k: switch(logits, valid, capacity)),
    "gshard_all": (2, lambda logits, valid, capacity, k: gshard(logits, valid, capacity, "all")),
    "gshard_none": (2, lambda logits, valid, capacity, k: gshard(logits, valid, capacity, "none")),
    "gshard_threshold": (2, lambda logits, valid, capacity, k: gshard(logits, valid, capacity, "threshold", 0.3)),
    "gshard_random": (2, lambda logits, valid, capacity, k: gshard(logits, valid, capacity, "random", 0.5, RNG)),
    "expert_choice": (None, lambda logits, valid, capacity, k: expert_choice(logits, valid, capacity)),
    "uniform_random": (
        None,
        lambda logits, valid, capacity, k: uniform_random(valid, capacity, logits.shape[-1], k, RNG),
    ),
}


def tokens(seed=0, share_valid=0.8, groups=G, length=S, dtype=jnp.float32):
    """Tokens with ids and positions, some of them padding."""
    rng = np.random.default_rng(seed)
    return Tokens(
        x=jnp.asarray(rng.normal(size=(groups, length, D)), dtype),
        valid=jnp.asarray(rng.random((groups, length)) < share_valid),
        ids=jnp.asarray(rng.integers(0, 50, (groups, length)), jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (groups, length)),
        sequence_length=length,
    )


def build(name, capacity_factor=1.0, training=False, **options):
    """The router's module; without a capacity where it takes none."""
    factor = capacity_factor if ROUTERS[name].drops else None
    return make(name, E, K[name], factor, training=training, **options)


def make(name, num_experts, k, capacity_factor=None, loss_level=None, training=False, dtype=FLOAT32, **options):
    """The module of a router with options."""
    router = KINDS.make({KIND: name} | options, name)
    setting = Setting(num_experts, k, capacity_factor, loss_level=loss_level)
    return router.module(setting, training, dtype)


def state_after(module, state, sown):
    """The router's state after a step that sowed."""
    return module.router.next_state(state, sown, module.setting)


@functools.cache
def variables(router, seed=0):
    """Parameters of order 1 and router state as it starts, but for biases away from zero."""
    start = router.init({"params": jax.random.key(0), "routing": jax.random.key(0)}, tokens())
    rng = np.random.default_rng(seed)

    def normal(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)

    drawn = {"params": jax.tree.map(normal, start["params"])} if "params" in start else {}
    if STATE in start:
        drawn[STATE] = {key: value + 0.1 * jnp.abs(normal(value)) for key, value in start[STATE].items()}
    return drawn


def route(module, tokens, given=None, seed=1):
    """The assignment and the metrics, with the variables `given`; compiled."""
    assignment, sown = compiled(module)(variables(module) if given is None else given, tokens, seed)
    return assignment, values(sown[METRICS])


def apply(module, tokens, params=None, state=None, seed=0):
    """The assignment and the metrics, operation by operation, so that what is drawn can be replaced."""
    given = {"params": params or {}} | ({STATE: state} if state else {})
    assignment, sown = module.apply(given, tokens, rngs={"routing": jax.random.key(seed)}, mutable=[METRICS])
    return assignment, values(sown[METRICS])


@functools.cache
def compiled(module):
    """One router's decisions, compiled for each shape of tokens."""

    @jax.jit
    def run(given, tokens, seed):
        return module.apply(given, tokens, rngs={"routing": jax.random.key(seed)}, mutable=[METRICS])

    return run


def decide(
    name: str, logits: jax.Array, token_valid: jax.Array, capacity_factor: float | None, k: int | None = None
) -> Assignment:
    """The decision of the router `name`; k is the router's own where it allows only one."""
    only, decision = DECISIONS[name]
    k = only or k or 1
    capacity = capacity_per_expert(capacity_factor, logits.shape[1], k, logits.shape[2])
    return decision(logits, token_valid, capacity, k)
