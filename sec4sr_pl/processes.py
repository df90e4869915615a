"""Processes of one command: they end together, and with a line that says why."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from lightning_fabric.strategies.launchers import subprocess_script
from lightning_utilities.core.rank_zero import rank_zero_only

GRACE = 5
"""Seconds in which a process may end by itself."""
STOPPED = {
    128 + signal.SIGTERM: signal.SIGTERM,
    -signal.SIGTERM: signal.SIGTERM,
    128 + signal.SIGINT: signal.SIGINT,
    -signal.SIGINT: signal.SIGINT,
}
"""How a process ends that was told to, and by what."""
LOST = re.compile(r"connection (was )?(closed|reset)|broken pipe|socket closed|recvvalue failed", re.IGNORECASE)
"""What the libraries that connect processes say where another one is gone."""


class Observer(subprocess_script._ChildProcessObserver):
    """Lightning's kills this process where one that it started failed; where that was told to stop, this ends alike.

    A process that waits for another, which is gone, hears of no signal.
    """

    def _run(self) -> bool:
        codes = [child.poll() for child in self._child_processes]
        if not any(codes):
            return all(code == 0 for code in codes)  # else one that ends now as it was told to would be a failure below
        asked = next((STOPPED[code] for code in codes if code in STOPPED), None)
        if asked is None:
            return super()._run()
        time.sleep(GRACE)
        if not self._child_processes:  # this process has heard, and is about to end
            return True
        for child in self._child_processes:
            child.kill()
        os.write(2, f"stopped by {asked.name} while the processes of this command waited for each other\n".encode())
        os._exit(128 + asked)


subprocess_script._ChildProcessObserver = Observer  # type: ignore[misc]


def unobserved() -> None:
    """Keep the observer from ending this process where another one has ended as it should."""
    for thread in threading.enumerate():
        if isinstance(thread, Observer):
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
