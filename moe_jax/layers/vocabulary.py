"""From tokens to the model's first values, from its last ones to logits, and to losses without all logits at once.

B batch, S sequence, D model width, V vocabulary, C positions of a chunk.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from moe_jax.configuration import require
from moe_jax.layers.initialization import kernel_init
from moe_jax.layers.rows import apply_by_row

Project = Callable[[Float[Array, "_ D"]], Float[Array, "_ V"]]


def token_embedding(vocab_size: int, model_dim: int, std: float, dtype: jnp.dtype) -> nn.Embed:
    """The parameter `embedding` [V, D] of the module that calls, which starts with standard deviation `std`."""
    start = nn.initializers.normal(std)
    return nn.Embed(vocab_size, model_dim, dtype=dtype, embedding_init=start, name="embedding")


def output_of(embedding: Float[Array, "V D"]) -> Float[Array, "D V"]:
    """The output projection's matrix that is the embedding's.

    Behind a barrier, or XLA would make its gradient the other way round, vocabulary first, a product that is slow on
    CPUs where D is small.
    """
    return jax.lax.optimization_barrier(embedding.T)


class OutputMatrix(nn.Module):
    """The output projection's matrix, where it is not the embedding's.

    Attributes:
      vocab_size: V.
    """

    vocab_size: int

    @nn.compact
    def __call__(self, model_dim: int) -> Float[Array, "D V"]:
        return self.param("kernel", kernel_init(1.0), (model_dim, self.vocab_size), jnp.float32)


def scores(
    matrix: Float[Array, "D V"], x: Float[Array, "B S D"], targets: Int[Array, "B S"] | None, chunk: int | None
) -> Float[Array, "B S V"] | Float[Array, "B S"]:
    """Float32 logits of the last values `x`; with `targets` the nats of those, see `cross_entropy`."""

    def project(rows: Float[Array, "_ D"]) -> Float[Array, "_ V"]:
        return (rows @ matrix).astype(jnp.float32)

    return apply_by_row(project, x) if targets is None else cross_entropy(project, x, targets, chunk)


def cross_entropy(
    project: Project, x: Float[Array, "B S D"], targets: Int[Array, "B S"], chunk: int | None
) -> Float[Array, "B S"]:
    """Float32 nats of each target under the logits `project(x)`.

    Args:
      project: from rows to float32 logits.
      x: the model's last values.
      targets: what is scored.
      chunk: C, positions whose logits [B, C, V] are there at once, in the backward pass too, which computes them anew;
        None takes all S.

    Raises:
      ConfigError: `chunk` does not divide S.
    """

    def score(x: Float[Array, "B _ D"], targets: Int[Array, "B _"]) -> Float[Array, "B _"]:
        return optax.softmax_cross_entropy_with_integer_labels(apply_by_row(project, x), targets)

    batch, length = targets.shape
    if chunk is None or chunk >= length:
        return score(x, targets)
    require(length % chunk == 0, "loss_chunk", chunk, f"a divisor of the sequence's length ({length}), or None")
    # Along the sequence: the batch may be divided over devices.
    chunks = x.reshape(batch, -1, chunk, x.shape[2]).swapaxes(0, 1), targets.reshape(batch, -1, chunk).swapaxes(0, 1)
    scores = jax.lax.map(lambda part: jax.checkpoint(score)(*part), chunks)
    return scores.swapaxes(0, 1).reshape(batch, length)
