"""DeepSeek's routing: groups of experts, and a selection bias in place of a balance loss.

DeepSeek-V2 (arXiv:2405.04434, section 2.2), DeepSeek-V3 (arXiv:2412.19437, section 2.1.2); Kimi K2, GLM-4.5 and
MiniMax-M2 are settings of it.

G groups, S tokens of a group, E experts, N groups of experts, K choices per token, C capacity.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.configuration import require
from moe_jax.routing.assignment import Assignment, assign_choices
from moe_jax.routing.losses import LossLevel, updated_bias
from moe_jax.routing.router import Call, Router, Setting, Tokens
from moe_jax.routing.statistics import Metrics
from moe_jax.routing.top_k import Score, require_learnable, scores_of, shares_of
from moe_jax.runtime.mesh import shard_over_groups
from moe_jax.runtime.remat import decided

GroupScore = Literal["max", "top2_sum"]


def group_limited_choices(
    selection: Float[Array, "G S E"], k: int, num_groups: int, groups_per_token: int, group_score: GroupScore
) -> Int[Array, "G S K"]:
    """Chooses the `k` experts of the largest `selection` within the best `groups_per_token` groups of experts.

    Args:
      selection: scores, with the selection bias if there is one.
      k: K.
      num_groups: N, groups of E / N consecutive experts.
      groups_per_token: groups in which a token's experts may lie.
      group_score: score of a group: its best expert's (`max`, V2), or its best two together (`top2_sum`, V3).
    """

    def choose(selection: Float[Array, "G S E"]) -> Int[Array, "G S K"]:
        if groups_per_token < num_groups:
            in_groups = selection.reshape(*selection.shape[:-1], num_groups, -1)
            counted = 1 if group_score == "max" else 2
            score = jax.lax.top_k(in_groups, counted)[0].sum(axis=-1)
            _, best = jax.lax.top_k(score, groups_per_token)
            allowed = jax.nn.one_hot(best, num_groups, dtype=jnp.int32).sum(axis=-2) > 0
            # Not 0, which would beat the negative scores that a bias can make.
            selection = jnp.where(allowed[..., None], in_groups, -jnp.inf).reshape(selection.shape)
        return jax.lax.top_k(selection, k)[1].astype(jnp.int32)

    return decided(shard_over_groups(choose)(selection))


@dataclasses.dataclass(frozen=True)
class DeepSeek(Router):
    """Top-k of sigmoid or softmax scores, limited to groups of experts, and balanced by a bias.

    The bias is added to scores to select experts, and is not part of their weights. It lives in the collection
    `router_state` and moves after each training step; see `updated_bias`.

    Attributes:
      score: `sigmoid` (V3) or `softmax` (V2).
      num_groups: groups of experts; 1 does not limit.
      groups_per_token: groups in which a token's experts may lie.
      group_score: score of a group; see `group_limited_choices`.
      renormalize: whether the chosen scores are divided by their sum.
      scale: factor on all weights (routed_scaling_factor: 2.5 in V3, 2.827 in Kimi K2, 16 in V2).
      bias_rate: change of the selection bias in a step; 0 has no bias.
    """

    score: Score = "sigmoid"
    num_groups: int = 1
    groups_per_token: int = 1
    group_score: GroupScore = "top2_sum"
    renormalize: bool = True
    scale: float = 1.0
    bias_rate: float = 0.001

    own_loss_level: ClassVar[LossLevel] = "sequence"
    losses: ClassVar[Mapping[str, float]] = {"balance_loss": 0.0001, "z_loss": 0.0}
    paper = "DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437"
    year = 2024

    def __post_init__(self) -> None:
        groups, allowed = self.num_groups, self.groups_per_token
        require(groups >= 1, "num_groups", groups, "an integer of at least 1")
        require(1 <= allowed <= groups, "groups_per_token", allowed, f"1 to num_groups ({groups})")
        require(self.scale > 0, "scale", self.scale, "a positive number")
        require(self.bias_rate >= 0, "bias_rate", self.bias_rate, "a number of at least 0")

    def check(self, setting: Setting) -> None:
        experts, k, groups, allowed = setting.num_experts, setting.k, self.num_groups, self.groups_per_token
        require(experts % groups == 0, "num_groups", groups, f"a divisor of num_experts ({experts})")
        room = allowed * experts // groups
        require(k <= room, "groups_per_token", allowed, f"enough groups for k={k} experts; these have {room}")
        if self.group_score == "top2_sum" and allowed < groups:
            require(experts >= 2 * groups, "num_groups", groups, "groups of two experts or more, with 'top2_sum'")
        require_learnable(self.renormalize, k)

    def initial_state(self, setting: Setting) -> dict[str, Array]:
        return {"bias": jnp.zeros((setting.num_experts,), jnp.float32)} if self.bias_rate else {}

    def probabilities(self, logits: Float[Array, "G S E"], call: Call) -> Float[Array, "G S E"]:
        return shares_of(logits, self.score)

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        scores = scores_of(logits, self.score)
        selection = jax.lax.stop_gradient(scores)
        if self.bias_rate:
            selection += call.state["bias"][None, None]
        expert = group_limited_choices(selection, call.k, self.num_groups, self.groups_per_token, self.group_score)
        chosen = jnp.take_along_axis(logits, expert, axis=-1)
        weight = shares_of(chosen, self.score) if self.renormalize else jnp.take_along_axis(scores, expert, axis=-1)
        requested = jnp.broadcast_to(tokens.valid[..., None], expert.shape)
        assignment = assign_choices(expert, weight * self.scale, requested, call.num_experts, call.capacity)
        return assignment, {"balance_loss": call.balance_loss(self.probabilities(logits, call), expert, tokens)}

    def next_state(
        self, state: Mapping[str, Array], metrics: Mapping[str, Array], setting: Setting
    ) -> Mapping[str, Array]:
        return {"bias": updated_bias(state["bias"], metrics["load"], self.bias_rate)} if self.bias_rate else state
