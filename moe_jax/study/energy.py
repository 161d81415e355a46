"""Counters of the energy that this machine uses."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

RAPL = Path("/sys/class/powercap")


class EnergyCounter(NamedTuple):
    """A counter of energy.

    Attributes:
      name: for readers.
      joules: returns the count so far. Only differences have a meaning, and little of one over less than half a second.
    """

    name: str
    joules: Callable[[], float]


def energy_counter(platform: str, rapl: Path = RAPL) -> EnergyCounter | None:
    """Returns the counter of the processors' packages (Linux's RAPL) or of the NVIDIA GPUs (NVML); None without one.

    Args:
      platform: the platform of JAX, `cpu` or `gpu`.
      rapl: the folder in which Linux shows RAPL.
    """
    if platform == "cpu":
        return _packages(rapl)
    return _gpus() if platform == "gpu" else None


def _packages(folder: Path) -> EnergyCounter | None:
    """Returns the counter of all packages together. A package counts up to a known value and then from 0 again."""
    zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    try:
        ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in zones]
        last = [int((zone / "energy_uj").read_text()) for zone in zones]
    except (OSError, ValueError):
        # Many systems let only the administrator read it.
        return None
    if not zones:
        return None
    microjoules = [0] * len(zones)

    def joules() -> float:
        for index, zone in enumerate(zones):
            now = int((zone / "energy_uj").read_text())
            microjoules[index] += (now - last[index]) % (ranges[index] + 1)
            last[index] = now
        return sum(microjoules) / 1e6

    return EnergyCounter("RAPL, processor packages", joules)


def _gpus() -> EnergyCounter | None:
    """Returns the counter of all GPUs together."""
    try:
        import pynvml

        pynvml.nvmlInit()
        devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]

        def joules() -> float:
            return sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, devices)) / 1e3

        joules()
    except ImportError:
        return None
    except pynvml.NVMLError:
        return None
    return EnergyCounter("NVML, GPUs", joules) if devices else None
