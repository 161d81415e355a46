"""Masked language modelling: which tokens are hidden, by what, and what is to be said of them."""

import numpy as np

from moe_jax.data.tasks.masked import draw_masks, hide_tokens

BOUNDARY, MASK, S = 50, 51, 20_000


def hide(rate=0.15, seed=0):
    """A batch of one long sequence with boundaries and padding, and the same with tokens hidden."""
    tokens = np.random.default_rng(9).integers(0, BOUNDARY + 1, (1, S), dtype=np.int32)
    segments = np.where(np.arange(S) < S - 1000, 1, 0).astype(np.int32)[None]
    batch = {"tokens": tokens, "targets": np.roll(tokens, -1), "segment_ids": segments, "loss_mask": segments > 0}
    drawn = draw_masks((1, S), np.random.default_rng(seed), rate, BOUNDARY, MASK)
    return batch, hide_tokens(batch, drawn["hidden"], drawn["shown"], BOUNDARY)


def test_only_text_is_hidden_and_the_rest_is_as_it_was():
    example, masked = hide()
    hidden = masked["loss_mask"]
    assert not hidden[example["tokens"] == BOUNDARY].any()
    assert not hidden[example["segment_ids"] == 0].any()
    np.testing.assert_array_equal(masked["tokens"][~hidden], example["tokens"][~hidden])
    np.testing.assert_array_equal(masked["targets"], example["tokens"])
    np.testing.assert_array_equal(masked["segment_ids"], example["segment_ids"])
    assert masked["tokens"].dtype == np.int32


def test_shares_are_those_of_bert():
    """A token drawn at random is itself with chance 1 / V: 10% and 0.1 / 50 stay."""
    example, masked = hide()
    text = (example["tokens"] != BOUNDARY) & (example["segment_ids"] != 0)
    hidden, shown = masked["loss_mask"], masked["tokens"]
    stays = shown[hidden] == example["tokens"][hidden]
    for share, expected, count in (
        (hidden[text].mean(), 0.15, text.sum()),
        ((shown[hidden] == MASK).mean(), 0.8, hidden.sum()),
        (stays.mean(), 0.1 + 0.1 / BOUNDARY, hidden.sum()),
    ):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / count)
    replaced = shown[hidden & (shown != MASK) & (shown != example["tokens"])]
    assert set(replaced.tolist()) == set(range(BOUNDARY))


def test_the_generator_decides():
    (_, first), (_, again), (_, other) = hide(seed=1), hide(seed=1), hide(seed=2)
    np.testing.assert_array_equal(first["tokens"], again["tokens"])
    assert (first["loss_mask"] != other["loss_mask"]).any()
