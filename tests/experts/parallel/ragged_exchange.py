"""The exchange of ragged arrays for CPUs, as the docstring of `jax.lax.ragged_all_to_all` defines it.

JAX knows its types and gradients on all platforms, but runs it on GPU and TPU only.
"""

import functools

import jax
import jax.numpy as jnp
from jax.interpreters import mlir


def spelt_out(operand, output, starts, sent, starts_there, received, *, axis_name, axis_index_groups):
    """The output of this device after the exchange; NaN where the docstring leaves it undefined."""
    assert axis_index_groups is None
    everyone = functools.partial(jax.lax.all_gather, axis_name=axis_name)
    operands, starts, sent, starts_there = map(everyone, (operand, starts, sent, starts_there))
    me = jax.lax.axis_index(axis_name)
    row = jnp.arange(output.shape[0], dtype=jnp.int32)
    result, defined = output, jnp.ones((), bool)
    for source in range(operands.shape[0]):
        start, size, place = starts[source, me], sent[source, me], starts_there[source, me]
        written = (row >= place) & (row < place + size)
        rows = operands[source].at[row - place + start].get(mode="clip")
        result = jnp.where(written.reshape(-1, *(1,) * (output.ndim - 1)), rows, result)
        fits = (start >= 0) & (start + size <= operand.shape[0]) & (place >= 0) & (place + size <= output.shape[0])
        defined &= (size == received[source]) & fits
    return jnp.where(defined, result, jnp.full((), jnp.nan, result.dtype))


def teach_cpu():
    """Lets CPUs exchange ragged arrays in this process."""
    lowering = mlir.lower_fun(spelt_out, multiple_results=False)
    mlir.register_lowering(jax.lax.ragged_all_to_all_p, lowering, platform="cpu")
