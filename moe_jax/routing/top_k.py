"""Top-k of a score: Mixtral and the many models that differ from it by an option, gpt-oss and Llama 4 among them.

G groups, S tokens of a group, E experts, K choices per token, C capacity.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.configuration import require
from moe_jax.routing.assignment import Assignment, assign_choices, best_choices
from moe_jax.routing.capacity import Priority
from moe_jax.routing.router import Metrics, Router, Tokens

Score = Literal["softmax", "sigmoid"]


def scores_of(logits: Float[Array, "G S E"], score: Score) -> Float[Array, "G S E"]:
    """Each expert's probability among all (softmax), or on its own (sigmoid)."""
    return jax.nn.softmax(logits) if score == "softmax" else jax.nn.sigmoid(logits)


def shares_of(logits: Float[Array, "G S E"], score: Score) -> Float[Array, "G S E"]:
    """The scores as shares that sum to 1 over experts, for the balance loss (DeepSeek-V3, equation 19)."""
    scores = scores_of(logits, score)
    return scores if score == "softmax" else scores / (scores.sum(axis=-1, keepdims=True) + 1e-20)


class TopK(Router):
    """Each token to the `k` experts of the largest scores.

    Mixtral, DBRX, Mistral Large 3 and Qwen3 renormalise; gpt-oss too (a softmax over the chosen logits is the softmax
    over all, renormalised), with a bias; OLMoE, Grok-1 and DeepSeekMoE do not. Llama 4 takes the sigmoid and puts it on
    the expert's input (`model.moe.combine="input"`).

    Attributes:
      score: what the weights are made of.
      renormalize: divide the chosen scores by their sum.
      bias: add a learned bias to the logits.
      priority: who is seated first; see `assign_choices`.
    """

    score: Score = "softmax"
    renormalize: bool = True
    bias: bool = False
    priority: Priority = "position"

    paper = "Jiang et al. 2024, Mixtral of Experts, arXiv:2401.04088"
    year = 2024

    def check(self) -> None:
        accepted = "False, with k=1, or every weight is 1 and the router learns nothing"
        require(self.k > 1 or not self.renormalize, "renormalize", True, accepted)

    @property
    def causal(self) -> bool:
        return self.priority == "position" or self.capacity_factor is None

    def parameter_counts(self, tokens: int, model_dim: int) -> tuple[int, int]:
        return model_dim * self.num_experts, self.num_experts if self.bias else 0

    def project(self, x: Float[Array, "G S D"]) -> Float[Array, "G S E"]:
        logits = super().project(x)
        if not self.bias:
            return logits
        return logits + self.param("bias", nn.initializers.zeros, (self.num_experts,), jnp.float32)[None, None]

    def probabilities(self, logits: Float[Array, "G S E"]) -> Float[Array, "G S E"]:
        return shares_of(logits, self.score)

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, capacity: int) -> tuple[Assignment, Metrics]:
        score, expert = best_choices(scores_of(logits, self.score), self.k)
        weight = score / (score.sum(axis=-1, keepdims=True) + 1e-20) if self.renormalize else score
        requested = jnp.broadcast_to(tokens.valid[..., None], expert.shape)
        assignment = assign_choices(expert, weight, requested, self.num_experts, capacity, self.priority, score)
        return assignment, {"balance_loss": self.balance(self.probabilities(logits), expert, tokens)}
