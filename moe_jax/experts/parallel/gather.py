"""Strategy `gather`: all tokens go to all devices, each runs its own experts, and results are summed.

It is best for few devices or many choices.

G groups of one device, S tokens of a group, P devices on the expert axis, D model width, O output width (D; F for
linear experts).
"""

import jax
from jaxtyping import Array, Float

from moe_jax.experts.execution import Run
from moe_jax.experts.ffn import FFNKind, FFNParams
from moe_jax.experts.parallel.exchange import AXIS, Exchange
from moe_jax.experts.parallel.indices import local_part
from moe_jax.experts.parallel.strategy import Metrics, Strategy
from moe_jax.routing.assignment import Assignment


def gather(
    x: Float[Array, "G S D"],
    assignment: Assignment,
    params: FFNParams,
    kind: FFNKind,
    exchange: Exchange,
    run: Run,
) -> tuple[Float[Array, "G S O"], Metrics]:
    """Sends each token to the P - 1 other devices, and as many partial results back, whatever its choices."""
    if exchange.devices == 1:
        return run(x, assignment, params, kind), {}
    everyone = jax.tree.map(exchange.collect_numbers, assignment)
    mine = local_part(everyone, jax.lax.axis_index(AXIS), exchange.devices)
    return exchange.sum_and_share(run(exchange.collect(x), mine, params, kind)), {}


GATHER = Strategy(gather, None, preferred_on=("cpu", "gpu", "tpu"))
