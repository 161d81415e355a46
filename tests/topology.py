"""Devices to compile for on a machine that has none of them, from libtpu (extra `tpu-plan`)."""

import functools
import importlib.util
import os
from typing import Any

import numpy as np
from jax.experimental import topologies

HAS_TPUS = importlib.util.find_spec("libtpu") is not None


@functools.cache
def tpu_devices(topology: str) -> Any:
    """The devices of a slice, as `v5e:2x4`, in an array of one axis."""
    # Others may have loaded libtpu, and there is nothing to ask about a machine that is not there.
    os.environ |= {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
    return np.array(topologies.get_topology_desc(topology, "tpu").devices)
