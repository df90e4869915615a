"""What the machine has beside Python: shared libraries and commands, found by name.

With the variable SEC4SR_BARE set, nothing is found, as on a machine with Python alone: the tests show with it that they
don't depend on what happens to be installed.
"""

import os
import shutil
import sys
from ctypes.util import find_library
from pathlib import Path


def library(name: str) -> str | None:
    """The shared library `lib<name>`: a conda environment's own, else the system's."""
    if is_bare():
        return None
    beside = (Path(sys.prefix) / "lib" / f"lib{name}.{ending}" for ending in ("so", "dylib"))
    return next((str(path) for path in beside if path.exists()), None) or find_library(name)


def command(name: str) -> str | None:
    """The path of a command."""
    return None if is_bare() else shutil.which(name)


def cores() -> int:
    """Processors that this process may use: a container or a batch system may give fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_bare() -> bool:
    """Whether to do without."""
    return bool(os.environ.get("SEC4SR_BARE"))
