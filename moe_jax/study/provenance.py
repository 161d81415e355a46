"""The origin of a result besides its configuration and corpus: the code, the software and the machine."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

import moe_jax

RESULTS = "experiments/results"
"""Folder of a repository to which studies write while they run."""


def git_revision(directory: Path | None = None) -> str:
    """Returns the commit of `directory` (default: this package): `abc123`, `abc123+changes`, or `unknown` outside git.

    `+changes` says that a tracked file differs from the commit, other than under RESULTS. A package that was copied
    into another project's repository without being tracked there has no revision of its own and is `unknown` too.
    """
    directory = directory or Path(moe_jax.__file__).parent
    if not _git(directory, "ls-files"):
        return "unknown"
    revision = _git(directory, "describe", "--always", "--exclude=*")
    changed = _git(directory, "diff", "--name-only", "HEAD", "--", ":(top)", f":(top,exclude){RESULTS}")
    return revision + "+changes" * bool(changed) if revision else "unknown"


def host() -> dict[str, Any]:
    """Describes the machine: its processor, the cores this process may use, and the devices of JAX."""
    device = jax.devices()[0]
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": device.platform,
        "device": device.device_kind,
        "devices": jax.device_count(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python, of this package and of the libraries that decide a run's numbers."""
    libraries = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
    return {"python": platform.python_version(), **libraries, "moe_jax": moe_jax.__version__}


def _git(directory: Path, *arguments: str) -> str:
    """Returns the output of git; empty without git or a repository."""
    try:
        done = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _processor() -> str:
    """Returns the processor's name as Linux prints it, or as Python knows it elsewhere."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
