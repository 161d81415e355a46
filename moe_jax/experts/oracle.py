"""The reference: the definition of a mixture of experts, slow, in float32. All other executions are tested against it.

G groups, S tokens of a group, E experts, D model width, O output width (D; F for linear experts).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from moe_jax.experts.execution import Execution, Work
from moe_jax.experts.ffn import FFNKind, FFNParams, feed_forward, products_by
from moe_jax.routing.assignment import Assignment


def oracle(x: Float[Array, "G S D"], assignment: Assignment, params: FFNParams, kind: FFNKind) -> Float[Array, "G S O"]:
    """Computes y[t] = sum over kept a with token[a] = t of weight[a] * expert[expert[a]](x[t])."""

    def matmul(rows: Float[Array, "G S N"], matrix: Float[Array, "N M"]) -> Float[Array, "G S M"]:
        return jnp.matmul(rows, matrix, precision=jax.lax.Precision.HIGHEST)

    combine = assignment.combine_weights()
    y = jnp.float32(0.0)
    for e in range(assignment.num_experts):
        expert = {name: param[e].astype(jnp.float32) for name, param in params.items()}
        y += combine[..., e, None] * feed_forward(x.astype(jnp.float32), expert, kind, products_by(matmul))
    return y.astype(x.dtype)


def _flops_per_token(work: Work) -> float:
    """Counts every expert on every token."""
    return float(work.num_experts * work.expert_flops)


ORACLE = Execution(oracle, _flops_per_token)
