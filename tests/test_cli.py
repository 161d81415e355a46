"""The command line: what it says, what it accepts, and that bad input is one line and nothing written."""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from jax.errors import JaxRuntimeError

from moe_jax.cli import load_config, main
from moe_jax.configuration import REQUIRED
from moe_jax.routing import ROUTERS

CONFIG = """
from ml_collections import ConfigDict

def get_config(model="switch"):
    if model not in ("switch", "dense"):
        raise ValueError(f"model is {model!r}; accepted: switch, dense")
    sparse = {"moe_layers": (0,), "moe": {"num_experts": 4}} if model == "switch" else {}
    shape = {"vocab_size": 257, "num_layers": 1, "model_dim": 8, "attention": {"heads": 1}, "ffn_dim": 16}
    return ConfigDict({
        "name": model,
        "steps": 4,
        "optimizer": {"warmup_steps": 2},
        "data": {"corpus": "text_files:CORPUS", "sequence_length": 8, "batch_size": 2, "validation_fraction": 0.3},
        "eval_batches": 1,
        "model": shape | sparse,
    })
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A configuration file, a corpus, and files that are neither."""
    monkeypatch.setenv("MOE_JAX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("some text, line by line\n" * 40)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "config.py").write_text(CONFIG.replace("CORPUS", str(tmp_path / "text.txt")))
    (tmp_path / "nothing.py").write_text("x = 1\n")
    (tmp_path / "dictionary.py").write_text("def get_config():\n    return {}\n")
    (tmp_path / "no_argument.py").write_text("def get_config():\n    return None\n")
    (tmp_path / "needs_argument.py").write_text("def get_config(model):\n    return None\n")
    (tmp_path / "prose.md").write_text("This is no Python.\n")
    return tmp_path


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_shows_an_example(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert "example:\n  moe-jax train configs/" in capsys.readouterr().out


def test_help_explains_the_argument(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "PATH:ARGUMENT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("config", "sets", "says"),
    [
        ("missing.py", [], ["missing.py", "not a file", "get_config"]),
        (".", [], ["not a file"]),
        ("x" * 300, [], ["not a file"]),
        ("config.py", ["start.run=" + "x" * 300], ["workdir is", "which has no run.json"]),
        ("nothing.py", [], ["nothing.py", "defines no get_config"]),
        ("dictionary.py", [], ["returns a dict", "accepted: a ConfigDict"]),
        ("prose.md", [], ["not valid Python", "line 1"]),
        ("no_argument.py:dense", [], ["no_argument.py:dense", "get_config()", "PATH:ARGUMENT"]),
        ("needs_argument.py", [], ["get_config(model)", "PATH:ARGUMENT"]),
        ("config.py:mixtral", [], ["config.py:mixtral", "model is 'mixtral'; accepted: switch, dense"]),
        ("config.py", ["steps"], ["--set is 'steps'", "key=value"]),
        ("config.py", ["stepps=3"], ["stepps is not a field", "did you mean 'steps'?"]),
        ("config.py", ["model.moe.num_expert=3"], ["model.moe.num_expert is", "did you mean 'num_experts'?"]),
        ("config.py", ["steps=many"], ["steps is 'many'; accepted: int"]),
        ("config.py", ["steps=2.5"], ["steps is 2.5; accepted: int"]),
        ("config.py", ["seed=4294967296"], ["seed is 4294967296", "below 2**32"]),
        ("config.py", ["optimizer.name=sgd"], ["optimizer.name is 'sgd'", "'adamw', 'adafactor'"]),
        (
            "config.py",
            ["model.moe.capacity_factor=0"],
            ["model.moe.capacity_factor is 0.0", "a positive number"],
        ),
        ("config.py", ["model.moe.router=gshard", "model.moe.k=5"], ["model.moe.k is 5", "num_experts (4)"]),
        (
            "config.py",
            ["model.moe.router=expert_choice"],
            ["'expert_choice'", "see the future", "allow_noncausal_router=True"],
        ),
        ("config.py", ["data.corpus=text_files:{folder}/empty.txt"], ["data.corpus", "not empty"]),
        ("config.py", ["data.corpus=text_files:{folder}/absent.txt"], ["data.corpus", "absent.txt", "matches none"]),
        ("config.py", ["data.batch_size=1000"], ["data.batch_size is 1000", "at most"]),
        (
            "config.py",
            ["model.ffn_dim=2000000000000"],
            ["bytes of parameters and moments on a device is 1536000000", "the memory of a device; mesh.fsdp"],
        ),
        ("config.py", ["eval_batches=500"], ["eval_batches is 500", "accepted: 1 to"]),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(folder, capsys, config, sets, says):
    workdir = folder / "run"
    pairs = [part for assignment in sets for part in ("--set", assignment.format(folder=folder))]
    assert main(["train", str(folder / config), "--workdir", str(workdir), *pairs]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("moe-jax train: ")
    assert output.err.count("\n") == 1
    assert all(words in output.err for words in says), output.err
    assert not workdir.exists()
    assert not list(folder.rglob("*.pyc"))


@pytest.mark.parametrize(("place", "says"), [("text.txt", "a file"), ("text.txt/below", "Not a directory")])
def test_a_workdir_that_cannot_be_one_is_one_line(folder, capsys, place, says):
    before = (folder / "text.txt").read_text()
    assert main(["train", str(folder / "config.py"), "--workdir", str(folder / place)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"workdir is {str(folder / place)!r}" in error
    assert says in error
    assert (folder / "text.txt").read_text() == before


def test_a_workdir_of_another_run_is_one_line_and_left_alone(folder, capsys):
    workdir = folder / "run"
    workdir.mkdir()
    (workdir / "run.json").write_text('{"config": {"steps": 7}}\n')
    assert main(["train", str(folder / "config.py"), "--workdir", str(workdir)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "accepted: an empty directory, or the directory of the same run" in error
    assert [path.name for path in workdir.iterdir()] == ["run.json"]


def test_a_full_disk_is_one_line_and_the_run_goes_on_with_space(folder, capsys, monkeypatch):
    command = ["train", str(folder / "config.py"), "--workdir", str(folder / "run"), "--set", "checkpoint_every=2"]
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=1000))
        patch.setattr("os._exit", sys.exit)
        with pytest.raises(SystemExit, match="1"):
            main(command)
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        rf"moe-jax train: '{folder}/run/checkpoints' cannot be written: No space left on device: a checkpoint takes up "
        r"to [0-9,]+ bytes, and 1,000 are free; the same command goes on when there is room",
        last,
    )
    assert main(command) == 0


def test_too_little_memory_for_a_step_is_one_line(folder, capsys, monkeypatch):
    def train(*_):
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nMore lines.")

    monkeypatch.setattr("moe_jax.training.loop.train", train)
    assert main(["train", str(folder / "config.py"), "--workdir", str(folder / "run")]) == 1
    said = "moe-jax train: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.; try accumulation=4, "
    assert capsys.readouterr().err.startswith(said)


def test_a_directory_whose_name_is_too_long_is_refused(folder, capsys):
    assert main(["train", str(folder / "config.py"), "--workdir", str(folder / ("x" * 300))]) == 2
    assert capsys.readouterr().err.endswith(
        "File name too long; accepted: a directory that can be written to, which is made if need be\n"
    )


def test_a_run_that_diverges_is_one_line_after_the_bar(folder, capsys):
    sets = ["--set", "optimizer.learning_rate=1e30", "--set", "optimizer.clip_norm=None", "--set", "log_every=1"]
    assert main(["train", str(folder / "config.py:dense"), "--workdir", str(folder / "run"), *sets]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines()[-1].startswith("moe-jax train: ")
    assert "training diverged" in output.err


@pytest.mark.parametrize(("argument", "name"), [("", "switch"), (":switch", "switch"), (":dense", "dense")])
def test_an_argument_after_a_colon_goes_to_get_config(folder, argument, name):
    values = load_config(f"{folder}/config.py{argument}")
    assert values["name"] == name
    assert ("moe" in values["model"]) == (name == "switch")


HELPED = """
import dataclasses
from beside.sizes import WIDTH
from ml_collections import ConfigDict
from ml_collections.config_dict import required_placeholder

@dataclasses.dataclass
class Shape:
    width: "int" = WIDTH

def get_config():
    return ConfigDict({"name": "a", "width": Shape().width, "steps": required_placeholder(int), "runs": [{"seed": 1}]})
"""


@pytest.mark.parametrize("place", ["config.py", "deep/below/config.py"])
def test_a_file_may_hold_dataclasses_import_neighbours_and_leave_fields_open(folder, monkeypatch, place):
    """The console script is started in any directory."""
    (folder / "beside").mkdir()
    (folder / "beside" / "sizes.py").write_text("WIDTH = 7\n")
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_text(HELPED)
    monkeypatch.chdir("/")
    before = list(sys.path)
    assert load_config(str(folder / place)) == {"name": "a", "width": 7, "steps": REQUIRED, "runs": [{"seed": 1}]}
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import nowhere\n", r"which raised ModuleNotFoundError\(.*nowhere.*\) at wrong.py:1"),
        ("x = 1 / 0\n", r"which raised ZeroDivisionError\(.*\) at wrong.py:1"),
        (
            "from ml_collections import ConfigDict\ndef get_config():\n    c = ConfigDict()\n    c.modle.x = 1\n",
            r"but its get_config raised AttributeError\(.*modle.*\) at ",
        ),
    ],
)
def test_a_file_that_raises_is_one_line_with_the_place(folder, capsys, text, says):
    (folder / "wrong.py").write_text(text)
    assert main(["train", str(folder / "wrong.py"), "--workdir", str(folder / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(says, error), error


def test_a_required_field_is_named_until_it_is_set(folder, capsys):
    text = (folder / "config.py").read_text().replace('"steps": 4', '"steps": 4, "seed": placeholder(int)')
    text = "from ml_collections.config_dict import required_placeholder as placeholder\n" + text
    (folder / "config.py").write_text(text.replace('"name": model', '"name": placeholder(str)'))
    assert main(["train", str(folder / "config.py"), "--workdir", str(folder / "run")]) == 2
    assert "name is a required placeholder; accepted: str, by --set name=VALUE" in capsys.readouterr().err
    assert main(["train", str(folder / "config.py"), "--workdir", str(folder / "run"), "--set", "name=a"]) == 2
    assert "seed is a required placeholder; accepted: int, by --set seed=VALUE" in capsys.readouterr().err
    sets = ["--set", "name=a", "--set", "seed=4"]
    assert main(["train", str(folder / "config.py"), "--workdir", str(folder / "run"), *sets]) == 0


def test_a_configuration_file_is_found_from_any_directory(folder, monkeypatch):
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert load_config(str(folder / "config.py")) == load_config("../config.py:switch")


def test_a_configuration_file_that_just_changed_is_read_anew(folder):
    path = folder / "config.py"
    load_config(str(path))
    content = path.read_text()
    path.write_text(content.replace('"steps": 4', '"steps": 5'))
    assert load_config(str(path))["steps"] == 5


def test_the_configurations_of_this_repository_load():
    root = Path(__file__).parents[1]
    for argument in ("dense", "switch-4"):
        assert load_config(f"{root}/configs/laptop/switch_vs_dense.py:{argument}")["name"] == argument


def test_the_module_runs_as_a_program(folder):
    command = [sys.executable, "-m", "moe_jax", "train", str(folder / "absent.py"), "--workdir", str(folder / "run")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "absent.py" in done.stderr
    assert not (folder / "run").exists()


def test_routers_are_listed_whole(capsys):
    """With what each row says checked against what is known of two of them."""
    assert main(["routers", "--json"]) == 0
    rows = {row["name"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert set(rows) == set(ROUTERS)
    assert rows["switch"] == {
        "name": "switch",
        "paper": "Fedus et al. 2021, Switch Transformers, arXiv:2101.03961",
        "year": 2021,
        "k": [1],
        "causal": True,
        "drops": True,
        "losses": {"balance_loss": 0.01, "z_loss": 0.0},
    }
    assert (rows["soft_moe"]["k"], rows["soft_moe"]["causal"], rows["soft_moe"]["drops"]) == (None, False, False)
    assert main(["routers"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "year", "k", "causal", "drops", "losses", "paper"]
    assert [line.split()[0] for line in lines] == list(ROUTERS)
    assert max(map(len, [header, *lines])) < 200
