"""An encoder, and a decoder that attends to it: T5, and with sparse layers Switch Transformer.

B batch, S sequence of the decoder, R sequence of the encoder, D model width, V vocabulary.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from moe_jax.layers.attention import memory_mask
from moe_jax.layers.vocabulary import OutputMatrix, output_of, scores, token_embedding
from moe_jax.models.config import ModelConfig
from moe_jax.models.stack import Stack, complete
from moe_jax.runtime.mesh import keep_sharded_by_token


class EncoderDecoder(nn.Module):
    """T5 (Raffel et al. 2020, section 2.1), in both stacks of whose layers feed-forwards may be mixtures.

    Its logits of attention are divided by the root of a head's width; T5 leaves that to the start of its queries, which
    is smaller by as much, so both start alike.

    Attributes:
      config: the model's shape.
      training: see `Decoder`.
    """

    config: ModelConfig
    training: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B S"],
        positions: Int[Array, "B S"] | None,
        segment_ids: Int[Array, "B S"] | None,
        encoder_tokens: Int[Array, "B R"],
        encoder_positions: Int[Array, "B R"] | None = None,
        encoder_segment_ids: Int[Array, "B R"] | None = None,
        targets: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B S V"] | Float[Array, "B S"]:
        """Float32 logits of what follows each of `tokens`; with `targets`, nats of those.

        Args:
          tokens: the decoder's text; it begins with a token that says no more than that.
          positions, segment_ids: see `Decoder`; a segment of the decoder attends to the encoder's of the same number.
          encoder_tokens: the encoder's text.
          encoder_positions, encoder_segment_ids: likewise.
          targets: tokens to score, `config.loss_chunk` positions at a time.
        """
        text = complete(tokens, positions, segment_ids)
        encoder_text = complete(encoder_tokens, encoder_positions, encoder_segment_ids)
        dtype, (encoder, decoder) = jnp.dtype(self.config.dtype), self.config.stacks
        embed = token_embedding(self.config.vocab_size, self.config.model_dim, 1.0, dtype)
        memory = Stack(encoder, self.training, name="encoder")(
            keep_sharded_by_token(embed(encoder_tokens)), encoder_text
        )
        seen = memory_mask(text.segment_ids, encoder_text.segment_ids)
        x = Stack(decoder, self.training, name="decoder")(keep_sharded_by_token(embed(tokens)), text, memory, seen)
        if self.config.tie_embeddings:
            # Embeddings start with variance 1, a matrix of outputs with 1 / D.
            matrix = output_of(embed.embedding) * self.config.model_dim**-0.5
        else:
            matrix = OutputMatrix(self.config.vocab_size, name="head")(self.config.model_dim)
        return scores(matrix.astype(dtype), x, targets, self.config.loss_chunk)
