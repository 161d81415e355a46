"""Switch routing: each token to one expert (Fedus et al. 2021), with the variants of its authors' code.

G groups, S tokens of a group, D model width, E experts, C capacity.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from moe_jax.configuration import require
from moe_jax.routing.assignment import Assignment, assign_choices, best_choices
from moe_jax.routing.capacity import Priority
from moe_jax.routing.router import Call, Router, Setting, Tokens
from moe_jax.routing.statistics import Metrics
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.remat import decided

Exploration = Literal["argmax", "sample", "jitter", "dropout"]


@typed
def switch(
    logits: Float[Array, "G S E"],
    token_valid: Bool[Array, "G S"],
    capacity: int,
    priority: Priority = "position",
    rng: Key[Array, ""] | None = None,
) -> Assignment:
    """Routes each token to one expert, with the expert's probability as weight.

    The weight is never renormalised: that would make it the constant 1 and stop its gradient.

    Args:
      logits: the router's, float32.
      token_valid: false for padding.
      capacity: C.
      priority: order of seating; `probability` is mesh-tensorflow's switch_max.
      rng: key by which the expert is drawn from the probabilities; None takes the most probable one.
    """
    probabilities = jax.nn.softmax(logits)
    expert = jnp.argmax(probabilities, axis=-1) if rng is None else jax.random.categorical(rng, logits)
    expert = decided(expert[..., None].astype(jnp.int32))
    weight = jnp.take_along_axis(probabilities, expert, axis=-1)
    return assign_choices(expert, weight, token_valid[..., None], logits.shape[-1], capacity, priority)


@typed
def switch_rerouted(
    logits: Float[Array, "G S E"], token_valid: Bool[Array, "G S"], capacity: int, rounds: int
) -> Assignment:
    """Routes with "no token left behind": a token whose expert is full asks the next best (appendix B).

    Only the request of a token's last round counts, so that a token is dropped once or not at all.

    Args:
      logits: the router's, float32.
      token_valid: false for padding.
      capacity: C.
      rounds: experts that a token asks at most.
    """
    num_experts = logits.shape[-1]
    weight, expert = best_choices(jax.nn.softmax(logits), rounds)
    taken = jnp.zeros((logits.shape[0], 1, num_experts), jnp.int32)
    waiting, requested, seats = token_valid, [], []
    for r in range(rounds):
        asks = jax.nn.one_hot(expert[..., r], num_experts, dtype=jnp.int32) * waiting[..., None].astype(jnp.int32)
        before = taken + jnp.cumsum(asks, axis=1) - asks
        seat = jnp.take_along_axis(before, expert[..., r, None], axis=-1)[..., 0]
        seated = waiting & (seat < capacity)
        requested.append(waiting if r == rounds - 1 else seated)
        seats.append(seat)
        taken = jnp.minimum(taken + asks.sum(axis=1, keepdims=True), capacity)
        waiting = waiting & ~seated
    assignment = assign_choices(expert, weight, jnp.stack(requested, axis=-1), num_experts, capacity)
    # Seats are given round by round, not as if all rounds asked at once.
    seat = jnp.stack(seats, axis=1).reshape(assignment.seat.shape)
    return assignment.replace(seat=decided(seat))


@dataclasses.dataclass(frozen=True)
class Switch(Router):
    """Switch Transformer's top-1 router with its load-balance loss.

    Attributes:
      exploration: in training, the most probable expert (`argmax`), a drawn one (`sample`), or the router's input
        multiplied by U(1 - jitter, 1 + jitter) (`jitter`) or with entries dropped (`dropout`), as experts never see it.
      jitter: relative width of the noise of `jitter`.
      dropout: share of the entries that `dropout` sets to 0.
      priority: order of seating; see `assign_choices`.
      rounds: experts that a token asks in turn while it finds them full; 1 asks no second one.
      init_std: standard deviation of the projection at its start. Logits then vary by init_std * sqrt(D): 0.55 in the
        released models of width 768, less in narrower ones, whose routers take longer to tell experts apart.
    """

    exploration: Exploration = "argmax"
    jitter: float = 0.01
    dropout: float = 0.1
    priority: Priority = "position"
    rounds: int = 1
    init_std: float = 0.02

    choices_allowed = (1,)
    paper = "Fedus et al. 2021, Switch Transformers, arXiv:2101.03961"
    year = 2021

    def causal(self, setting: Setting) -> bool:
        # A token that asks again comes after all that ask first.
        return setting.capacity_factor is None or (self.priority == "position" and self.rounds == 1)

    def __post_init__(self) -> None:
        require(0 <= self.jitter < 1, "jitter", self.jitter, "0 to below 1")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 to below 1")
        require(self.init_std > 0, "init_std", self.init_std, "a positive number")
        require(self.rounds >= 1, "rounds", self.rounds, "an integer of at least 1")
        plain = self.priority == "position" and self.exploration != "sample"
        require(self.rounds == 1 or plain, "rounds", self.rounds, "1, with another priority or with sampling")

    def check(self, setting: Setting) -> None:
        experts = setting.num_experts
        require(self.rounds <= experts, "rounds", self.rounds, f"1 to num_experts ({experts})")

    def perturb_input(self, x: Float[Array, "G S D"], call: Call) -> Float[Array, "G S D"]:
        if not call.training or self.exploration in ("argmax", "sample"):
            return x
        if self.exploration == "jitter":
            least, most = 1 - self.jitter, 1 + self.jitter
            return x * jax.random.uniform(call.rng(), x.shape, jnp.float32, least, most)
        kept = jax.random.bernoulli(call.rng(), jnp.float32(1 - self.dropout), x.shape)
        return jnp.where(kept, x / (1 - self.dropout), 0.0)

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        if self.rounds > 1:
            assignment = switch_rerouted(logits, tokens.valid, call.capacity, self.rounds)
            chosen = jnp.argmax(logits, axis=-1).astype(jnp.int32)[..., None]
        else:
            rng = call.rng() if call.training and self.exploration == "sample" else None
            assignment = switch(logits, tokens.valid, call.capacity, self.priority, rng)
            chosen = assignment.expert[..., None]
        return assignment, {"balance_loss": call.balance_loss(jax.nn.softmax(logits), chosen, tokens)}
