"""How kernels start."""

from collections.abc import Sequence

import flax.linen as nn


def kernel_init(scale: float, batch_axes: Sequence[int] = ()) -> nn.initializers.Initializer:
    """Truncated normal with variance scale / fan_in (Switch Transformer, section 2.4); `batch_axes` are not fan-in."""
    return nn.initializers.variance_scaling(
        scale, "fan_in", "truncated_normal", in_axis=-2, out_axis=-1, batch_axis=batch_axes
    )
