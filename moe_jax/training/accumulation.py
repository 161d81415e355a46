"""A batch in parts that follow one another, with the gradient of the whole. B batch, N parts."""

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
    """The batch as parts [N, B / N, ...], whole routing groups in each, of which each device has its share in each."""
    parts, unit = config.accumulation, config.sequences_per_group
    if parts == 1:
        return {name: values[None] for name, values in batch.items()}

    def divide(values: Shaped[Array, "B ..."]) -> Shaped[Array, "N b ..."]:
        shape = values.shape[1:]
        by_part = jnp.moveaxis(values.reshape(-1, parts, unit, *shape), 1, 0).reshape(parts, -1, *shape)
        return jnp.stack([keep_sharded_by_token(by_part[n]) for n in range(parts)]) if current_mesh() else by_part

    return {name: divide(values) for name, values in batch.items()}


def value_and_grad_of_sums(objective: Objective, sums: PartSums, parts: int) -> Callable[..., Any]:
    """Value and gradient of `objective(sum over parts n of sums(params, part n, rng of n))` with respect to params.

    Several parts take two passes, since a product of two means has no gradient that adds up: a forward pass for the
    sums of all, then for each part the gradient of its sums, weighted by the objective's with respect to them.
    (Where the objective is linear in what depends on params, XLA drops the first pass but for the counts.)

    Args:
      objective: of the batch's sums, with something besides.
      sums: of one part, given params, the part and a key.
      parts: N.

    Returns:
      A function of params, the parts [N, ...] and a key, that gives (objective's result, gradient).
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
    """The first of each array's first axis."""
    return jax.tree.map(lambda x: x[0], tree)


def add(one: Any, other: Any) -> Any:
    """Two trees, leaf by leaf."""
    return jax.tree.map(jnp.add, one, other)


def zeros_like(tree: Any) -> Any:
    """A tree of arrays, or of their shapes, with nothing in it."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
