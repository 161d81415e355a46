"""The reference: the definition of a mixture of experts, slowly, in float32. All else is tested against this.

G groups, S tokens of a group, E experts, D model width, O width of results
(D, but of linear experts).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.experts.ffn import FFNKind, Weights, feed_forward, products_by
from moe_jax.routing.assignment import Assignment


def oracle(x: Float[Array, "G S D"], assignment: Assignment, weights: Weights, kind: FFNKind) -> Float[Array, "G S O"]:
    """y[t] = sum over kept a with token[a] = t of weight[a] * expert[expert[a]](x[t])."""

    def matmul(rows: Float[Array, "G S N"], matrix: Float[Array, "N M"]) -> Float[Array, "G S M"]:
        return jnp.matmul(rows, matrix, precision=jax.lax.Precision.HIGHEST)

    combine = assignment.combine_weights()
    y = jnp.float32(0.0)
    for e in range(assignment.num_experts):
        expert = {name: weight[e].astype(jnp.float32) for name, weight in weights.items()}
        y += combine[..., e, None] * feed_forward(x.astype(jnp.float32), expert, kind, products_by(matmul))
    return y.astype(x.dtype)
