"""The whole encoder-decoder against T5 and Switch Transformers of transformers, from their random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import (
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from moe_jax.models.encoder_decoder import EncoderDecoder
from moe_jax.models.parameters import init_params
from tests.comparison import assert_close, assert_trees_close
from tests.models import small

SIZES = {
    "vocab_size": small.VOCAB,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
}
# Longer than the 8 near distances of each side that the encoder's table tells apart.
ENCODER, DECODER = 24, 22


def from_torch(named, gradient):
    """Our parameters (or with `gradient` theirs) from the other model's; their matrices are transposed.

    Our logits of attention are divided by 2, the root of a head's width, so our queries are twice theirs.
    """

    def take(name):
        return jnp.asarray(named[name].detach().numpy())

    def attention(name):
        kernels = {ours: take(f"{name}.{theirs}.weight").T for ours, theirs in zip(PROJECTIONS, "qkvo", strict=True)}
        return {n: {"kernel": k * (1.0 if n != "query" else 0.5 if gradient else 2.0)} for n, k in kernels.items()}

    def stack(name):
        layers = {
            "final_norm": {"scale": take(f"{name}.final_layer_norm.weight")},
            "relative_bias": {
                "table": take(f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
            },
        }
        for i in range(2):
            block = f"{name}.block.{i}.layer"
            last = 1 if name == "encoder" else 2
            layer = {
                "attention": attention(f"{block}.0.SelfAttention"),
                "attention_norm": {"scale": take(f"{block}.0.layer_norm.weight")},
                "feed_forward_norm": {"scale": take(f"{block}.{last}.layer_norm.weight")},
            }
            if name == "decoder":
                layer["cross_attention"] = attention(f"{block}.1.EncDecAttention")
                layer["cross_attention_norm"] = {"scale": take(f"{block}.1.layer_norm.weight")}
            layers[f"layer_{i}"] = layer | feed_forward(f"{block}.{last}")
        return layers

    def feed_forward(name):
        if f"{name}.mlp.router.classifier.weight" in named:
            experts = [
                [take(f"{name}.mlp.experts.expert_{e}.{matrix}.weight").T for e in range(4)] for matrix in ("wi", "wo")
            ]
            up, down = map(jnp.stack, experts)
            router = {"kernel": take(f"{name}.mlp.router.classifier.weight").T}
            return {"moe": {"router": router, "experts_up": up, "experts_down": down}}
        dense = f"{name}.mlp" if f"{name}.mlp.wo.weight" in named else f"{name}.DenseReluDense"
        return {
            "feed_forward": {
                ours: take(f"{dense}.{theirs}.weight").T
                for ours, theirs in (("gate", "wi_0"), ("up", "wi_1"), ("up", "wi"), ("down", "wo"))
                if f"{dense}.{theirs}.weight" in named
            }
        }

    return {"embedding": {"embedding": take("shared.weight")}, "encoder": stack("encoder"), "decoder": stack("decoder")}


PROJECTIONS = ("query", "key", "value", "output")


def assert_same_model(theirs, config):
    """Logits and the gradient of every parameter, for a random cotangent of the logits, with padding in both texts."""
    theirs = theirs.eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5 + (parameter.dim() == 1))
    encoder_tokens, encoder_positions, encoder_segments = small.batch(length=ENCODER)
    tokens, positions, segments = small.batch(length=DECODER, seed=1)
    if config.moe is None:
        # Their routers route padding, too, ours do not.
        encoder_segments = encoder_segments.at[1, 17:].set(0)
    cotangent = np.random.default_rng(1).normal(size=(*tokens.shape, small.VOCAB)).astype(np.float32)
    expected = theirs(
        input_ids=torch.tensor(np.asarray(encoder_tokens, np.int64)),
        attention_mask=torch.tensor(np.asarray(encoder_segments, np.int64)),
        decoder_input_ids=torch.tensor(np.asarray(tokens, np.int64)),
        use_cache=False,
    ).logits
    expected.backward(torch.tensor(cotangent))
    named = dict(theirs.named_parameters())
    params = from_torch(named, gradient=False)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    assert jax.tree.map(jnp.shape, params) == shapes

    def apply(params):
        texts = tokens, positions, segments, encoder_tokens, encoder_positions, encoder_segments
        return EncoderDecoder(config).apply({"params": params}, *texts)

    logits, gradients = jax.jit(lambda p: (lambda y, vjp: (y, vjp(jnp.asarray(cotangent))[0]))(*jax.vjp(apply, p)))(
        params
    )
    assert_close(logits, expected.detach().numpy(), 2e-5)
    assert_trees_close(gradients, from_torch({name: p.grad for name, p in named.items()}, gradient=True), 5e-5)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"feed_forward_proj": "relu"}, {"ffn": "relu", "tie_embeddings": True}),
        ({"feed_forward_proj": "gated-silu"}, {"ffn": "swiglu", "tie_embeddings": True}),
    ],
    ids=["relu", "gated"],
)
def test_dense_encoder_decoder_is_t5(theirs, ours):
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**SIZES, **theirs))
    assert_same_model(model, small.config(architecture="encoder_decoder", attention={"positions": "t5"}, **ours))


@pytest.mark.parametrize("execution", ["padded", "dropless"])
def test_sparse_encoder_decoder_is_switch_transformers(execution):
    """With a capacity that drops tokens: 6 seats for 24 tokens or 22, per sequence, to four experts."""
    torch.manual_seed(0)
    sizes = {"num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "expert_capacity": 6}
    theirs = SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**SIZES, **sizes))
    moe = {"router": "switch", "capacity_factor": 1.0, "execution": execution}
    fields = {
        "architecture": "encoder_decoder",
        "attention": {"positions": "t5"},
        "ffn": "relu",
        "tie_embeddings": True,
    }
    assert_same_model(theirs, small.config(moe, **fields))
