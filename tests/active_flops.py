"""XLA's count of a model whose experts have as many seats as tokens ask for: what it executes is then active."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from moe_jax.layers.dropout import DROPOUT
from moe_jax.models.config import ModelConfig
from moe_jax.models.language_model import make_model
from moe_jax.models.parameters import init_params
from moe_jax.routing.router import RNG
from moe_jax.routing.switch import Switch
from moe_jax.training.config import TrainConfig, sequences_of_whole_groups


def with_seats_for_all(model: ModelConfig) -> ModelConfig:
    """The same model with as many seats as choices, and without draws, which are no products.

    Groups are so large that their seats come out even: a part of a seat is rounded up to a whole one. Experts are run
    by batched products over their seats, because XLA counts nothing of a kernel it did not compile.
    """
    model = dataclasses.replace(model, dropout=0.0)
    if not model.moe_layers:
        return model
    fields = {"capacity_factor": 1.0, "execution": "padded", "dropout": None}
    if isinstance(model.moe.router, Switch):
        fields["router"] = dataclasses.replace(model.moe.router, exploration="argmax", rounds=1)
    if model.moe.group_size is not None:
        fields["group_size"] = math.lcm(model.moe.group_size, model.moe.num_experts)
    return dataclasses.replace(model, moe=dataclasses.replace(model.moe, **fields))


def traced_forward(config: TrainConfig):
    """A forward pass in training over the fewest sequences that are whole groups, and how many tokens these have."""
    model = with_seats_for_all(config.model)
    group = model.moe.group_size if model.moe_layers else None
    batch = sequences_of_whole_groups(group, config.lengths)
    params = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    # An encoder's first.
    texts = [jax.ShapeDtypeStruct((batch, length), jnp.int32) for length in config.lengths]

    def logits(params, *texts):
        # A decoder's text, its positions and its documents; then those of an encoder.
        inputs = [part for text in reversed(texts) for part in (text, text, jnp.ones_like(text))]
        rngs = {RNG: jax.random.key(0), DROPOUT: jax.random.key(0)}
        return make_model(model, True).apply({"params": params}, *inputs, rngs=rngs)

    return jax.jit(logits).trace(params, *texts), batch * sum(config.lengths)


def xla_products_per_token(config: TrainConfig) -> float:
    """What XLA counts of the products of matrices, each by itself: the router's and the experts' among them."""
    program, tokens = traced_forward(config)
    return _of_products(program.jaxpr.jaxpr) / tokens


def xla_flops_per_token(config: TrainConfig) -> float:
    """What XLA counts of all that the program does: norms, activations, softmax and choosing, too."""
    program, tokens = traced_forward(config)
    return program.lower().cost_analysis()["flops"] / tokens


@functools.cache
def _of_product(shapes, dtypes, dimensions) -> float:
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    product = jax.jit(functools.partial(jax.lax.dot_general, dimension_numbers=dimensions))
    return product.lower(*arguments).cost_analysis()["flops"]


def _of_products(jaxpr) -> float:
    """In a loop as often as it runs."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted, batched = dimensions = equation.params["dimension_numbers"]
            values = [variable.aval for variable in equation.invars]
            # The weighted sums of a balance loss are products with a vector, and no more counted than other sums.
            if all(v.ndim > len(c) + len(b) for v, c, b in zip(values, contracted, batched, strict=True)):
                total += _of_product(tuple(v.shape for v in values), tuple(v.dtype for v in values), dimensions)
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += repeats * sum(map(_of_products, jaxprs_in_params(equation.params)))
    return total
