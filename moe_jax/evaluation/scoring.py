"""Scores of given tokens under a trained decoder: log-probabilities, and whether greedy decoding would choose them.

B batch, S sequence, V vocabulary, N scored tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int

from moe_jax.configuration import ConfigError, require
from moe_jax.evaluation.prompts import Span
from moe_jax.layers.moe import MoEConfig
from moe_jax.models.config import ModelConfig
from moe_jax.models.decoder import Decoder
from moe_jax.models.parameters import Params
from moe_jax.routing.router import RNG, STATE, MissingKeyError

SHORTEST = 16
"""Tokens of the shortest padded batch."""


@dataclasses.dataclass(frozen=True)
class SpanScore:
    """Scores of a span's tokens.

    Attributes:
      log_probabilities: [N], of each token after all tokens before it, in nats.
      greedy: [N], whether the token is the most probable one there.
    """

    log_probabilities: Float32[np.ndarray, "N"]
    greedy: Bool[np.ndarray, "N"]

    @property
    def total(self) -> float:
        """Log-probability of the whole span, in nats."""
        return float(self.log_probabilities.sum(dtype=np.float64))


ScoreSpans = Callable[[Sequence[Span]], list[SpanScore]]


def scoring_config(config: ModelConfig) -> ModelConfig:
    """Returns the model without capacities, so that a score depends on its own text alone.

    A group shares its capacity, so with one a score would depend on padding and on other texts in the batch.

    Raises:
      ConfigError: the model or its router sees later tokens, or a capacity decides who is routed where.
    """
    require(config.causal, "model.causal", config.causal, "True, to be scored by what comes next")
    config = dataclasses.replace(config, loss_chunk=None)
    if not config.moe_layers:
        return config
    variants = tuple(
        variant if variant.moe is None else dataclasses.replace(variant, moe=_without_capacity(variant.moe))
        for variant in config.variants
    )
    return dataclasses.replace(config, moe=_without_capacity(config.moe), variants=variants)


def _without_capacity(moe: MoEConfig) -> MoEConfig:
    """Returns the mixture without a capacity; raises ConfigError where its router cannot do without."""
    name = moe.router_name
    if moe.router.chooses_by_capacity(moe.setting()):
        raise ConfigError(
            f"model.moe.router is {name!r}, whose decisions depend on its capacity, so on what else is in its group; "
            "accepted: a router whose capacity only drops"
        )
    unlimited = dataclasses.replace(
        moe, capacity_factor=None, eval_capacity_factor=None, capacity_rule="ceil", group_size=None
    )
    if not unlimited.causal:
        raise ConfigError(
            f"model.moe.router is {name!r}, with which a token's experts depend on later tokens, so a model could see "
            "the answer; accepted: a causal router"
        )
    return unlimited


def make_scorer(
    config: ModelConfig, params: Params, router_state: Params, max_tokens: int, batch_size: int = 16
) -> ScoreSpans:
    """Makes a function that scores spans under a trained decoder, in padded batches.

    Sequences of similar length share a batch. Lengths are padded to a power of two (at most `max_tokens`) and batches
    to `batch_size` rows, so that few programs are compiled. Padding and neighbours change no score; see
    `scoring_config`. A router that draws in evaluation draws by place in the batch, so its sequences run one by one
    with equal draws.

    Args:
      config: of the model, as it was trained.
      params: its parameters.
      router_state: what its routers remember, {} for nothing.
      max_tokens: the longest sequence it reads.
      batch_size: B.

    Raises:
      ConfigError: see `scoring_config`. The function raises it for a span that is too long.
    """
    config = scoring_config(config)
    rows = 1 if _draws(config, params, router_state) else batch_size
    step = jax.jit(functools.partial(_score_tokens, config))

    def score(spans: Sequence[Span]) -> list[SpanScore]:
        for span in spans:
            require(span.inputs <= max_tokens, "tokens of a span", span.inputs, f"at most {max_tokens}")
        by_length: dict[int, list[int]] = {}
        for i, span in enumerate(spans):
            by_length.setdefault(padded_length(span.inputs, max_tokens), []).append(i)
        scores: dict[int, SpanScore] = {}
        for length, members in sorted(by_length.items()):
            for first in range(0, len(members), rows):
                chosen = members[first : first + rows]
                batch = _pad([spans[i] for i in chosen], rows, length)
                nats, greedy = jax.device_get(step(params, router_state, *batch))
                for row, i in enumerate(chosen):
                    place = slice(len(spans[i].prefix) - 1, spans[i].inputs)
                    scores[i] = SpanScore(nats[row, place], greedy[row, place])
        return [scores[i] for i in range(len(spans))]

    return score


def padded_length(tokens: int, max_tokens: int) -> int:
    """Returns the smallest power of two of at least `tokens` and `SHORTEST`, or `max_tokens` if that is less."""
    return min(max(SHORTEST, 1 << (tokens - 1).bit_length()), max_tokens)


def _pad(spans: Sequence[Span], rows: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, the tokens that follow them, and 1 for each that is none of the padding: [B, S]."""
    tokens, targets, segment_ids = (np.zeros((rows, length), np.int32) for _ in range(3))
    for row, span in enumerate(spans):
        ids = np.concatenate([span.prefix, span.scored])
        tokens[row, : span.inputs] = ids[:-1]
        targets[row, : span.inputs] = ids[1:]
        segment_ids[row, : span.inputs] = 1
    return tokens, targets, segment_ids


def _score_tokens(
    config: ModelConfig,
    params: Params,
    router_state: Params,
    tokens: Int[Array, "B S"],
    targets: Int[Array, "B S"],
    segment_ids: Int[Array, "B S"],
) -> tuple[Float32[Array, "B S"], Bool[Array, "B S"]]:
    """Computes the log-probability of each target, and whether it is the most probable token."""
    variables = {"params": params, STATE: router_state}
    logits = Decoder(config).apply(variables, tokens, None, segment_ids, rngs={RNG: jax.random.key(0)})
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1), jnp.argmax(logits, axis=-1) == targets


def _draws(config: ModelConfig, params: Params, router_state: Params) -> bool:
    """Returns whether a router draws in evaluation."""
    tokens = jax.ShapeDtypeStruct((1, SHORTEST), jnp.int32)
    try:
        jax.eval_shape(Decoder(config).apply, {"params": params, STATE: router_state}, tokens)
    except MissingKeyError:
        return True
    return False
