"""The folder of a case: a command runs in it, and what it did is judged."""

import importlib
import io
import os
import resource
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch

CPU_SECONDS = 10
"""That no case needs, whatever else the machine does."""
WAIT_SECONDS = 60
MEMORY = 1_000_000_000
"""Bytes of address space that a command may add to those of the tests."""
OUTPUT = "out"
"""The only folder that commands may write to, in that of the case."""


@dataclass(frozen=True)
class Command:
    """How a command is called, with flags under which it works."""

    prog: str
    entry: str
    flags: dict[str, object]
    made: str
    """What it must not leave behind when it fails, in the output folder; '' where parts are whole by themselves."""
    before: tuple[str, ...] = ()
    """Arguments before the flags."""

    def main(self, arguments: list[str]) -> object:
        module, _, name = self.entry.partition(":")
        return getattr(importlib.import_module(module), name)(arguments)

    def arguments(self, **changed: object) -> list[str]:
        """Its arguments; `data_root="x"` changes the flag `--data.root`, and None leaves one out."""
        flags = {**self.flags, **{name.replace("__", "."): value for name, value in changed.items()}}
        return [*self.before, *(f"--{name}={value}" for name, value in flags.items() if value is not None)]


class Slow(BaseException):
    """A command that was given up."""


class Place:
    """The folder of a case.

    Args:
        root: what is watched; the folder lies deep in it, so that paths out of the folder stay inside.
        good: where unspoiled inputs lie.
    """

    def __init__(self, root: Path, good: Path) -> None:
        self.root, self.good, self.folder = root, good, root / "some" / "folder" / "case"
        (self.folder / OUTPUT).mkdir(parents=True)
        (root / "some" / "neighbor.txt").write_text("as it was")
        for name in ("home", "cache", "tmp"):
            (root / name).mkdir()

    def __truediv__(self, name: str) -> Path:
        """A path in the folder, whose parents are made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def bring(self, name: str, to: str | None = None) -> Path:
        """Copy something good here."""
        target = self / (name if to is None else to)
        if (self.good / name).is_dir():
            shutil.copytree(self.good / name, target, dirs_exist_ok=True)
        else:
            shutil.copy2(self.good / name, target)
        return target

    def listing(self) -> dict[str, tuple[object, ...]]:
        """Everything but caches and outputs, with size, time and, of a link, where it points."""
        found = {}
        skipped = {self.root / "cache", self.folder / OUTPUT}
        for folder, names, files in os.walk(self.root):
            names[:] = [name for name in names if Path(folder, name) not in skipped]
            for path in (Path(folder, name) for name in (*names, *files)):
                seen = path.lstat()
                kind = stat.S_IFMT(seen.st_mode)
                link = os.readlink(path) if kind == stat.S_IFLNK else ""
                found[str(path)] = (kind, link, *((seen.st_size, seen.st_mtime_ns) if kind == stat.S_IFREG else ()))
        return found


def faults(
    command: Command,
    place: Place,
    arguments: list[str],
    named: str = "",
    may_work: bool = False,
    foreseen: bool = True,
) -> list[str]:
    """Run a command in the folder; everything that is not as it must be.

    Args:
        command: that is run.
        place: its folder.
        arguments: of the command.
        named: what its line must name.
        may_work: the input is spoiled by chance, perhaps where nobody can see it.
        foreseen: the error is one of ours, not what happened to be raised.
    """
    made = place.folder / OUTPUT / command.made
    kept = made.read_bytes() if command.made and made.is_file() else None
    before = place.listing()
    status, text = run(command, place, arguments)
    after = place.listing()
    found = [f"{status}: {text[-300:]}"] if not isinstance(status, int) else []
    found += [f"changed {path}" for path in before.keys() | after if before.get(path) != after.get(path)]
    output = place.folder / OUTPUT
    found += [f"left {path}" for path in output.rglob(".*") if "part" in path.name or "tmp" in path.name]
    if status == 0:
        return found if may_work else [*found, "ended well"]
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    if "Traceback" in text:
        found.append(f"a traceback: {lines[-1][:300]}")
    elif len(errors) != 1 or not errors[0].startswith(f"{command.prog}: error: ") or lines[-1] != errors[0]:
        found.append(f"not one line: {text[-500:]}")
    elif named not in errors[0]:
        found.append(f"does not name {named}: {errors[0]}")
    elif foreseen and "SEC4SR_TRACEBACK" in errors[0]:
        found.append(f"not foreseen: {errors[0]}")
    if "alloc" in text or "MemoryError" in text:
        found.append("took much memory")
    if command.made and (made.read_bytes() if made.is_file() else None) != kept:
        found.append(f"left {made}")
    return found


def run(command: Command, place: Place, arguments: list[str]) -> tuple[object, str]:
    """The status of a command and what stood on stderr; what else it raised, if it did."""
    shown = io.StringIO()
    status: object = 0
    environment = {"HOME": "home", "XDG_CACHE_HOME": "cache", "TMPDIR": "tmp"}
    with (
        mock.patch.dict(os.environ, {name: str(place.root / folder) for name, folder in environment.items()}),
        mock.patch.object(tempfile, "tempdir", str(place.root / "tmp")),
        redirect_stderr(shown),
        redirect_stdout(io.StringIO()),
        working_in(place.folder),
        bounded(),
    ):
        try:
            command.main(arguments)
        except SystemExit as stop:
            status = stop.code or 0
            if isinstance(stop.code, str):  # Python prints it
                status = 1
                shown.write(stop.code)
        except (Exception, Slow) as error:
            status = f"{type(error).__name__}: {error}"
    return status, shown.getvalue()


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """The current folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def bounded() -> Iterator[None]:
    """Raises `Slow` in who takes too much time, and allocations fail in who takes too much memory."""

    def stop(*_: Any) -> None:
        raise Slow

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    timers = {signal.SIGPROF: (signal.ITIMER_PROF, CPU_SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, WAIT_SECONDS)}
    handlers = {number: signal.signal(number, stop) for number in timers}
    if not torch.cuda.is_available():  # CUDA takes addresses without end
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for timer, _ in timers.values():
            signal.setitimer(timer, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_AS, limits)


@dataclass(frozen=True)
class Case:
    """A command and what is spoiled for it."""

    name: str
    command: Command
    spoil: Callable[[Place], list[str] | dict[str, object] | None]
    """Fills the folder; the arguments, flags to change, or nothing to change."""
    named: str = ""
    may_work: bool = False
    foreseen: bool = True

    def faults(self, place: Place) -> list[str]:
        """What is wrong with how the command takes it."""
        changed = self.spoil(place)
        arguments = changed if isinstance(changed, list) else self.command.arguments(**(changed or {}))
        return faults(self.command, place, arguments, self.named, self.may_work, self.foreseen)
