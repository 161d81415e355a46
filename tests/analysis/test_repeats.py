"""Where a text repeats itself, and the loss there, against loops over its tokens."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moe_jax.analysis.repeats import find_repeats
from moe_jax.cli import main
from moe_jax.data.pipeline import load_text
from moe_jax.training.loop import train
from moe_jax.training.step import apply_model
from moe_jax.training.trained import load_run
from tests.training.tiny_runs import PAIRED, lines_of, tiny_config, write_corpus


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


def test_the_second_of_two_equal_lines_of_a_text_repeats_the_first():
    line = [5, 6, 7, 8]
    tokens = np.asarray([[*line, *line]], np.int32)
    targets = np.roll(tokens, -1)
    found = find_repeats(tokens, targets, np.ones_like(tokens))
    # Also its last token, after which the first comes again, as after the first line's.
    assert found.tolist() == [[False, False, False, False, True, True, True, True]]
    assert not find_repeats(tokens, targets, np.asarray([[1] * 4 + [2] * 4], np.int32)).any()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A decoder and a model of spans, each of a few steps."""
    folder = tmp_path_factory.mktemp("repeats")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOE_JAX_CACHE", str(folder / "cache"))
        corpus, few = write_corpus(folder / "text"), {"steps": 8, "eval_every": 8, "checkpoint_every": 8}
        train(tiny_config(corpus, few), folder / "run", progress=False)
        spans = {"model.moe.router": "switch", "model.moe.k": 1, "model.moe.places": ("feed_forward",)}
        train(tiny_config(corpus, few | PAIRED | spans), folder / "spans", progress=False)
        yield folder


def test_parts_of_the_loss_are_those_of_its_tokens(folder, capsys):
    run = load_run(folder / "run")
    config = run.config
    sums, counts = np.zeros(2), np.zeros(2)

    @jax.jit
    def score(state, batch):
        key, targets = jax.random.key(0), batch["targets"]
        return apply_model(config.model, state.params, state.router_state, batch, key, False, targets=targets)[0]

    for batch in load_text(config.data).validation_batches(config.eval_batches):
        nats = np.asarray(score(run.state, batch))
        repeats = repeats_of(batch["tokens"], batch["targets"], batch["segment_ids"])
        for place in zip(*np.nonzero(batch["loss_mask"]), strict=True):
            sums[int(repeats[place])] += nats[place]
            counts[int(repeats[place])] += 1
    assert main(["repeats", str(folder / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["others"], found["repeats"]) == pytest.approx(sums / counts, rel=1e-5)
    assert found["share"] == pytest.approx(counts[1] / counts.sum())
    assert 0 < found["share"] < 1
    # Together they are the validation loss.
    whole = found["share"] * found["repeats"] + (1 - found["share"]) * found["others"]
    assert whole == pytest.approx(lines_of(folder / "run" / "metrics.jsonl")[-1]["loss"], rel=1e-5)


def test_the_table_has_a_line_for_each_run(folder, capsys):
    assert main(["repeats", str(folder / "run"), str(folder / "run")]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "seed", "step", "repeats", "others", "share"]
    assert [line.split()[:3] for line in lines] == [["tiny", "0", "8"]] * 2


def test_what_cannot_copy_or_is_no_run_is_one_line(folder, capsys):
    for name, says in (
        ("spans", "data.task is 'span_corruption'; accepted: a run with task 'causal'"),
        ("text", "has no run.json"),
    ):
        assert main(["repeats", str(folder / name)]) == 2
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.count("\n") == 1
        assert says in output.err
