"""Shapes of layers, and who is routed where in them: what the benchmarks of a layer are about.

T tokens, K choices per token, E experts, D model width, F expert width.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class LayerShape(NamedTuple):
    """A layer of experts and the tokens that it is given.

    Attributes:
      model_dim: D.
      expert_dim: F.
      num_experts: E.
      k: experts per token.
      tokens: T.
      kind: what an expert computes, a name in FFN_KINDS.
      dtype: of tokens and weights, `float32` or `bfloat16`.
    """

    model_dim: int
    expert_dim: int
    num_experts: int
    k: int
    tokens: int
    kind: str
    dtype: str = "float32"


# Each where it is measured by default; the others are asked for by name.
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
    # For tests, and to see that a script runs.
    "tiny": LayerShape(16, 8, 4, 2, 64, "swiglu"),
    "tiny-switch": LayerShape(16, 8, 4, 1, 64, "relu"),
}

BURST_TOKENS = 16


def balanced(rng: np.random.Generator, tokens: int, num_experts: int, k: int) -> Int[np.ndarray, "T K"]:
    """Even load: each expert has T * k / E choices, or, where that is no integer, one of the integers beside it."""
    # Of E tokens in a row each expert has k choices, under names that are drawn anew for each such block.
    slots = np.arange(tokens * k).reshape(tokens, k)
    names = rng.permuted(np.tile(np.arange(num_experts), (-(-tokens // num_experts), 1)), axis=1)
    expert = names[np.arange(tokens)[:, None] // num_experts, slots % num_experts]
    return rng.permuted(rng.permutation(expert), axis=1).astype(np.int32)


def uniform(rng: np.random.Generator, tokens: int, num_experts: int, k: int) -> Int[np.ndarray, "T K"]:
    """A random set of experts for each token: what a router does that knows nothing, even but for chance."""
    return _best(rng.random((tokens, num_experts)), k)


def zipf(rng: np.random.Generator, tokens: int, num_experts: int, k: int) -> Int[np.ndarray, "T K"]:
    """The r-th most popular expert is as likely as 1 / r: a router that was not balanced.

    A token's experts are drawn one after another without replacement, and popularity has no order in E.
    """
    log_popularity = -np.log(rng.permutation(num_experts) + 1.0)
    # The largest sums with Gumbel noise are such a draw.
    return _best(log_popularity + rng.gumbel(size=(tokens, num_experts)), k)


def hot(rng: np.random.Generator, tokens: int, num_experts: int, k: int) -> Int[np.ndarray, "T K"]:
    """One expert is every token's first choice, the others are drawn evenly: the most that one can be asked for."""
    score = rng.random((tokens, num_experts))
    score[:, rng.integers(num_experts)] = 2.0
    return _best(score, k)


def bursts(rng: np.random.Generator, tokens: int, num_experts: int, k: int) -> Int[np.ndarray, "T K"]:
    """Runs of neighbouring tokens share their experts, as they do in text; the lengths are geometric, of mean 16.

    Over all tokens the load is that of `uniform` with as many tokens as there are runs.
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
