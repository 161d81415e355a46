"""Runs over several processes: joining them, waiting for all, and the one process that writes."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from moe_jax.configuration import ConfigError, require, unequal_fields

# Seconds of silence after which a process counts as lost, and the others end.
HEARTBEAT = 20


@dataclasses.dataclass(frozen=True)
class Processes:
    """The meeting point of a run's processes. All None lets jax read it from the environment.

    Attributes:
      coordinator: HOST:PORT of the first process.
      count: number of processes.
      index: index of this process, from 0.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None

    def __post_init__(self) -> None:
        fields = dataclasses.asdict(self)
        given = [name for name, value in fields.items() if value is not None]
        require(len(given) in (0, 3), "processes", given, "coordinator, count and index together, or none of them")
        if not given:
            return
        host, _, port = self.coordinator.rpartition(":")
        require(bool(host) and port.isdigit(), "coordinator", self.coordinator, "HOST:PORT")
        require(self.count >= 1, "count", self.count, "an integer of at least 1")
        require(0 <= self.index < self.count, "index", self.index, f"0 to {self.count - 1}")


def start(processes: Processes) -> None:
    """Joins this process with the others; call it before jax looks for devices.

    If all fields are None, jax reads them from the environment of SLURM, Open MPI, Cloud TPU or Kubernetes.

    Raises:
      ConfigError: the processes did not meet, or the environment does not name them.
    """
    # With the default, CPU devices of different processes cannot exchange data.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            processes.coordinator, processes.count, processes.index, heartbeat_timeout_seconds=HEARTBEAT
        )
    except (ValueError, RuntimeError) as error:
        accepted = (
            "accepted: a cluster that jax knows (SLURM, Open MPI, Cloud TPU, Kubernetes), or HOST:PORT,COUNT,INDEX"
        )
        raise ConfigError(f"distributed is {processes}: {error}; {accepted}") from error


def is_writer() -> bool:
    """Returns true in the one process that writes metrics."""
    return jax.process_index() == 0


def require_alike(facts: Mapping[str, Any]) -> None:
    """Raises ConfigError in every process unless all processes have the same facts; names the first that differs.

    Args:
      facts: nested values that JSON can hold.
    """
    if jax.process_count() == 1:
        return
    everywhere = [json.loads(text) for text in _gather(json.dumps(facts))]
    ours = everywhere[jax.process_index()]
    for process, theirs in enumerate(everywhere):
        for name, value, other in unequal_fields(ours, theirs):
            accepted = "the same configuration and text in every process"
            require(False, name, value, f"{accepted}; process {process} has {other!r}")


def _gather(text: str) -> list[str]:
    """Returns the texts of all processes, in their order."""
    own = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(own)))
    padded = np.zeros(max(sizes), np.uint8)
    padded[: len(own)] = own
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


@contextlib.contextmanager
def raised_everywhere() -> Iterator[None]:
    """Raises a ConfigError of one process in all of them, which wait for each other at the end of the block."""
    problem = None
    try:
        yield
    except ConfigError as error:
        problem = error
    if jax.process_count() > 1:
        refused = np.flatnonzero(multihost_utils.process_allgather(np.int32(problem is not None)))
        if len(refused) and problem is None:
            problem = ConfigError(f"processes {refused.tolist()} cannot begin; they say why")
    if problem is not None:
        raise problem
