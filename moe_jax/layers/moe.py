"""The mixture-of-experts layer: joins a router and a way of running experts.

B batch, S sequence (in `_run` G groups of S tokens), D model width, E experts, F expert width, O width of results
(D, but of linear experts).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Bool, Float, Int

from moe_jax.configuration import require
from moe_jax.experts.apply import apply_experts
from moe_jax.experts.combine import Combine
from moe_jax.experts.ffn import FFN_KINDS, LINEAR, FFNKind, FFNParams
from moe_jax.experts.kernels.choice import KernelChoice
from moe_jax.experts.parallel.strategies import ParallelConfig
from moe_jax.experts.plan import plan_here
from moe_jax.layers.dropout import with_dropout
from moe_jax.layers.feed_forward import FeedForward
from moe_jax.layers.initialization import kernel_init, network_weights
from moe_jax.routing import make_router
from moe_jax.routing.assignment import Assignment
from moe_jax.routing.capacity import CapacityRule
from moe_jax.routing.losses import LossLevel
from moe_jax.routing.router import STATE, Tokens
from moe_jax.routing.soft_moe import Slots
from moe_jax.routing.statistics import mean_of_parts, report
from moe_jax.runtime.mesh import keep_sharded_by_token


class MoE(nn.Module):
    """Routes groups of tokens and runs their experts; a token that no expert runs gets zeros.

    Attributes:
      num_experts: E.
      expert_dim: F.
      router: a name in ROUTERS.
      k: experts per token.
      capacity_factor: seats relative to even load; None drops nothing.
      group_size: tokens that share one capacity; None makes each sequence a group.
      kind: what an expert computes, a name in FFN_KINDS, or `linear`, a matrix from D to F.
      execution: a name in EXECUTIONS, or `auto`; see `plan_for`.
      kernel: of grouped matrix products, where the execution has any; see `plan_for`.
      router_options: further fields of the router's module.
      router_dtype: what the router rounds to; see `Router`.
      capacity_rule: how the factor becomes seats; see `capacity_per_expert`.
      loss_level: what the router's losses are means over; None takes the router's own.
      combine: how weights are applied; see `Combine`.
      shared_dim: width of a network that every token runs besides its experts; None has none.
      shared_gate: whether each token weighs that network by the sigmoid of a learned projection (Qwen2-MoE).
      training: whether the router draws and explores as in training.
      init_scale: see `kernel_init`.
      dtype: compute type of the experts.
      dropout: share of the experts' hidden values that are set to 0.
      parallel: how tokens reach experts on other devices, where `jax.set_mesh` says that there are any.
    """

    num_experts: int
    expert_dim: int
    router: str = "switch"
    k: int = 1
    capacity_factor: float | None = 1.25
    group_size: int | None = None
    kind: str = "relu"
    execution: str = "auto"
    kernel: KernelChoice = "auto"
    router_options: Mapping[str, Any] = FrozenDict()
    router_dtype: jnp.dtype = jnp.dtype(jnp.float32)
    capacity_rule: CapacityRule = "ceil"
    loss_level: LossLevel | None = None
    combine: Combine = "output"
    shared_dim: int | None = None
    shared_gate: bool = False
    training: bool = False
    init_scale: float = 1.0
    dtype: jnp.dtype = jnp.dtype(jnp.float32)
    dropout: float = 0.0
    parallel: ParallelConfig = ParallelConfig()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        token_valid: Bool[Array, "B S"] | None = None,
        ids: Int[Array, "B S"] | None = None,
        positions: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S O"]:
        """Runs tokens.

        Args:
          x: the tokens.
          token_valid: false for padding, which gets zeros; None where there is none.
          ids: in the vocabulary, for routers that look at them.
          positions: in the document, likewise.
        """
        if token_valid is None:
            token_valid = jnp.ones(x.shape[:2], bool)
        kind, width = self._expert(), x.shape[-1]
        weights = network_weights(self, kind, width, self.expert_dim, self.init_scale, self.dtype, self.num_experts)
        group_size = self.group_size or x.shape[1]
        count = token_valid.size
        require(count % group_size == 0, "group_size", group_size, f"a divisor of {count} tokens")
        # Padding may hold anything, even NaN, which a weight of 0 would pass on.
        x = jnp.where(token_valid[..., None], x, jnp.zeros((), x.dtype))

        def by_group(values: Array | None) -> Array | None:
            return None if values is None else keep_sharded_by_token(values.reshape(-1, group_size, *values.shape[2:]))

        tokens = Tokens(by_group(x), by_group(token_valid), by_group(ids), by_group(positions), x.shape[1])
        router = make_router(
            self.router,
            self.num_experts,
            self.k,
            self.capacity_factor,
            self.router_options,
            capacity_rule=self.capacity_rule,
            training=self.training,
            dtype=self.router_dtype,
            name="router",
            **({} if self.loss_level is None else {"loss_level": self.loss_level}),
        )
        inputs = tokens.x.astype(self.dtype)
        decision = router(tokens)
        if isinstance(decision, Slots):
            y = decision.read(self._run(decision.fill(inputs), self._placed(decision.assignment()), weights, kind))
        else:
            y = self._run(inputs, self._placed(decision), weights, kind)
        y = keep_sharded_by_token(y.reshape(*x.shape[:2], -1))
        return y if self.shared_dim is None else y + self._shared(x)

    def _placed(self, assignment: Assignment) -> Assignment:
        """With the places of experts among the stored weights for their numbers, where places may change."""
        if self.parallel.rebalance_every is None:
            return assignment
        placement = self.variable(STATE, "placement", lambda: jnp.arange(self.num_experts, dtype=jnp.int32))
        return assignment.replace(expert=placement.value[assignment.expert])

    def _expert(self) -> FFNKind:
        """What an expert computes."""
        return LINEAR if self.kind == "linear" else with_dropout(FFN_KINDS[self.kind], self.dropout)

    def _run(
        self, x: Float[Array, "G S D"], assignment: Assignment, params: FFNParams, kind: FFNKind
    ) -> Float[Array, "G S O"]:
        rows = self.k * (1.0 if self.capacity_factor is None else self.capacity_factor)
        plan = plan_here(self.execution, self.kernel, self.parallel, rows)
        y, metrics = apply_experts(plan, x, assignment, params, kind, self.combine)
        report(self, {name: mean_of_parts(value) for name, value in metrics.items()})
        return y

    def _shared(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        y = FeedForward(self.kind, self.shared_dim, self.init_scale, self.dtype, name="shared")(x)
        if not self.shared_gate:
            return y
        gate = nn.Dense(1, use_bias=False, dtype=self.dtype, kernel_init=kernel_init(1.0), name="shared_gate")(x)
        return jax.nn.sigmoid(gate) * y
