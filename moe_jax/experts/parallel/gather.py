"""All tokens to all devices, each runs its own experts, and results are summed: best for few devices or many choices.

G groups of one device, S tokens of a group, D model width, O width of results (D, but of linear experts).
"""

import jax
from jaxtyping import Array, Float

from moe_jax.experts.ffn import FFNKind, Weights
from moe_jax.experts.parallel.exchange import AXIS, Exchange
from moe_jax.experts.parallel.indices import local_part
from moe_jax.experts.run import Execution
from moe_jax.routing.assignment import Assignment


def gather(
    x: Float[Array, "G S D"],
    assignment: Assignment,
    weights: Weights,
    kind: FFNKind,
    exchange: Exchange,
    execution: Execution,
) -> Float[Array, "G S O"]:
    """Sends each token to the P - 1 other devices and as many partial results back, whatever its choices."""
    if exchange.devices == 1:
        return execution(x, assignment, weights, kind)
    everyone = jax.tree.map(exchange.collect_numbers, assignment)
    mine = local_part(everyone, jax.lax.axis_index(AXIS), exchange.devices)
    return exchange.sum_and_share(execution(exchange.collect(x), mine, weights, kind))
