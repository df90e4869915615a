"""Data sets made from LibriSpeech, read straight from its archives: librispeech-mini and Spk251.

V. Panayotov, G. Chen, D. Povey, S. Khudanpur, "LibriSpeech: an ASR corpus based on public domain audio books",
ICASSP 2015; OpenSLR resource 12; CC BY 4.0.
"""

import hashlib
import re
import tarfile
from argparse import RawDescriptionHelpFormatter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jsonargparse import ArgumentParser
from numpy.typing import NDArray
from rich.console import Console

from sec4sr_pl import audio
from sec4sr_pl.command import at_home, one_line_errors
from sec4sr_pl.data.download import Archive, fetch, open_archive
from sec4sr_pl.data.manifest import DataError
from sec4sr_pl.files import read_rows, whole

MIRRORS = ("www.openslr.org", "openslr.elda.org", "us.openslr.org")
ARCHIVES = {
    subset: Archive(
        f"{subset}.tar.gz", tuple(f"https://{host}/resources/12/{subset}.tar.gz" for host in MIRRORS), size, md5
    )
    for subset, size, md5 in (
        ("train-clean-100", 6_300_000_000, "2a93770f6d5c6c964bc36631d331a522"),
        ("dev-clean", 337_000_000, "42e2234ba48799c1f50f24a7926300a1"),
        ("test-other", 328_000_000, "fb5a50374b501bb3bac4815ee91d3135"),
    )
}
"""LibriSpeech's subsets; members are `LibriSpeech/<subset>/<speaker>/<chapter>/<utterance>.flac`."""
TRAIN_CLEAN_100 = (251, 28_539)
"""Speakers and utterances of train-clean-100."""
UTTERANCE = re.compile(r"\d+-\d+-\d{4}\.flac")
SPK251 = ("Spk251_train", "Spk251_test")
MINI = Path(__file__).parent / "librispeech_mini"
"""The facts from which librispeech-mini is made again: `manifest.csv`, and the readers' sex in `speakers.csv`."""


class Cut(NamedTuple):
    """A file of librispeech-mini: a stretch of an utterance of LibriSpeech, in the order of the manifest's columns."""

    split: str
    speaker: str
    utterance: str
    source: str
    """LibriSpeech's utterance id."""
    first: int
    end: int
    subset: str
    role: str
    digest: str
    """Of the 16-bit samples, little endian: the first 16 hexadecimal digits of their SHA-256."""

    @property
    def path(self) -> str:
        """Inside the data set."""
        return f"{self.split}/{self.speaker}/{self.utterance}.flac"


def read_cuts(manifest: Path) -> list[Cut]:
    """The rows of a `manifest.csv`."""
    return [
        Cut(split, speaker, utterance, source, int(first), int(end), subset, role, digest)
        for split, speaker, utterance, source, first, end, subset, role, digest in read_rows(manifest)[1:]
    ]


def digest(samples: NDArray[np.int16]) -> str:
    """What `Cut.digest` holds."""
    return hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()[:16]


def mini(folder: Path, archives: Path, manifest: Path = MINI / "manifest.csv") -> None:
    """Make librispeech-mini again, sample by sample; files that are right already are kept.

    The folder appears when all of it is right. The containers may differ in bytes from those first published, with the
    version of the flac encoder; the samples can't.

    Args:
        folder: to make.
        archives: where LibriSpeech's archives are, or are downloaded to.
        manifest: the rows to make.

    Raises:
        DataError: an archive that can't be had or lacks utterances, other samples than the manifest says, or files in
            the folder that are not the manifest's.
    """
    cuts = read_cuts(manifest)
    _refuse(_audio_files(folder) - {folder / cut.path for cut in cuts})
    with _construction(folder) as place:
        lacking = [cut for cut in cuts if not _is_right(place / cut.path, cut)]
        for subset in sorted({cut.subset for cut in lacking}):
            wanted: dict[str, list[Cut]] = {}
            for cut in lacking:
                if cut.subset == subset:
                    wanted.setdefault(cut.source, []).append(cut)
            for source, data in read_utterances(fetch(ARCHIVES[subset], archives), wanted):
                samples = audio.decode(data)
                for cut in wanted[source]:
                    stretch = samples[cut.first : cut.end]
                    if (came := digest(stretch)) != cut.digest:
                        raise DataError(
                            f"Samples {cut.first} to {cut.end} of {source} have the digest {came}, expected "
                            f"{cut.digest} for {cut.path}: {ARCHIVES[subset].name} is not the published one"
                        )
                    _write(place / cut.path, audio.encode(stretch))
        _write(place / "background201.txt", _lines(background(cuts)))
        _write(place / "trials.txt", _lines(trials(cuts)))
        _write(place / "speakers.csv", (MINI / "speakers.csv").read_bytes())
        _write(place / "manifest.csv", manifest.read_bytes())


def _is_right(path: Path, cut: Cut) -> bool:
    try:
        return path.is_file() and digest(audio.decode(path.read_bytes())) == cut.digest
    except audio.AudioError:
        return False


def background(cuts: Sequence[Cut]) -> list[str]:
    """The training speakers who are no imposters."""
    imposters = {cut.speaker for cut in cuts if cut.split == "Spk10_imposter"}
    return [cut.speaker for cut in cuts if cut.split == "Spk251_train" and cut.speaker not in imposters]


def trials(cuts: Sequence[Cut]) -> list[str]:
    """`label enroll_path test_path`: each enrolled speaker's first utterance against all tests and imposters."""
    first: dict[str, Cut] = {}
    for cut in sorted(cut for cut in cuts if cut.split == "Spk10_enroll"):
        first.setdefault(cut.speaker, cut)
    tests = sorted(cut for cut in cuts if cut.split == "Spk10_test")
    tests += [cut for cut in cuts if cut.split == "Spk10_imposter"]
    return [f"{int(one.speaker == test.speaker)} {one.path} {test.path}" for one in first.values() for test in tests]


def spk251(root: Path, archives: Path) -> None:
    """Make `Spk251_train` and `Spk251_test` of train-clean-100; files that are there already are kept.

    Of each speaker's utterances, sorted by id as strings, the first 90 % (rounded down) are for training, the rest for
    test. SEC4SR's own split is near it and not the same: its cut compares utterance numbers across chapters, and its
    test set has 2,887 utterances. Figures on the two are not to be compared to the decimal.

    Args:
        root: holds the two folders, which appear when they are whole.
        archives: where LibriSpeech's archive is, or is downloaded to.

    Raises:
        DataError: an archive that can't be had or holds another number of speakers or utterances, or files in the
            folders that are not LibriSpeech's.
    """
    there = _audio_files(root / SPK251[0]) | _audio_files(root / SPK251[1])
    _refuse({path for path in there if not UTTERANCE.fullmatch(path.name)})
    if (len({path.parent.name for path in there}), len(there)) == TRAIN_CLEAN_100:
        return
    archive = fetch(ARCHIVES["train-clean-100"], archives)
    sizes = list_utterances(archive)
    speakers: dict[str, list[str]] = {}
    for name in sorted(sizes):
        speakers.setdefault(name.partition("-")[0], []).append(name)
    if (came := (len(speakers), len(sizes))) != TRAIN_CLEAN_100:
        raise DataError(f"{archive} has {came} speakers and utterances, expected {TRAIN_CLEAN_100}")
    with _construction(root / SPK251[0]) as train, _construction(root / SPK251[1]) as test:
        targets = {
            name: (train if position < len(own) * 9 // 10 else test) / speaker / f"{name}.flac"
            for speaker, own in speakers.items()
            for position, name in enumerate(own)
        }
        _refuse((_audio_files(train) | _audio_files(test)) - set(targets.values()))
        lacking = {name for name, path in targets.items() if not path.is_file() or path.stat().st_size != sizes[name]}
        for name, data in read_utterances(archive, lacking):
            _write(targets[name], data)


def list_utterances(archive: Path) -> dict[str, int]:
    """Utterance id -> bytes of its file."""
    with open_archive(archive) as tar:
        return {PurePosixPath(member.name).stem: member.size for member in tar if _is_utterance(member)}


def read_utterances(archive: Path, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """The id and file of each wanted utterance, in the archive's order; reads no further than needed.

    Raises:
        DataError: utterances that are not in the archive.
    """
    left = set(wanted)
    if left:
        with open_archive(archive) as tar:
            for member in tar:
                name = PurePosixPath(member.name).stem
                if name in left and _is_utterance(member) and (file := tar.extractfile(member)):
                    left.remove(name)
                    yield name, file.read()
                    if not left:
                        return
        raise DataError(f"{archive} lacks {len(left)} of the {len(wanted)} utterances wanted, first {min(left)}")


def _is_utterance(member: tarfile.TarInfo) -> bool:
    """Whether it is an utterance's file; nothing else of a member's name ever becomes a path."""
    return member.isfile() and UTTERANCE.fullmatch(PurePosixPath(member.name).name) is not None


def _audio_files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.suffix in audio.EXTENSIONS and not path.name.startswith(".")}


def _refuse(strangers: set[Path]) -> None:
    """Two data sets in one folder would be taken for one."""
    if strangers:
        raise DataError(
            f"{min(strangers)} and {len(strangers) - 1} other files are not of this data set: remove or move them, or "
            "choose another --root"
        )


@contextmanager
def _construction(folder: Path) -> Iterator[Path]:
    """Where to write what `folder` lacks: a hidden folder, kept for a next try, renamed when all is well."""
    place = folder if folder.is_dir() else folder.with_name(f".{folder.name}.part")
    if place != folder and place.is_symlink():
        raise DataError(f"{place} is a link, expected a folder of an earlier try or nothing: remove it")
    place.mkdir(parents=True, exist_ok=True)
    yield place
    if place != folder:
        place.rename(folder)


def _write(path: Path, data: bytes) -> None:
    """The file appears under its name only when it is whole."""
    with whole(path) as partial:
        partial.write_bytes(data)


def _lines(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: default: those of the process.
    """
    parser = ArgumentParser(
        prog="python -m sec4sr_pl.data.librispeech",
        description="Make data sets from LibriSpeech (OpenSLR resource 12, CC BY 4.0). Archives that are missing are\n"
        "downloaded. Files that are right already are kept, so a killed command may be run again.",
        epilog="data sets:\n"
        "  mini    ROOT/librispeech-mini/, 69 MB, from train-clean-100 (6.3 GB) and test-other (328 MB)\n"
        "  spk251  ROOT/Spk251_train/ and ROOT/Spk251_test/, 6.6 GB, from train-clean-100 (6.3 GB)",
        formatter_class=RawDescriptionHelpFormatter,
        exit_on_error=False,
    )
    parser.add_argument("name", choices=("mini", "spk251"), help="the data set to make")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data (default: data)")
    parser.add_argument("--archives", type=Path, help="folder of LibriSpeech's .tar.gz files (default: ROOT)")
    with one_line_errors(parser.prog):
        options = at_home(parser.parse_args(args))
        archives = options.root if options.archives is None else options.archives
        if options.name == "mini":
            mini(options.root / "librispeech-mini", archives)
            made = f"{options.root / 'librispeech-mini'} is there: set SEC4SR_DATA to it"
        else:
            spk251(options.root, archives)
            made = f"{options.root / SPK251[0]} and {options.root / SPK251[1]} are there"
        Console().print(made, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
