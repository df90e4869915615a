"""Data sets from LibriSpeech: the samples of librispeech-mini to the bit, Spk251 by its rule, nothing half there."""

import csv
import hashlib
import io
import os
import random
import re
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from sec4sr_pl import audio
from sec4sr_pl.data import librispeech
from sec4sr_pl.data.download import Archive
from sec4sr_pl.data.librispeech import MINI, Cut, background, digest, main, mini, read_cuts, spk251, trials
from sec4sr_pl.data.manifest import DataError, list_files

MANIFEST = MINI / "manifest.csv"
Samples = NDArray[np.int16]
MakeArchive = Callable[..., Path]


def noise(name: str, samples: int) -> Samples:
    generator = np.random.default_rng(list(name.encode()))
    return generator.integers(-30_000, 30_000, samples).astype(np.int16)


@pytest.fixture
def make_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeArchive:
    """Writes an archive in LibriSpeech's form, in a shuffled order, and lets it be the published one."""

    def make(subset: str, utterances: dict[str, bytes]) -> Path:
        path = tmp_path / "archives" / f"{subset}.tar.gz"
        path.parent.mkdir(exist_ok=True)
        files = {"LibriSpeech/SPEAKERS.TXT": b"readers", "LibriSpeech/README.flac": b"no utterance"}
        for name, data in utterances.items():
            speaker, chapter, _ = name.split("-")
            files[f"LibriSpeech/{subset}/{speaker}/{chapter}/{name}.flac"] = data
            files[f"LibriSpeech/{subset}/{speaker}/{chapter}/{speaker}-{chapter}.trans.txt"] = b"WORDS"
        names = sorted(files)
        random.Random(0).shuffle(names)
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(files[name])
                tar.addfile(info, io.BytesIO(files[name]))
        md5 = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setitem(librispeech.ARCHIVES, subset, Archive(path.name, (), path.stat().st_size, md5))
        return path

    return make


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Path -> file number and time: a file that was kept has the same."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*.flac")
        if path.is_file()
    }


# librispeech-mini


class Small:
    """Some rows of a manifest, and archives that hold them."""

    def __init__(self, folder: Path, cuts: list[Cut], stretches: dict[str, Samples], make_archive: MakeArchive) -> None:
        self.cuts, self.stretches = cuts, stretches
        self.manifest = folder / "some.csv"
        self.archives, self.folder = folder / "archives", folder / "librispeech-mini"
        columns = MANIFEST.read_text().splitlines()[0]
        self.manifest.write_text("\n".join([columns, *(",".join(map(str, cut)) for cut in cuts)]) + "\n")
        whole: dict[str, dict[str, Samples]] = {}
        for cut in cuts:
            utterances = whole.setdefault(cut.subset, {"1-2-0003": noise("1-2-0003", 500)})
            length = max(one.end for one in cuts if one.source == cut.source)
            samples = utterances.setdefault(cut.source, noise(cut.source, length + 777))
            samples[cut.first : cut.end] = stretches[cut.path]
        self.utterances = {
            subset: {name: audio.encode(samples) for name, samples in utterances.items()}
            for subset, utterances in whole.items()
        }
        for subset, utterances in self.utterances.items():
            make_archive(subset, utterances)

    def make(self) -> None:
        mini(self.folder, self.archives, self.manifest)


@pytest.fixture
def small(tmp_path: Path, make_archive: MakeArchive) -> Small:
    """Three speakers of noise: one trained on and tested, one an imposter too, one enrolled."""
    rows = [
        ("Spk251_train", "19-1-0000-a", 0, 600, "train-clean-100", "train"),
        ("Spk251_train", "26-1-0000-a", 0, 900, "train-clean-100", "train"),
        ("Spk251_test", "19-1-0000-b", 600, 800, "train-clean-100", "test"),
        ("Spk251_test", "26-1-0000-b", 900, 1_200, "train-clean-100", "test"),
        ("Spk10_enroll", "367-1-0000", 0, 700, "test-other", "enroll"),
        ("Spk10_enroll", "367-1-0001", 0, 500, "test-other", "enroll"),
        ("Spk10_test", "367-1-0002", 0, 400, "test-other", "test"),
        ("Spk10_imposter", "26-1-0000-b", 900, 1_200, "train-clean-100", "test"),
    ]
    cuts, stretches = [], {}
    for split, name, first, end, subset, role in rows:
        samples = noise(name, end - first)
        source = name.removesuffix("-a").removesuffix("-b")
        cuts.append(Cut(split, name.split("-")[0], name, source, first, end, subset, role, digest(samples)))
        stretches[cuts[-1].path] = samples
    return Small(tmp_path, cuts, stretches, make_archive)


def check(made: Small) -> None:
    """All files are there, to the sample, and nothing else."""
    files = {cut.path for cut in made.cuts} | {"manifest.csv", "speakers.csv", "trials.txt", "background201.txt"}
    assert {str(path.relative_to(made.folder)) for path in made.folder.rglob("*") if path.is_file()} == files
    for cut in made.cuts:
        assert np.array_equal(audio.decode((made.folder / cut.path).read_bytes()), made.stretches[cut.path])
    assert sorted(path.name for path in made.folder.parent.iterdir()) == ["archives", "librispeech-mini", "some.csv"]


def test_the_manifest_in_the_package_is_that_of_the_published_files(corpus: Path) -> None:
    for name in ("manifest.csv", "speakers.csv"):
        assert (MINI / name).read_bytes() == (corpus / name).read_bytes()
    cuts = read_cuts(MANIFEST)
    assert librispeech._lines(trials(cuts)) == (corpus / "trials.txt").read_bytes()
    assert librispeech._lines(background(cuts)) == (corpus / "background201.txt").read_bytes()
    for cut in cuts[::25]:
        samples = audio.decode((corpus / cut.path).read_bytes())
        assert len(samples) == cut.end - cut.first and digest(samples) == cut.digest


def test_the_manifest_in_the_package_is_whole() -> None:
    cuts = read_cuts(MANIFEST)
    splits = [cut.split for cut in cuts]
    counts = {split: splits.count(split) for split in splits}
    expected = {"Spk251_train": 251, "Spk251_test": 251, "Spk10_enroll": 30, "Spk10_test": 40, "Spk10_imposter": 50}
    assert counts == expected and len({cut.path for cut in cuts}) == 622
    assert {cut.subset for cut in cuts} < set(librispeech.ARCHIVES)
    assert all(librispeech.UTTERANCE.fullmatch(f"{cut.source}.flac") and cut.first < cut.end for cut in cuts)
    assert len(background(cuts)) == 201 and len(trials(cuts)) == 900
    readers = {row["speaker_id"] for row in csv.DictReader((MINI / "speakers.csv").open())}
    assert readers == {cut.speaker for cut in cuts}


def test_real_utterances_are_cut_to_the_sample(data_root: Path, tmp_path: Path, make_archive: MakeArchive) -> None:
    cuts = read_cuts(data_root / "manifest.csv")
    stretches = {cut.path: audio.decode((data_root / cut.path).read_bytes()) for cut in cuts}
    small = Small(tmp_path, cuts, stretches, make_archive)
    small.make()
    check(small)
    for cut in cuts:
        assert digest(audio.decode((small.folder / cut.path).read_bytes())) == cut.digest


def test_the_set_is_made_with_its_lists(small: Small) -> None:
    small.make()
    check(small)
    assert (small.folder / "manifest.csv").read_bytes() == small.manifest.read_bytes()
    assert (small.folder / "background201.txt").read_text() == "19\n"
    assert (small.folder / "trials.txt").read_text() == (
        "1 Spk10_enroll/367/367-1-0000.flac Spk10_test/367/367-1-0002.flac\n"
        "0 Spk10_enroll/367/367-1-0000.flac Spk10_imposter/26/26-1-0000-b.flac\n"
    )


def test_what_is_right_is_kept_without_the_archives_and_what_is_not_is_made_again(small: Small) -> None:
    small.make()
    before = state(small.folder)
    for path in small.archives.iterdir():
        path.rename(path.with_suffix(".away"))
    small.make()
    assert state(small.folder) == before
    damaged, swapped, lost = (small.folder / cut.path for cut in small.cuts[:3])
    damaged.write_bytes(damaged.read_bytes()[:-10])
    swapped.write_bytes((small.folder / small.cuts[4].path).read_bytes())  # good audio, but another's
    lost.unlink()
    for path in small.archives.iterdir():
        path.rename(path.with_suffix(".gz"))
    small.make()
    check(small)
    changed = {path for path, now in state(small.folder).items() if now != before[path]}
    assert changed == {cut.path for cut in small.cuts[:3]}


def test_missing_utterances_are_counted_and_the_first_is_named(small: Small, make_archive: MakeArchive) -> None:
    path = make_archive("test-other", {"367-1-0000": small.utterances["test-other"]["367-1-0000"]})
    with pytest.raises(DataError, match=rf"{path} lacks 2 of the 3 utterances wanted, first 367-1-0001"):
        small.make()
    assert not small.folder.exists()


def test_other_samples_than_the_manifests_are_refused(small: Small, make_archive: MakeArchive) -> None:
    utterances = small.utterances["train-clean-100"]
    wrong = audio.decode(utterances["26-1-0000"]).copy()
    wrong[1_000] += 1
    make_archive("train-clean-100", utterances | {"26-1-0000": audio.encode(wrong)})
    with pytest.raises(DataError, match=r"Samples 900 to 1200 of 26-1-0000 have the digest \w+, expected \w+ for"):
        small.make()
    assert not small.folder.exists()


def test_an_archive_with_another_checksum_is_not_even_opened(small: Small) -> None:
    path = small.archives / "test-other.tar.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"test-other\.tar\.gz has the MD5"):
        small.make()


def test_an_interrupted_set_is_not_seen_and_is_gone_on_with(small: Small) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            small.make()
    assert not small.folder.exists()
    before = state(small.folder.with_name(".librispeech-mini.part"))
    assert len(before) == 3
    small.make()
    check(small)
    assert before.items() <= state(small.folder).items()


def interrupt_after(files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the next file is half written."""
    write, written = Path.write_bytes, []

    def impatient(path: Path, data: bytes) -> int:
        if len(written) == files:
            write(path, data[: len(data) // 2])
            raise KeyboardInterrupt
        written.append(path)
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", impatient)


def test_a_link_where_the_set_is_being_made_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / ".mini.part").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"\.mini\.part is a link"):
        mini(tmp_path / "mini", tmp_path)
    assert not [*(tmp_path / "outside").iterdir()]


def test_another_data_set_in_the_folder_is_refused_and_left_alone(small: Small) -> None:
    stranger = small.folder / "Spk251_train" / "19" / "19-1-0000.wav"
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"SEC4SR's")
    with pytest.raises(DataError, match=rf"{stranger} and 0 other files are not of this data set"):
        small.make()
    assert [path for path in small.folder.rglob("*") if path.is_file()] == [stranger]


def test_encoded_samples_come_back_to_the_bit() -> None:
    samples = np.append(noise("x", 5_000), np.array([0, 1, -1, 32_767, -32_768], np.int16))
    assert np.array_equal(audio.decode(audio.encode(samples)), samples)


@pytest.mark.parametrize("data", [b"", b"no audio", audio.encode(noise("x", 5_000))[:6_000]], ids=len)
def test_what_cannot_be_decoded_is_an_error(data: bytes) -> None:
    with pytest.raises(audio.AudioError, match="can't be decoded"):
        audio.decode(data)


@pytest.mark.parametrize(
    ("rate", "channels", "subtype"), [(8_000, 1, "PCM_16"), (16_000, 2, "PCM_16"), (16_000, 1, "PCM_24")]
)
def test_another_form_is_not_decoded(rate: int, channels: int, subtype: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((100, channels)), rate, subtype, format="FLAC")
    with pytest.raises(audio.AudioError, match=rf"1 channel and PCM_16, got \({rate}, {channels}, '{subtype}'\)"):
        audio.decode(file.getvalue())


# Spk251


def utterances(sizes: dict[str, int]) -> dict[str, bytes]:
    """`sizes[speaker]` utterances in chapters 9 and 10: as strings, 10 is before 9."""
    return {
        f"{speaker}-{9 if number < size // 2 else 10}-{number:04d}": f"{speaker}/{number}".encode()
        for speaker, size in sizes.items()
        for number in range(size)
    }


@pytest.fixture
def spoken(make_archive: MakeArchive, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Three speakers with 20, 13 and 2 utterances."""
    spoken = utterances({"19": 20, "103": 13, "8": 2})
    make_archive("train-clean-100", spoken)
    monkeypatch.setattr(librispeech, "TRAIN_CLEAN_100", (3, 35))
    return spoken


def read(root: Path, split: str) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (root / split).glob("*/*.flac")}


def test_the_first_90_percent_of_each_speakers_sorted_utterances_are_for_training(
    tmp_path: Path, spoken: dict[str, bytes]
) -> None:
    spk251(tmp_path / "data", tmp_path / "archives")
    train, test = read(tmp_path / "data", "Spk251_train"), read(tmp_path / "data", "Spk251_test")
    assert train | test == spoken and not train.keys() & test.keys()
    for speaker, size in {"19": (18, 2), "103": (11, 2), "8": (1, 1)}.items():
        own = sorted(name for name in spoken if name.startswith(f"{speaker}-"))
        parts = [sorted(name for name in part if name.startswith(f"{speaker}-")) for part in (train, test)]
        assert (len(parts[0]), len(parts[1])) == size and parts[0] + parts[1] == own
    for path in map(Path, list_files(tmp_path / "data", "Spk251_test")):
        assert path.parent.name == path.stem.split("-")[0]
    assert sorted(os.listdir(tmp_path / "data")) == ["Spk251_test", "Spk251_train"]


def test_whole_folders_need_no_archive(tmp_path: Path, spoken: dict[str, bytes]) -> None:
    spk251(tmp_path, tmp_path / "archives")
    before = state(tmp_path)
    (tmp_path / "archives" / "train-clean-100.tar.gz").unlink()
    spk251(tmp_path, tmp_path / "archives")
    assert state(tmp_path) == before


def test_a_lost_or_cut_file_is_read_again_and_the_others_kept(tmp_path: Path, spoken: dict[str, bytes]) -> None:
    spk251(tmp_path, tmp_path / "archives")
    before = state(tmp_path)
    lost, cut = sorted((tmp_path / "Spk251_train" / "19").iterdir())[:2]
    lost.unlink()
    cut.write_bytes(b"")
    spk251(tmp_path, tmp_path / "archives")
    assert read(tmp_path, "Spk251_train") | read(tmp_path, "Spk251_test") == spoken
    changed = {path for path, now in state(tmp_path).items() if now != before[path]}
    assert changed == {str(path.relative_to(tmp_path)) for path in (lost, cut)}


def test_an_interrupted_build_is_not_seen_and_is_gone_on_with(
    tmp_path: Path, spoken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(20, patch)
        with pytest.raises(KeyboardInterrupt):
            spk251(tmp_path, tmp_path / "archives")
    assert not (tmp_path / "Spk251_train").exists() and not (tmp_path / "Spk251_test").exists()
    before = {path.split("/", 1)[1]: stamp for path, stamp in state(tmp_path).items()}
    assert len(before) == 20
    spk251(tmp_path, tmp_path / "archives")
    after = {path.split("/", 1)[1]: stamp for path, stamp in state(tmp_path).items()}
    assert before.items() <= after.items() and len(after) == 35


@pytest.mark.parametrize("expected", [(4, 35), (3, 36)])
def test_another_number_of_speakers_or_utterances_is_refused(
    tmp_path: Path, spoken: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(librispeech, "TRAIN_CLEAN_100", expected)
    with pytest.raises(DataError, match=rf"\(3, 35\) speakers and utterances, expected {re.escape(str(expected))}"):
        spk251(tmp_path, tmp_path / "archives")
    assert os.listdir(tmp_path) == ["archives"]


@pytest.mark.parametrize("name", ["19-9-0000.wav", "19-9-0000-a.flac", "77-1-0000.flac"])
def test_another_data_set_in_the_folders_is_refused(tmp_path: Path, spoken: dict[str, bytes], name: str) -> None:
    stranger = tmp_path / "Spk251_test" / "19" / name
    stranger.parent.mkdir(parents=True)
    stranger.write_bytes(b"another's")
    with pytest.raises(DataError, match=rf"{name} and 0 other files are not of this data set.*another --root"):
        spk251(tmp_path, tmp_path / "archives")
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "archives"] == [stranger]


def test_a_member_outside_its_folder_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "archives" / "train-clean-100.tar.gz"
    path.parent.mkdir()
    evil = ["../../19-9-0000.flac", "/19-9-0001.flac", "LibriSpeech/../..-..-0002.flac", "a/..\\19-9-0003.flac"]
    with tarfile.open(path, "w:gz") as tar:
        for name in evil:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"text"))
        link = tarfile.TarInfo("LibriSpeech/19-9-0004.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(librispeech.ARCHIVES, "train-clean-100", Archive(path.name, (), 1, md5))
    monkeypatch.setattr(librispeech, "TRAIN_CLEAN_100", (1, 2))
    spk251(tmp_path / "data", path.parent)
    files: Iterable[Path] = (path for path in tmp_path.rglob("*") if path.is_file())
    assert {str(path.relative_to(tmp_path)) for path in files} == {
        "archives/train-clean-100.tar.gz",
        "data/Spk251_train/19/19-9-0000.flac",
        "data/Spk251_test/19/19-9-0001.flac",
    }


# The command


def test_the_command_makes_both_sets(
    tmp_path: Path, spoken: dict[str, bytes], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Path, Path]] = []
    monkeypatch.setattr(librispeech, "mini", lambda folder, archives: made.append((folder, archives)))
    main(["spk251", "--root", str(tmp_path / "data"), "--archives", str(tmp_path / "archives")])
    main(["mini", "--root", str(tmp_path / "data")])
    assert len(read(tmp_path / "data", "Spk251_train")) == 30
    assert made == [(tmp_path / "data" / "librispeech-mini", tmp_path / "data")]
    assert "set SEC4SR_DATA to it" in capsys.readouterr().out


def test_an_error_of_the_user_is_one_line_and_status_1(
    tmp_path: Path, spoken: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["spk251", "--root", str(tmp_path)])  # its archives are elsewhere, and no server has them
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and len(lines) == 1
    assert re.match(r"python -m sec4sr_pl\.data\.librispeech: error: train-clean-100\.tar\.gz could not", lines[0])
