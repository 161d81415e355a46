"""Two levels: one router chooses groups of experts, another one experts within each group (Shazeer et al. 2017, app B).

G groups of tokens, S tokens of a group, N groups of experts, M experts of each, E = N * M, A assignments.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float, Shaped

from moe_jax.configuration import require, require_name
from moe_jax.routing.assignment import Assignment
from moe_jax.routing.losses import LossLevel, squared_variation
from moe_jax.routing.noisy_top_k import EXPECTED_LOAD
from moe_jax.routing.router import RNG, STATE, Metrics, Router, Tokens
from moe_jax.routing.statistics import Statistic


class Hierarchical(Router):
    """The product of two decisions by any two routers; weights are multiplied.

    Each group of experts has an inner router of its own, which sees only the tokens that the outer router sent there.
    `k` is `outer_k` times the inner router's. Importance is that of the weights, load that of Shazeer's equation for
    two levels where both routers are noisy, else what was asked for, which has no gradient.

    Attributes:
      groups: N.
      outer: name of the router that chooses groups.
      inner: name of the router that chooses experts within a group.
      outer_k: groups per token.
      outer_options: further fields of the outer router.
      inner_options: and of the inner one.
    """

    groups: int = 2
    outer: str = "noisy_top_k"
    inner: str = "noisy_top_k"
    outer_k: int = 2
    outer_options: Mapping[str, Any] = FrozenDict()
    inner_options: Mapping[str, Any] = FrozenDict()
    loss_level: LossLevel = "batch"

    loss_levels = ("batch",)
    losses: ClassVar[Mapping[str, float]] = {"importance_loss": 0.1, "load_loss": 0.1}
    paper = "Shazeer et al. 2017, Outrageously Large Neural Networks, arXiv:1701.06538"
    year = 2017

    def check(self) -> None:
        experts, accepted = self.num_experts, f"a divisor of num_experts ({self.num_experts}), of at least 2"
        require(self.groups >= 2 and experts % self.groups == 0, "groups", self.groups, accepted)
        accepted = f"a divisor of k ({self.k}), at most groups ({self.groups})"
        require(1 <= self.outer_k <= self.groups and self.k % self.outer_k == 0, "outer_k", self.outer_k, accepted)
        most = self.outer_k * experts // self.groups
        require(self.k <= most, "outer_k", self.outer_k, f"enough groups for k={self.k} experts; these have {most}")
        self._check_level("outer", self.groups, self.outer_k, None, self.outer_options)
        inner = self.num_experts // self.groups, self.k // self.outer_k, self._inner_factor
        self._check_level("inner", *inner, self.inner_options)

    def _check_level(
        self, role: str, experts: int, k: int, capacity_factor: float | None, options: Mapping[str, Any]
    ) -> None:
        # Here, because the list of routers names this one too.
        from moe_jax.routing import ROUTERS, check_router

        name = getattr(self, role)
        require_name(name, ROUTERS, role)
        kind = ROUTERS[name]
        plain = kind is not Hierarchical and not kind.mixes and kind.next_state is Router.next_state
        require(plain, role, name, "a router of one level that assigns tokens and has no state of its own")
        check_router(name, experts, k, capacity_factor, options, {}, f"{role}.", f"{role}_options")

    @property
    def causal(self) -> bool:
        return self._outer(parent=None).causal and self._inner(parent=None).causal

    @property
    def chooses_by_capacity(self) -> bool:
        return self._outer(parent=None).chooses_by_capacity or self._inner(parent=None).chooses_by_capacity

    def parameter_counts(self, tokens: int, model_dim: int) -> tuple[int, int]:
        outer = self._outer(parent=None).parameter_counts(tokens, model_dim)
        inner = self._inner(parent=None).parameter_counts(tokens, model_dim)
        return outer[0] + self.groups * inner[0], outer[1] + self.groups * inner[1]

    def _outer(self, **fields: Any) -> Router:
        from moe_jax.routing import make_router

        return make_router(
            self.outer, self.groups, self.outer_k, None, self.outer_options, training=self.training, **fields
        )

    def _inner(self, **fields: Any) -> Router:
        from moe_jax.routing import make_router

        experts, k = self.num_experts // self.groups, self.k // self.outer_k
        fields |= {"training": self.training}
        return make_router(self.inner, experts, k, self._inner_factor, self.inner_options, **fields)

    @property
    def _inner_factor(self) -> float | None:
        """The share of the tokens that a group of experts sees on average, times the capacity factor."""
        return None if self.capacity_factor is None else self.capacity_factor * self.outer_k / self.groups

    @nn.compact
    def route(self, tokens: Tokens) -> tuple[Assignment, Metrics]:
        first, outer = self._outer(name="outer").route(tokens)
        sent, weight = first.dispatch_mask(), first.combine_weights()

        def within(router: Router, valid: Array) -> tuple[Assignment, Metrics]:
            return router.route(tokens.replace(valid=valid))

        lifted = nn.vmap(
            within, variable_axes={"params": 0, STATE: 0}, split_rngs={"params": True, RNG: True}, in_axes=0
        )
        second, inner = lifted(self._inner(name="inner"), jnp.moveaxis(sent, 2, 0))
        assignment = self._product(weight, second)
        gates = assignment.replace(capacity=assignment.num_tokens + 1).combine_weights()
        return assignment, {
            "importance_loss": self.variation(gates, tokens),
            "load_loss": self._load_loss(assignment, outer, inner, sent),
        }

    def _product(self, weight: Float[Array, "G S N"], second: Assignment) -> Assignment:
        """Inner assignments, with a leading axis over groups of experts, as one over all experts."""
        offset = jnp.arange(self.groups, dtype=jnp.int32)[:, None, None] * second.num_experts
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
            num_experts=self.num_experts,
            choices=None,
        )

    def _load_loss(self, assignment: Assignment, outer: Metrics, inner: Metrics, sent: Array) -> Statistic:
        """Of Load_H(i, j) = Load_outer(i) * Load_inner(j) / tokens sent to i; without noise of what is asked for."""
        if EXPECTED_LOAD not in outer or EXPECTED_LOAD not in inner:
            return Statistic((assignment.load(),), variation_of_all)
        (first,), (second,) = outer[EXPECTED_LOAD].sums, inner[EXPECTED_LOAD].sums
        return Statistic((first, second, sent.sum(axis=(0, 1), dtype=jnp.float32)), variation_of_product)


def variation_of_all(load: Float[Array, " E"]) -> Float[Array, ""]:
    """`squared_variation` of one load."""
    return squared_variation(load[None])[0]


def variation_of_product(
    outer: Float[Array, " N"], inner: Float[Array, "N M"], sent: Float[Array, " N"]
) -> Float[Array, ""]:
    """The same of two levels, from both loads and the tokens sent to each group of experts."""
    return variation_of_all((outer[:, None] * inner / jnp.maximum(sent, 1.0)[:, None]).reshape(-1))
