"""Spk10: who is enrolled, who calibrates, who is tested."""

import shutil
from pathlib import Path

import pytest
import soundfile
import torch

from sec4sr_pl.data import Spk10
from sec4sr_pl.data.librispeech import MINI, read_cuts
from sec4sr_pl.data.manifest import DataError
from sec4sr_pl.types import REJECT


def write(root: Path, split: str, speakers: dict[str, int]) -> None:
    """Noise, 0.1 s an utterance; speaker -> utterances."""
    for speaker, count in speakers.items():
        (root / split / speaker).mkdir(parents=True)
        for index in range(count):
            noise = 0.1 * torch.randn(1_600, generator=torch.Generator().manual_seed(index))
            soundfile.write(root / split / speaker / f"{split[6:]}-{speaker}-{index}.wav", noise.numpy(), 16_000)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write(tmp_path, "Spk10_enroll", {"ann": 2, "bob": 3})
    write(tmp_path, "Spk10_test", {"ann": 1, "bob": 2})
    write(tmp_path, "Spk10_imposter", {"103": 2, "26": 1, "8": 2, "1034": 1})
    return tmp_path


def test_parts_and_labels(root: Path) -> None:
    data = Spk10(root)
    assert data.speakers == ("ann", "bob")
    assert data.dataset("enroll").labels == [0, 0, 1, 1, 1]
    test = data.dataset("test")
    assert [u.name for u in test.utterances] == [
        *("test-ann-0", "test-bob-0", "test-bob-1"),
        *("imposter-1034-0", "imposter-26-0"),
    ]
    assert test.labels == [0, 1, 1, REJECT, REJECT]
    calibration = data.dataset("calibration")
    assert [u.speaker for u in calibration.utterances] == ["103", "103", "8", "8"]
    assert calibration.labels == [REJECT] * 4
    with pytest.raises(DataError, match="got 'dev'"):
        data.utterances("dev")


def test_labels_index_the_speakers_of_the_recognizer(root: Path) -> None:
    data = Spk10(root)
    data.connect(["zoe", "bob"])
    assert data.dataset("test").labels == [REJECT, 1, 1, REJECT, REJECT]


def test_the_batches_of_the_test_part_are_whole_utterances_with_labels(root: Path) -> None:
    (batch,) = Spk10(root).test_dataloader()
    assert batch.speakers.tolist() == [0, 1, 1, REJECT, REJECT] and batch.waveforms.shape == (5, 1_600)


def test_one_imposter_can_not_both_calibrate_and_test(root: Path) -> None:
    for speaker in ("103", "26", "8"):
        shutil.rmtree(root / "Spk10_imposter" / speaker)
    with pytest.raises(DataError, match="one to calibrate, one to test"):
        Spk10(root).utterances("calibration")


def test_a_speaker_in_the_wrong_place_is_named(root: Path) -> None:
    shutil.move(root / "Spk10_imposter" / "26", root / "Spk10_test" / "26")
    with pytest.raises(DataError, match=r"speakers of Spk10_test in Spk10_enroll.*see 26$"):
        Spk10(root).utterances("test")
    shutil.move(root / "Spk10_test" / "26", root / "Spk10_enroll" / "26")
    write(root, "Spk10_imposter", {"26": 1})
    with pytest.raises(DataError, match=r"none of them in Spk10_imposter: see 26$"):
        Spk10(root).utterances("calibration")


def test_the_halves_of_the_imposters_are_those_of_the_manifest_of_librispeech_mini(data_root: Path) -> None:
    roles = {cut.utterance: cut.role for cut in read_cuts(MINI / "manifest.csv") if cut.split == "Spk10_imposter"}
    data = Spk10(data_root)
    calibration = [u.name for u in data.utterances("calibration")]
    test = [u.name for u in data.utterances("test") if u.name in roles]
    assert len(calibration) == len(test) == 25 and len(data.utterances("test")) == 65
    assert {roles[name] for name in calibration} == {"calibration"}
    assert {roles[name] for name in test} == {"test"}
