"""The protocol: each departure is named with its figure."""

import dataclasses

import pytest

from moe_jax.accounting.parameters import count_parameters
from moe_jax.data.pipeline import load_text
from moe_jax.study import protocol
from tests.training.tiny_runs import tiny_config, write_corpus


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that keeps the protocol but for its size, and its text."""
    folder = tmp_path_factory.mktemp("protocol")
    config = tiny_config(
        write_corpus(folder / "corpus"),
        {"steps": 20, "optimizer.final_fraction": 0.0, "eval_all_at_end": True, "optimizer.warmup_steps": 2},
    )
    return config, load_text(config.data, folder / "cache")


@pytest.fixture(autouse=True)
def small(monkeypatch, run):
    """Thresholds that a tiny run just meets."""
    config, data = run
    tokens = config.steps * config.data.batch_size * config.data.sequence_length
    monkeypatch.setattr(protocol, "TOKENS_PER_PARAMETER", tokens / count_parameters(config.model).active)
    # Bytes of the scored targets, by decoding them.
    batches = data.validation_batches(None)
    scored = sum(len(data.tokenizer.decode(batch["targets"][batch["loss_mask"]]).encode()) for batch in batches)
    monkeypatch.setattr(protocol, "SCORED_BYTES", scored)


def found(run, **changes):
    config, data = run
    optimizer = {name: changes.pop(name) for name in ("schedule", "final_fraction", "decay_share") if name in changes}
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **optimizer), **changes)
    return protocol.departures(config, data)


def test_a_run_that_keeps_it(run):
    assert found(run) == []
    assert found(run, schedule="constant", decay_share=0.2) == []
    assert found(run, final_fraction=0.1, decay_share=0.2) == []


def test_each_departure_is_named(run):
    assert found(run, final_fraction=0.1) == ["its learning rate does not fall to 0"]
    assert found(run, schedule="inverse_sqrt") == ["its learning rate does not fall to 0"]
    (few,) = found(run, steps=19)
    assert few.startswith(f"it sees {protocol.TOKENS_PER_PARAMETER * 19 / 20:.1f} tokens per active parameter")
    config, data = run
    steps = len(data.train) // config.data.batch_size
    assert found(run, steps=steps) == []
    assert found(run, steps=2 * steps + 2) == ["it reads its text 2.0 times, not once at most"]
    (part,) = found(run, eval_all_at_end=False)
    assert part.startswith("its last evaluation scores a part of its validation text, ")


def test_too_little_validation_text_is_named(run, monkeypatch):
    monkeypatch.setattr(protocol, "SCORED_BYTES", protocol.SCORED_BYTES + 1)
    (little,) = found(run)
    assert little.startswith("its last evaluation scores all of its validation text, ")
