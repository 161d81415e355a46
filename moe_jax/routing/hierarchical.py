"""Two-level routing: a router chooses groups of experts, others the experts in them (Shazeer et al. 2017, appendix B).

G groups of tokens, S tokens of a group, N groups of experts, M experts of each, E = N * M, A assignments.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from moe_jax.configuration import Kinds, errors_within, require
from moe_jax.routing.assignment import Assignment
from moe_jax.routing.losses import LossLevel, squared_variation
from moe_jax.routing.noisy_top_k import EXPECTED_LOAD, NoisyTopK
from moe_jax.routing.router import (
    FLOAT32,
    RNG,
    ROUTERS,
    STATE,
    Router,
    RouterLike,
    RouterModule,
    Setting,
    Tokens,
    check_router,
)
from moe_jax.routing.statistics import Metrics, Statistic
from moe_jax.runtime.parameters import Parameter, within

LEVELS = Kinds(ROUTERS)
Level = Annotated[RouterLike, LEVELS]


@dataclasses.dataclass(frozen=True)
class Hierarchical(Router):
    """The product of two decisions by any two routers; weights are multiplied.

    Each group of experts has an inner router of its own, which sees only the tokens that the outer router sent there.
    `k` is `outer_k` times the inner router's. The importance loss is of the weights. The load loss is of Shazeer's
    estimate for two levels where both routers are noisy, else of the requests, which has no gradient.

    Attributes:
      groups: N.
      outer: the router that chooses groups.
      inner: the router that chooses experts within a group.
      outer_k: groups per token.
    """

    groups: int = 2
    outer: Level = dataclasses.field(default_factory=NoisyTopK)
    inner: Level = dataclasses.field(default_factory=NoisyTopK)
    outer_k: int = 2

    loss_levels = ("batch",)
    own_loss_level: ClassVar[LossLevel] = "batch"
    losses: ClassVar[Mapping[str, float]] = {"importance_loss": 0.1, "load_loss": 0.1}
    paper = "Shazeer et al. 2017, Outrageously Large Neural Networks, arXiv:1701.06538"
    year = 2017

    def __post_init__(self) -> None:
        require(self.groups >= 2, "groups", self.groups, "an integer of at least 2")
        accepted = f"1 to groups ({self.groups})"
        require(1 <= self.outer_k <= self.groups, "outer_k", self.outer_k, accepted)
        for role in ("outer", "inner"):
            router = LEVELS.make(getattr(self, role), role)
            object.__setattr__(self, role, router)
            stateless = type(router).next_state is Router.next_state
            plain = router.decision is Assignment and stateless and not isinstance(router, Hierarchical)
            accepted = "a router of one level that assigns tokens and has no state of its own"
            require(plain, role, LEVELS.name_of(router), accepted)

    def check(self, setting: Setting) -> None:
        experts, k, groups, outer_k = setting.num_experts, setting.k, self.groups, self.outer_k
        require(experts % groups == 0, "groups", groups, f"a divisor of num_experts ({experts}), of at least 2")
        require(k % outer_k == 0, "outer_k", outer_k, f"a divisor of k ({k}), at most groups ({groups})")
        most = outer_k * experts // groups
        require(k <= most, "outer_k", outer_k, f"enough groups for k={k} experts; these have {most}")
        for role, level in zip(("outer", "inner"), self.levels(setting), strict=True):
            with errors_within(role):
                check_router(getattr(self, role), level)

    def levels(self, setting: Setting) -> tuple[Setting, Setting]:
        """Returns the settings of the outer router and of each inner router."""
        # The share of the tokens that a group of experts sees on average, times the capacity factor.
        factor = None if setting.capacity_factor is None else setting.capacity_factor * self.outer_k / self.groups
        inner = Setting(setting.num_experts // self.groups, setting.k // self.outer_k, factor)
        return Setting(self.groups, self.outer_k), inner

    def causal(self, setting: Setting) -> bool:
        outer, inner = self.levels(setting)
        return self.outer.causal(outer) and self.inner.causal(inner)

    def chooses_by_capacity(self, setting: Setting) -> bool:
        outer, inner = self.levels(setting)
        return self.outer.chooses_by_capacity(outer) or self.inner.chooses_by_capacity(inner)

    def parameters(self, model_dim: int, tokens: int, setting: Setting) -> dict[str, Parameter]:
        outer, inner = self.levels(setting)
        parameters = self.inner.parameters(model_dim, tokens, inner)
        copies = {name: parameter.stacked(self.groups) for name, parameter in parameters.items()}
        return within("outer", self.outer.parameters(model_dim, tokens, outer)) | within("inner", copies)

    def module(
        self,
        setting: Setting,
        training: bool = False,
        dtype: jnp.dtype = FLOAT32,
        name: str | None = None,
    ) -> "TwoLevels":
        return TwoLevels(self, setting, training, dtype, name=name)


class TwoLevels(RouterModule):
    """The Linen module of hierarchical routing: one router `outer`, and N routers `inner` with a leading axis."""

    @nn.compact
    def route(self, tokens: Tokens) -> tuple[Assignment, Metrics]:
        outer_setting, inner_setting = self.router.levels(self.setting)
        first, outer = self.router.outer.module(outer_setting, self.training, name="outer").route(tokens)
        sent, weight = first.dispatch_mask(), first.combine_weights()

        def within_group(router: RouterModule, valid: Array) -> tuple[Assignment, Metrics]:
            return router.route(tokens.replace(valid=valid))

        lifted = nn.vmap(
            within_group, variable_axes={"params": 0, STATE: 0}, split_rngs={"params": True, RNG: True}, in_axes=0
        )
        router = self.router.inner.module(inner_setting, self.training, name="inner")
        second, inner = lifted(router, jnp.moveaxis(sent, 2, 0))
        assignment = self._product(weight, second)
        gates = assignment.replace(capacity=assignment.num_tokens + 1).combine_weights()
        return assignment, {
            "importance_loss": self.call(tokens, {}, {}).variation_loss(gates, tokens),
            "load_loss": self._load_loss(assignment, outer, inner, sent),
        }

    def _product(self, weight: Float[Array, "G S N"], second: Assignment) -> Assignment:
        """Joins the inner assignments, which have a leading axis over groups of experts, into one over all experts."""
        offset = jnp.arange(self.router.groups, dtype=jnp.int32)[:, None, None] * second.num_experts
        by_group = jnp.moveaxis(weight, 2, 0)

        def flat(x: Shaped[Array, "N G A"]) -> Shaped[Array, "G B"]:
            return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)

        return Assignment(
            token=flat(second.token),
            expert=flat(second.expert + offset),
            weight=flat(second.weight * jnp.take_along_axis(by_group, second.token, axis=-1)),
            requested=flat(second.requested),
            seat=flat(second.seat),
            capacity=second.capacity,
            num_tokens=second.num_tokens,
            num_experts=self.setting.num_experts,
            choices=None,
        )

    def _load_loss(self, assignment: Assignment, outer: Metrics, inner: Metrics, sent: Array) -> Statistic:
        """Computes the load loss of Load_H(i, j) = Load_outer(i) * Load_inner(j) / tokens sent to i, or of requests."""
        if EXPECTED_LOAD not in outer or EXPECTED_LOAD not in inner:
            return Statistic((assignment.load(),), variation_of_all)
        (first,), (second,) = outer[EXPECTED_LOAD].sums, inner[EXPECTED_LOAD].sums
        return Statistic((first, second, sent.sum(axis=(0, 1), dtype=jnp.float32)), variation_of_product)


def variation_of_all(load: Float[Array, " E"]) -> Float[Array, ""]:
    """Computes the `squared_variation` of one load."""
    return squared_variation(load[None])[0]


def variation_of_product(
    outer: Float[Array, " N"], inner: Float[Array, "N M"], sent: Float[Array, " N"]
) -> Float[Array, ""]:
    """Computes the `squared_variation` of a two-level load from both loads and the tokens sent to each group."""
    return variation_of_all((outer[:, None] * inner / jnp.maximum(sent, 1.0)[:, None]).reshape(-1))
