"""Runs over several processes: joining them, waiting for all, and the one process that writes."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from moe_jax.configuration import ConfigError, require

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
    """Raises ConfigError in every process unless all processes have the same facts.

    Args:
      facts: values that JSON can hold, with the same names in every process.
    """
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(json.dumps(facts[name], sort_keys=True).encode()).digest() for name in sorted(facts)]
    everywhere = multihost_utils.process_allgather(np.stack([np.frombuffer(one, np.uint8) for one in digests]))
    for name, rows in zip(sorted(facts), np.swapaxes(everywhere, 0, 1), strict=True):
        others = [i for i, row in enumerate(rows) if not np.array_equal(row, rows[jax.process_index()])]
        accepted = "the same configuration and text in every process"
        require(not others, name, facts[name], f"{accepted}; processes {others} have another {name}")


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
