"""Balanced assignment: BASE layers solve for it (Lewis et al. 2021), Sinkhorn approaches it (Clark et al. 2022).

G groups, S tokens of a group, D model width, E experts, C capacity.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from moe_jax.configuration import require
from moe_jax.routing.assignment import Assignment, assign_choices, best_choices
from moe_jax.routing.router import Call, Router, Setting, Tokens
from moe_jax.routing.statistics import Metrics
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.mesh import shard_over_groups
from moe_jax.runtime.remat import decided

FREE = -1
# The first step of an auction as a share of the range of the scores, and the ratio of each step to the next.
LARGEST_STEP = 1 / 8
STEP_RATIO = 5


def auction(
    scores: Float[Array, "S E"], seats: int, tolerance: float = 1e-3, most_rounds: int = 10_000
) -> Int[Array, " S"]:
    """Assigns each token to an expert, at most `seats` tokens to each, with nearly the largest sum of scores.

    The auction of Bertsekas and Castanon 1989 for identical seats. A token without a seat bids for the expert that is
    worth most to it at the present prices. It bids the difference to its second best expert, plus a step. An expert
    keeps its `seats` highest bids, and its price is the lowest of them.

    Worth is rounded to whole units, so that every bid raises a price. The sum is within 2 S units of the largest.
    Similar tokens outbid each other step by step, which is slow. So the auction runs with large steps first, and then
    again with smaller ones, down to one unit, each time from the prices that it has reached.

    Args:
      scores: worth of each expert to each token, finite.
      seats: seats of each expert; E * seats >= S.
      tolerance: the unit, as a share of the range of the scores; at least E / 1e8, or units no longer fit an integer.
      most_rounds: rounds of bidding with one step; tokens without a seat after the last one get free seats.
    """
    tokens, num_experts = scores.shape
    if num_experts == 1:
        return jnp.zeros(tokens, jnp.int32)
    lowest = scores.min()
    unit = jnp.maximum((scores.max() - lowest) * tolerance, 1e-9)
    worth = jnp.round((scores.T - lowest) / unit).astype(jnp.int32)
    # Prices may start anywhere if in the end all seats are taken. Added tokens, worth 0 everywhere, see to that.
    worth = jnp.pad(worth, ((0, 0), (0, num_experts * seats - tokens)))
    price = jnp.zeros_like(worth[:, 0])
    first = int(max(0.0, math.log(LARGEST_STEP / tolerance, STEP_RATIO)))

    def bid_with(price: Array, step: Array) -> tuple[Array, Array]:
        expert, price = _seat_all(worth, price, step, seats, most_rounds)
        return price - price.min(), expert

    steps = jnp.asarray([STEP_RATIO**power for power in range(first, -1, -1)], jnp.int32)
    _, expert = jax.lax.scan(bid_with, price, steps)
    return _fill_free_seats(expert[-1, :tokens], num_experts, seats)


def _seat_all(
    worth: Int[Array, "E S"], price: Int[Array, " E"], step: Int[Array, ""], seats: int, most_rounds: int
) -> tuple[Int[Array, " S"], Int[Array, " E"]]:
    """Lets tokens bid until all have a seat; returns their experts, FREE after `most_rounds`, and the prices."""
    num_experts = worth.shape[0]
    names = jnp.arange(num_experts, dtype=jnp.int32)[:, None]

    def round_of_bids(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        expert, paid, price, rounds = carry
        # With the expert's index in the last digit, a maximum carries the expert that has it.
        gain = (worth - price[:, None]) * num_experts + names
        first = gain.max(axis=0)
        second = jnp.where(gain == first[None], jnp.iinfo(jnp.int32).min, gain).max(axis=0)
        best = first % num_experts
        bids = expert == FREE
        paid = jnp.where(bids, price[best] + first // num_experts - second // num_experts + step, paid)
        expert = jnp.where(bids, best, expert)
        full, lowest = _lowest_kept(expert, paid, num_experts, seats)
        keeps = _keeps_seat(expert, paid, jnp.where(full, lowest, 0), seats)
        return jnp.where(keeps, expert, FREE), paid, jnp.where(full, lowest, price), rounds + 1

    def goes_on(carry: tuple[Array, Array, Array, Array]) -> Array:
        return (carry[0] == FREE).any() & (carry[3] < most_rounds)

    start = jnp.full_like(worth[0], FREE), jnp.zeros_like(worth[0]), price, jnp.int32(0)
    expert, _, price, _ = jax.lax.while_loop(goes_on, round_of_bids, start)
    return expert, price


def _lowest_kept(
    expert: Int[Array, " S"], paid: Int[Array, " S"], num_experts: int, seats: int
) -> tuple[Bool[Array, " E"], Int[Array, " E"]]:
    """Says whether an expert's bidders fill its seats, and returns the lowest of its `seats` highest bids if so."""
    bidders = jnp.bincount(expert, length=num_experts)
    # One sort of single integers, by expert and then from the highest bid, is many times faster than one of pairs.
    span = jnp.iinfo(jnp.int32).max // num_experts
    in_order = jnp.sort(expert * span - paid)
    position = jnp.minimum(jnp.cumsum(bidders) - bidders + seats - 1, expert.shape[0] - 1)
    return bidders >= seats, jnp.arange(num_experts, dtype=jnp.int32) * span - in_order[position]


def _keeps_seat(
    expert: Int[Array, " S"], paid: Int[Array, " S"], lowest: Int[Array, " E"], seats: int
) -> Bool[Array, " S"]:
    """Says which tokens keep a seat: bids above the lowest that their expert keeps, and the first of the equal ones."""
    tokens, num_experts = expert.shape[0], lowest.shape[0]
    above, tied = paid > lowest[expert], paid == lowest[expert]
    room = seats - jnp.bincount(jnp.where(above, expert, num_experts), length=num_experts + 1)
    token = jnp.arange(tokens, dtype=jnp.int32)
    in_order = jnp.sort(jnp.where(tied, expert, num_experts) * tokens + token)
    owner = in_order // tokens
    ties = jnp.bincount(owner, length=num_experts + 1)
    rank = token - (jnp.cumsum(ties) - ties)[owner]
    return above.at[in_order % tokens].max((owner < num_experts) & (rank < room[owner]))


def _fill_free_seats(expert: Int[Array, " S"], num_experts: int, seats: int) -> Int[Array, " S"]:
    taken = jnp.bincount(jnp.where(expert == FREE, num_experts, expert), length=num_experts + 1)[:num_experts]
    owner = jnp.repeat(jnp.arange(num_experts, dtype=jnp.int32), seats - taken, total_repeat_length=num_experts * seats)
    waiting = expert == FREE
    return jnp.where(waiting, owner[jnp.cumsum(waiting) - 1], expert)


@typed
def balanced_assignment(
    logits: Float[Array, "G S E"], token_valid: Bool[Array, "G S"], seats: int, tolerance: float
) -> Int[Array, "G S"]:
    """Runs an `auction` in each group; padding, worth the same to every expert, takes seats that are left."""
    worth = jax.lax.stop_gradient(jnp.where(token_valid[..., None], logits, logits.min(axis=(1, 2), keepdims=True)))
    return decided(shard_over_groups(jax.vmap(lambda scores: auction(scores, seats, tolerance)))(worth))


@dataclasses.dataclass(frozen=True)
class BASE(Router):
    """BASE layers: an exactly even linear assignment in training, each token's best expert in evaluation.

    The layer mixes the expert's output and the token by the sigmoid of the token's score, `combine="mix"`. This is the
    only way by which a gradient reaches the router.

    Attributes:
      tolerance: see `auction`.
    """

    tolerance: float = 1e-3

    choices_allowed = (1,)
    drops = False
    loss_levels = ()
    losses: ClassVar[Mapping[str, float]] = {}
    paper = "Lewis et al. 2021, BASE Layers, arXiv:2103.16716"
    year = 2021

    def causal(self, setting: Setting) -> bool:
        return False

    def check(self, setting: Setting) -> None:
        finest = setting.num_experts / 1e8
        require(finest <= self.tolerance < 1, "tolerance", self.tolerance, f"a number from {finest:g} to below 1")

    def initializer(self, name: str) -> nn.initializers.Initializer:
        # Orthogonal with gain 0.1, as its authors' code starts the experts' centroids.
        return nn.initializers.orthogonal(0.1, column_axis=-1)

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        capacity = call.capacity
        if call.training:
            capacity = -(-logits.shape[1] // call.num_experts)
            expert = balanced_assignment(logits, tokens.valid, capacity, self.tolerance)[..., None]
        else:
            _, expert = best_choices(logits, 1)
        weight = jax.nn.sigmoid(jnp.take_along_axis(logits, expert, axis=-1))
        return assign_choices(expert, weight, tokens.valid[..., None], call.num_experts, capacity), {}


@typed
def sinkhorn(logits: Float[Array, "G S E"], token_valid: Bool[Array, "G S"], iterations: int) -> Float[Array, "G S E"]:
    """Scales rows and columns of exp(logits) in turn to equal sums, 1 / tokens and 1 / experts; returns its logarithm.

    Padding gets no share. Experts are scaled last.

    Args:
      logits: the router's, float32.
      token_valid: false for padding.
      iterations: scalings of both.
    """
    valid = token_valid[..., None]
    rows = -jnp.log(jnp.maximum(token_valid.sum(axis=1), 1).astype(jnp.float32))[:, None, None]
    columns = -jnp.log(jnp.float32(logits.shape[-1]))

    def scale(_: Array, plan: Array) -> Array:
        plan = jnp.where(valid, plan + rows - jax.nn.logsumexp(plan, axis=2, keepdims=True), -jnp.inf)
        total = jax.nn.logsumexp(plan, axis=1, keepdims=True)
        return jnp.where(valid, plan + columns - total, -jnp.inf)

    return jax.lax.fori_loop(0, iterations, scale, jnp.where(valid, logits, -jnp.inf))


@dataclasses.dataclass(frozen=True)
class Sinkhorn(Router):
    """S-BASE: the experts of the largest entries of a nearly balanced plan in training, of the logits in evaluation.

    The weight is the softmax probability in both. No balance loss is needed.

    Attributes:
      iterations: scalings of the plan; see `sinkhorn`.
    """

    iterations: int = 8

    loss_levels = ()
    losses: ClassVar[Mapping[str, float]] = {"z_loss": 0.0}
    paper = "Clark et al. 2022, Unified Scaling Laws for Routed Language Models, arXiv:2202.01169"
    year = 2022

    def causal(self, setting: Setting) -> bool:
        return False

    def __post_init__(self) -> None:
        require(self.iterations >= 1, "iterations", self.iterations, "an integer of at least 1")

    def decide(self, logits: Float[Array, "G S E"], tokens: Tokens, call: Call) -> tuple[Assignment, Metrics]:
        plan = jax.lax.stop_gradient(logits)
        if call.training:
            plan = sinkhorn(plan, tokens.valid, self.iterations)
        _, expert = best_choices(plan, call.k)
        weight = jnp.take_along_axis(jax.nn.softmax(logits), expert, axis=-1)
        requested = jnp.broadcast_to(tokens.valid[..., None], expert.shape)
        return assign_choices(expert, weight, requested, call.num_experts, call.capacity), {}
