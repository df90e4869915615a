"""The files of folders of speakers, and what is left out of them. Links are followed; hidden names do not count."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path

from sec4sr_pl.audio import CONVERT, EXTENSIONS
from sec4sr_pl.data.problems import Problems

OTHERS = (
    *(".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".caf", ".gsm", ".m4a", ".m4b", ".mka"),
    *(".mkv", ".mp2", ".mp3", ".mp4", ".nist", ".oga", ".ogg", ".opus", ".pcm", ".raw", ".rf64", ".snd", ".sph"),
    *(".spx", ".voc", ".w64", ".webm", ".wma", ".wv"),
)
"""Extensions of audio that is not read."""
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


def list_files(folder: Path, folders: Sequence[str], problems: Problems) -> list[str]:
    """The audio files of a split, sorted as strings.

    Paths are texts here, of which a million are made in seconds.

    Args:
        folder: of the split.
        folders: as of `parse`.
        problems: are told of speakers without a file, and of what is left out.
    """
    depth, level = str(folder).count(os.sep) + len(folders) + 1, folders.index("speaker") + 1
    files: list[str] = []
    left: list[str] = []
    sessions = 0
    speakers = [str(folder)]
    for _ in range(level):
        left += [path for place in speakers for path in audio_below(place, 0)]
        speakers = [inner for place in speakers for inner in _folders(place, problems)]
    for speaker in speakers:
        own: list[str] = []
        others: list[str] = []
        for path in audio_below(speaker, len(folders) - level + DEEPER):
            (own if is_read(path) and path.count(os.sep) == depth else others).append(path)
        if own:
            files += own
            left += others
            sessions += len({os.path.dirname(path) for path in own}) if len(folders) > level else 0
        elif others:
            problems.fault(speaker, *_unread(others))
        else:
            problems.note(speaker, "holds no audio and is left out: fill it if it is a speaker's", "empty")
    tree = "/".join(f"<{name}>" for name in (*folders, "utterance"))
    note_left_out(folder, left, f"{tree}.wav or .flac", problems)
    if not speakers or not (files or problems.faults):
        problems.fault(folder, f"holds no {tree}.wav or .flac")
    if 1 < len(speakers) < sessions**0.5:
        names = ", ".join(os.path.basename(speaker) for speaker in speakers[:3])
        problems.note(
            folder,
            f"was read as {len(speakers)} speakers ({names}, ...) with {sessions} folders: if these are the speakers, "
            f"set --data.folders, e.g. region/speaker; expected {tree}",
        )
    return files


def note_left_out(folder: Path, left: Sequence[str], expected: str, problems: Problems) -> None:
    """Count the audio files of a folder that are left out, if there are any."""
    if left:
        places = len({os.path.dirname(path) for path in left})
        problems.note(
            folder,
            f"holds audio that is left out, {_counted(left)} in {places} folders (first {left[0]}): expected "
            f"{expected}; convert others ({CONVERT})",
        )


def is_read(path: str) -> bool:
    """Whether a file is called as those that are read."""
    return path.lower().endswith(EXTENSIONS)


def audio_below(folder: str, depth: int = ANY_DEPTH) -> Iterator[str]:
    """Files called like audio of any kind, sorted as strings, at most so many folders deep; a link back ends there."""
    for entry in sorted(os.scandir(folder), key=attrgetter("name")):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if depth and not (entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve())):
                yield from audio_below(entry.path, depth - 1)
        elif entry.name.lower().endswith((*EXTENSIONS, *OTHERS)):
            yield entry.path


def _folders(folder: str, problems: Problems) -> list[str]:
    """The folders in a folder, sorted as strings."""
    ordered = sorted((entry for entry in os.scandir(folder) if entry.name[0] != "."), key=attrgetter("name"))
    for entry in ordered:
        if entry.is_symlink() and not os.path.exists(entry.path):
            problems.fault(entry.path, "is a link to nothing: mend or remove it", "link")
    return [entry.path for entry in ordered if entry.is_dir()]


def _unread(others: Sequence[str]) -> tuple[str, str]:
    """What is wrong with a speaker's folder that holds these alone, and the kind of that."""
    if is_read(others[0]):
        return (
            f"holds {_counted(others)} at another depth (first {others[0]}), expected a speaker's files: if there are "
            "folders of sessions, or above the speakers, set --data.folders, e.g. speaker/session or region/speaker"
        ), "depth"
    return f"holds {_counted(others)}, expected wav or flac: convert them ({CONVERT})", "form"


def _counted(files: Sequence[str]) -> str:
    counts = Counter(os.path.splitext(path)[1].lower() for path in files)
    return ", ".join(f"{count} {suffix} files" for suffix, count in counts.most_common())


def name_utterances(files: Sequence[str], folders: Sequence[str], problems: Problems) -> dict[str, str]:
    """The id of the utterance in each file: the short one where that is unique, else the path below the split.

    The short one is the file's name, behind those of its folders where it lies in several.
    """
    places = [os.path.splitext(path)[0].split(os.sep)[-len(folders) - 1 :] for path in files]
    short = [place[-1] if len(folders) == 1 else _behind("-".join(place[:-1]), place[-1]) for place in places]
    counts = Counter(short)
    names: dict[str, str] = {}
    first: dict[str, str] = {}
    for path, place, name in zip(files, places, short, strict=True):
        unique = name if counts[name] == 1 else "/".join(place)
        if first.setdefault(unique, path) != path:
            problems.fault(path, f"gives the utterance id '{unique}', as does {first[unique]}: rename one", "id")
        names[path] = unique
    return names


def _behind(prefix: str, name: str) -> str:
    """A name with a prefix, which it may have already."""
    return name if name.startswith(f"{prefix}-") else f"{prefix}-{name}"
