"""Ways to compute the same thing, each in processes of its own, in turn, so that a busy machine slows all alike."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

from setting import sized

TUNED = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
"""An environment in which glibc keeps large blocks mapped."""


def median_seconds(run: Callable[[], object], runs: int, warmup: int = 1) -> float:
    """Median seconds of a run, after some that warm up."""
    times = []
    for _ in range(warmup + runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[warmup:])


def in_turn(script: str, ways: Iterable[str], rounds: int, runs: int, reference: str) -> None:
    """Run `script WAY RUNS`, which ends with a line of median seconds and what it reached, and print the table.

    Each round is a process a way, under glibc's default allocator and under a tuned one; ratios are to the reference
    under the same allocator. Progress goes to the standard error.
    """
    seconds: dict[tuple[str, str], list[float]] = {}
    reached = {}
    for turn in range(rounds):
        for allocator, environment in (("default", {}), ("tuned", TUNED)):
            for way in ways:
                print(f"\r  round {turn + 1} of {rounds}, {allocator} {way:20}", end="\r", file=sys.stderr, flush=True)
                command = [sys.executable, script, way, str(runs), *sized([], ["--smallest"])]
                shown = subprocess.run(
                    command, env=os.environ | environment, check=True, stdout=subprocess.PIPE, text=True
                )
                median, _, reached[way] = shown.stdout.strip().splitlines()[-1].partition(" ")
                seconds.setdefault((allocator, way), []).append(float(median))
    for (allocator, way), values in seconds.items():
        median, other = statistics.median(values), statistics.median(seconds[allocator, reference])
        span = f"from {min(values):.2f} to {max(values):.2f}"
        ratio = f"{median / other:5.2f} times {reference}, {other / median:5.2f} times faster"
        print(f"  {allocator:8} {way:16} {median:6.2f} s ({span}), {ratio}; {reached[way]}", flush=True)
