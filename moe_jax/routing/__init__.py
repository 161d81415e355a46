"""Routing: a router turns tokens into a decision, which experts run which token with what weight."""

from typing import Any

from moe_jax.routing.assignment import Assignment
from moe_jax.routing.base_layers import BASE, Sinkhorn
from moe_jax.routing.decision import Decision
from moe_jax.routing.deepseek import DeepSeek
from moe_jax.routing.dense_mixture import DenseMixture
from moe_jax.routing.expert_choice import ExpertChoice
from moe_jax.routing.gshard import GShard
from moe_jax.routing.hash import Hash
from moe_jax.routing.hierarchical import Hierarchical
from moe_jax.routing.noisy_top_k import NoisyTopK, VMoE
from moe_jax.routing.quantile import Quantile
from moe_jax.routing.remoe import ReMoE
from moe_jax.routing.router import KINDS, ROUTERS, AnyRouter, Router, Setting, check_router
from moe_jax.routing.soft_moe import SoftMoE
from moe_jax.routing.sparse_mixer import SparseMixer
from moe_jax.routing.st_moe import STMoE
from moe_jax.routing.switch import Switch
from moe_jax.routing.top_k import TopK
from moe_jax.routing.uniform_random import UniformRandom

# Where routers are named: a new router is one file and one line here.
ROUTERS |= {
    "dense_mixture": DenseMixture,
    "noisy_top_k": NoisyTopK,
    "hierarchical": Hierarchical,
    "gshard": GShard,
    "switch": Switch,
    "vmoe": VMoE,
    "base": BASE,
    "hash": Hash,
    "uniform_random": UniformRandom,
    "sinkhorn": Sinkhorn,
    "st_moe": STMoE,
    "expert_choice": ExpertChoice,
    "soft_moe": SoftMoE,
    "top_k": TopK,
    "deepseek": DeepSeek,
    "sparse_mixer": SparseMixer,
    "remoe": ReMoE,
    "quantile": Quantile,
}

__all__ = [
    "KINDS",
    "ROUTERS",
    "AnyRouter",
    "Assignment",
    "Decision",
    "Router",
    "Setting",
    "check_router",
    "describe_routers",
]


def describe_routers() -> list[dict[str, Any]]:
    """Returns one row for each router with its default options, in JSON's types: name, paper, k, causal, losses."""
    rows = []
    for name, kind in ROUTERS.items():
        allowed = kind.choices_allowed
        k = allowed[0] if isinstance(allowed, tuple) else 4 if allowed == "all" else 2
        rows.append(
            {
                "name": name,
                "paper": kind.paper,
                "year": kind.year,
                "k": list(allowed) if isinstance(allowed, tuple) else allowed,
                "causal": kind().causal(Setting(4, k, 1.0)),
                "drops": kind.drops,
                "losses": dict(kind.losses),
            }
        )
    return rows
