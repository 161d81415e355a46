"""The experts of a layer, run as a plan says.

G groups, S tokens of a group, D model width, O output width (D; F for linear experts).
"""

import functools

from jaxtyping import Array, Float

from moe_jax.experts.combine import Combine, after_experts, before_experts
from moe_jax.experts.executions import EXECUTIONS
from moe_jax.experts.ffn import FFNKind, FFNParams
from moe_jax.experts.parallel.exchange import Exchange
from moe_jax.experts.parallel.on_mesh import Apply, check_mesh, on_each_device, sum_over_width
from moe_jax.experts.parallel.strategies import STRATEGIES
from moe_jax.experts.parallel.strategy import Metrics
from moe_jax.experts.plan import AUTO, Plan
from moe_jax.routing.assignment import Assignment
from moe_jax.runtime.mesh import current_mesh


def apply_experts(
    plan: Plan,
    x: Float[Array, "G S D"],
    assignment: Assignment,
    params: FFNParams,
    kind: FFNKind,
    combine: Combine = "output",
) -> tuple[Float[Array, "G S O"], Metrics]:
    """Runs, for each token, the experts that it is assigned to, and sums their weighted results.

    Args:
      plan: the way to run them.
      x: tokens.
      assignment: the assignments, of which the kept ones are run.
      params: parameters of the experts.
      kind: the network that an expert is.
      combine: the combine mode; see `Combine`.

    Returns:
      The results, and the numbers that the plan's strategy counts.

    Raises:
      ConfigError: the mesh does not divide experts, their width or the groups evenly.
      ValueError: the plan is for a mesh, and there is none.
    """
    # What is left to `auto` is chosen when the program is compiled, for the platform that it is compiled for.
    kernel = AUTO if "kernel" in plan.chosen and plan.kernel else plan.kernel
    run, assignment = EXECUTIONS[plan.execution].with_kernel(kernel), assignment.typed()

    def alone(
        x: Float[Array, "G S D"], assignment: Assignment, params: FFNParams
    ) -> tuple[Float[Array, "G S O"], Metrics]:
        return run(x, assignment, params, kind), {}

    if plan.strategy is None:
        return _weighted(alone, combine, x, assignment, params)
    mesh = current_mesh()
    if mesh is None:
        raise ValueError(f"strategy {plan.strategy!r} of the plan needs a mesh; apply experts within jax.set_mesh")
    check_mesh(mesh, assignment.num_experts, 0 if kind.linear else params["up"].shape[-1], assignment.num_groups)
    strategy, exchange = STRATEGIES[plan.strategy], Exchange(mesh.shape["expert"], plan.wire, plan.slack)

    def by_strategy(
        x: Float[Array, "G S D"], assignment: Assignment, params: FFNParams
    ) -> tuple[Float[Array, "G S O"], Metrics]:
        return strategy.run(x, assignment, params, kind, exchange, run)

    on_device = functools.partial(_weighted, sum_over_width(by_strategy), combine)
    return on_each_device(on_device, x, assignment, params)


def _weighted(
    apply: Apply, combine: Combine, x: Float[Array, "G S D"], assignment: Assignment, params: FFNParams
) -> tuple[Float[Array, "G S O"], Metrics]:
    """Applies experts in the combine mode `combine`."""
    y, metrics = apply(*before_experts(combine, x, assignment), params)
    return after_experts(combine, y, x, assignment), metrics
