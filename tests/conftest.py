"""Eight forced CPU devices, strict promotion, annotations enforced at run time, and no test skipped."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

# Before jax starts: eight devices on any machine, and the host's other accelerators left alone.
os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling costs more than all that is computed here: machine code is not optimised, XLA's own passes are as ever.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
# One module of machine code for each program: several are for many cores, and each has its own set-up.
FLAGS += " --xla_cpu_parallel_codegen_split_count=1"
if metadata.version("jaxlib").startswith("0.10."):
    # XLA's older emitters compile twice as fast; later releases no longer have them, nor the flag.
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
# What one process of the suite compiled the others read, and nothing outlives it: the first process sets the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="moe_jax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from jaxtyping import install_import_hook

install_import_hook("moe_jax", "beartype.beartype")

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("moe_jax", deadline=None, max_examples=20, print_blob=True)
hypothesis.settings.load_profile("moe_jax")


# A compiled program holds about 4 mappings of memory (a process may have 65,530) and 1.3 MB.
MOST_MAPPINGS = 6_000


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Later files use small programs again; all go once the process holds many mappings."""
    yield
    mappings = Path("/proc/self/maps")
    if not mappings.exists() or mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


def pytest_collection_finish() -> None:
    """Modules stay as long as the process: the garbage collector need not look through them again and again."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
        # Tracing makes many small objects, nearly all of which die without the collector's help.
        gc.set_threshold(20_000, 10, 10)


class NoSkips:
    """A skipped test is a test that was not run: the suite fails."""

    def __init__(self) -> None:
        self.skipped: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped.add(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.add(report.nodeid)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.skipped and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            reporter = session.config.pluginmanager.get_plugin("terminalreporter")
            if reporter is not None:
                reporter.write_line(f"\n{len(self.skipped)} skipped: a skipped test fails the suite", red=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no process is left with one of them when the others are done."""
    long = ("test_resume", "test_notebooks", "test_switch_vs_dense")
    items.sort(key=lambda item: item.path.stem not in long)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(NoSkips())
