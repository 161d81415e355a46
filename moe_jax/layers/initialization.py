"""How kernels and networks start."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from moe_jax.experts.ffn import FFNKind, FFNParams


def kernel_init(scale: float, batch_axes: Sequence[int] = ()) -> nn.initializers.Initializer:
    """Truncated normal with variance scale / fan_in (Switch Transformer, section 2.4); `batch_axes` are not fan-in."""
    return nn.initializers.variance_scaling(
        scale, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=batch_axes
    )


def network_weights(
    module: nn.Module,
    kind: FFNKind,
    model_dim: int,
    inner_dim: int,
    scale: float,
    dtype: jnp.dtype,
    num_experts: int | None = None,
) -> FFNParams:
    """Declares the weights of one network, or of `num_experts` as `experts_NAME` with an axis for them, in `module`.

    Matrices start by `kernel_init(scale)`, biases at 0 and scales at 1; float32, given as `dtype`.
    """
    experts, prefix = ((), "") if num_experts is None else ((num_experts,), "experts_")
    matrix = kernel_init(scale, tuple(range(len(experts))))

    def start(name: str) -> nn.initializers.Initializer:
        if name.endswith("_bias"):
            return nn.initializers.zeros
        return nn.initializers.ones if name.endswith("_scale") else matrix

    return {
        name: module.param(prefix + name, start(name), (*experts, *shape), jnp.float32).astype(dtype)
        for name, shape in kind.shapes(model_dim, inner_dim).items()
    }
