"""Who runs which token."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from moe_jax.configuration import check_values, require
from moe_jax.routing.assignment import Assignment
from moe_jax.routing.expert_choice import ExpertChoice
from moe_jax.routing.gshard import GShard
from moe_jax.routing.router import Router
from moe_jax.routing.switch import Switch
from moe_jax.routing.uniform_random import UniformRandom

# Where routers are named: a new router is one file and one line here.
ROUTERS: dict[str, type[Router]] = {
    "switch": Switch,
    "gshard": GShard,
    "expert_choice": ExpertChoice,
    "uniform_random": UniformRandom,
}

__all__ = ["ROUTERS", "Assignment", "Router", "check_router"]


def check_router(name: str, k: int, options: Mapping[str, Any], coefficients: Mapping[str, float], path: str) -> None:
    """Raises ConfigError where a configuration asks of a router what it does not have.

    Args:
      name: a name in ROUTERS.
      k: experts per token.
      options: fields of the router's module beyond those every router has.
      coefficients: weights by name of loss; a loss that the router lacks must weigh 0.
      path: dotted name of the mixture in the configuration, for messages.
    """
    router = ROUTERS[name]
    if router.choices_allowed is not None:
        accepted = " or ".join(map(str, router.choices_allowed)) + f", with router {name!r}"
        require(k in router.choices_allowed, f"{path}.k", k, accepted)
    hints = {field: hint for field, hint in typing.get_type_hints(router).items() if field in own_fields(router)}
    check_values(hints, options, f"{path}.router_options")
    for loss, coefficient in coefficients.items():
        field = f"{path}.{loss.removesuffix('_loss')}_coefficient"
        require(coefficient == 0 or loss in router.losses, field, coefficient, f"0: router {name!r} has no {loss}")


def own_fields(router: type[Router]) -> set[str]:
    """The fields a router's module adds to those every router has."""
    return {f.name for f in dataclasses.fields(router)} - {f.name for f in dataclasses.fields(Router)}
