"""Shapes of layers, and workloads: the routing of tokens to experts in benchmarks of a layer.

T tokens, K choices per token, E experts, D model width, F expert width.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class LayerShape(NamedTuple):
    """Sizes of a layer of experts and of its input.

    Attributes:
      model_dim: D.
      expert_dim: F.
      num_experts: E.
      k: experts per token.
      tokens: T.
      kind: network of an expert, a name in FFN_KINDS.
      dtype: type of tokens and weights, `float32` or `bfloat16`.
    """

    model_dim: int
    expert_dim: int
    num_experts: int
    k: int
    tokens: int
    kind: str
    dtype: str = "float32"


# Shapes that are measured by default on each platform; others are chosen by name.
CPU_SHAPES = ("laptop", "mixtral", "deepseek-64", "deepseek-256", "switch")
ACCELERATOR_SHAPES = ("mixtral-gpu", "deepseek-gpu")
SHAPES = {
    # The layer of a small decoder that trains on a laptop.
    "laptop": LayerShape(256, 512, 16, 2, 4096, "swiglu"),
    # Mixtral 8x7B's proportions: few experts, each 3.5 times as wide as the model.
    "mixtral": LayerShape(512, 1792, 8, 2, 2048, "swiglu"),
    # DeepSeek's: many narrow experts, eight of them for each token.
    "deepseek-64": LayerShape(512, 128, 64, 8, 4096, "swiglu"),
    "deepseek-256": LayerShape(512, 128, 256, 8, 4096, "swiglu"),
    # Switch Transformer's: one expert for each token, without a gate.
    "switch": LayerShape(256, 1024, 64, 1, 4096, "relu"),
    # A layer of Mixtral 8x7B, and one of DeepSeek-V3.
    "mixtral-gpu": LayerShape(4096, 14336, 8, 2, 16384, "swiglu", "bfloat16"),
    "deepseek-gpu": LayerShape(7168, 2048, 256, 8, 16384, "swiglu", "bfloat16"),
    # For tests and trials.
    "tiny": LayerShape(16, 8, 4, 2, 64, "swiglu"),
    "tiny-switch": LayerShape(16, 8, 4, 1, 64, "relu"),
}

BURST_TOKENS = 16


def balanced(rng: np.random.Generator, tokens: int, num_experts: int, k: int) -> Int[np.ndarray, "T K"]:
    """Routes evenly: each expert has T * k / E choices, rounded up or down."""
    # Each block of E consecutive tokens gives every expert k choices, with experts permuted anew for each block.
    slots = np.arange(tokens * k).reshape(tokens, k)
    names = rng.permuted(np.tile(np.arange(num_experts), (-(-tokens // num_experts), 1)), axis=1)
    expert = names[np.arange(tokens)[:, None] // num_experts, slots % num_experts]
    return rng.permuted(rng.permutation(expert), axis=1).astype(np.int32)


def uniform(rng: np.random.Generator, tokens: int, num_experts: int, k: int) -> Int[np.ndarray, "T K"]:
    """Routes each token to a random set of experts, as an untrained router does."""
    return _best(rng.random((tokens, num_experts)), k)


def zipf(rng: np.random.Generator, tokens: int, num_experts: int, k: int) -> Int[np.ndarray, "T K"]:
    """Routes with a probability proportional to 1 / r for the r-th most popular expert, as an unbalanced router does.

    A token's experts are drawn without replacement; the order of popularity is random.
    """
    log_popularity = -np.log(rng.permutation(num_experts) + 1.0)
    # Gumbel noise makes the k largest sums a draw without replacement.
    return _best(log_popularity + rng.gumbel(size=(tokens, num_experts)), k)


def hot(rng: np.random.Generator, tokens: int, num_experts: int, k: int) -> Int[np.ndarray, "T K"]:
    """Routes every token first to one and the same expert, the largest possible load, and then to random others."""
    score = rng.random((tokens, num_experts))
    score[:, rng.integers(num_experts)] = 2.0
    return _best(score, k)


def bursts(rng: np.random.Generator, tokens: int, num_experts: int, k: int) -> Int[np.ndarray, "T K"]:
    """Routes runs of neighbouring tokens to the same experts, as in text; run lengths are geometric with mean 16.

    The load is that of `uniform` with one token for each run.
    """
    run = np.cumsum(rng.random(tokens) < 1 / BURST_TOKENS)
    return uniform(rng, int(run[-1]) + 1, num_experts, k)[run]


Workload = Callable[[np.random.Generator, int, int, int], Int[np.ndarray, "T K"]]

# rng, T, E, K -> each token's experts, best first, none of them twice.
WORKLOADS: dict[str, Workload] = {
    "balanced": balanced,
    "uniform": uniform,
    "zipf": zipf,
    "hot": hot,
    "bursts": bursts,
}


def _best(score: Float[np.ndarray, "T E"], k: int) -> Int[np.ndarray, "T K"]:
    return np.argsort(-score, axis=1)[:, :k].astype(np.int32)
