"""The networks of experts, against torch's activations and autograd."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from moe_jax.experts.ffn import FFN_KINDS, feed_forward, products_by
from tests.comparison import assert_close

UNITS = {
    "relu": torch.nn.functional.relu,
    "gelu": torch.nn.functional.gelu,
    "swiglu": lambda gate, up: torch.nn.functional.silu(gate) * up,
    "geglu": lambda gate, up: torch.nn.functional.gelu(gate) * up,
    # Against gpt-oss's own code in tests/layers/test_moe_against_transformers.py.
    "gpt_oss": lambda gate, up: (up.clamp(-7, 7) + 1) * gate.clamp(max=7) * torch.sigmoid(1.702 * gate.clamp(max=7)),
    "geglu_scaled": lambda gate, up: torch.nn.functional.gelu(gate) * up,
}
EXTRA = {
    "gpt_oss": {"gate_bias": (1, 10), "up_bias": (1, 10), "down_bias": (1, 6)},
    "geglu_scaled": {"hidden_scale": (1, 10)},
}


@pytest.mark.parametrize("kind", FFN_KINDS)
def test_feed_forward_equals_torch(kind):
    rng = np.random.default_rng(0)
    shapes = FFN_KINDS[kind].shapes(6, 10)
    gated = FFN_KINDS[kind].gated
    assert shapes == {"up": (6, 10), "down": (10, 6)} | ({"gate": (6, 10)} if gated else {}) | EXTRA.get(kind, {})
    weights = {name: (3 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    x, cotangent = rng.normal(size=(2, 7, 6)).astype(np.float32)

    apply = jax.jit(lambda x, weights: feed_forward(x, weights, FFN_KINDS[kind], products_by(jnp.matmul)))
    y, vjp = jax.vjp(apply, jnp.asarray(x), jax.tree.map(jnp.asarray, weights))
    x_gradient, gradients = vjp(jnp.asarray(cotangent))

    torch_x = torch.tensor(x, requires_grad=True)
    torch_weights = {name: torch.tensor(w, requires_grad=True) for name, w in weights.items()}

    def project(x, name):
        return x @ torch_weights[name] + torch_weights.get(f"{name}_bias", 0.0)

    hidden = UNITS[kind](*(project(torch_x, name) for name in (("gate", "up") if gated else ("up",))))
    expected = project(hidden * torch_weights.get("hidden_scale", 1.0), "down")
    expected.backward(torch.tensor(cotangent))

    assert_close(y, expected.detach())
    assert_close(x_gradient, torch_x.grad)
    for name, gradient in gradients.items():
        assert_close(gradient, torch_weights[name].grad, what=name)
