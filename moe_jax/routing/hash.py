"""Hash layers: the expert is a fixed function of the token's id or its position (Roller et al. 2021).

G groups, S tokens of a group, E experts, C capacity, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from moe_jax.configuration import ConfigError, lists_to_tuples, require
from moe_jax.routing.assignment import Assignment, assign_choices
from moe_jax.routing.router import Call, Router, Tokens
from moe_jax.routing.statistics import Metrics
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.remat import decided

By = Literal["token", "balanced", "position"]


@typed
def mixed(x: Int[Array, "*shape"], seed: int) -> Int[Array, "*shape"]:
    """Maps each integer to a fixed pseudo-random number below 2**31 by the finalizer of MurmurHash3."""
    h = x.astype(jnp.uint32) + jnp.uint32((seed * 0x9E3779B9) & 0xFFFFFFFF)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> jnp.uint32(shift))) * jnp.uint32(factor)
    return ((h ^ (h >> jnp.uint32(16))) >> jnp.uint32(1)).astype(jnp.int32)


def balanced_table(counts: Sequence[int], num_experts: int) -> Int[np.ndarray, " V"]:
    """Assigns each token id, the most frequent first, to the expert with the fewest tokens so far (section 3.1).

    Args:
      counts: occurrences of each id.
      num_experts: E.
    """
    table, load = np.zeros(len(counts), np.int32), np.zeros(num_experts)
    for token in np.argsort(-np.asarray(counts), kind="stable"):
        expert = load.argmin()
        table[token] = expert
        load[expert] += counts[token]
    return table


@dataclasses.dataclass(frozen=True)
class Hash(Router):
    """Hash routing: no parameters, no losses, weight 1.

    Attributes:
      by: key of the assignment: a hash of the `token`'s id; a table of ids `balanced` by their `counts`; a hash of the
        `position` in the document.
      seed: seed of the hash.
      counts: occurrences of each id of the vocabulary, for `balanced`.
    """

    by: By = "token"
    seed: int = 0
    counts: tuple[int, ...] = ()

    choices_allowed = (1,)
    has_parameters = False
    loss_levels = ()
    losses: ClassVar[Mapping[str, float]] = {}
    paper = "Roller et al. 2021, Hash Layers For Large Sparse Models, arXiv:2106.04426"
    year = 2021

    def __post_init__(self) -> None:
        lists_to_tuples(self)
        balanced = self.by == "balanced"
        accepted = "the count of each id, with by='balanced', and () without"
        require(balanced == bool(self.counts), "counts", self.counts, accepted)

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        known = tokens.positions if self.by == "position" else tokens.ids
        if known is None:
            needed, argument = ("positions",) * 2 if self.by == "position" else ("token ids", "ids")
            raise ConfigError(
                f"router 'hash' with by={self.by!r} needs {needed}, but the layer was called without `{argument}`"
            )
        if self.by == "balanced":
            expert = jnp.asarray(balanced_table(self.counts, call.num_experts))[known]
        else:
            expert = mixed(known, self.seed) % call.num_experts
        expert = decided(expert[..., None])
        weight = jnp.ones(expert.shape, jnp.float32)
        return assign_choices(expert, weight, tokens.valid[..., None], call.num_experts, call.capacity), {}
