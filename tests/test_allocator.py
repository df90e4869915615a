"""The allocator keeps large blocks, unless its user has chosen otherwise."""

import os
import platform
import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import numpy
from sec4sr_pl.allocator import keep_large_blocks
done = sys.argv[1] == "keep" and keep_large_blocks()
for _ in range(20):  # until glibc's caches of small remainders, which keep blocks apart, are full
    numpy.ones(2**23)  # 64 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    numpy.ones(2**23)
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count(mode: str, **environment: str) -> tuple[str, int]:
    """Whether it was done, and the page faults of four blocks after the first."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRE"))}
    clean["NUMPY_MADVISE_HUGEPAGE"] = "0"  # a fault a page
    command = [sys.executable, "-c", COUNT, mode]
    shown = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout.split()
    return shown[0], int(shown[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_blocks_are_used_again_without_page_faults() -> None:
    kept, lost = count("keep"), count("leave")
    assert kept[0] == "True"
    assert kept[1] < lost[1] / 10


def test_a_users_own_tuning_is_left_alone() -> None:
    assert count("keep", MALLOC_MMAP_THRESHOLD_="1000000")[0] == "False"
    assert count("keep", GLIBC_TUNABLES="glibc.malloc.check=0")[0] == "False"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_limit_of_arenas_is_no_reason_to_leave_it() -> None:
    done, faults = count("keep", MALLOC_ARENA_MAX="2")
    assert done == "True" and faults < 1_000
