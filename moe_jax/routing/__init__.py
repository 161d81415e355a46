"""Who runs which token."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from moe_jax.configuration import ConfigError, check_values, require
from moe_jax.routing.assignment import Assignment
from moe_jax.routing.base_layers import BASE, Sinkhorn
from moe_jax.routing.deepseek import DeepSeek
from moe_jax.routing.dense_mixture import DenseMixture
from moe_jax.routing.expert_choice import ExpertChoice
from moe_jax.routing.gshard import GShard
from moe_jax.routing.hash import Hash
from moe_jax.routing.hierarchical import Hierarchical
from moe_jax.routing.noisy_top_k import NoisyTopK, VMoE
from moe_jax.routing.quantile import Quantile
from moe_jax.routing.remoe import ReMoE
from moe_jax.routing.router import Router
from moe_jax.routing.soft_moe import SoftMoE
from moe_jax.routing.sparse_mixer import SparseMixer
from moe_jax.routing.st_moe import STMoE
from moe_jax.routing.switch import Switch
from moe_jax.routing.top_k import TopK
from moe_jax.routing.uniform_random import UniformRandom

# Where routers are named: a new router is one file and one line here.
ROUTERS: dict[str, type[Router]] = {
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

__all__ = ["ROUTERS", "Assignment", "Router", "check_router", "describe_routers", "make_router", "own_fields"]


def make_router(
    name: str, /, num_experts: int, k: int, capacity_factor: float | None, options: Mapping[str, Any], **fields: Any
) -> Router:
    """The router `name` as a module.

    Args:
      name: a name in ROUTERS.
      num_experts: E.
      k: experts per token.
      capacity_factor: seats relative to even load.
      options: its own fields.
      fields: fields that every router has, and Linen's.
    """
    return ROUTERS[name](num_experts=num_experts, k=k, capacity_factor=capacity_factor, **options, **fields)


def check_router(
    name: str,
    num_experts: int,
    k: int,
    capacity_factor: float | None,
    options: Mapping[str, Any],
    losses: Mapping[str, Any],
    path: str,
    options_path: str,
    **fields: Any,
) -> Router:
    """Builds a router as a configuration asks for it.

    Args:
      name, num_experts, k, capacity_factor, options, fields: see `make_router`.
      losses: coefficients by name.
      path: dotted name of the mixture in the configuration, for messages.
      options_path: and of `options`.

    Raises:
      ConfigError: the router does not have what it is asked for.
    """
    kind = ROUTERS[name]
    allowed = (num_experts,) if kind.choices_allowed == "all" else kind.choices_allowed
    if allowed is not None:
        require(k in allowed, f"{path}k", k, " or ".join(map(str, allowed)) + f", with router {name!r}")
    if not kind.drops:
        require(capacity_factor is None, f"{path}capacity_factor", capacity_factor, f"None, with router {name!r}")
    if "loss_level" in fields:
        accepted = f"{', '.join(kind.loss_levels) or None}, with router {name!r}"
        require(fields["loss_level"] in kind.loss_levels, f"{path}loss_level", fields["loss_level"], accepted)
    hints = {field: hint for field, hint in typing.get_type_hints(kind).items() if field in own_fields(kind)}
    converted = check_values(hints, options, options_path)
    for loss, coefficient in losses.items():
        has = ", ".join(kind.losses) or "none"
        require(loss in kind.losses, f"{path}losses", loss, f"losses of router {name!r}: {has}")
        require(
            isinstance(coefficient, int | float) and coefficient >= 0,
            f"{path}losses.{loss}",
            coefficient,
            "a number of at least 0",
        )
    router = make_router(name, num_experts, k, capacity_factor, converted, parent=None, **fields)
    try:
        router.check()
    except ConfigError as error:
        raise ConfigError(f"{options_path}.{error}") from error
    return router


def own_fields(router: type[Router]) -> set[str]:
    """The fields a router's module adds to those every router has."""
    return {f.name for f in dataclasses.fields(router)} - {f.name for f in dataclasses.fields(Router)}


def describe_routers() -> list[dict[str, Any]]:
    """What there is to know of each router before one reads its paper, of its default options, in JSON's types."""
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
                "causal": make_router(name, 4, k, 1.0, {}, parent=None).causal,
                "drops": kind.drops,
                "losses": dict(kind.losses),
            }
        )
    return rows
