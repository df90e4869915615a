"""A loader whose workers only it can end."""

import multiprocessing
import os
import signal
import sys
import threading
from types import TracebackType
from typing import Any, TypeVar

from lightning_fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader, Dataset

Loaded = TypeVar("Loaded", covariant=True)


PATIENCE = 5.0
"""Seconds after which a worker notices that the process that started it is gone."""


def begin_work(worker: int) -> None:
    """Let a worker, which is born deaf to signals, be ended by the process that started it, and draw as Lightning asks.

    A loader, and Python's own exit, end their workers by SIGTERM and may wait for them without limit. A loader that is
    killed ends none, and torch's worker looks for it only if it was there when the worker began.
    """
    pl_worker_init_function(worker)  # Lightning's own, which it gives to loaders that have no other
    parent = multiprocessing.parent_process()

    def listen() -> None:
        while parent and os.getppid() == parent.pid:
            heard = signal.sigtimedwait({signal.SIGTERM}, PATIENCE)
            if heard and heard.si_pid == parent.pid:
                break
        os._exit(0)

    if hasattr(signal, "sigtimedwait"):
        threading.Thread(target=listen, daemon=True).start()
    else:  # on macOS it dies of SIGTERM as any process
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def fault(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Only of the thread that hands batches over: the loader tells what the work itself raises."""
        if not issubclass(kind, (ConnectionError, EOFError)):  # the loader ended while it took one
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = fault


class Loader(DataLoader[Loaded]):
    """A `DataLoader` whose workers do not hear the signals that end a command with all its processes.

    Whoever takes the batches hears them, and ends the workers. Else they would die while they hand a batch over, and
    tell of it.

    Args:
        dataset: of batches, where `batch_size` is None.
        batch_size: items collated into a batch.
        settings: of `DataLoader`.
    """

    def __init__(self, dataset: Dataset[Loaded], batch_size: int | None = None, **settings: Any) -> None:
        super().__init__(dataset, batch_size, worker_init_fn=begin_work, **settings)

    def __iter__(self) -> Any:
        """The batches. Workers inherit which signals are blocked while they are started."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
