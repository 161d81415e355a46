"""The environment of the campaign's processes, to be set before jax starts, and what their runs read."""

import json
import os
from importlib import metadata
from pathlib import Path

DEVICES = 8
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"


def set_environment(folder: Path, devices: int = DEVICES) -> None:
    """Forces CPU devices, compiles fast rather than well, and puts all that is kept below `folder`."""
    flags = f"--xla_force_host_platform_device_count={devices} {FLAGS}"
    if metadata.version("jaxlib").startswith("0.10."):
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "MOE_JAX_CACHE": str(folder / "cache"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TFDS_DATA_DIR": str(folder / "tfds"),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def write_pairs(path: Path) -> Path:
    """A file of JSON lines with sixty pairs of texts."""
    pairs = ({"inputs": f"{i} and {i % 7}", "targets": f"sum {i + i % 7}"} for i in range(60))
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path
