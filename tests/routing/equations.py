"""Looking into compiled programs."""

from collections.abc import Iterator

import jax
from jax.extend import core


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """All equations of a jaxpr and of those it calls, in order of execution."""
    for equation in jaxpr.eqns:
        leaves = jax.tree.leaves(list(equation.params.values()))
        inner = [leaf for leaf in leaves if isinstance(leaf, core.ClosedJaxpr | core.Jaxpr)]
        if not inner:
            yield equation
        for called in inner:
            yield from equations(called.jaxpr if isinstance(called, core.ClosedJaxpr) else called)
