"""The mixture layer against the blocks of transformers' models: output, and gradients of input, router and experts."""

import jax
import jax.numpy as jnp
import pytest
import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV3Config,
    Glm4MoeConfig,
    GptOssConfig,
    Llama4TextConfig,
    MiniMaxM2Config,
    MixtralConfig,
    OlmoeConfig,
    PhimoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.llama4.modeling_llama4 import Llama4TextMoe
from transformers.models.minimax_m2.modeling_minimax_m2 import MiniMaxM2SparseMoeBlock
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.phimoe.modeling_phimoe import PhimoeSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from moe_jax.layers.moe import MoE, MoEConfig
from tests.comparison import assert_close, assert_trees_close

B, S, D, F, E, K = 2, 9, 6, 10, 8, 3

MIXTRAL = {
    "hidden_size": D,
    "num_attention_heads": 2,
    "intermediate_size": F,
    "num_local_experts": E,
    "num_experts_per_tok": K,
}
OLMOE = {"hidden_size": D, "num_attention_heads": 2, "intermediate_size": F, "num_experts": E, "num_experts_per_tok": K}
QWEN = {
    "hidden_size": D,
    "num_attention_heads": 2,
    "moe_intermediate_size": F,
    "num_experts": E,
    "num_experts_per_tok": K,
}
DEEPSEEK = {
    "hidden_size": D,
    "num_attention_heads": 2,
    "moe_intermediate_size": F,
    "n_routed_experts": E,
    "num_experts_per_tok": K,
}
GROUPS = {"n_group": 4, "topk_group": 2, "n_shared_experts": 2}
LIMITED = {"num_groups": 4, "groups_per_token": 2}

# name: their block, their configuration; our router's name and options, and further fields of our layer.
BLOCKS = {
    "mixtral": (MixtralSparseMoeBlock, MixtralConfig(**MIXTRAL), "top_k", {}, {}),
    "olmoe": (OlmoeSparseMoeBlock, OlmoeConfig(**OLMOE), "top_k", {"renormalize": False}, {}),
    "qwen2": (
        Qwen2MoeSparseMoeBlock,
        Qwen2MoeConfig(**QWEN, shared_expert_intermediate_size=7),
        "top_k",
        {"renormalize": False},
        {"shared_dim": 7, "shared_gate": True},
    ),
    "qwen3": (Qwen3MoeSparseMoeBlock, Qwen3MoeConfig(**QWEN, norm_topk_prob=True), "top_k", {}, {}),
    "llama4": (
        Llama4TextMoe,
        Llama4TextConfig(**MIXTRAL | {"num_experts_per_tok": 1}),
        "top_k",
        {"score": "sigmoid", "renormalize": False},
        {"combine": "input", "shared_dim": F, "k": 1},
    ),
    "phi": (PhimoeSparseMoeBlock, PhimoeConfig(**MIXTRAL | {"num_experts_per_tok": 2}), "sparse_mixer", {}, {"k": 2}),
    "gpt_oss": (GptOssMLP, GptOssConfig(**MIXTRAL), "top_k", {"bias": True}, {"ffn": "gpt_oss"}),
    "deepseek_v2": (
        DeepseekV2Moe,
        DeepseekV2Config(**DEEPSEEK, **GROUPS, topk_method="group_limited_greedy", routed_scaling_factor=16.0),
        "deepseek",
        LIMITED | {"score": "softmax", "group_score": "max", "renormalize": False, "scale": 16.0, "bias_rate": 0.0},
        {"shared_dim": 2 * F},
    ),
    "deepseek_v2_greedy": (
        DeepseekV2Moe,
        DeepseekV2Config(**DEEPSEEK, n_shared_experts=1, topk_method="greedy", routed_scaling_factor=1.0),
        "deepseek",
        {"score": "softmax", "renormalize": False, "bias_rate": 0.0},
        {"shared_dim": F},
    ),
    "deepseek_v3": (
        DeepseekV3MoE,
        DeepseekV3Config(**DEEPSEEK, **GROUPS, routed_scaling_factor=2.5, norm_topk_prob=True),
        "deepseek",
        LIMITED | {"scale": 2.5},
        {"shared_dim": 2 * F},
    ),
    "glm4": (
        Glm4MoeMoE,
        Glm4MoeConfig(**DEEPSEEK, n_group=1, topk_group=1, n_shared_experts=1, routed_scaling_factor=2.5),
        "deepseek",
        {"scale": 2.5},
        {"shared_dim": F},
    ),
    "minimax_m2": (MiniMaxM2SparseMoeBlock, MiniMaxM2Config(**MIXTRAL), "deepseek", {}, {}),
}


def build(name):
    """Their block with random parameters, and ours."""
    kind, config, router, options, fields = BLOCKS[name]
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    torch.manual_seed(7)
    block = kind(config).eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) * D**-0.5)
        for key, buffer in block.named_buffers():
            assert key.endswith("e_score_correction_bias")
            buffer.copy_(torch.randn_like(buffer) * 0.3)
    ours = {
        "num_experts": E,
        "expert_dim": F,
        "router": {"kind": router} | options,
        "k": K,
        "capacity_factor": None,
        "ffn": "swiglu",
        "execution": "padded",
    }
    return block, MoE(MoEConfig(**ours | fields))


def ours_of(block, read):
    """Our parameters of their block; `read` takes a parameter's values or its gradient."""
    router = block.router if hasattr(block, "router") else block.gate
    fused, down = read(block.experts.gate_up_proj), read(block.experts.down_proj)
    if fused.shape[-1] == D:  # [E, 2F, D] but for Llama 4's and gpt-oss's [E, D, 2F].
        fused, down = fused.swapaxes(1, 2), down.swapaxes(1, 2)
    biased = hasattr(block.experts, "gate_up_proj_bias")

    def split(fused):  # gpt-oss interleaves the two.
        return (fused[..., ::2], fused[..., 1::2]) if biased else jnp.split(fused, 2, axis=-1)

    gate, up = split(fused)
    params = {
        "experts_gate": gate,
        "experts_up": up,
        "experts_down": down,
        "router": {"kernel": read(router.weight).T},
    }
    if biased:
        gate_bias, up_bias = split(read(block.experts.gate_up_proj_bias))
        biases = {"gate": gate_bias, "up": up_bias, "down": read(block.experts.down_proj_bias)}
        params |= {f"experts_{part}_bias": bias[:, None] for part, bias in biases.items()}
        params["router"]["bias"] = read(router.bias)
    for name in ("shared_expert", "shared_experts"):
        if hasattr(block, name):
            shared = getattr(block, name)
            params["shared"] = {part: read(getattr(shared, f"{part}_proj").weight).T for part in ("gate", "up", "down")}
    if hasattr(block, "shared_expert_gate"):
        params["shared_gate"] = {"kernel": read(block.shared_expert_gate.weight).T}
    return params


@pytest.mark.parametrize("name", BLOCKS)
def test_the_layer_is_theirs(name):
    block, layer = build(name)
    torch_x = torch.randn(B, S, D, requires_grad=True)
    cotangent = torch.randn(B, S, D)
    expected = block(torch_x)
    expected = (expected[0] if isinstance(expected, tuple) else expected).reshape(B, S, D)
    expected.backward(cotangent)
    params = ours_of(block, lambda p: jnp.asarray(p.detach().numpy()))
    biases = [jnp.asarray(buffer.numpy()) for buffer in block.buffers()]
    state = {"router_state": {"router": {"bias": biases[0]}}} if biases else {}

    @jax.jit
    def run(x, params, cotangent):
        y, vjp = jax.vjp(lambda x, params: layer.apply({"params": params} | state, x), x, params)
        return y, vjp(cotangent)

    x = jnp.asarray(torch_x.detach().numpy())
    y, (x_gradient, gradients) = run(x, params, jnp.asarray(cotangent.numpy()))
    assert_close(y, expected.detach())
    assert_close(x_gradient, torch_x.grad, what="input")
    read = lambda p: jnp.asarray((torch.zeros_like(p) if p.grad is None else p.grad).numpy())  # noqa: E731
    assert_trees_close(gradients, ours_of(block, read))
