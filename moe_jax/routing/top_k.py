"""Top-k of scores: Mixtral, and the many models that differ from it by an option, such as gpt-oss and Llama 4.

G groups, S tokens of a group, E experts, K choices per token, C capacity.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.configuration import require
from moe_jax.routing.assignment import Assignment, assign_choices, best_choices
from moe_jax.routing.capacity import Priority
from moe_jax.routing.router import Call, Router, Setting, Tokens, whole
from moe_jax.routing.statistics import Metrics
from moe_jax.runtime.parameters import Parameter

Score = Literal["softmax", "sigmoid"]


def scores_of(logits: Float[Array, "G S E"], score: Score) -> Float[Array, "G S E"]:
    """Computes each expert's probability among all experts (softmax), or on its own (sigmoid)."""
    return jax.nn.softmax(logits) if score == "softmax" else jax.nn.sigmoid(logits)


def shares_of(logits: Float[Array, "G S N"], score: Score) -> Float[Array, "G S N"]:
    """Computes the scores scaled to sum to 1 over experts (DeepSeek-V3, equation 19).

    Sigmoids are scaled as logarithms: in float32 all of a token's may be 0, and so may the square of their sum, by
    which the gradient of a quotient divides.
    """
    return jax.nn.softmax(logits if score == "softmax" else jax.nn.log_sigmoid(logits))


def require_learnable(renormalize: bool, k: int) -> None:
    """Raises ConfigError where the only weight is divided by itself, so that the router would learn nothing."""
    accepted = "False, with k=1, or every weight is 1 and the router learns nothing"
    require(k > 1 or not renormalize, "renormalize", renormalize, accepted)


@dataclasses.dataclass(frozen=True)
class TopK(Router):
    """Top-k: each token goes to the `k` experts of its largest scores.

    Mixtral, DBRX, Mistral Large 3 and Qwen3 renormalise. So does gpt-oss, with a bias: a softmax over the chosen logits
    is the softmax over all, renormalised. OLMoE, Grok-1 and DeepSeekMoE do not. Llama 4 takes the sigmoid and applies
    it to the expert's input (`combine="input"`).

    Attributes:
      score: function of the logits that scores experts and makes weights.
      renormalize: whether the chosen scores are divided by their sum.
      bias: whether a learned bias is added to the logits.
      priority: order of seating; see `assign_choices`.
    """

    score: Score = "softmax"
    renormalize: bool = True
    bias: bool = False
    priority: Priority = "position"

    paper = "Jiang et al. 2024, Mixtral of Experts, arXiv:2401.04088"
    year = 2024

    def check(self, setting: Setting) -> None:
        require_learnable(self.renormalize, setting.k)

    def causal(self, setting: Setting) -> bool:
        return self.priority == "position" or setting.capacity_factor is None

    def parameters(self, model_dim: int, tokens: int, setting: Setting) -> dict[str, Parameter]:
        bias = {"bias": whole(setting.num_experts, multiplies=False)} if self.bias else {}
        return super().parameters(model_dim, tokens, setting) | bias

    def project(self, x: Float[Array, "G S D"], call: Call) -> Float[Array, "G S E"]:
        logits = super().project(x, call)
        return logits + call.params["bias"][None, None] if self.bias else logits

    def probabilities(self, logits: Float[Array, "G S E"], call: Call) -> Float[Array, "G S E"]:
        return shares_of(logits, self.score)

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        score, expert = best_choices(scores_of(logits, self.score), call.k)
        weight = score
        if self.renormalize:
            weight = shares_of(jnp.take_along_axis(logits, expert, axis=-1), self.score)
        requested = jnp.broadcast_to(tokens.valid[..., None], expert.shape)
        assignment = assign_choices(expert, weight, requested, call.num_experts, call.capacity, self.priority, score)
        return assignment, {"balance_loss": call.balance_loss(self.probabilities(logits, call), expert, tokens)}
