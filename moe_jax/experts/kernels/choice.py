"""Which kernel computes grouped products: as asked, or the fastest that a platform has."""

from typing import Literal

from moe_jax.configuration import ConfigError
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

# What those need that not every platform has.
NEEDS = {
    "native": "it is built when moe_jax is installed, for CPUs",
    "megablox": "it is for TPUs",
    "tokamax": "it is in the extra gpu, for GPUs",
}


def available(platform: str) -> tuple[str, ...]:
    """Names of the kernels that run on `platform` (`cpu`, `gpu`, `tpu`), the one that `auto` takes first."""
    if platform == "cpu":
        return ("native", "blocks", "ragged_dot") if is_installed() else ("blocks", "ragged_dot")
    if platform == "tpu":
        return "megablox", "ragged_dot", "blocks"
    # tokamax has been compiled for GPUs, but not timed on one: it runs where it is asked for.
    return ("ragged_dot", "tokamax", "blocks") if has_tokamax() else ("ragged_dot", "blocks")


def is_as_fast_as_dense(platform: str) -> bool:
    """Whether grouped products cost there what one product over all rows does, as measured."""
    return available(platform)[0] == "native"


def choose_kernel(choice: KernelChoice) -> str:
    """The name of the kernel that runs.

    Raises:
      ConfigError: the platform lacks what is asked for.
    """
    platform = current_platform()
    names = available(platform)
    if choice == "auto":
        return names[0]
    if choice not in names:
        why = f"; {NEEDS[choice]}" if choice in NEEDS else ""
        accepted = f"on platform {platform!r} auto, {', '.join(names)}{why}"
        raise ConfigError(f"kernel is {choice!r}; accepted: {accepted}")
    return choice
