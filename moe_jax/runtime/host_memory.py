"""Memory settings of this process's C library."""

import ctypes
import sys

# From glibc's malloc.h: one heap for all threads, large blocks from that heap too, and nothing handed back.
_M_ARENA_MAX, _M_MMAP_MAX, _M_TRIM_THRESHOLD = -8, -4, -1
_SETTINGS = {_M_ARENA_MAX: 1, _M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1}


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory instead of returning it to the kernel; returns true if glibc accepts this.

    On a CPU XLA allocates a step's temporary buffers when the step starts and frees them when it ends. By default glibc
    returns such large blocks at once, which costs tens of thousands of page faults in each step. Call this before JAX
    starts its threads; later it has no effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    heard = [mallopt(option, value) == 1 for option, value in _SETTINGS.items()]
    return all(heard)
