"""The kernels by name, and which of them each platform has."""

from typing import Literal

from moe_jax.configuration import ConfigError, alternatives
from moe_jax.experts.kernels.blocks import BLOCKS
from moe_jax.experts.kernels.kernel import Kernel
from moe_jax.experts.kernels.megablox import MEGABLOX
from moe_jax.experts.kernels.native import NATIVE
from moe_jax.experts.kernels.ragged_dot import RAGGED_DOT
from moe_jax.experts.kernels.tokamax import TOKAMAX, has_tokamax
from moe_jax.native.library import is_installed
from moe_jax.runtime.mesh import current_platform

KernelChoice = Literal["auto", "native", "megablox", "tokamax", "blocks", "ragged_dot"]

KERNELS: dict[str, Kernel] = {
    "native": NATIVE,
    "megablox": MEGABLOX,
    "tokamax": TOKAMAX,
    "blocks": BLOCKS,
    "ragged_dot": RAGGED_DOT,
}

# The kernels that not every platform has, and what each needs.
NEEDS = {
    "native": "a CPU, and a C++ library that installing moe_jax builds",
    "megablox": "a TPU",
    "tokamax": "a GPU, and the library tokamax of the extra gpu",
}


def available(platform: str) -> tuple[str, ...]:
    """Lists the kernels that run on `platform` (`cpu`, `gpu`, `tpu`); `auto` takes the first."""
    if platform == "cpu":
        return ("native", "blocks", "ragged_dot") if is_installed() else ("blocks", "ragged_dot")
    if platform == "tpu":
        return "megablox", "ragged_dot", "blocks"
    # tokamax was compiled for GPUs, but never timed on one, so `auto` does not take it.
    return ("ragged_dot", "tokamax", "blocks") if has_tokamax() else ("ragged_dot", "blocks")


def is_as_fast_as_dense(platform: str) -> bool:
    """Returns whether grouped products were measured on `platform` to cost no more than one product over all rows."""
    return available(platform)[0] == "native"


def choose_kernel(kernel: KernelChoice, platform: str | None = None) -> str:
    """Returns the name of the kernel that runs: `kernel`, or for `auto` the fastest.

    Args:
      kernel: a name in KERNELS, or `auto`.
      platform: `cpu`, `gpu` or `tpu`; None takes the platform that will run the program being traced.

    Raises:
      ConfigError: the platform does not have the kernel.
    """
    platform = current_platform() if platform is None else platform
    names = available(platform)
    if kernel == "auto":
        return names[0]
    if kernel not in names:
        needs = f" (it needs {NEEDS[kernel]})" if kernel in NEEDS else ""
        use = alternatives(("auto", *names))
        raise ConfigError(f"kernel is {kernel!r}, which platform {platform!r} does not have{needs}; use {use}")
    return kernel
