"""Masks: the tokens that a token sees, and the keys that are computed for it.

B batch, S sequence, R sequence of the keys.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from moe_jax.runtime.arguments import typed

# A causal sequence is cut into blocks of queries, if they are long enough to fill a processor: with 4 blocks 5/8 of all
# logits are computed.
BLOCKS = 4
SHORTEST_BLOCK = 64


@typed
def attention_mask(segment_ids: Int[Array, "B S"], causal: bool, window: int | None = None) -> Bool[Array, "B 1 S S"]:
    """Shows each token its document; if `causal`, only up to itself; with a `window`, only fewer steps away than that.

    Args:
      segment_ids: number of each token's document; a document is a run of one number.
      causal: whether no token sees a later one.
      window: tokens that a causal token sees at most, itself included; None does not limit.
    """
    same_document = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    length = segment_ids.shape[1]
    if not causal and window is None:
        return same_document
    seen = jnp.tril(jnp.ones((length, length), bool)) if causal else jnp.ones((length, length), bool)
    if window is not None:
        place = jnp.arange(length, dtype=jnp.int32)
        seen &= jnp.abs(place[:, None] - place[None, :]) < window
    return same_document & seen[None, None]


@typed
def memory_mask(segment_ids: Int[Array, "B S"], memory_segment_ids: Int[Array, "B R"]) -> Bool[Array, "B 1 S R"]:
    """Shows each token the tokens of the other text with its segment id; all, where none has it, as for padding."""
    same = segment_ids[:, None, :, None] == memory_segment_ids[:, None, None, :]
    return same | ~same.any(axis=-1, keepdims=True)


def key_ranges(queries: int, keys: int, causal: bool, window: int | None = None) -> list[tuple[slice, slice]]:
    """Cuts attention into blocks of queries, each with the run of keys that any of its queries may see.

    Args:
      queries, keys: lengths of the two texts.
      causal: whether no query sees a later key; then both texts are one.
      window: see `attention_mask`.
    """
    blocks = BLOCKS if causal and queries % BLOCKS == 0 and queries >= BLOCKS * SHORTEST_BLOCK else 1
    size = queries // blocks
    ranges = []
    for start in range(0, queries, size):
        first = 0 if window is None or not causal else max(0, start - window + 1)
        ranges.append((slice(start, start + size), slice(first, start + size if causal else keys)))
    return ranges


def computed_keys(length: int, causal: bool, window: int | None = None) -> float:
    """Returns the mean number of keys that are computed for a query, those that its mask hides included."""
    ranges = key_ranges(length, length, causal, window)
    pairs = sum((rows.stop - rows.start) * (seen.stop - seen.start) for rows, seen in ranges)
    return pairs / length
