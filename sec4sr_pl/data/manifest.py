"""The sorted list of a split's utterances, from the files' headers, read once and cached, or from an index."""

import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from sec4sr_pl import audio
from sec4sr_pl.data import tree
from sec4sr_pl.data.headers import fits, usable
from sec4sr_pl.data.problems import DataError as DataError
from sec4sr_pl.data.problems import Problems
from sec4sr_pl.files import inside, read_rows, read_text
from sec4sr_pl.types import REJECT, SAMPLE_RATE

COMMANDS = {
    "Spk251": "librispeech spk251",
    "Spk10": "download Spk10_enroll Spk10_test Spk10_imposter",
}
"""Data set -> the module beside this one, and its arguments, that bring the splits whose names begin so."""


INDEX = "index.csv"
"""In a split's folder: its utterances are in shards, see `sec4sr_pl.data.shards`."""
LONGEST = 86_400.0
"""Seconds, a day: no crop or segment is longer."""


class Utterance(NamedTuple):
    """A stretch of an audio file."""

    name: str
    """Unique in a data set."""
    speaker: str
    path: Path | audio.Member
    start: int
    """First sample, at 16 kHz."""
    frames: int
    """Samples, at 16 kHz."""
    rate: int
    """Samples a second of the file."""


def find_root(root: Path | None) -> Path:
    """The folder of the data: `root`, else the variable SEC4SR_DATA, else `data`."""
    return Path(root if root is not None else os.environ.get("SEC4SR_DATA", "data")).expanduser()


def to_samples(seconds: float, name: str, least: float = 1 / SAMPLE_RATE) -> int:
    """A length in samples at 16 kHz.

    Args:
        seconds: the length.
        name: of the parameter.
        least: seconds.

    Raises:
        ValueError: a length below the least or above a day, or none (NaN).
    """
    if not least <= seconds <= LONGEST:
        above = "of at least 0" if least <= 0 else "above 0"
        raise ValueError(f"Expected {name} {above} and at most {LONGEST:.0f} (a day), got {seconds}")
    return round(seconds * SAMPLE_RATE)


def list_files(root: Path, split: str, folders: str = "speaker", problems: Problems | None = None) -> list[str]:
    """The audio files of `<root>/<split>/<speaker>/<utterance>.<wav|flac>`, sorted as strings.

    Args:
        root: holds the splits.
        split: folder name.
        folders: names of those below the split, e.g. `speaker/session` where each session (video, chapter) has one.
        problems: are told what is wrong with the files; None: a fault is raised.

    Raises:
        DataError: no such folder.
        ValueError: `folders` without a speaker.
    """
    names, folder = tree.parse(folders), root / split
    if not folder.is_dir():
        expected = "/".join(f"<{name}>" for name in (*names, "utterance"))
        command = COMMANDS.get(split.partition("_")[0])
        fetch = f", or fetch it: python -m sec4sr_pl.data.{command} --root {shlex.quote(str(root))}" if command else ""
        raise DataError(
            f"There is no folder {folder}: expected {split}/{expected}.wav or .flac under {root}; "
            f"set --data.root or the variable SEC4SR_DATA to the folder that holds it{fetch}"
        )
    told = Problems()
    files = tree.list_files(folder, names, told)
    told.pass_to(problems)
    return files


def scan(
    root: Path, split: str, resample: bool = False, folders: str = "speaker", problems: Problems | None = None
) -> list[Utterance]:
    """All utterances of a split, in manifest order; headers are read once and cached.

    Args:
        root: holds the splits.
        split: folder name.
        resample: accept other sample rates than 16 kHz.
        folders: as in `list_files`.
        problems: are told of all that can't be used and of what is left out; None: the one is raised, the other warned.

    Raises:
        DataError: no such folder, a damaged index of shards, or, without `problems`, files that can't be used.
        ValueError: `folders` without a speaker.
    """
    told = Problems()
    if (root / split / INDEX).is_file():
        indexed = read_index(root / split, told)
        utterances = [one for one in indexed if fits(one.path, one.rate, resample, told)]
    else:
        files, names = list_files(root, split, folders, told), tree.parse(folders)
        ids = tree.name_utterances(files, names, told)
        place = names.index("speaker") - len(names) - 1
        utterances = [
            _whole(path, header, ids[path], path.split(os.sep)[place])
            for path, header in usable(root / split, files, resample, told).items()
        ]
    told.pass_to(problems)
    return utterances


def find_sounds(folder: Path, resample: bool, problems: Problems) -> list[Utterance]:
    """The usable audio files of a folder at any depth, sorted as strings.

    Args:
        folder: of noises or rooms.
        resample: accept other sample rates than 16 kHz.
        problems: are told of the other files, and of a folder without any.
    """
    found = [*tree.audio_below(str(folder))] if folder.is_dir() else []
    files = [path for path in found if tree.is_read(path)]
    tree.note_left_out(folder, [path for path in found if not tree.is_read(path)], ".wav or .flac", problems)
    if not files:
        problems.fault(folder, "is no folder with wav or flac files: expected some, 16 kHz mono")
    return [
        _whole(path, header, path[len(str(folder)) + 1 :], "")
        for path, header in usable(folder, files, resample, problems).items()
    ]


def _whole(path: str, header: audio.AudioInfo, name: str, speaker: str) -> Utterance:
    return Utterance(name, speaker, Path(path), 0, audio.samples_at_16_khz(header.frames, header.rate), header.rate)


def read_index(folder: Path, problems: Problems) -> list[Utterance]:
    """The utterances of a folder of shards, in the order of its `index.csv`.

    Args:
        folder: of the split.
        problems: are told of shards that are missing or end too early.

    Raises:
        DataError: no row, or one in another form.
    """
    utterances: dict[str, Utterance] = {}
    ends: dict[Path, int] = defaultdict(int)
    for row in read_rows(folder / INDEX):
        try:
            utterance = _indexed(folder, *row)
            if utterances.setdefault(utterance.name, utterance) is not utterance:
                raise ValueError("expected each name once")
        except ValueError as error:
            raise DataError(f"{folder / INDEX} has the row {row} ({error}): make the shards again") from error
        member: Any = utterance.path
        ends[member.archive] = max(ends[member.archive], member.offset + member.size)
    if not utterances:
        raise DataError(f"{folder / INDEX} has no row: make the shards again")
    for archive, end in ends.items():
        there = archive.stat().st_size if archive.is_file() else 0
        if there < end:
            problems.fault(archive, f"has {there} bytes, expected at least {end}: make the shards again", "shard")
    return [*utterances.values()]


def _indexed(folder: Path, *row: str) -> Utterance:
    """The utterance of a row of an index."""
    name, speaker, frames, rate, shard, path, size, offset = row
    numbers = [int(number) for number in (frames, rate, size, offset)]
    if min(numbers[:3]) < 1 or numbers[3] < 0:
        raise ValueError("expected positive numbers")
    inside(folder, path)  # where it lay before, and will if it is unpacked
    return Utterance(name, speaker, audio.Member(inside(folder, shard), path, numbers[3], numbers[2]), 0, *numbers[:2])


def join(splits: Mapping[str, Sequence[Utterance]]) -> list[Utterance]:
    """The utterances of several splits, one after the other; an id that stands in several gets the split before it."""
    counts = Counter(chain.from_iterable({one.name for one in utterances} for utterances in splits.values()))
    return [
        one._replace(name=f"{split}/{one.name}") if counts[one.name] > 1 else one
        for split, utterances in splits.items()
        for one in utterances
    ]


def mono(path: Path) -> audio.AudioInfo:
    """The header of a file with one channel.

    Raises:
        AudioError: as `audio.info`, or a file with more.
    """
    header = audio.info(path)
    if header.channels != 1:
        raise audio.AudioError(f"{path} has {header.channels} channels, expected 1: mix it down to mono")
    return header


def directory(utterance: Utterance) -> PurePath:
    """Where an utterance's file lies; of one in a shard, where it lay before."""
    path = utterance.path
    return path.parent if isinstance(path, Path) else (path.archive.parent / path.name).parent


def split_development(
    utterances: Sequence[Utterance], fraction: float, minimum: int
) -> tuple[list[Utterance], list[Utterance]]:
    """Divide the training utterances into a training and a development part, speaker by speaker.

    Of a speaker with several utterances the last ones are held out, in turn from each of the folders (sessions) they
    lie in; of a speaker with one its last stretch.

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
            count = min(max(1, round(len(own) * fraction)), len(own) - 1)
            held_out = set(_last_in_turn(own)[:count])
            for place, utterance in enumerate(own):
                (development if place in held_out else train).append(utterance)
        else:
            (whole,) = own
            stretch = min(max(int(whole.frames * fraction), minimum), whole.frames // 2)
            cut = whole.frames - stretch
            train.append(whole._replace(frames=cut))
            development.append(whole._replace(name=f"{whole.name}-dev", start=whole.start + cut, frames=stretch))
    return train, development


def _last_in_turn(utterances: Sequence[Utterance]) -> list[int]:
    """Places of utterances: the last of each folder, from the last folder on, then those before them, and so on."""
    seen: Counter[PurePath] = Counter()
    turns = []
    for place in reversed(range(len(utterances))):
        session = directory(utterances[place])
        turns.append((seen[session], -place))
        seen[session] += 1
    return [-place for _, place in sorted(turns)]


def listed(utterances: Sequence[Utterance], path: Path) -> list[Utterance]:
    """The utterances of the speakers of a file with a speaker a line.

    Raises:
        DataError: no such file, no speaker in it, or a listed speaker who is not there.
    """
    if not path.is_file():
        raise DataError(f"There is no {path}: expected a file with a speaker a line")
    names = set(read_text(path).split())
    if not names:
        raise DataError(f"{path} names no speaker: expected a speaker a line")
    if missing := sorted(names - {utterance.speaker for utterance in utterances}):
        raise DataError(f"{len(missing)} speakers of {path} have no utterance: {', '.join(missing[:5])}")
    return [utterance for utterance in utterances if utterance.speaker in names]


def segments(utterances: Sequence[Utterance], least: int) -> list[Utterance]:
    """Utterances in equal pieces of at least so many samples; shorter ones stay whole."""
    pieces = []
    for utterance in utterances:
        count = max(1, utterance.frames // least)
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


def shortened(utterances: Iterable[Utterance], max_seconds: float | None) -> list[Utterance]:
    """The first so many seconds of each utterance; None: all of it.

    Raises:
        ValueError: no length.
    """
    if max_seconds is None:
        return [*utterances]
    most = to_samples(max_seconds, "max_seconds")
    return [utterance._replace(frames=min(utterance.frames, most)) for utterance in utterances]


def tell_short(utterances: Iterable[Utterance], least: int, problems: Problems) -> None:
    """Tell of utterances of fewer samples than a recognizer can score."""
    for utterance in utterances:
        if utterance.frames < least:
            problems.fault(
                utterance.path,
                f"has {utterance.frames} samples, this recognizer needs at least {least}: leave it out, join it with "
                "another, or, where it is held out of one, set a longer --data.development_seconds",
                "short",
            )


def check_lengths(utterances: Iterable[Utterance], least: int) -> None:
    """Refuse utterances that a recognizer can't score, before any is read.

    Args:
        utterances: as they will be scored.
        least: samples of the shortest that it can, its `minimum_samples`.

    Raises:
        DataError: a shorter one.
    """
    short = {utterance.name: utterance.frames for utterance in utterances if utterance.frames < least}
    if short:
        first, frames = next(iter(short.items()))
        others = f", as are {len(short) - 1} others" if len(short) > 1 else ""
        raise DataError(
            f"Utterance '{first}' has {frames} samples, this recognizer needs at least {least}: leave it out or join "
            f"it with another{others}"
        )
