"""Files that are whole or not there, and names that stay inside their folder."""

import csv
import errno
import hashlib
import io
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePath

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a disk without room."""
STALE = 3600.0
"""Seconds without a write after which a hidden file was left by a kill."""
HIDDEN = re.compile(r"\..+\.[0-9a-f]{16}\.partial", re.DOTALL)
"""The name of a file that is not yet whole."""
LONGEST = 200
"""Bytes of a file's name, which leaves room for what is put before and behind it."""
SPEECH = (".wav", ".flac")
"""Endings of the recordings that are read."""
LARGEST = 1_000_000_000
"""Bytes of the longest text that is read."""
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """An empty hidden file beside a file, to write to; at the end of the block it is on the disk and takes its place.

    Each call has a hidden file of its own, so several may write one file: a reader meets one of them, whole. An error
    leaves the file as it was, and nothing else. A kill leaves `.<name>.<random>.partial` as well, which a later process
    that writes into the folder removes if it is an hour old.

    Args:
        path: of the file, whose folder is made if missing.

    Raises:
        OSError: it can't be written, or something else than a plain file has the name.
    """
    path = Path(path)
    with _naming(path):
        refuse_others(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _hidden(path)
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        if error.errno in FULL:  # a write that fails does not say where
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Try what `whole` will do, before the work whose result it is to write; nothing stays, not even a folder.

    Raises:
        OSError: as `whole`.
    """
    path = Path(path)
    folder = next(parent for parent in path.parents if os.path.lexists(parent))
    with _naming(path):
        refuse_others(path)
        _hidden(folder / path.name).unlink()


def check_output(path: str | Path, *inputs: str | Path | None) -> None:
    """`check_writable`, of what is no input.

    Args:
        path: of the file to write.
        inputs: files, and folders of speech.

    Raises:
        ValueError: one of the files, or a recording in one of the folders.
        OSError: as `check_writable`.
    """
    real = Path(os.path.realpath(path))
    recording = real.suffix.lower() in SPEECH and real.is_file()
    for given in inputs:
        if given is not None and (same(path, given) or (recording and real.is_relative_to(os.path.realpath(given)))):
            raise ValueError(f"Expected another output than {path}, an input, which would be written over")
    check_writable(path)


def same(path: str | Path, other: str | Path) -> bool:
    """Whether two paths are of one file, there or not; a link that leads to itself is told where it is opened."""
    return os.path.realpath(path) == os.path.realpath(other)


def refuse_others(path: Path) -> None:
    """Refuse to write where something else than a plain file has the name.

    Raises:
        FileExistsError: a link, a folder, a device or a pipe.
    """
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if kind != stat.S_IFREG:
        raise FileExistsError(errno.EEXIST, f"Expected a file or a free name, got {KINDS[kind]}", str(path))


def _hidden(path: Path) -> Path:
    """An empty file beside another, of a name that nobody can know before, with the mode that the umask gives."""
    _sweep(path.parent.absolute())
    partial = path.with_name(f".{path.name[: LONGEST // 4]}.{secrets.token_hex(8)}.partial")
    partial.touch(exist_ok=False)  # exclusive: neither another's file nor where a link points
    return partial


@cache
def _sweep(folder: Path) -> None:
    """Remove the hidden files that kills left in a folder; once a process, as a listing of many files takes long."""
    sweep(folder, STALE)


def sweep(folder: Path, age: float) -> None:
    """Remove the hidden files of `whole` in a folder that nobody has written to for so many seconds."""
    for left in os.scandir(folder):
        if HIDDEN.fullmatch(left.name):
            with suppress(OSError):  # gone, or not ours
                if time.time() - left.stat(follow_symlinks=False).st_mtime > age:
                    os.unlink(left.path)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors name this file, not a hidden one or a folder."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_text(path: Path, largest: int = LARGEST) -> str:
    """The text of a file, whose kind and size are looked at before it is read.

    Raises:
        OSError: it can't be read.
        ValueError: a pipe, a device or a folder, a file that is too large, or one that is no text in UTF-8.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"Expected {path} to be a file, got {KINDS[stat.S_IFMT(found.st_mode)]}")
        if found.st_size > largest:
            raise ValueError(f"Expected {path} to be a text of at most {largest:,} bytes, got {found.st_size:,}")
        data = file.read()
    try:
        return data.decode("utf-8-sig")  # some programs begin with a mark of the order of bytes
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: expected text in UTF-8, got the byte {data[error.start]:#04x}"
        ) from error


def read_rows(path: Path) -> list[list[str]]:
    """The rows of a CSV file.

    Raises:
        OSError, ValueError: as `read_text`, or a row that is none.
    """
    rows = csv.reader(io.StringIO(read_text(path), newline=""))
    try:
        return list(rows)
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: expected a row of a CSV file, got one with {error}") from error


def inside(folder: Path, name: str | PurePath) -> Path:
    """The path of a name in a folder.

    Raises:
        ValueError: a name that may lead out of it.
    """
    path = folder / name
    if not path.is_relative_to(folder) or ".." in PurePath(name).parts or "\0" in str(name):
        raise ValueError(f"Expected the name of something inside {folder}, got '{name}'")
    return path


def filename(name: str) -> str:
    """A name as that of a file, one of its own: what could lead out of a folder becomes %XX, and much is cut.

    Most names stay as they are, with spaces, `#`, `~` and letters of any script.
    """
    safe = re.sub(r"^\.|[%/\\\x00-\x1f\x7f\ud800-\udfff]", lambda found: f"%{ord(found[0]):02X}", name) or "%"
    encoded = safe.encode()
    if len(encoded) <= LONGEST:
        return safe
    return f"{encoded[: LONGEST - 66].decode(errors='ignore')}%%{hashlib.sha256(encoded).hexdigest()}"
