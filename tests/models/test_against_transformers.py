"""The whole decoder against Llama and Mixtral of transformers, from their random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from moe_jax.models.decoder import Decoder
from moe_jax.models.parameters import init_params
from tests.comparison import assert_close, assert_trees_close
from tests.models import small

SIZES = {
    "vocab_size": small.VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "attn_implementation": "eager",
}


def from_torch(named, layers=2):
    """Our parameters (or their gradients) from theirs by name; their matrices are transposed."""

    def take(name):
        return jnp.asarray(named[name].detach().numpy())

    params = {
        "embedding": {"embedding": take("model.embed_tokens.weight")},
        "final_norm": {"scale": take("model.norm.weight")},
    }
    if "lm_head.weight" in named:
        params["head"] = {"kernel": take("lm_head.weight").T}
    for i in range(layers):
        name = f"model.layers.{i}."
        ours = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
        layer = {
            "attention": {one: {"kernel": take(f"{name}self_attn.{other}.weight").T} for one, other in ours.items()},
            "attention_norm": {"scale": take(name + "input_layernorm.weight")},
            "feed_forward_norm": {"scale": take(name + "post_attention_layernorm.weight")},
        }
        if name + "mlp.gate.weight" in named:
            gate, up = jnp.split(take(name + "mlp.experts.gate_up_proj").transpose(0, 2, 1), 2, axis=-1)
            layer["moe"] = {
                "router": {"kernel": take(name + "mlp.gate.weight").T},
                "experts_gate": gate,
                "experts_up": up,
                "experts_down": take(name + "mlp.experts.down_proj").transpose(0, 2, 1),
            }
        else:
            layer["feed_forward"] = {n: take(f"{name}mlp.{n}_proj.weight").T for n in ("gate", "up", "down")}
        params[f"layer_{i}"] = layer
    return params


def assert_same_model(theirs, config):
    """Logits and the gradient of every parameter, for a random cotangent of the logits."""
    theirs = theirs.eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            # Larger than their start, so that attention and routers discriminate.
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5 + (parameter.dim() == 1))
    tokens, positions, segments = small.batch()
    cotangent = np.random.default_rng(1).normal(size=(*tokens.shape, small.VOCAB)).astype(np.float32)
    expected = theirs(input_ids=torch.tensor(np.asarray(tokens, np.int64)), use_cache=False).logits
    expected.backward(torch.tensor(cotangent))
    named = dict(theirs.named_parameters())
    params = from_torch(named)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    assert jax.tree.map(jnp.shape, params) == shapes

    def apply(params):
        return Decoder(config).apply({"params": params}, tokens, positions, segments)

    logits, gradients = jax.jit(lambda p: (lambda y, vjp: (y, vjp(jnp.asarray(cotangent))[0]))(*jax.vjp(apply, p)))(
        params
    )
    assert_close(logits, expected.detach().numpy())
    assert_trees_close(gradients, from_torch({name: p.grad for name, p in named.items()}), 2e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_dense_decoder_is_llama(tied):
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))
    assert_same_model(theirs, small.config(attention={"kv_heads": 2}, tie_embeddings=tied))


@pytest.mark.parametrize("execution", ["padded", "dropless"])
def test_gshard_decoder_without_capacity_is_mixtral(execution):
    torch.manual_seed(0)
    theirs = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2))
    moe = {
        "router": {"kind": "gshard", "second_policy": "all"},
        "k": 2,
        "capacity_factor": None,
        "execution": execution,
    }
    assert_same_model(theirs, small.config(moe, attention={"kv_heads": 2}, moe_layers=(0, 1)))
