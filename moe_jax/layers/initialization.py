"""Initial values of kernels and networks."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from moe_jax.experts.ffn import EXPERTS, FFNKind, FFNParams


def kernel_init(scale: float, batch_axes: Sequence[int] = ()) -> nn.initializers.Initializer:
    """Returns a truncated normal with variance scale / fan_in (Switch Transformer, section 2.4).

    `batch_axes` do not count as fan-in.
    """
    return nn.initializers.variance_scaling(
        scale, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=batch_axes
    )


def network_params(
    module: nn.Module,
    kind: FFNKind,
    model_dim: int,
    inner_dim: int,
    scale: float,
    dtype: jnp.dtype,
    num_experts: int | None = None,
) -> FFNParams:
    """Declares in `module` the parameters of one network, or of `num_experts` with a leading axis for them.

    Matrices start by `kernel_init(scale)`, biases at 0 and scales at 1. They are float32, and returned as `dtype`.
    """
    parameters = kind.parameters(model_dim, inner_dim, num_experts)
    matrix = kernel_init(scale, () if num_experts is None else (0,))

    def start(name: str) -> nn.initializers.Initializer:
        if parameters[name].multiplies:
            return matrix
        return nn.initializers.ones if name.endswith("_scale") else nn.initializers.zeros

    return {
        name.removeprefix(EXPERTS): module.param(name, start(name), parameter.shape, jnp.float32).astype(dtype)
        for name, parameter in parameters.items()
    }
