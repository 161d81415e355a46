"""The peer: experts and models of Hugging Face transformers on torch, where both are installed.

T tokens, K choices per token, E experts, D model width, F expert width.
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from experiments.benchmarks.layer_ways import CannotRunError, Problem, Results, Runner

# Way -> the name of transformers' own for how experts are run.
IMPLEMENTATIONS = {"hf-eager": "eager", "hf-grouped_mm": "grouped_mm"}


def torch_device() -> str:
    """Torch's name of the device that jax computes on, so that both have the same.

    Raises:
      CannotRunError: torch or transformers is not there, or torch does not know the device.
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
    """Each way of IMPLEMENTATIONS, with the problem's own weights in experts of the class that fits.

    Raises:
      CannotRunError: no class fits, or `torch_device` has none.
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
    """What experts of transformers are called with."""

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


def wait(device: str) -> None:
    """For all that a device was given to do."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _experts(problem: Problem) -> tuple[Any, tuple[str, ...]]:
    """A module with the problem's weights, and of what weights of ours each of its parameters is made."""
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
        # Theirs are [E, out, in], gate and up one above the other.
        ours = [_tensor(problem.weights[part]).transpose(1, 2) for part in made_of.split()]
        setattr(experts, name, torch.nn.Parameter(torch.cat(ours, dim=1).contiguous()))
    return experts, names


def _as_ours(gradients: Sequence[Any], names: Sequence[str]) -> dict[str, Any]:
    """Gradients by our names of weights, as views."""
    found = {}
    for gradient, made_of in zip(gradients, names, strict=True):
        parts = made_of.split()
        found |= dict(zip(parts, gradient.transpose(1, 2).chunk(len(parts), dim=2), strict=True))
    return found


def _tensor(array: Array) -> Any:
    """A copy for torch, on the same device."""
    import torch

    return torch.from_dlpack(array).clone()


def _array(tensor: Any) -> np.ndarray:
    """NumPy's, of the same type, also where that is one that torch does not give it."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    return tensor.view(torch.uint16).numpy().view(jnp.bfloat16)


def _peak_bytes(work: Callable[[], Any], device: str) -> int | None:
    """The most that `work` has allocated at once, which torch counts on a GPU alone."""
    if device != "cuda":
        return None
    import torch

    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_allocated() - before
