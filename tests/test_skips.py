"""A skipped test fails the suite."""

import pathlib

import pytest

CONFTEST = pathlib.Path(__file__).with_name("conftest.py").read_text()

SKIPS = {
    "mark": "import pytest\n@pytest.mark.skip\ndef test_one(): pass\ndef test_two(): pass",
    "skipif": "import pytest\n@pytest.mark.skipif(True, reason='')\ndef test_one(): pass\ndef test_two(): pass",
    "call": "import pytest\ndef test_one(): pytest.skip()\ndef test_two(): pass",
    "fixture": "import pytest\n@pytest.fixture\ndef f(): pytest.skip()\ndef test_one(f): pass\ndef test_two(): pass",
    "no_parameters": "import pytest\n@pytest.mark.parametrize('x', [])\ndef test_one(x): pass\ndef test_two(): pass",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n  def test_one(self): self.skipTest('')\n"
    "  def test_two(self): pass",
}


@pytest.mark.parametrize("skip", SKIPS)
def test_a_skipped_test_fails_the_suite(pytester, skip):
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(SKIPS[skip])
    result = pytester.runpytest_inprocess()
    result.assert_outcomes(passed=1, skipped=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("options", [[], ["-q"], ["-p", "no:terminal"]])
@pytest.mark.parametrize("skip", ["pytest.importorskip('no_such_module')", "pytest.skip('', allow_module_level=True)"])
def test_a_module_skipped_while_it_is_collected_fails_the_suite(pytester, skip, options):
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_skipping=f"import pytest\n{skip}", test_passing="def test_one(): pass")
    assert pytester.runpytest_inprocess(*options).ret == pytest.ExitCode.TESTS_FAILED


def test_a_suite_that_skips_nothing_passes(pytester):
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("def test_one(): pass")
    assert pytester.runpytest_inprocess().ret == pytest.ExitCode.OK
