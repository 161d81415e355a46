"""What one expert computes, against torch's activations and autograd."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from moe_jax.experts.ffn import FFN_KINDS, feed_forward
from tests.comparison import assert_close

ACTIVATIONS = {
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
    "swiglu": torch.nn.functional.silu,
    "geglu": torch.nn.functional.gelu,
}


@pytest.mark.parametrize("kind", FFN_KINDS)
def test_feed_forward_equals_torch(kind):
    rng = np.random.default_rng(0)
    shapes = FFN_KINDS[kind].shapes(6, 10)
    assert shapes == {"up": (6, 10), "down": (10, 6)} | ({"gate": (6, 10)} if kind.endswith("glu") else {})
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x, cotangent = rng.normal(size=(2, 7, 6)).astype(np.float32)

    apply = jax.jit(lambda x, weights: feed_forward(x, weights, FFN_KINDS[kind], jnp.matmul))
    y, vjp = jax.vjp(apply, jnp.asarray(x), jax.tree.map(jnp.asarray, weights))
    x_gradient, gradients = vjp(jnp.asarray(cotangent))

    torch_x = torch.tensor(x, requires_grad=True)
    torch_weights = {name: torch.tensor(w, requires_grad=True) for name, w in weights.items()}
    up = torch_x @ torch_weights["up"]
    activated = ACTIVATIONS[kind]
    hidden = activated(torch_x @ torch_weights["gate"]) * up if kind.endswith("glu") else activated(up)
    expected = hidden @ torch_weights["down"]
    expected.backward(torch.tensor(cotangent))

    assert_close(y, expected.detach())
    assert_close(x_gradient, torch_x.grad)
    for name, gradient in gradients.items():
        assert_close(gradient, torch_weights[name].grad, what=name)
