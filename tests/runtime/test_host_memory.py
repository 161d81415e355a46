"""Freed memory stays with the process; its page faults show it."""

import os
import platform
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from moe_jax.runtime import host_memory
from moe_jax.runtime.host_memory import keep_freed_memory

# Allocates, touches and frees 64 MiB twice, and prints the page faults of the second time.
PROGRAM = """
import ctypes, resource, sys
from moe_jax.runtime.host_memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(2**26)
    ctypes.memset(block, 1, 2**26)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(argument: str) -> int:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", PROGRAM, argument]
    return int(subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout)


def test_memory_that_was_freed_is_faulted_in_again_only_by_default():
    if platform.libc_ver()[0] != "glibc":
        assert not keep_freed_memory()
        return
    # A page may be larger than 4 KiB, but not so large that 64 MiB are fewer than 8.
    assert page_faults("default") >= 8
    assert page_faults("keep") < 8


@pytest.mark.parametrize("module", ["moe_jax", "experiments.switch_vs_dense", "experiments.benchmarks.laptop_step"])
def test_a_program_keeps_it_from_the_start(module, monkeypatch):
    calls = []
    monkeypatch.setattr(host_memory, "keep_freed_memory", lambda: calls.append(module))
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    # The code that runs here checks its types: as the module's byte code it would fail in other processes.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with pytest.raises(SystemExit):
        runpy.run_module(module, run_name="__main__")
    assert calls == [module]
