"""Experts by one-hot matrix products, as in GShard (Lepikhin et al. 2020, section 3.2).

G groups, S tokens of a group, E experts, C capacity, D model width, O output width (D; F for linear experts).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.experts.execution import Execution, Work
from moe_jax.experts.ffn import FFNKind, FFNParams, feed_forward, products_by
from moe_jax.routing.assignment import Assignment


def one_hot(
    x: Float[Array, "G S D"], assignment: Assignment, params: FFNParams, kind: FFNKind
) -> Float[Array, "G S O"]:
    """Dispatches and combines by matrix products with masks [G, S, E, C]; cost and memory grow with S * E * C."""
    dispatch = _by_seat(assignment, jnp.ones_like(assignment.weight)).astype(x.dtype)
    combine = _by_seat(assignment, assignment.weight).astype(x.dtype)
    inputs = jnp.einsum("gsec,gsd->egcd", dispatch, x)
    products = products_by(lambda rows, w: jnp.einsum("egcn,enm->egcm", rows, w))
    outputs = feed_forward(inputs, params, kind, products)
    return jnp.einsum("gsec,egcd->gsd", combine, outputs)


def _by_seat(assignment: Assignment, values: Float[Array, "G A"]) -> Float[Array, "G S E C"]:
    """Puts the value of each kept assignment at its token, expert and seat."""
    shape = (assignment.num_groups, assignment.num_tokens, assignment.num_experts, assignment.capacity)
    group = jnp.arange(assignment.num_groups)[:, None]
    values = jnp.where(assignment.kept, values, 0.0)
    index = (group, assignment.token, assignment.expert, assignment.seat)
    return jnp.zeros(shape, values.dtype).at[index].add(values, mode="drop")


def _flops_per_token(work: Work) -> float:
    """Counts an expert on every seat, and the masks, which multiply every token to and from every seat."""
    seats = work.num_experts * work.capacity
    return work.seats_per_token * work.expert_flops + 2 * seats * work.width


ONE_HOT = Execution(one_hot, _flops_per_token)
