"""Vocabulary: embedded tokens, logits of a model's last values, and losses without all logits at once.

B batch, S sequence, D model width, V vocabulary, C positions of a chunk.
"""

from collections.abc import Callable
from typing import NamedTuple

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
    """Makes the module `embedding` [V, D], which starts with standard deviation `std`."""
    start = nn.initializers.normal(std)
    return nn.Embed(vocab_size, model_dim, dtype=dtype, embedding_init=start, name="embedding")


def output_of(embedding: Float[Array, "V D"]) -> Float[Array, "D V"]:
    """Returns the embedding as the matrix of the output projection.

    It stands behind a barrier: XLA would compute its gradient transposed, vocabulary first, a product that is slow on
    CPUs where D is small.
    """
    return jax.lax.optimization_barrier(embedding.T)


class OutputMatrix(nn.Module):
    """Matrix of an output projection that is not the embedding.

    Attributes:
      vocab_size: V.
    """

    vocab_size: int

    @nn.compact
    def __call__(self, model_dim: int) -> Float[Array, "D V"]:
        """Declares the matrix."""
        return self.param("kernel", kernel_init(1.0), (model_dim, self.vocab_size), jnp.float32)


class Output(NamedTuple):
    """Last values of a model and the matrix that turns them into logits.

    Attributes:
      matrix: of the output projection.
      x: the last values.
    """

    matrix: Float[Array, "D V"]
    x: Float[Array, "B S D"]

    def logits(self) -> Float[Array, "B S V"]:
        """Returns float32 logits."""
        return apply_by_row(self._project, self.x)

    def nats(self, targets: Int[Array, "B S"], chunk: int | None) -> Float[Array, "B S"]:
        """Returns `cross_entropy` of `targets`."""
        return cross_entropy(self._project, self.x, targets, chunk)

    def _project(self, rows: Float[Array, "_ D"]) -> Float[Array, "_ V"]:
        return (rows @ self.matrix).astype(jnp.float32)


def cross_entropy(
    project: Project, x: Float[Array, "B S D"], targets: Int[Array, "B S"], chunk: int | None
) -> Float[Array, "B S"]:
    """Computes float32 nats of each target under the logits `project(x)`.

    Args:
      project: turns rows into float32 logits.
      x: the model's last values.
      targets: the tokens to score.
      chunk: C, positions whose logits [B, C, V] exist at once; the backward pass computes them again. None takes all S.

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
