"""The sorted list of a split's utterances, read once from the files' headers and cached."""

import csv
import os
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sec4sr_pl import audio
from sec4sr_pl.draws import key
from sec4sr_pl.types import REJECT, SAMPLE_RATE

COMMANDS = {
    "Spk251": "librispeech spk251",
    "Spk10": "download Spk10_enroll Spk10_test Spk10_imposter",
}
"""Data set -> the module beside this one, and its arguments, that bring the splits whose names begin so."""


class DataError(ValueError):
    """A data set that can't be used, with what was expected, what came, and what to do."""


class Utterance(NamedTuple):
    """A stretch of an audio file."""

    name: str
    """Unique in a data set."""
    speaker: str
    path: Path
    start: int
    """First sample, at 16 kHz."""
    frames: int
    """Samples, at 16 kHz."""
    rate: int
    """Samples a second of the file."""


def find_root(root: Path | None) -> Path:
    """The folder of the data: `root`, else the variable SEC4SR_DATA, else `data`."""
    return Path(root if root is not None else os.environ.get("SEC4SR_DATA", "data"))


def list_files(root: Path, split: str) -> list[Path]:
    """The audio files of `<root>/<split>/<speaker>/<utterance>.<wav|flac>`, sorted as strings.

    Raises:
        DataError: no such folder, no audio in it, or an utterance id that stands twice.
    """
    folder = root / split
    if not folder.is_dir():
        command = COMMANDS.get(split.partition("_")[0])
        fetch = f", or fetch it: python -m sec4sr_pl.data.{command} --root {shlex.quote(str(root))}" if command else ""
        raise DataError(
            f"There is no folder {folder}: expected {split}/<speaker>/<utterance>.wav or .flac under {root}; "
            f"set --data.root or the variable SEC4SR_DATA to the folder that holds it{fetch}"
        )
    speakers = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    files = [
        folder / speaker / name
        for speaker in speakers
        for name in sorted(os.listdir(folder / speaker))
        if name.lower().endswith(audio.EXTENSIONS) and not name.startswith(".")
    ]
    if not files:
        raise DataError(f"{folder} holds no <speaker>/<utterance>.wav or .flac")
    seen: dict[str, Path] = {}
    for path in files:
        if path.stem in seen:
            raise DataError(f"The utterance id '{path.stem}' stands twice: {seen[path.stem]} and {path}; rename one")
        seen[path.stem] = path
    return files


def scan(root: Path, split: str, resample: bool = False) -> list[Utterance]:
    """All utterances of a split, in manifest order; headers are read once and cached.

    Args:
        root: holds the splits.
        split: folder name.
        resample: accept other sample rates than 16 kHz.

    Raises:
        DataError: as `list_files`; also a file with another sample rate.
        AudioError: a file that is not audio, empty, or not mono.
    """
    files = list_files(root, split)
    stamps = [(path, path.stat()) for path in files]
    signature = key(*((path, stat.st_size, stat.st_mtime_ns) for path, stat in stamps))
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sec4sr_pl" / f"{signature:016x}.csv"
    headers = _read_cache(cache, len(files)) or _read_headers(files, cache)
    utterances = []
    for path, (frames, rate) in zip(files, headers, strict=True):
        if rate != SAMPLE_RATE and not resample:
            raise DataError(
                f"{path} has {rate} samples a second, expected {SAMPLE_RATE}: convert it, or set --data.resample true"
            )
        samples = audio.samples_at_16_khz(frames, rate)
        utterances.append(Utterance(path.stem, path.parent.name, path, 0, samples, rate))
    return utterances


def _read_cache(cache: Path, size: int) -> list[tuple[int, int]] | None:
    """Frames and rates from an earlier scan of the same files, or None."""
    try:
        with cache.open(newline="") as file:
            rows = [(int(frames), int(rate)) for frames, rate in csv.reader(file)]
    except (OSError, ValueError):
        return None
    return rows if len(rows) == size else None


def _read_headers(files: Iterable[Path], cache: Path) -> list[tuple[int, int]]:
    """Frames and rate of each file; kept in the cache where that can be written."""
    headers = []
    for path in files:
        header = audio.info(path)
        if header.channels != 1:
            raise audio.AudioError(f"{path} has {header.channels} channels, expected 1: mix it down to mono")
        headers.append((header.frames, header.rate))
    temporary = cache.with_suffix(f".{os.getpid()}")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", newline="") as file:
            csv.writer(file).writerows(headers)
        temporary.replace(cache)
    except OSError:  # a read-only home only costs the next scan
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return headers


def split_development(
    utterances: Sequence[Utterance], fraction: float, minimum: int
) -> tuple[list[Utterance], list[Utterance]]:
    """Divide the training utterances into a training and a development part, speaker by speaker.

    Of a speaker with several utterances the last ones are held out, of a speaker with one its last stretch.

    Args:
        utterances: sorted.
        fraction: of each speaker's material that is held out.
        minimum: samples of the shortest development stretch, where that leaves at least as many for training.
    """
    speakers: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        speakers.setdefault(utterance.speaker, []).append(utterance)
    train: list[Utterance] = []
    development: list[Utterance] = []
    for own in speakers.values():
        if len(own) > 1:
            held_out = min(max(1, round(len(own) * fraction)), len(own) - 1)
            train += own[:-held_out]
            development += own[-held_out:]
        else:
            (whole,) = own
            stretch = min(max(int(whole.frames * fraction), minimum), whole.frames // 2)
            cut = whole.frames - stretch
            train.append(whole._replace(frames=cut))
            development.append(whole._replace(name=f"{whole.name}-dev", start=whole.start + cut, frames=stretch))
    return train, development


def listed(utterances: Sequence[Utterance], path: Path) -> list[Utterance]:
    """The utterances of the speakers of a file with a speaker a line.

    Raises:
        DataError: no such file, or a listed speaker who is not there.
    """
    if not path.is_file():
        raise DataError(f"There is no {path}: expected a file with a speaker a line")
    names = set(path.read_text().split())
    if missing := sorted(names - {utterance.speaker for utterance in utterances}):
        raise DataError(f"{len(missing)} speakers of {path} have no utterance: {', '.join(missing[:5])}")
    return [utterance for utterance in utterances if utterance.speaker in names]


def segments(utterances: Sequence[Utterance], seconds: float) -> list[Utterance]:
    """Utterances in equal pieces of at least so many seconds; shorter ones stay whole."""
    pieces = []
    for utterance in utterances:
        count = max(1, int(utterance.frames / (seconds * SAMPLE_RATE)))
        size = utterance.frames // count
        pieces += [
            utterance._replace(name=f"{utterance.name}#{index}", start=utterance.start + index * size, frames=size)
            for index in range(count)
        ]
    return pieces


def label(utterances: Sequence[Utterance], speakers: Sequence[str], closed: bool = True) -> list[int]:
    """The index of each utterance's speaker among `speakers`; an unknown one is REJECT (-1) in an open set.

    Raises:
        DataError: an unknown speaker in a closed set.
    """
    index = {name: position for position, name in enumerate(speakers)}
    unknown = sorted({utterance.speaker for utterance in utterances} - index.keys())
    if unknown and closed:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise DataError(
            f"{len(unknown)} speakers of the data are unknown to the recognizer ({shown}); it knows {len(index)}: "
            f"{', '.join(list(index)[:5])}{', ...' if len(index) > 5 else ''}. A closed set must know all"
        )
    return [index.get(utterance.speaker, REJECT) for utterance in utterances]
