"""Where a text repeats itself, and the loss there, against loops over its tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moe_jax.analysis.repeats import find_repeats, loss_by_repeats
from moe_jax.data.pipeline import load_text
from moe_jax.training.loop import train
from moe_jax.training.step import apply_model
from moe_jax.training.trained import load_run
from tests.training.tiny_runs import tiny_config, write_corpus


def repeats_of(tokens, targets, segments):
    """By the definition, one text after another."""
    found = np.zeros(tokens.shape, bool)
    for row in range(len(tokens)):
        seen = set()
        for place, pair in enumerate(zip(segments[row], tokens[row], targets[row], strict=True)):
            found[row, place] = pair in seen
            seen.add(pair)
    return found


SMALL = hnp.arrays(np.int32, (2, 9), elements=st.integers(0, 2))


@given(SMALL, SMALL, SMALL)
def test_a_repeat_has_stood_so_before_in_its_text(tokens, targets, segments):
    np.testing.assert_array_equal(find_repeats(tokens, targets, segments), repeats_of(tokens, targets, segments))


def test_the_second_of_two_equal_lines_repeats_but_for_its_first_token():
    line = [5, 6, 7, 8]
    tokens = np.asarray([[*line, *line]], np.int32)
    targets = np.roll(tokens, -1)
    found = find_repeats(tokens, targets, np.ones_like(tokens))
    # The first pair of the second line, 5 and 6, has stood before; the last one's target is the first token again.
    assert found.tolist() == [[False, False, False, False, True, True, True, True]]
    assert not find_repeats(tokens, targets, np.asarray([[1] * 4 + [2] * 4], np.int32)).any()


def test_parts_of_the_loss_are_those_of_its_tokens(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_JAX_CACHE", str(tmp_path / "cache"))
    config = tiny_config(write_corpus(tmp_path / "text"), {"steps": 8, "eval_every": 8, "checkpoint_every": 8})
    result = train(config, tmp_path / "run", progress=False)
    run = load_run(tmp_path / "run")
    batches = load_text(config.data).validation_batches(config.eval_batches)
    sums, counts = np.zeros(2), np.zeros(2)
    for batch in (jax.tree.map(jnp.asarray, batch) for batch in batches):
        nats, _ = apply_model(
            config.model,
            run.state.params,
            run.state.router_state,
            batch,
            jax.random.key(0),
            False,
            targets=batch["targets"],
        )
        repeats = repeats_of(*(np.asarray(batch[field]) for field in ("tokens", "targets", "segment_ids")))
        for place in zip(*np.nonzero(batch["loss_mask"]), strict=True):
            sums[int(repeats[place])] += nats[place]
            counts[int(repeats[place])] += 1
    found = loss_by_repeats(run, batches)
    assert (found.others, found.repeats) == pytest.approx(sums / counts, rel=1e-5)
    assert found.share == pytest.approx(counts[1] / counts.sum())
    assert 0 < found.share < 1
    # Together they are the validation loss.
    whole = found.share * found.repeats + (1 - found.share) * found.others
    assert whole == pytest.approx(result.curve[-1]["validation_loss"], rel=1e-5)
