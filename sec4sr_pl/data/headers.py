"""Headers of audio files, each read once: those of a folder are kept in a file of `~/.cache/sec4sr_pl`."""

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sec4sr_pl import audio
from sec4sr_pl.data.problems import Problems
from sec4sr_pl.files import read_text, whole
from sec4sr_pl.types import SAMPLE_RATE

Stamp = tuple[str, int, int]
"""A file's path in its folder, bytes, and time of change in nanoseconds: what tells that it is still the same."""


def usable(folder: Path, files: Sequence[str], resample: bool, problems: Problems) -> dict[str, audio.AudioInfo]:
    """The headers of the files that can be read as 16 kHz mono, in their order.

    Args:
        folder: that holds the files, at any depth.
        files: to look at.
        resample: accept other sample rates than 16 kHz.
        problems: are told of the others.
    """
    found = {}
    for path, header in headers(folder, files, problems).items():
        if header.channels != 1:
            problems.fault(path, f"has {header.channels} channels, expected 1: mix it down to mono ({audio.CONVERT})")
        elif fits(path, header.rate, resample, problems):
            found[path] = header
    return found


def fits(path: str | Path | audio.Member, rate: int, resample: bool, problems: Problems) -> bool:
    """Whether a file has a sample rate that can be used; problems are told if not."""
    if rate == SAMPLE_RATE or resample:
        return True
    problems.fault(
        path,
        f"has {rate} samples a second, expected {SAMPLE_RATE}: convert it ({audio.CONVERT}), or set "
        "--data.resample true",
    )
    return False


def headers(folder: Path, files: Sequence[str], problems: Problems) -> dict[str, audio.AudioInfo]:
    """The headers of the files that have one; only new and changed files are opened."""
    place = hashlib.blake2b(os.fsencode(folder.absolute()), digest_size=8).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "sec4sr_pl" / f"{place}.csv"
    known = _read(cache, len(files))
    found: dict[str, audio.AudioInfo] = {}
    kept: dict[Stamp, audio.AudioInfo] = {}
    for path in files:
        try:
            path.encode()
            stamp = _stamp(path, len(str(folder)))
            found[path] = kept[stamp] = known.get(stamp) or audio.info(Path(path))
        except audio.AudioError as error:
            problems.unreadable(path, error)
        except UnicodeEncodeError:
            shown = os.fsencode(path).decode(errors="replace")
            problems.fault(shown, "has a name that is not UTF-8: rename it", "name")
    if kept != known:
        with suppress(OSError):  # a read-only home only costs the next look
            _write(cache, kept)
    return found


def _stamp(path: str, folder: int) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        audio.info(Path(path))  # says what is wrong
        raise
    return path[folder:], found.st_size, found.st_mtime_ns


def _read(cache: Path, files: int) -> dict[Stamp, audio.AudioInfo]:
    """What an earlier look found; nothing if the cache is not what that wrote."""
    try:
        checksum, _, content = read_text(cache, 4_200 * (files + 1)).partition("\n")  # a path has at most 4,096 bytes
        if checksum != _checksum(cache, content):
            return {}
        rows = csv.reader(io.StringIO(content, newline=""))
        return {(row[0], int(row[1]), int(row[2])): audio.AudioInfo(*map(int, row[3:])) for row in rows}
    except (OSError, ValueError, csv.Error):
        return {}


def _write(cache: Path, known: dict[Stamp, audio.AudioInfo]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows((*stamp, *header) for stamp, header in known.items())
    content = text.getvalue()
    with whole(cache) as partial:
        partial.write_text(f"{_checksum(cache, content)}\n{content}", encoding="utf-8", newline="")


def _checksum(cache: Path, content: str) -> str:
    """Of the content and of the folder, which the cache's name tells."""
    return hashlib.blake2b((cache.name + content).encode(), digest_size=16).hexdigest()
