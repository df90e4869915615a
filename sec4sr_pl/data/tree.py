"""The files of folders of speakers, and what is left out of them. Links are followed; hidden names do not count."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from sec4sr_pl.audio import CONVERT, EXTENSIONS
from sec4sr_pl.data import foreign
from sec4sr_pl.data.problems import Problems

DEEPER = 2
"""Folders below those of the utterances in which files are counted that are left out."""
ANY_DEPTH = 20


def parse(folders: str) -> tuple[str, ...]:
    """The names of the folders that a file lies in, from a text such as `speaker/session`.

    Raises:
        ValueError: not exactly one of them is called `speaker`.
    """
    names = tuple(folders.split("/"))
    if names.count("speaker") != 1 or not all(names):
        raise ValueError(
            f"Expected the names of the folders below a split, one of them 'speaker', e.g. speaker, speaker/session or "
            f"region/speaker, got '{folders}'"
        )
    return names


def list_files(folder: Path, folders: Sequence[str], problems: Problems) -> list[Path]:
    """The audio files of a split, sorted as strings.

    Args:
        folder: of the split.
        folders: as of `parse`.
        problems: are told of speakers without a file, of names that can't be written down, and of what is left out.
    """
    depth, level = len(folder.parts) + len(folders) + 1, folders.index("speaker") + 1
    files: list[Path] = []
    left: list[Path] = []
    speakers = [folder]
    for _ in range(level):
        left += [path for place in speakers for path in audio_below(place, 0)]
        speakers = [inner for place in speakers for inner in _folders(place, problems)]
    for speaker in speakers:
        there = list(audio_below(speaker, len(folders) - level + DEEPER))
        own = [path for path in there if len(path.parts) == depth and is_read(path)]
        files += own
        if own:
            left += [path for path in there if len(path.parts) != depth or not is_read(path)]
        else:
            problems.fault(speaker, *_without_files(there))
    tree = "/".join(f"<{name}>" for name in (*folders, "utterance"))
    if left:
        places = len({path.parent for path in left})
        problems.note(
            folder,
            f"holds audio that is left out, {_counted(left)} in {places} folders (first {left[0]}): expected "
            f"{tree}.wav or .flac; convert others ({CONVERT})",
        )
    if not speakers or not (files or problems.faults):
        problems.fault(folder, f"holds no {tree}.wav or .flac")
    if len(folders) > level and 1 < len(speakers) < (sessions := len({path.parent for path in files})) ** 0.5:
        names = ", ".join(speaker.name for speaker in speakers[:3])
        problems.note(
            folder,
            f"was read as {len(speakers)} speakers ({names}, ...) with {sessions} folders: if these are the speakers, "
            f"set --data.folders, e.g. region/speaker; expected {tree}",
        )
    return files


def is_read(path: PurePath) -> bool:
    """Whether a file is called as those that are read."""
    return path.suffix.lower() in EXTENSIONS


def audio_below(folder: Path, depth: int = ANY_DEPTH) -> Iterator[Path]:
    """Files called like audio of any kind, sorted as strings, at most so many folders deep; a link back ends there."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if depth and not (entry.is_symlink() and folder.resolve().is_relative_to(path.resolve())):
                yield from audio_below(path, depth - 1)
        elif is_read(path) or path.suffix.lower() in foreign.EXTENSIONS:
            yield path


def _folders(folder: Path, problems: Problems) -> list[Path]:
    """The folders in a folder, sorted as strings."""
    ordered = sorted((one for one in os.scandir(folder) if one.name[0] != "."), key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_symlink() and not os.path.exists(entry.path):
            problems.fault(folder / entry.name, "is a link to nothing: mend or remove it", "link")
    return [folder / entry.name for entry in ordered if entry.is_dir()]


def _without_files(others: Sequence[Path]) -> tuple[str, str]:
    """What is wrong with a speaker's folder, and the kind of that."""
    if not others:
        return "holds no audio: expected a speaker's wav or flac files; fill or remove it", "empty"
    if is_read(others[0]):
        return (
            f"holds {_counted(others)} at another depth (first {others[0]}), expected a speaker's files: if there are "
            "folders of sessions, or above the speakers, set --data.folders, e.g. speaker/session or region/speaker"
        ), "depth"
    return f"holds {_counted(others)}, expected wav or flac: convert them ({CONVERT})", "form"


def _counted(files: Sequence[Path]) -> str:
    counts = Counter(path.suffix.lower() for path in files)
    return ", ".join(f"{count} {suffix} files" for suffix, count in counts.most_common())


def utterance_name(path: PurePath, folders: Sequence[str]) -> str:
    """The short id of the utterance in a file: its name, behind those of its folders where it lies in several."""
    prefix = "-".join(path.parts[-len(folders) - 1 : -1]) if len(folders) > 1 else ""
    return f"{prefix}-{path.stem}" if prefix and not path.stem.startswith(f"{prefix}-") else path.stem


def name_utterances(files: Sequence[Path], folders: Sequence[str], problems: Problems) -> dict[Path, str]:
    """The id of the utterance in each file: the short one where that is unique, else the path below the split."""
    short = [utterance_name(path, folders) for path in files]
    counts = Counter(short)
    names: dict[Path, str] = {}
    first: dict[str, Path] = {}
    for path, name in zip(files, short, strict=True):
        unique = name if counts[name] == 1 else "/".join([*path.parts[-len(folders) - 1 : -1], path.stem])
        if unique in first:
            problems.fault(path, f"gives the utterance id '{unique}', as does {first[unique]}: rename one", "id")
        first.setdefault(unique, path)
        names[path] = unique
    return names
