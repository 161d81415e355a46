"""The kernel that runs is the one that is asked for, or the platform's fastest."""

import re

import pytest

from moe_jax.configuration import ConfigError
from moe_jax.experts.kernels.choice import available, choose_kernel, is_as_fast_as_dense


def refusal(kernel, needs, use):
    """The whole message, as a regular expression."""
    return "^" + re.escape(f"kernel is {kernel!r}, which platform 'cpu' does not have ({needs}); use {use}") + "$"


def test_the_cpu_has_its_own_kernel():
    """Built by the installation; without it the fastest of the others runs, unless it is asked for by name."""
    assert available("cpu")[0] == choose_kernel("auto") == choose_kernel("auto", "cpu") == "native"


def test_what_a_platform_lacks_is_refused(monkeypatch):
    monkeypatch.setattr("moe_jax.experts.kernels.choice.is_installed", lambda: False)
    assert choose_kernel("auto") == "blocks"
    needs = "it needs a CPU, and a C++ library that installing moe_jax builds"
    with pytest.raises(ConfigError, match=refusal("native", needs, "'auto', 'blocks' or 'ragged_dot'")):
        choose_kernel("native")


def test_each_platform_has_its_own(monkeypatch):
    assert available("tpu") == ("megablox", "ragged_dot", "blocks")
    for installed, names in ((True, ("ragged_dot", "tokamax", "blocks")), (False, ("ragged_dot", "blocks"))):
        monkeypatch.setattr("moe_jax.experts.kernels.choice.has_tokamax", lambda installed=installed: installed)
        assert available("gpu") == names
    for kernel, needs in (("megablox", "a TPU"), ("tokamax", "a GPU, and the library tokamax of the extra gpu")):
        use = "'auto', 'native', 'blocks' or 'ragged_dot'"
        with pytest.raises(ConfigError, match=refusal(kernel, f"it needs {needs}", use)):
            choose_kernel(kernel)


def test_only_a_kernel_that_was_measured_replaces_dense_products():
    assert [is_as_fast_as_dense(platform) for platform in ("cpu", "gpu", "tpu")] == [True, False, False]
