"""The accelerator check in small: every part runs and reports, and a part that fails does not end the others."""

import dataclasses
import re
import signal
import time

import pytest

from experiments import accelerator_check
from experiments.accelerator_check import PARTS, TINY, main, run_parts
from moe_jax.training.termination import termination
from tests.training.tiny_runs import write_corpus


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The small scale on a text of our own."""
    monkeypatch.setenv("MOE_JAX_CACHE", str(tmp_path / "cache"))
    corpus = f"data.corpus=text_files:{write_corpus(tmp_path / 'text')}/*.txt"
    sets = (*TINY.sets, corpus, "data.validation_fraction=0.3", "data.sequence_length=16", "steps=4")
    scale = dataclasses.replace(TINY, sets=sets, trained=small_models)
    monkeypatch.setattr(accelerator_check, "TINY", scale)
    return scale


def small_models(name):
    config = accelerator_check.switch_laptop.get_quick_config(name)
    config.data.batch_size, config.model.model_dim, config.model.ffn_dim = 4, 16, 32
    config.optimizer.warmup_steps = 1
    if "moe" in config.model:
        config.model.moe.group_size, config.model.moe.expert_dim = 64, 32
    return config


def test_every_part_runs_and_is_in_the_report(tiny, tmp_path, capsys):
    assert main(["--tiny", "--output", str(tmp_path / "found")]) == 0
    (path,) = (tmp_path / "found").iterdir()
    text = path.read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert [title for title in PARTS if f"## {title}\n" not in text] == []
    assert "failed" not in text
    assert "No time was left" not in text
    assert re.search(r"^\| padded \| equal \| equal \|$", text, re.MULTILINE)
    errors = [float(cell) for cell in re.findall(r"float32 \| (\S+) \| (?:\S+) \|", text)]
    assert len(errors) == 2
    assert max(errors) < 1e-5
    assert re.search(r"^\| sparse \| .* M \| .* \|$", text, re.MULTILINE)
    assert re.search(r"^\| 4 \| \d\.\d{4} \| \d\.\d{4} \|$", text, re.MULTILINE)


def test_a_part_that_fails_is_said_and_the_next_runs(tiny, tmp_path, monkeypatch):
    def fails(scale, seconds):
        yield "Half of it."
        raise MemoryError("out of memory\nand a long trace")

    def fine(scale, seconds):
        yield f"{seconds > 0}"

    monkeypatch.setattr(accelerator_check, "PARTS", {"One": (0.5, fails), "Two": (0.5, fine)})
    assert run_parts(tiny, tmp_path / "DEVICE.md") == 1
    text = (tmp_path / "DEVICE.md").read_text()
    assert "Half of it.\n\n**failed: MemoryError: out of memory**" in text
    assert "## Two\n\nTrue" in text


def test_a_training_heeds_a_stop_that_comes_while_its_text_is_loaded(monkeypatch):
    asked = []

    def train(*_, progress):
        time.sleep(0.5)
        with termination() as asks_to_stop:
            asked.append(asks_to_stop(0))

    monkeypatch.setattr(accelerator_check, "train", train)
    accelerator_check._train_for(0.05, None, None)
    assert asked == [True]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with termination() as asks_to_stop:
        assert not asks_to_stop(0)


def test_a_cpu_is_no_accelerator(capsys, tmp_path):
    assert main(["--output", str(tmp_path / "found")]) == 2
    assert "there is no accelerator; accepted: a GPU or a TPU, or --tiny" in capsys.readouterr().err
    assert not (tmp_path / "found").exists()
