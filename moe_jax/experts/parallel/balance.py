"""Placement of experts on devices that evens out the devices' loads.

E experts, P devices on the expert axis.
"""

import numpy as np
from jaxtyping import Float, Int

from moe_jax.configuration import require


def balanced_placement(
    load: Float[np.ndarray, " E"], devices: int, now: Int[np.ndarray, " E"]
) -> Int[np.ndarray, " E"]:
    """Places experts so that devices have even loads: heaviest expert first, each on the lightest device with room.

    Each device has E / P consecutive places. Devices are numbered so that few experts move, and an expert that stays on
    its device keeps its place. Nothing moves unless the heaviest device gets less.

    Args:
      load: load of each expert, in any unit.
      devices: P.
      now: present place of each expert, a permutation.

    Returns:
      The new place of each expert.

    Raises:
      ConfigError: `devices` does not divide the experts.
    """
    count = len(load)
    require(count % devices == 0, "mesh.expert", devices, f"a divisor of num_experts ({count})")
    room = count // devices
    part, total, taken = np.zeros(count, int), np.zeros(devices), np.zeros(devices, int)
    for expert in np.argsort(-load, kind="stable"):
        lightest = np.argmin(np.where(taken < room, total, np.inf))
        part[expert] = lightest
        total[lightest] += load[expert]
        taken[lightest] += 1
    if not total.max() < device_load(load, devices, now).max():
        return now.copy()
    device = _named(part, now // room, devices)[part]
    placement = np.full_like(now, -1)
    stays = device == now // room
    placement[stays] = now[stays]
    for d in range(devices):
        free = np.setdiff1d(np.arange(d * room, (d + 1) * room), now[stays])
        placement[(device == d) & ~stays] = free
    return placement


def device_load(
    load: Float[np.ndarray, " E"], devices: int, placement: Int[np.ndarray, " E"]
) -> Float[np.ndarray, " P"]:
    """Sums the load of the experts on each of P = `devices` devices."""
    return np.bincount(placement // (len(load) // devices), weights=load, minlength=devices)


def _named(part: np.ndarray, device: np.ndarray, devices: int) -> np.ndarray:
    """Numbers the parts: greedily, each becomes the device that has most of its experts now."""
    shared = np.zeros((devices, devices), int)
    np.add.at(shared, (part, device), 1)
    names = np.zeros(devices, int)
    for _ in range(devices):
        p, d = np.unravel_index(np.argmax(shared), shared.shape)
        names[p] = d
        shared[p], shared[:, d] = -1, -1
    return names
