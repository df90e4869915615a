"""VoxCeleb, LibriSpeech's subsets and lists of trials."""

import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from test_training import BASE, CONFIGS, assemble
from torch import Tensor

from sec4sr_pl.data import LibriSpeech, SpeakerData, Spk251, VoxCeleb
from sec4sr_pl.data.augment import RandomSpeed
from sec4sr_pl.data.manifest import DataError
from sec4sr_pl.data.trial_lines import read_list
from sec4sr_pl.types import REJECT


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_utterances_are_named_by_speaker_video_and_number(voxceleb: Path) -> None:
    data = VoxCeleb(voxceleb)
    utterances = data.utterances("train") + data.utterances("development")
    assert len(utterances) == 40 and len({u.name for u in utterances}) == 40
    assert {"id00367-8jEAjG6SegY-00001", "id00367-x-6uYqmx31k-00001"} <= {u.name for u in utterances}
    assert all(u.speaker == u.path.parts[-3] for u in utterances)
    assert len(data.speakers) == 10 and data.speakers == tuple(sorted(data.speakers))


def test_test_speakers_are_strangers(voxceleb: Path) -> None:
    data = VoxCeleb(voxceleb)
    assert data.dataset("test").labels == [REJECT] * 16
    assert sorted(set(data.dataset("development").labels)) == list(range(10))


def test_trials_index_their_utterances(voxceleb: Path) -> None:
    data = VoxCeleb(voxceleb)
    trials, lines = data.trials(), read_list(voxceleb / "veri_test2.txt")
    assert len(lines) == 120 and trials.pairs.shape == (120, 2) and int(trials.target.sum()) == 8
    assert data.utterances("trials") == trials.utterances and len(trials.utterances) == 16
    for (label, *files), pair, target in zip(lines, trials.pairs.tolist(), trials.target.tolist(), strict=True):
        utterances = [trials.utterances[index] for index in pair]
        assert [utterance.path for utterance in utterances] == [voxceleb / "vox1_test" / "wav" / f for f in files]
        assert label == target == (utterances[0].speaker == utterances[1].speaker)


def test_trials_of_a_speaker_who_is_trained_on_are_refused(voxceleb: Path, tmp_path: Path) -> None:
    file = next((voxceleb / "vox2_dev" / "wav").rglob("*.wav")).relative_to(voxceleb / "vox2_dev" / "wav").as_posix()
    (tmp_path / "list.txt").write_text(f"1 {file} {file}\n")
    data = VoxCeleb(voxceleb, trials=tmp_path / "list.txt", trial_splits=["vox1_test/wav", "vox2_dev/wav"])
    with pytest.raises(DataError, match=rf"1 speakers of .*list.txt are trained on \({file[:7]}\)"):
        data.utterances("trials")


def test_who_only_tests_needs_no_training_utterances(voxceleb: Path) -> None:
    data = VoxCeleb(voxceleb, train_split="nowhere")
    data.connect(["somebody"])
    assert data.dataset("trials").labels == [REJECT] * 16 and len(data.trials().pairs) == 120


def test_a_missing_folder_shows_the_expected_tree(voxceleb: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*vox1_dev(.|\n)*vox2_dev/wav/<speaker>/<video>/<utterance>.wav"):
        VoxCeleb(voxceleb, train_split="vox1_dev/wav").utterances("train")


def test_m4a_files_are_named_with_the_way_to_convert_them(tmp_path: Path) -> None:
    (tmp_path / "vox2_dev" / "aac" / "id1" / "v").mkdir(parents=True)
    (tmp_path / "vox2_dev" / "aac" / "id1" / "v" / "1.m4a").touch()
    with pytest.raises(DataError, match=r"id1 holds 1 \.m4a files, expected wav or flac: .*data\.prepare"):
        VoxCeleb(tmp_path, train_split="vox2_dev/aac").utterances("train")


def test_subsets_of_librispeech_keep_their_ids(data_root: Path, tmp_path: Path) -> None:
    for source, subset in (("Spk10_enroll", "train-clean-100"), ("Spk10_imposter", "test-clean")):
        for path in sorted((data_root / source).glob("*/*.flac"))[:6]:
            reader, chapter, *_ = path.stem.split("-")
            (tmp_path / subset / reader / chapter).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / subset / reader / chapter)
    data = LibriSpeech(tmp_path)
    names = [utterance.name for utterance in data.utterances("train") + data.utterances("development")]
    assert sorted(names) == sorted(path.stem for path in (tmp_path / "train-clean-100").rglob("*.flac"))
    assert len(data.speakers) == 3 and data.dataset("test").labels == [REJECT] * 6


# lists of trials


def test_a_list_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("1 b/1.wav a/2.wav\n\n0 a/2.wav c/3.wav\n")
    assert read_list(tmp_path / "list.txt") == [(True, "b/1.wav", "a/2.wav"), (False, "a/2.wav", "c/3.wav")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 a.wav\n", "Line 1 of .* is '1 a.wav': expected 'label path path'"),
        ("1 a.wav b.wav\na.wav b.wav 1\n", "Line 2 of .*expected 'label path path'"),
        ("1 a.wav b.wav\n0 a.wav b.wav\n", "Line 2 of .*the other label"),
        ("\n", "holds no trial"),
    ],
)
def test_a_list_in_another_form_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        read_list(tmp_path / "list.txt")


def test_a_repeated_trial_counts_twice_and_is_told(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("1 a.wav b.wav\n1 a.wav b.wav\n0 a.wav c.wav\n")
    with pytest.warns(UserWarning, match="1 of the 3 trials"):
        assert len(read_list(tmp_path / "list.txt")) == 3


def test_a_list_that_is_missing_or_names_missing_files_is_refused(voxceleb: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no trial list .*nowhere.txt"):
        VoxCeleb(voxceleb, trials=Path("nowhere.txt")).trials()
    with pytest.raises(DataError, match="Spk251 has no list of trials"):
        Spk251(voxceleb).trials()
    (tmp_path / "list.txt").write_text("0 id1/v/1.wav id2/v/1.wav\n")
    with pytest.raises(DataError, match=r"2 of the 2 files of .* are not there, first id1/v/1.wav"):
        VoxCeleb(voxceleb, trials=tmp_path / "list.txt").utterances("trials")


def test_the_trials_of_librispeechs_stretches_name_their_utterances(data_root: Path) -> None:
    splits = ("Spk10_enroll", "Spk10_test", "Spk10_imposter")
    data = SpeakerData(data_root, *splits[:2], trials=Path("trials.txt"), trial_splits=splits)
    trials, labels = data.trials(), torch.tensor(data.dataset("trials").labels)
    assert len(trials.pairs) == 280 and int(trials.target.sum()) == 20 and len(labels) == 38
    one, other = labels[trials.pairs].unbind(1)
    assert torch.equal(one == other, trials.target)


def test_a_flac_file_answers_for_a_wav_file_of_the_list(tmp_path: Path) -> None:
    (tmp_path / "test" / "ann").mkdir(parents=True)
    for name in ("1", "2"):
        soundfile.write(tmp_path / "test" / "ann" / f"{name}.flac", torch.zeros(800).numpy(), 16_000)
    (tmp_path / "list.txt").write_text("1 ann/1.wav ann/2.wav\n")
    data = SpeakerData(tmp_path, "test", trials=Path("list.txt"))
    assert [utterance.name for utterance in data.utterances("trials")] == ["1", "2"]


# configs


FOLDERS = ["musan/noise", "musan/music", "musan/speech", "RIRS_NOISES/simulated_rirs"]
"""Of noises and rooms."""


@pytest.fixture
def whole(voxceleb: Path, tmp_path: Path) -> Path:
    """All that a config may name in a root."""
    speech, sounds = voxceleb / "vox2_dev", next((voxceleb / "vox1_test" / "wav").iterdir())
    links = {"vox2_dev": speech, "vox1_dev": speech, "vox1_test": voxceleb / "vox1_test"}
    for name, target in {**links, **dict.fromkeys(FOLDERS, sounds)}.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).symlink_to(target)
    shutil.copy(voxceleb / "veri_test2.txt", tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs are read as train.py reads them, and the variable names no data."""
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setenv("SEC4SR_DATA", "/nowhere")


def read(config: str, root: Path) -> SpeakerData:
    """The data module of a config in `configs/data`."""
    flags = [f"--data={CONFIGS / 'data' / config}.yaml", f"--data.root={root}", "--data.num_workers=0"]
    return assemble(*BASE, *flags, "--data.batch_size=10").datamodule


@pytest.mark.parametrize("config", [path.stem for path in sorted((CONFIGS / "data").glob("vox*.yaml"))])
def test_every_config_gives_batches_and_trials(config: str, whole: Path) -> None:
    data = read(config, whole)
    (batch, *_) = data.train_dataloader()
    assert sorted(batch.speakers.tolist()) == list(range(10))  # balanced
    assert batch.waveforms.shape == (10, 48_000) and bool((batch.waveforms.abs() <= 1.0).all())
    assert len(data.trials().pairs) == 120


@pytest.mark.parametrize("missing", [FOLDERS, FOLDERS[3:], FOLDERS[:1]], ids=["all", "rooms", "noises"])
def test_crops_lack_what_noises_and_rooms_the_root_lacks_and_nothing_else(missing: list[str], whole: Path) -> None:
    def augmented() -> list[Tensor]:
        """A crop by each of the noises and rooms."""
        data = read("voxceleb_augmented", whole)
        assert len(next(iter(data.train_dataloader())).names) == 10
        speed, one = data.augmentations
        assert isinstance(speed, RandomSpeed)
        crops = []
        for module in one.augmentations:
            torch.manual_seed(0)
            crops.append(module(crop))
        return crops

    crop = 0.1 * torch.randn(1, 4_000)
    complete = augmented()
    for folder in missing:
        (whole / folder).unlink()
    with pytest.warns(UserWarning, match="There is no folder") as told:
        partial = augmented()
    assert {folder for folder in FOLDERS for line in told if f"{whole / folder}:" in str(line.message)} == set(missing)
    for folder, before, after in zip(FOLDERS, complete, partial, strict=True):
        assert not torch.equal(before, crop)
        assert torch.equal(after, crop if folder in missing else before)
