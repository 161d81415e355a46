"""A pre-norm transformer over text, dense or sparse, causal or seeing both sides.

B batch, S sequence, D model width, V vocabulary.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.layers.vocabulary import Output, OutputMatrix, output_of, token_embedding
from moe_jax.models.config import ModelConfig
from moe_jax.models.stack import complete, run_blocks
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.mesh import keep_sharded_by_token


class Decoder(nn.Module):
    """A language model over packed documents: causal, or with `config.causal=False` an encoder.

    Attributes:
      config: the model's shape.
      training: whether the training capacity holds, values drop out, and routers draw and explore.
    """

    config: ModelConfig
    training: bool = False

    @typed
    def __call__(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"] | None = None,
        segment_ids: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S V"]:
        """Returns float32 logits of each next token, or of the tokens themselves for an encoder.

        Args:
          tokens: the text.
          positions: place of each token in its document; None if each sequence is one document.
          segment_ids: number of each token's document, 0 for padding, which nothing routes and nothing should score;
            None likewise.
        """
        return self._output(tokens, positions, segment_ids).logits()

    @typed
    def nats(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"] | None = None,
        segment_ids: Int[Array, "B S"] | None = None,
        *,
        targets: Int[Array, "B S"],
    ) -> Float[Array, "B S"]:
        """Returns float32 nats of `targets` under the logits, `config.loss_chunk` positions at a time."""
        return self._output(tokens, positions, segment_ids).nats(targets, self.config.loss_chunk)

    @nn.compact
    def _output(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"] | None,
        segment_ids: Int[Array, "B S"] | None,
    ) -> Output:
        text = complete(tokens, positions, segment_ids)
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        embed = token_embedding(config.vocab_size, config.model_dim, config.model_dim**-0.5, dtype)
        x = run_blocks(config, self.training, keep_sharded_by_token(embed(tokens)), text)
        tied = config.tie_embeddings
        matrix = output_of(embed.embedding) if tied else OutputMatrix(config.vocab_size, name="head")(config.model_dim)
        return Output(matrix.astype(dtype), x)
