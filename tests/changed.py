"""Tests of what changed: `python -m tests.changed [REVISION]` prints their files, for `make check`.

A changed module is tested by the file that mirrors it (moe_jax/a/b.py by tests/a/test_b.py, and by test_b_*.py beside
it), or where there is none by the files of its mirrored folder that import it. That is a look within seconds, and no
proof: `make test` runs all. As a plugin of pytest (`-p tests.changed`) it begins no test after SECONDS, and says how
many are left.
"""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Quick, and about every file.
ALWAYS = ("tests/test_imports.py",)
SECONDS = 45
END = "MOE_JAX_CHECK_ENDS"
"""Environment variable with the end of the run, in seconds since the epoch, for all its processes."""


def changed_files(revision: str) -> list[str]:
    """Lists the files that differ from a revision, those that git does not track included."""
    tracked = ["git", "diff", "--name-only", "--diff-filter=d", revision]
    untracked = ["git", "ls-files", "--others", "--exclude-standard"]
    outputs = (
        subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True) for words in (tracked, untracked)
    )
    return sorted(line for output in outputs for line in output.stdout.splitlines())


def find_tests(changed: list[str], root: Path = ROOT) -> list[str]:
    """Finds the files of tests to run after a change of these files, relative to `root`."""
    chosen = {name for name in ALWAYS if (root / name).exists()}
    for name in changed:
        path = Path(name)
        if path.suffix != ".py":
            continue
        if path.parts[0] == "tests":
            chosen |= {name} if path.name.startswith("test_") else set()
            continue
        inside = path.parts[1:-1] if path.parts[0] == "moe_jax" else path.parts[:-1]
        folder = root.joinpath("tests", *inside)
        mirrors = {folder / f"test_{path.stem}.py", *folder.glob(f"test_{path.stem}_*.py")}
        found = {test for test in mirrors if test.exists()} or _importers(path, folder)
        chosen |= {str(test.relative_to(root)) for test in found}
    return sorted(chosen)


def _importers(path: Path, folder: Path) -> set[Path]:
    """Returns the tests of a folder that import a module."""
    parts = path.with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return {test for test in folder.glob("test_*.py") if module in _imported(test)}


def _imported(test: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(test.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


class Deadline:
    """A plugin that begins no test once the time of the run is over."""

    def __init__(self) -> None:
        self.collected = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self) -> bool | None:
        return True if time.time() > float(os.environ[END]) else None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.collected = self.collected or len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.collected = len(ids)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        reports = (report for reports in terminalreporter.stats.values() for report in reports)
        begun = {report.nodeid for report in reports if isinstance(report, pytest.TestReport)}
        if len(begun) < self.collected:
            left = self.collected - len(begun)
            terminalreporter.write_line(f"{SECONDS} s are over: {left} of {self.collected} tests are left to make test")


def pytest_configure(config: pytest.Config) -> None:
    """Sets the end of the run, once for all its processes."""
    os.environ.setdefault(END, str(time.time() + SECONDS))
    config.pluginmanager.register(Deadline())


if __name__ == "__main__":
    print("\n".join(find_tests(changed_files(sys.argv[1] if len(sys.argv) > 1 else "HEAD"))))
