"""Memory that stays mapped: on Linux a page fault costs more than the arithmetic on the page."""

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST = 2**31 - 1
TUNED = ("MALLOC_MMAP_", "MALLOC_TRIM_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_large_blocks() -> bool:
    """Let glibc serve blocks of any size from its heap and keep what is freed, for this process.

    By default it maps a block of more than 32 MB anew at each call and returns the end of the heap to the system, so
    every training step pays for fresh zeroed pages. The process then holds its largest demand until it ends. Nothing is
    changed where the user has set an allocator or a tunable (`TUNED`), or without glibc.

    Returns:
        Whether it was done.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(TUNED) for name in os.environ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST))
