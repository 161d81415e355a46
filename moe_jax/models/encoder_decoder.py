"""An encoder, and a decoder that attends to it: T5, and with sparse layers Switch Transformer.

B batch, S sequence of the decoder, R sequence of the encoder, D model width, V vocabulary.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.layers.vocabulary import Output, OutputMatrix, output_of, token_embedding
from moe_jax.models.config import ModelConfig
from moe_jax.models.paths import DECODER, ENCODER
from moe_jax.models.stack import Stack, complete
from moe_jax.runtime.arguments import typed
from moe_jax.runtime.mesh import keep_sharded_by_token


class EncoderDecoder(nn.Module):
    """T5 (Raffel et al. 2020, section 2.1); the feed-forward parts of both stacks may be mixtures.

    The logits of attention are divided by the root of a head's width. T5 leaves that to the initialisation of its
    queries, which is smaller by as much, so both start alike.

    Attributes:
      config: the model's shape.
      training: see `Decoder`.
    """

    config: ModelConfig
    training: bool = False

    @typed
    def __call__(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"] | None,
        segment_ids: Int[Array, "B S"] | None,
        encoder_tokens: Int[Array, "B R"],
        encoder_positions: Int[Array, "B R"] | None = None,
        encoder_segment_ids: Int[Array, "B R"] | None = None,
    ) -> Float[Array, "B S V"]:
        """Returns float32 logits of the token that follows each of `tokens`.

        Args:
          tokens: the decoder's text; its first token only marks the beginning.
          positions, segment_ids: see `Decoder`; a segment of the decoder attends to the encoder's of the same number.
          encoder_tokens: the encoder's text.
          encoder_positions, encoder_segment_ids: likewise.
        """
        decoder = tokens, positions, segment_ids
        return self._output(decoder, (encoder_tokens, encoder_positions, encoder_segment_ids)).logits()

    @typed
    def nats(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"] | None,
        segment_ids: Int[Array, "B S"] | None,
        encoder_tokens: Int[Array, "B R"],
        encoder_positions: Int[Array, "B R"] | None = None,
        encoder_segment_ids: Int[Array, "B R"] | None = None,
        *,
        targets: Int[Array, "B S"],
    ) -> Float[Array, "B S"]:
        """Returns float32 nats of `targets` under the logits, `config.loss_chunk` positions at a time."""
        decoder = tokens, positions, segment_ids
        output = self._output(decoder, (encoder_tokens, encoder_positions, encoder_segment_ids))
        return output.nats(targets, self.config.loss_chunk)

    @nn.compact
    def _output(
        self,
        decoder_text: tuple[Int[Array, "B S"] | None, ...],
        encoder_text: tuple[Int[Array, "B R"] | None, ...],
    ) -> Output:
        config, text, read = self.config, complete(*decoder_text), complete(*encoder_text)
        dtype, (encoder, decoder) = jnp.dtype(config.dtype), config.stacks
        embed = token_embedding(config.vocab_size, config.model_dim, 1.0, dtype)
        embedded = keep_sharded_by_token(embed(read.tokens))
        memory = Stack(encoder, self.training, name=ENCODER)(embedded, read)
        embedded = keep_sharded_by_token(embed(text.tokens))
        x = Stack(decoder, self.training, name=DECODER)(embedded, text, memory, read)
        if config.tie_embeddings:
            # Embeddings start with variance 1, a matrix of outputs with 1 / D.
            matrix = output_of(embed.embedding) * config.model_dim**-0.5
        else:
            matrix = OutputMatrix(config.vocab_size, name="head")(config.model_dim)
        return Output(matrix.astype(dtype), x)
