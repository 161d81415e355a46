"""The training loop: trains a configuration in a directory and leaves metrics and checkpoints there."""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from moe_jax.checkpoints.manager import Checkpoints
from moe_jax.configuration import require, to_dict
from moe_jax.data.pipeline import TextData, load_text
from moe_jax.runtime.files import read_json_lines
from moe_jax.training.config import TrainConfig
from moe_jax.training.distributed import is_writer, raised_everywhere, require_alike
from moe_jax.training.evaluation import evaluate
from moe_jax.training.mesh import (
    data_process,
    describe_mesh,
    make_mesh,
    process_batch,
    require_memory,
    state_shardings,
    whole_batch,
)
from moe_jax.training.optimizer import make_optimizer, make_schedule
from moe_jax.training.pretrained import Start, Teacher, load_start, load_teacher, start_from
from moe_jax.training.rebalance import rebalance
from moe_jax.training.records import NoLog, StepLog, claimed
from moe_jax.training.result import DivergenceError, RunResult
from moe_jax.training.state import TrainState, abstract_state, place_state
from moe_jax.training.step import SCORES, Batch, Metrics, make_eval_step, make_train_step
from moe_jax.training.termination import TerminatedError, termination

# A training and an evaluation step.
Steps = tuple[Callable[..., Any], Callable[..., Any]]


def train(
    config: TrainConfig,
    workdir: Path | str,
    progress: bool = True,
    compiled: MutableMapping[str, Steps] | None = None,
    line: int = 0,
) -> RunResult:
    """Trains a run, from the last checkpoint in `workdir` if it has one, else from the beginning.

    The `metrics.jsonl` of a resumed run is bit for bit that of a run never stopped. A finished run is only read.

    Args:
      config: the run.
      workdir: gets run.json, run.lock, metrics.jsonl, timing.jsonl, tensorboard/ and checkpoints/.
      progress: shows a progress bar.
      compiled: cache of compiled steps. Runs that share it and differ only in name and seed compile once. None compiles
        anew.
      line: line of the terminal for the progress bar, when several runs train side by side.

    Raises:
      ConfigError: the corpus cannot be read or is too small, the model is too large, `workdir` holds another run, or
        the run to start from or the teacher is missing. Nothing is written then.
      DivergenceError: the loss or the gradient norm is NaN or infinite.
      TerminatedError: the process was asked to stop (SIGTERM), and has saved a checkpoint.
      WriteError: a file cannot be written, as on a full disk. The last checkpoint is intact.
    """
    workdir = Path(workdir).expanduser()
    with raised_everywhere():
        mesh = make_mesh(config.mesh)
        require_memory(config, mesh)
        teacher, start = load_teacher(config, workdir, mesh), load_start(config, workdir, mesh)
        description = describe_mesh(config)
        data = load_text(config.data)
        validation = data.validation_batches(config.eval_batches)
    identity = {"config": to_dict(config), "corpus": {"name": data.corpus_name, "digest": data.digest}}
    require_alike(identity["config"] | {"corpus": identity["corpus"]})
    # Metrics are the same on any mesh, so a run may go on on another.
    del identity["config"]["mesh"]
    with contextlib.ExitStack() as stack:
        with raised_everywhere():
            if is_writer():
                stack.enter_context(claimed(workdir, identity))
        asks_to_stop = stack.enter_context(termination())
        if progress and is_writer():
            tqdm.write(description, file=sys.stderr)
        with contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints:
            if checkpoints.latest_step() != config.steps:
                compiled = {} if compiled is None else compiled
                with contextlib.closing(
                    _Session(
                        config, mesh, workdir, data, validation, checkpoints, compiled, teacher, start, asks_to_stop
                    )
                ) as session:
                    try:
                        session.run(progress, line)
                    except DivergenceError as error:
                        seconds, compiling = session.seconds, session.compile_seconds
                        error.result = _result(config, workdir, data, seconds, compiling)
                        raise
            clock = checkpoints.position()["clock"]
        if jax.process_count() == 1 and asks_to_stop(config.steps):
            raise _terminated(config.steps)
    return _result(config, workdir, data, clock["seconds"], clock["compile_seconds"])


def _terminated(step: int) -> TerminatedError:
    return TerminatedError(f"stopped by SIGTERM after step {step}, which is saved; the same command goes on from there")


def _result(config: TrainConfig, workdir: Path, data: TextData, seconds: float, compile_seconds: float) -> RunResult:
    return RunResult(
        curve=read_curve(config, workdir),
        corpus_name=data.corpus_name,
        corpus_digest=data.digest,
        seconds=seconds,
        compile_seconds=compile_seconds,
    )


def read_curve(config: TrainConfig, workdir: Path) -> list[dict[str, Any]]:
    """Reads a run's evaluations so far; see `RunResult.curve`.

    Raises:
      ConfigError: timing.jsonl lacks the seconds of an evaluation.
    """
    seconds = {line["step"]: line["seconds"] for line in read_json_lines(workdir / "timing.jsonl")}
    tokens_per_step = config.data.batch_size * config.data.tokens_per_example
    curve, logged = [], {}
    for line in read_json_lines(workdir / "metrics.jsonl"):
        split, step = line.pop("split"), line.pop("step")
        if split == "train":
            logged = {step: line}
        else:
            accepted = f"a file with the seconds of step {step}; put the run's own back, or train anew elsewhere"
            require(step in seconds, str(workdir / "timing.jsonl"), "incomplete or missing", accepted)
            point = {"step": step, "tokens": step * tokens_per_step, "seconds": seconds[step]}
            point |= {"validation_loss": line.pop("loss"), "bits_per_byte": line.pop("bits_per_byte")}
            scores = {name: line.pop(name) for name in SCORES if name in line}
            routing = {name: value for name, value in line.items() if isinstance(value, float)}
            training = {name: logged[step][name] for name in routing if step in logged}
            point |= {"load": line.get("load", {}), "routing": routing, "training": training}
            curve.append(point | ({"scores": scores} if scores else {}))
    return curve


class _Session:
    """The part of a run that one process trains, from the last checkpoint to the end."""

    def __init__(
        self,
        config: TrainConfig,
        mesh: Mesh,
        workdir: Path,
        data: TextData,
        validation: list[Batch],
        checkpoints: Checkpoints,
        compiled: MutableMapping[str, Steps],
        teacher: Teacher | None,
        start: Start | None,
        asks_to_stop: Callable[[int], bool],
    ) -> None:
        self.config = config
        self.asks_to_stop = asks_to_stop
        self.mesh = mesh
        self.data = data
        self.validation = [whole_batch(batch, mesh) for batch in validation]
        self.bytes_per_target = data.bytes_per_target(validation)
        optimizer = make_optimizer(config.optimizer, config.steps)
        schedule = make_schedule(config.optimizer, config.steps)
        self.batches = data.train_batches(config.seed, *data_process(mesh))
        self.seconds = 0.0
        self.checkpoints = checkpoints
        self.resumed = self.checkpoints.latest_step() is not None
        if self.resumed:
            self.state, position = self.checkpoints.restore(abstract_state(config, optimizer, mesh))
            self.batches.set_state(position["data"])
            self.seconds = position["clock"]["seconds"]
        else:
            self.state = place_state(config, optimizer, mesh)
            if start is not None:
                self.state = start_from(start, self.state, config.model)
        self.taught = () if teacher is None else teacher.variables
        self.step = int(self.state.step)
        # Processes agree on a step to stop after, among those that are still to come.
        asks_to_stop(self.step)
        started = time.perf_counter()
        taught = config.distillation and dataclasses.replace(config.distillation, run="")
        alike = dataclasses.replace(config, name="", seed=0, start=None, distillation=taught)
        shared = repr((to_dict(alike), teacher and teacher.config))
        if shared not in compiled:
            batch = self.validation[0]
            compiled[shared] = compile_steps(config, optimizer, schedule, self.state, batch, mesh, teacher)
        self.train_step, self.eval_step = compiled[shared]
        self.compile_seconds = time.perf_counter() - started
        # Without a checkpoint no line is kept, not even that of the evaluation before the first step.
        last = self.step if self.resumed else -1
        if not is_writer():
            self.metrics = self.timing = self.board = NoLog()
            return
        self.metrics = StepLog(workdir / "metrics.jsonl", last)
        self.timing = StepLog(workdir / "timing.jsonl", last)
        # Imported here: it imports torch where there is one, which takes seconds.
        from moe_jax.training.board import Board

        # A killed process logged later steps, and they are logged again.
        self.board = Board(workdir / "tensorboard", last + 1)

    def run(self, progress: bool, line: int) -> None:
        """Trains until the configured number of steps is done."""
        config = self.config
        tokens = config.data.batch_size * config.data.tokens_per_example
        every = config.model.moe.parallel.rebalance_every if config.model.moe else None
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            desc=config.name,
            unit="step",
            position=line,
            disable=not (progress and is_writer()),
        )
        with bar:
            if not self.resumed:
                self.evaluate()
            started = time.perf_counter()
            while self.step < config.steps:
                self.step += 1
                batch = process_batch(next(self.batches), self.mesh)
                self.state, metrics = self.train_step(self.state, batch, *self.taught)
                if every and config.mesh.expert > 1 and self.step % every == 0:
                    self.state = rebalance(self.state, metrics["load"], config, self.mesh)
                last, stops = self.step == config.steps, self.asks_to_stop(self.step)
                evaluates = last or self.step % config.eval_every == 0
                saves = last or stops or self.step % config.checkpoint_every == 0
                logs = last or self.step % config.log_every == 0
                if logs or evaluates or saves:
                    require_finite(self.step, metrics)
                if logs:
                    loss = self.log_training(metrics)
                    bar.set_postfix_str(f"loss {loss:.3f}, {tokens * (bar.format_dict['rate'] or 0):,.0f} tokens/s")
                bar.update()
                if evaluates or saves:
                    jax.block_until_ready(self.state)
                    self.seconds += time.perf_counter() - started
                    if evaluates:
                        self.evaluate()
                    if saves:
                        self.save()
                    started = time.perf_counter()
                if stops and not last:
                    raise _terminated(self.step)

    def log_training(self, metrics: Metrics) -> float:
        """Records a step's metrics and returns its loss."""
        numbers = _numbers(metrics)
        self.record("train", numbers)
        return numbers["loss"]

    def evaluate(self) -> None:
        """Evaluates, and records the metrics and the seconds of training so far."""
        batches, bytes_per_target = self.validation, self.bytes_per_target
        if self.step == self.config.steps and self.config.eval_all_at_end:
            everything = self.data.validation_batches(None)
            batches = (whole_batch(batch, self.mesh) for batch in everything)
            bytes_per_target = self.data.bytes_per_target(everything)
        numbers = evaluate(self.eval_step, self.state, batches, bytes_per_target)
        # The clock first, so that a reader of an unfinished run finds it for every validation loss.
        self.timing.append({"step": self.step, "seconds": round(self.seconds, 4)})
        self.record("validation", numbers)

    def record(self, split: str, numbers: dict[str, Any]) -> None:
        """Writes metrics to the log, and the scalars among them to TensorBoard."""
        self.metrics.append({"step": self.step, "split": split} | numbers)
        scalars = {f"{split}/{name}": value for name, value in numbers.items() if isinstance(value, float)}
        self.board.add(self.step, scalars)

    def save(self) -> None:
        """Saves the state, the clock and the position in the data, after the metrics are on disk."""
        for log in (self.metrics, self.timing, self.board):
            log.flush()
        clock = {"seconds": self.seconds, "compile_seconds": self.compile_seconds}
        self.checkpoints.save(self.step, self.state, {"data": self.batches.get_state(), "clock": clock})

    def close(self) -> None:
        """Puts the metrics on disk."""
        for log in (self.metrics, self.timing, self.board):
            log.close()


def compile_steps(
    config: TrainConfig,
    optimizer: Any,
    schedule: Any,
    state: TrainState,
    batch: Batch,
    mesh: Mesh,
    teacher: Teacher | None = None,
) -> Steps:
    """Compiles the training step, which donates its state, and the evaluation step.

    The new state is sharded like the old one, and metrics are replicated.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    out_shardings = (state_shardings(state, config.model, mesh), whole)
    step = make_train_step(config, optimizer, schedule, teacher and teacher.config)
    train_step = jax.jit(step, donate_argnums=0, out_shardings=out_shardings)
    eval_step = jax.jit(make_eval_step(config), out_shardings=whole)
    with jax.set_mesh(mesh):
        taught = () if teacher is None else teacher.variables
        return train_step.lower(state, batch, *taught).compile(), eval_step.lower(state, batch).compile()


def require_finite(step: int, metrics: Metrics) -> None:
    """Raises DivergenceError unless the loss and the gradient of a step are finite."""
    for name in ("total_loss", "gradient_norm"):
        value = float(metrics[name])
        if not math.isfinite(value):
            raise DivergenceError(
                f"{name} is {value} at step {step}: training diverged; try a lower optimizer.learning_rate, more "
                "optimizer.warmup_steps or a smaller model.init_scale"
            )


def _numbers(metrics: Metrics) -> dict[str, Any]:
    return jax.tree.map(lambda x: np.asarray(x, np.float64).tolist(), jax.device_get(metrics))
