"""Gradient accumulation: a batch in consecutive parts, with the gradient of the whole batch. B batch, N parts."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from moe_jax.runtime.mesh import current_mesh, keep_sharded_by_token
from moe_jax.training.config import TrainConfig

Objective = Callable[[Any], tuple[Float[Array, ""], Any]]
PartSums = Callable[[Any, Any, Array], Any]


def batch_parts(batch: Mapping[str, Shaped[Array, "B ..."]], config: TrainConfig) -> dict[str, Any]:
    """Divides a batch into parts [N, B / N, ...] of whole routing groups, with a share of each part on each device."""
    parts, unit = config.accumulation, config.sequences_per_group
    if parts == 1:
        return {name: values[None] for name, values in batch.items()}

    def divide(values: Shaped[Array, "B ..."]) -> Shaped[Array, "N b ..."]:
        shape = values.shape[1:]
        by_part = jnp.moveaxis(values.reshape(-1, parts, unit, *shape), 1, 0).reshape(parts, -1, *shape)
        return jnp.stack([keep_sharded_by_token(by_part[n]) for n in range(parts)]) if current_mesh() else by_part

    return {name: divide(values) for name, values in batch.items()}


def value_and_grad_of_sums(objective: Objective, sums: PartSums, parts: int) -> Callable[..., Any]:
    """Differentiates `objective(sum over parts n of sums(params, part n, key of n))` with respect to params.

    Several parts take two passes, because the gradients of a product of two means do not add up. A forward pass gives
    the sums of the whole batch. Then a backward pass through each part starts from the objective's gradient with
    respect to these sums. (If the objective is linear in the sums that depend on params, XLA drops the first pass
    except for the counts.)

    Args:
      objective: maps the sums of a batch to a value and auxiliary results.
      sums: maps params, a part and a key to the sums of that part.
      parts: N.

    Returns:
      A function of params, the parts [N, ...] and a key, that gives (the objective's result, the gradient).
    """

    def of_one(params: Any, batch: Any, rng: Key[Array, ""]) -> Any:
        part = first(batch)
        return jax.value_and_grad(lambda params: objective(sums(params, part, rng)), has_aux=True)(params)

    def of_many(params: Any, batch: Any, rng: Key[Array, ""]) -> Any:
        keyed = batch, jax.random.split(rng, parts)

        def forward(total: Any, part: Any) -> tuple[Any, None]:
            return add(total, sums(params, *part)), None

        shapes = jax.eval_shape(lambda: sums(params, *first(keyed)))
        total, _ = jax.lax.scan(forward, zeros_like(shapes), keyed)
        weights = jax.grad(objective, has_aux=True)(total)[0]

        def backward(carry: Any, part: Any) -> tuple[Any, None]:
            found, vjp = jax.vjp(lambda params: sums(params, *part), params)
            return add(carry, (found, vjp(weights)[0])), None

        (total, gradients), _ = jax.lax.scan(backward, (zeros_like(shapes), zeros_like(params)), keyed)
        return objective(total), gradients

    return of_one if parts == 1 else of_many


def first(tree: Any) -> Any:
    """Takes index 0 of each array's first axis."""
    return jax.tree.map(lambda x: x[0], tree)


def add(one: Any, other: Any) -> Any:
    """Adds two trees, leaf by leaf."""
    return jax.tree.map(jnp.add, one, other)


def zeros_like(tree: Any) -> Any:
    """Makes a tree of zeros from a tree of arrays or of their shapes."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
