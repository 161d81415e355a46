"""The tests that `make check` runs, in a repository of our own."""

import time

import pytest

from tests.changed import END, find_tests

FILES = {
    "moe_jax/routing/switch.py": "",
    "moe_jax/routing/hidden.py": "",
    "tests/routing/test_switch.py": "import moe_jax.routing.hidden\n",
    "tests/routing/test_switch_losses.py": "",
    "tests/routing/test_top_k.py": "from moe_jax.routing.hidden import x\n",
    "tests/routing/every.py": "",
    "tests/experiments/test_glam.py": "",
    "tests/test_imports.py": "",
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ([], []),
        (["moe_jax/routing/switch.py"], ["tests/routing/test_switch.py", "tests/routing/test_switch_losses.py"]),
        (["moe_jax/routing/hidden.py"], ["tests/routing/test_switch.py", "tests/routing/test_top_k.py"]),
        (["tests/routing/test_top_k.py", "tests/routing/every.py"], ["tests/routing/test_top_k.py"]),
        (["experiments/glam.py", "README.md"], ["tests/experiments/test_glam.py"]),
    ],
)
def test_a_change_is_tested_by_its_mirror_or_by_who_imports_it(changed, expected, tmp_path):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert find_tests(changed, tmp_path) == sorted([*expected, "tests/test_imports.py"])


@pytest.mark.parametrize(("seconds", "passed"), [(60, 2), (-1, 0)])
def test_no_test_begins_when_the_time_is_over(seconds, passed, pytester, monkeypatch):
    monkeypatch.setenv(END, str(time.time() + seconds))
    pytester.makepyfile("def test_one(): pass\ndef test_two(): pass")
    result = pytester.runpytest_inprocess("-p", "tests.changed")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=passed)
    assert ("2 of 2 tests are left to make test" in result.stdout.str()) == (passed == 0)
