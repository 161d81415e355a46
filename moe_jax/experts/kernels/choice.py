"""Which kernel computes grouped products: as asked, or the fastest that a platform has."""

from typing import Literal, get_args

import jax

from moe_jax.configuration import ConfigError, require_name
from moe_jax.devices import current_platform
from moe_jax.experts.kernels.blocks import BLOCKS
from moe_jax.experts.kernels.kernel import Kernel
from moe_jax.experts.kernels.native.kernel import NATIVE, is_installed
from moe_jax.experts.kernels.ragged_dot import RAGGED_DOT

KernelChoice = Literal["auto", "native", "blocks", "ragged_dot"]

KERNELS: dict[str, Kernel] = {"native": NATIVE, "blocks": BLOCKS, "ragged_dot": RAGGED_DOT}


def available(platform: str) -> tuple[str, ...]:
    """Names of the kernels that run on `platform` (`cpu`, `gpu`, `tpu`), the one that `auto` takes first."""
    if platform == "cpu":
        return ("native", "blocks", "ragged_dot") if is_installed() else ("blocks", "ragged_dot")
    return "ragged_dot", "blocks"


def choose_kernel(choice: KernelChoice) -> str:
    """The name of the kernel that runs.

    Raises:
      ConfigError: the platform lacks what is asked for.
    """
    require_name(choice, get_args(KernelChoice), "model.moe.kernel")
    platform = current_platform()
    names = available(platform)
    if choice == "auto":
        return names[0]
    if choice not in names:
        why = "; it is built when moe_jax is installed, for CPUs" if choice == "native" else ""
        raise ConfigError(f"model.moe.kernel is {choice!r}; accepted on platform {platform!r}: auto, {', '.join(names)}{why}")
    return choice
