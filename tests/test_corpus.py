"""The look over a corpus: all that is wrong is told at once, what is left out is counted, before a training begins."""

import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from pytorch_lightning import Trainer

from sec4sr_pl import audio
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.data import SpeakerData, Spk10, VoxCeleb, base
from sec4sr_pl.data.augment import Noise, OneOf, Room
from sec4sr_pl.data.manifest import DataError, scan
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.training import SpeakerModule


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of each test is its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A warning that no test expects is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(left out|was read as)")
        yield


def write(path: Path, samples: int = 4_000, rate: int = 16_000, channels: int = 1, **kwargs: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(str(path).encode())).uniform(-0.5, 0.5, (samples, channels))
    soundfile.write(str(path), noise, rate, **kwargs)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three speakers with three utterances each, and noises."""
    for speaker in ("ann", "bob", "eve"):
        for number in range(3):
            write(tmp_path / "root" / "train" / speaker / f"{speaker}{number}.wav")
    for name in ("a", "deep/b"):
        write(tmp_path / "root" / "noise" / f"{name}.wav")
    return tmp_path / "root"


def begin(root: Path, *augmentations: Any, **kwargs: Any) -> Trainer:
    """Train a step, as train.py does: the head has the data's speakers."""
    data = SpeakerData(root, num_workers=0, batch_size=2, augmentations=augmentations, **kwargs)
    module = SpeakerModule(Recognizer(LogMel(), AudioNet(), ClosedSet(32, data.speakers)))
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_steps=1, enable_model_summary=False, **options)
    trainer.fit(module, data)
    return trainer


# All at once


def test_a_training_tells_all_that_is_wrong_with_its_files_in_one_message(root: Path) -> None:
    for number in range(3):
        write(root / "train" / "ann" / f"fast{number}.wav", rate=48_000)
    write(root / "train" / "bob" / "stereo.wav", channels=2)
    write(root / "train" / "eve" / "last.wav", samples=960)  # 60 ms, held out
    (root / "train" / "eve" / "empty.wav").touch()
    (root / "train" / "eve" / "gone.wav").symlink_to("nowhere.wav")
    os.mkfifo(root / "train" / "bob" / "pipe.wav")
    write(root / "noise" / "deep" / "many.wav", channels=8)
    write(root / "rooms" / "fast.wav", rate=48_000)
    with pytest.raises(DataError) as told:
        begin(root, OneOf([Noise(Path("noise"))]), Room(Path("rooms")))
    for said in (
        r"The data has 10 faults. (1) ",
        "ann/fast0.wav has 48000 samples a second, expected 16000: convert it (python -m sec4sr_pl.data.prepare), or "
        "set --data.resample true (and 3 more)",
        "bob/stereo.wav has 2 channels, expected 1",
        "eve/last.wav has 960 samples, this recognizer needs at least 1121",
        "eve/empty.wav is empty",
        "eve/gone.wav is a link to nothing",
        "bob/pipe.wav can't be read (it is a pipe",
        "noise/deep/many.wav has 8 channels, expected 1",
    ):
        assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_a_training_whose_files_are_right_begins(root: Path) -> None:
    assert begin(root, Noise(Path("noise"))).global_step == 1


def test_noises_and_rooms_are_resampled_with_the_speech(root: Path) -> None:
    write(root / "train" / "ann" / "fast.wav", 12_000, rate=48_000)
    write(root / "noise" / "fast.wav", 1_200, rate=48_000)
    write(root / "rooms" / "fast.wav", 1_200, rate=48_000)
    noise, room = Noise(Path("noise")), Room(Path("rooms"))
    assert begin(root, noise, room, resample=True).global_step == 1
    assert [sound.frames for sound in noise.sounds or []] == [4_000, 4_000, 400]
    assert all(len(room.draw()) == 400 for _ in range(3))


def test_noises_follow_the_rules_of_speakers_folders(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "c.FLAC")
    (root / "noise" / "link").symlink_to(tmp_path / "elsewhere")
    (root / "noise" / "deep" / "loop").symlink_to(root / "noise")
    write(root / "noise" / ".hidden.wav")
    noise = Noise(Path("noise"))
    noise.locate(root)
    names = [sound.path.relative_to(root / "noise").as_posix() for sound in noise.sounds or [] if sound.path]
    assert names == ["a.wav", "deep/b.wav", "link/c.FLAC"]


def test_a_linked_speaker_is_one_and_a_link_to_nothing_is_told(root: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "z.wav")
    (root / "train" / "zoe").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    assert {utterance.speaker for utterance in scan(root, "train")} == {"ann", "bob", "eve", "zoe"}
    shutil.rmtree(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="train/zoe is a link to nothing"):
        scan(root, "train")


def test_many_kinds_of_faults_are_counted_and_eight_are_shown(root: Path) -> None:
    for rate in range(17_000, 32_000, 1_000):
        write(root / "train" / "ann" / f"{rate}.wav", rate=rate)
    with pytest.raises(
        DataError, match=r"has 15 faults.*\(8\) .*24000 samples a second.*; \(9\) 7 more of 7 other kinds"
    ):
        scan(root, "train")


def test_the_look_is_over_development_alone_where_a_checkpoint_is_validated(root: Path) -> None:
    data = SpeakerData(root, num_workers=0, augmentations=[Noise(Path("nowhere"))])
    module = SpeakerModule(Recognizer(LogMel(), AudioNet(), ClosedSet(32, data.speakers)))
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False}
    (result,) = Trainer(accelerator="cpu", **options).validate(module, data, verbose=False)
    assert "development/accuracy" in result


def test_a_training_looks_once_at_its_speech_and_a_later_one_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = SpeakerData(root, num_workers=0, batch_size=2)
    module = SpeakerModule(Recognizer(LogMel(), AudioNet(), ClosedSet(32, data.speakers)))
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    looks: list[str] = []
    monkeypatch.setattr(base, "scan", lambda root, split, *rest: looks.append(split) or scan(root, split, *rest))
    Trainer(accelerator="cpu", max_steps=1, enable_model_summary=False, **options).fit(module, data)
    assert looks == ["train"]
    write(root / "train" / "ann" / "new.wav")
    assert len(data.scan("train")) == 10


# What is left out


def test_a_speaker_who_would_vanish_is_an_error_that_says_how_to_convert(root: Path) -> None:
    for number in range(4):
        (root / "train" / "zoe").mkdir(exist_ok=True)
        (root / "train" / "zoe" / f"{number}.mp3").write_bytes(b"ID3")
    with pytest.raises(DataError, match=r"zoe holds 4 \.mp3 files, expected wav or flac: .*sec4sr_pl\.data\.prepare"):
        scan(root, "train")


def test_other_audio_beside_that_of_a_speaker_is_counted_in_a_warning(root: Path) -> None:
    for name in ("ann/a.mp3", "ann/b.mp3", "bob/c.M4A"):
        (root / "train" / name).touch()
    for name in ("eve/deeper/d.wav", "beside.wav"):
        write(root / "train" / name)
    (root / "train" / "ann" / "notes.txt").touch()
    said = r"left out, 2 \.wav files, 2 \.mp3 files, 1 \.m4a files in 4 folders .*<speaker>/<utterance>.*data\.prepare"
    with pytest.warns(UserWarning, match=said):
        assert len(scan(root, "train")) == 9


def test_folders_without_audio_are_left_out_with_a_warning(root: Path) -> None:
    (root / "train" / "zoe").mkdir()
    (root / "train" / "logs" / "deeper").mkdir(parents=True)
    (root / "train" / "logs" / "deeper" / "log.txt").touch()
    with pytest.warns(UserWarning, match=r"train/logs holds no audio and is left out: .* \(and 1 more\)$"):
        assert {utterance.speaker for utterance in scan(root, "train")} == {"ann", "bob", "eve"}


def test_other_audio_among_noises_is_counted_in_a_warning_of_a_training(root: Path) -> None:
    for name in ("c.mp3", "deep/d.mp3", "deep/e.ogg"):
        (root / "noise" / name).touch()
    noise = Noise(Path("noise"))
    with pytest.warns(
        UserWarning, match=r"noise holds .* left out, 2 \.mp3 files, 1 \.ogg files .*data\.prepare"
    ) as told:
        begin(root, noise)
    assert len(noise.sounds or []) == 2
    assert sum("left out" in str(warning.message) for warning in told) == 1


# Trees


@pytest.fixture
def timit(tmp_path: Path) -> Path:
    """Two dialects with six and three speakers of two utterances, all of the same names."""
    for dialect, count in (("DR1", 6), ("DR2", 3)):
        for speaker in range(count):
            for name in ("SA1", "SX7"):
                write(tmp_path / "TIMIT" / "TRAIN" / dialect / f"F{dialect}{speaker}" / f"{name}.WAV")
    return tmp_path / "TIMIT"


def test_a_region_above_the_speakers_is_read_where_it_is_named(timit: Path) -> None:
    data = SpeakerData(timit, "TRAIN", folders="dialect/speaker")
    assert data.speakers == (*[f"FDR1{number}" for number in range(6)], *[f"FDR2{number}" for number in range(3)])
    names = [utterance.name for utterance in data.scan("TRAIN")]
    assert names[:2] == ["DR1-FDR10-SA1", "DR1-FDR10-SX7"] and len(set(names)) == 18


def test_dialects_read_as_speakers_are_told(timit: Path) -> None:
    with pytest.warns(UserWarning, match=r"read as 2 speakers \(DR1, DR2, ...\) with 9 folders: .*set --data.folders"):
        VoxCeleb(timit, "TRAIN").scan("TRAIN")
    said = r"DR1 holds 12 \.wav files at another depth .*set --data\.folders, e\.g\. .*region/speaker \(and 1 more\)"
    with pytest.raises(DataError, match=said):
        SpeakerData(timit, "TRAIN").scan("TRAIN")


def test_sphere_files_called_wav_are_told_with_the_way_to_convert_them(timit: Path) -> None:
    for path in timit.rglob("*.WAV"):
        path.write_bytes(b"NIST_1A\n   1024\n" + bytes(2_000))
    with pytest.raises(DataError, match=r"SA1\.WAV holds NIST SPHERE: .*sec4sr_pl\.data\.prepare.* \(and 17 more\)"):
        SpeakerData(timit, "TRAIN", folders="dialect/speaker").scan("TRAIN")


@pytest.mark.parametrize("folders", ["", "session", "speaker/speaker", "speaker/", "/speaker"])
def test_folders_without_exactly_one_speaker_are_refused(folders: str, root: Path) -> None:
    with pytest.raises(ValueError, match="Expected the names of the folders below a split, one of them 'speaker'"):
        SpeakerData(root, folders=folders)


# Ids


def numbered(root: Path, split: str, *speakers: str) -> None:
    for speaker in speakers:
        for number in (1, 2):
            write(root / split / speaker / f"{number}.wav")


def test_utterances_that_are_numbered_in_each_folder_are_called_by_their_paths(tmp_path: Path) -> None:
    numbered(tmp_path, "test", "ann", "bob")
    write(tmp_path / "test" / "bob" / "other.wav")
    names = [utterance.name for utterance in scan(tmp_path, "test")]
    assert names == ["ann/1", "ann/2", "bob/1", "bob/2", "other"]


def test_trials_find_them(tmp_path: Path) -> None:
    numbered(tmp_path, "enroll", "ann", "bob")
    numbered(tmp_path, "test", "ann", "bob")
    lines = ("1 enroll/ann/1.wav test/ann/1.wav", "0 enroll/ann/1.wav test/bob/2.wav")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    data = SpeakerData(tmp_path, "enroll", trials=Path("list.txt"), trial_splits=["enroll", "test"])
    utterances, pairs, _ = data.trials()
    found = [[utterances[place].name for place in pair] for pair in pairs.tolist()]
    assert found == [["enroll/ann/1", "test/ann/1"], ["enroll/ann/1", "test/bob/2"]]
    (tmp_path / "list.txt").write_text("1 ann/1.wav ann/2.wav\n")
    with pytest.raises(DataError, match=r"ann/1\.wav of .* is .*enroll/ann/1\.wav and .*test/ann/1\.wav: give"):
        data.trials()


def test_the_test_part_of_two_splits_has_each_id_once(tmp_path: Path) -> None:
    numbered(tmp_path, "Spk10_enroll", "ann")
    numbered(tmp_path, "Spk10_test", "ann")
    numbered(tmp_path, "Spk10_imposter", "1", "2")
    names = [utterance.name for utterance in Spk10(tmp_path).utterances("test")]
    assert names == ["1", "2", "2/1", "2/2"]


# The header cache


def lengths(root: Path) -> list[int]:
    return [utterance.frames for utterance in scan(root, "train")]


def test_a_changed_length_in_the_cache_is_not_believed(root: Path, cache: Path) -> None:
    before = lengths(root)
    (path,) = cache.rglob("*.csv")
    path.write_text(path.read_text().replace(",4000,", ",9000,", 1))
    assert lengths(root) == before and ",9000," not in path.read_text()


@pytest.mark.parametrize("make", ["pipe", "link", "bytes", "large"])
def test_a_cache_that_is_none_is_not_read(make: str, root: Path, cache: Path) -> None:
    before = lengths(root)
    (path,) = cache.rglob("*.csv")
    path.unlink()
    if make == "pipe":
        os.mkfifo(path)
    elif make == "link":
        path.symlink_to("/dev/zero")
    elif make == "bytes":
        path.write_bytes(b"\xff" * 100)
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    assert lengths(root) == before


def test_of_a_changed_corpus_only_new_and_changed_files_are_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lengths(root)
    opened: list[Path] = []
    info = audio.info
    path = write(root / "train" / "ann" / "new.wav", 5_000)
    monkeypatch.setattr(audio, "info", lambda path: opened.append(path) or info(path))  # type: ignore[func-returns-value]
    assert sorted(lengths(root)) == [*before, 5_000] and opened == [path]
