"""Processes of one command: they end together, and with a line that says why."""

import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning_utilities.core.rank_zero import rank_zero_only

GRACE = 5
"""Seconds in which a process may end by itself."""
LOST = re.compile(r"connection (was )?(closed|reset)|broken pipe|socket closed|recvvalue failed", re.IGNORECASE)
"""What the libraries that connect processes say where another one is gone."""


def unobserved() -> None:
    """Keep Lightning's observer from killing this process where another one has ended as it should."""
    for thread in threading.enumerate():
        if isinstance(thread, _ChildProcessObserver):
            thread._child_processes = []


def connection_lost(error: BaseException) -> bool:
    """Whether an error means that another process is gone."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and isinstance(error, RuntimeError) and LOST.search(str(error)) is not None


def who_died(children: Sequence[subprocess.Popen[Any]]) -> str:
    """The processes that this one started and that ended, and how; the numbers are Lightning's."""
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(1)
    told = []
    for number, child in enumerate(children, 1):
        if code := child.poll():
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
            told.append(f"process {number} {how}")
    return ", ".join(told) or "another process died, and its own output says why"


def end(children: Sequence[subprocess.Popen[Any]]) -> None:
    """Wait for processes that are about to end, and kill those that do not."""
    for child in children:
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()


@contextmanager
def one_fate(strategy: Any) -> Iterator[None]:
    """Where this process fails or is stopped, end those that it started.

    Args:
        strategy: of a trainer or of Fabric.

    Raises:
        ConnectionError: another process died: which, and of what, where this one started it.
    """
    try:
        yield
    except BaseException as error:
        unobserved()
        children = getattr(strategy.launcher, "procs", [])
        if isinstance(error, KeyboardInterrupt):
            for child in children:
                child.terminate()
        lost = who_died(children) if connection_lost(error) else None
        end(children)
        if lost is None:
            raise
        raise ConnectionError(f"Process {getattr(rank_zero_only, 'rank', 0)} can't go on: {lost}") from error
