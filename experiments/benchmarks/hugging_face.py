"""The peer of benchmarks: experts and models of Hugging Face transformers on torch, if both are installed.

T tokens, K choices per token, E experts, D model width, F expert width.
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.benchmarks.layer_ways import CannotRunError, Problem, Results, Runner
from experiments.benchmarks.timing import take_turns
from moe_jax.models.config import ModelConfig
from moe_jax.training.step import Batch

# Way -> transformers' name of its implementation of experts.
IMPLEMENTATIONS = {"hf-eager": "eager", "hf-grouped_mm": "grouped_mm"}


def torch_device() -> str:
    """Returns torch's name of the device that jax computes on, so that both use the same.

    Raises:
      CannotRunError: torch or transformers is not installed, or torch cannot use the device.
    """
    for library in ("torch", "transformers"):
        if importlib.util.find_spec(library) is None:
            raise CannotRunError(f"{library} is not installed")
    platform = jax.default_backend()
    if platform == "cpu":
        return "cpu"
    import torch

    if platform == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise CannotRunError(f"this torch does not compute on {platform!r}")


def make_experts(problem: Problem) -> dict[str, Runner]:
    """Makes a runner for each way of IMPLEMENTATIONS, with the problem's own expert weights.

    Raises:
      CannotRunError: transformers has no such experts, or `torch_device` raises it.
    """
    torch_device()
    experts, names = _experts(problem)
    x, cotangent, weight = (_tensor(array) for array in (problem.x, problem.cotangent, problem.weight))
    inputs = _Inputs(x.requires_grad_(), _tensor(problem.expert).long(), weight.requires_grad_())
    return {
        name: _runner(implementation, experts, names, inputs, cotangent)
        for name, implementation in IMPLEMENTATIONS.items()
    }


class _Inputs(NamedTuple):
    """The arguments of transformers' experts."""

    x: Any
    expert: Any
    weight: Any


def _runner(implementation: str, experts: Any, names: Sequence[str], inputs: _Inputs, cotangent: Any) -> Runner:
    import torch

    device = cotangent.device.type
    parameters = list(experts.parameters())

    def apply() -> Any:
        experts.config._experts_implementation = implementation
        return experts(*inputs)

    def forward() -> Any:
        with torch.no_grad():
            y = apply()
        wait(device)
        return y

    def training() -> Results:
        y = apply()
        by_x, by_weight, *own = torch.autograd.grad(y, [inputs.x, inputs.weight, *parameters], cotangent)
        wait(device)
        return Results(y, {"x": by_x, "combine": by_weight} | _as_ours(own, names))

    def peak_bytes() -> int | None:
        held = sum(tensor.numel() * tensor.element_size() for tensor in (*inputs, cotangent, *parameters))
        peak = _peak_bytes(training, device)
        return peak if peak is None else held + peak

    return Runner(forward, training, _array, peak_bytes)


class TorchModel(NamedTuple):
    """A model of transformers in training.

    Attributes:
      steps: a training step for each way of IMPLEMENTATIONS, on the same parameters and optimizer state.
      parameters: number of parameters.
      idle: number of parameters that a token does not use.
      optimizer: the faster of torch's implementations of AdamW, `fused` or `foreach`.
    """

    steps: dict[str, Callable[[], None]]
    parameters: int
    idle: int
    optimizer: str


def make_model(config: ModelConfig, batch: Batch) -> TorchModel:
    """Makes a MixtralForCausalLM of the shape of our decoder, to be trained on one batch in float32.

    Raises:
      CannotRunError: see `torch_device`.
    """
    device = torch_device()
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    tokens, targets = (torch.from_numpy(np.asarray(batch[name], np.int64)).to(device) for name in ("tokens", "targets"))
    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.model_dim,
            intermediate_size=config.moe.expert_dim or config.ffn_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.attention.heads,
            num_key_value_heads=config.attention.key_value_heads,
            num_local_experts=config.moe.num_experts,
            num_experts_per_tok=config.moe.k,
            max_position_embeddings=tokens.shape[1],
            attn_implementation="sdpa",
        )
    ).to(device)
    parameters = list(model.parameters())

    def gradients(implementation: str) -> None:
        model.config._experts_implementation = implementation
        for parameter in parameters:
            parameter.grad = None
        logits = model(input_ids=tokens, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()

    gradients("grouped_mm")
    name, optimizer = _fastest_adamw(parameters, device)

    def step(implementation: str) -> None:
        gradients(implementation)
        optimizer.step()
        wait(device)

    experts = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    return TorchModel(
        steps={way: functools.partial(step, implementation) for way, implementation in IMPLEMENTATIONS.items()},
        parameters=sum(parameter.numel() for parameter in parameters),
        idle=experts - experts * config.moe.k // config.moe.num_experts,
        optimizer=name,
    )


def _fastest_adamw(parameters: Sequence[Any], device: str) -> tuple[str, Any]:
    """Returns the faster of torch's implementations of AdamW and its name, timed on the current gradients."""
    import torch

    found = {}
    for name in ("fused", "foreach"):
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, **{name: True})

        def step(optimizer: Any = optimizer) -> None:
            optimizer.step()
            wait(device)

        found[name] = optimizer, min(take_turns({name: step}, repeats=3)[name])
    fastest = min(found, key=lambda name: found[name][1])
    return fastest, found[fastest][0]


def wait(device: str) -> None:
    """Waits for all work that was given to a device."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _experts(problem: Problem) -> tuple[Any, tuple[str, ...]]:
    """Makes a module with the problem's weights; returns it and, for each parameter, the weights that it is made of."""
    import torch

    shape = problem.shape
    if shape.kind == "swiglu":
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        config = MixtralConfig(
            hidden_size=shape.model_dim, intermediate_size=shape.expert_dim, num_local_experts=shape.num_experts
        )
        kind, names = MixtralExperts, ("gate up", "down")
    elif shape.kind == "relu":
        from transformers import NemotronHConfig
        from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

        config = NemotronHConfig(
            hidden_size=shape.model_dim,
            moe_intermediate_size=shape.expert_dim,
            n_routed_experts=shape.num_experts,
            mlp_hidden_act="relu",
        )
        kind, names = NemotronHExperts, ("up", "down")
    else:
        raise CannotRunError(f"transformers has no experts of kind {shape.kind!r}")
    with torch.device("meta"):
        experts = kind(config)
    for (name, _), made_of in zip(list(experts.named_parameters()), names, strict=True):
        # Transformers' weights are [E, out, in], with gate and up concatenated along `out`.
        ours = [_tensor(problem.weights[part]).transpose(1, 2) for part in made_of.split()]
        setattr(experts, name, torch.nn.Parameter(torch.cat(ours, dim=1).contiguous()))
    return experts, names


def _as_ours(gradients: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """Splits gradients into views by our names of weights."""
    found = {}
    for gradient, made_of in zip(gradients, names, strict=True):
        parts = made_of.split()
        found |= dict(zip(parts, gradient.transpose(1, 2).chunk(len(parts), dim=2), strict=True))
    return found


def _tensor(array: Array) -> Any:
    """Copies an array to torch, on the same device."""
    import torch

    return torch.from_dlpack(array).clone()


def _array(tensor: Any) -> np.ndarray:
    """Converts a tensor to NumPy with its type, including bfloat16, which torch does not convert."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    return tensor.view(torch.uint16).numpy().view(jnp.bfloat16)


def _peak_bytes(work: Callable[[], Any], device: str) -> int | None:
    """Measures the peak memory that `work` allocates; None on a CPU, where torch does not count it."""
    if device != "cuda":
        return None
    import torch

    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before
