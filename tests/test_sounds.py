"""Noise and rooms from folders, added to training crops."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from scipy.signal import convolve, correlate
from torch import Tensor, nn

from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.augment import FromFolder, Noise, OneOf, Room
from sec4sr_pl.data.base import Crops, Utterances
from sec4sr_pl.data.manifest import DataError, Utterance


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Three sounds at two depths: 0.2 s, 0.5 s, 3 s."""
    (tmp_path / "sounds" / "deep").mkdir(parents=True)
    for index, (name, samples) in enumerate({"a": 3_200, "deep/b": 8_000, "deep/c": 48_000}.items()):
        noise = 0.05 * 4**index * np.random.default_rng(index).uniform(-1, 1, samples)
        soundfile.write(tmp_path / "sounds" / f"{name}.wav", noise, 16_000)
    return tmp_path / "sounds"


@pytest.fixture
def quiet(speech: tuple[Tensor, Tensor]) -> Tensor:
    """Speech that nothing makes clip, (4, 12000)."""
    return 0.05 * speech[0][:4, :12_000]


@pytest.mark.parametrize("ratio", [-5.0, 10.0])
@pytest.mark.parametrize("count", [1, 4])
def test_noise_has_the_ratio_asked_for(ratio: float, count: int, quiet: Tensor, sounds: Path) -> None:
    noise = Noise(sounds, ratio, ratio, count, count)(quiet) - quiet
    for row, clean in zip(noise, quiet, strict=True):
        assert 10 * float((clean.square().sum() / row.square().sum()).log10()) == pytest.approx(ratio, abs=0.01)


def test_noise_is_a_stretch_of_a_file_repeated_where_it_is_short(quiet: Tensor, sounds: Path) -> None:
    files = [soundfile.read(path)[0] for path in sorted(sounds.rglob("*.wav"))]
    found: Counter[int] = Counter()
    for seed in range(12):
        torch.manual_seed(seed)
        noise = (Noise(sounds, 0.0, 0.0)(quiet[:1, :4_000]) - quiet[:1, :4_000])[0].double().numpy()
        for index, file in enumerate(files):
            whole = file if len(file) > 4_000 else np.tile(file, 2)[:4_000]
            energy = convolve(whole**2, np.ones(4_000), "valid")
            likeness = correlate(whole, noise, "valid") / np.sqrt(energy * np.sum(noise**2))
            found[index] += bool(likeness.max() > 0.999)
    assert sum(found.values()) == 12 and min(found[index] for index in range(3)) > 0


def test_sounds_at_once_have_one_level(quiet: Tensor, tmp_path: Path) -> None:
    time = np.arange(12_000) / 16_000
    for pitch, level in ((1_000, 0.5), (3_000, 0.005)):
        soundfile.write(tmp_path / f"{pitch}.wav", level * np.sin(2 * np.pi * pitch * time), 16_000, subtype="FLOAT")
    ratios = set()
    for seed in range(8):
        torch.manual_seed(seed)
        spectrum = torch.fft.rfft((Noise(tmp_path, 0.0, 0.0, 2, 2)(quiet[:1]) - quiet[:1])[0]).abs()
        ratios.add(round(float(spectrum[750] / (spectrum[750] + spectrum[2_250])), 2))
    assert 0.5 in ratios and ratios <= {0.0, 0.5, 1.0}  # one of each, or one of them twice


def test_what_would_clip_is_scaled_down(sounds: Path) -> None:
    loud = torch.ones(2, 4_000)
    for module in (Noise(sounds, -10.0, -10.0), Room(sounds)):
        assert float(module(loud).abs().max()) == pytest.approx(1.0)


def test_a_room_without_walls_changes_nothing(quiet: Tensor, tmp_path: Path) -> None:
    response = np.zeros(4_000)
    response[120] = 0.9
    soundfile.write(tmp_path / "free.wav", response, 16_000, subtype="FLOAT")
    torch.testing.assert_close(Room(tmp_path)(quiet), quiet, rtol=0, atol=1e-6)


def test_a_room_is_a_convolution_at_the_level_of_the_crop(quiet: Tensor, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    response = 0.2 * random.uniform(-1, 1, 3_000) * np.exp(-np.arange(3_000) / 500)
    response[40] = 0.9
    soundfile.write(tmp_path / "room.wav", response, 16_000, subtype="DOUBLE")
    for heard, clean in zip(Room(tmp_path)(quiet), quiet.double().numpy(), strict=True):
        expected = convolve(clean, response)[40 : 40 + len(clean)]
        expected *= np.sqrt(np.mean(clean**2) / np.mean(expected**2))
        np.testing.assert_allclose(heard.numpy(), expected, atol=1e-6)


def test_crops_are_augmented_by_seed_epoch_and_name_alone(sounds: Path, tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    soundfile.write(path, np.random.default_rng(9).uniform(-0.1, 0.1, 8_000), 16_000)
    utterance = Utterance("speech", "ann", path, 0, 8_000, 16_000)
    augmentation = OneOf([Noise(sounds), Noise(sounds, fewest=3, most=5), Room(sounds)], chance=1.0)

    def crop(epoch: int, seed: int = 0, repeat: int = 0, state: int = 0) -> Tensor:
        torch.manual_seed(state)  # of no consequence
        return Crops(Utterances([utterance], [0]), 8_000, 3, seed, [augmentation])[epoch, repeat][0]

    assert torch.equal(crop(2), crop(2, state=1))
    assert len({tuple(other.tolist()) for other in (crop(2), crop(3), crop(2, seed=1), crop(2, repeat=1))}) == 4


def test_one_augmentation_is_drawn_with_the_chance_given() -> None:
    class Add(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, waveforms: Tensor) -> Tensor:
            return waveforms + self.value

    torch.manual_seed(0)
    augmentation = OneOf([Add(1.0), Add(2.0)], chance=0.6)
    counts = Counter(float(augmentation(torch.zeros(1, 1))) for _ in range(1_000))
    assert counts[0.0] == pytest.approx(400, abs=60) and counts[1.0] == pytest.approx(300, abs=60)
    assert set(counts) == {0.0, 1.0, 2.0}


def load(root: Path, *augmentations: nn.Module) -> None:
    """Begin to train on two speakers with augmentations."""
    for speaker in ("ann", "bob"):
        (root / "train" / speaker).mkdir(parents=True, exist_ok=True)
        soundfile.write(root / "train" / speaker / f"{speaker}.wav", np.zeros(32_000), 16_000)
    SpeakerData(root, augmentations=augmentations, num_workers=0).train_dataloader()


def test_relative_folders_begin_at_the_root_of_the_data_module(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEC4SR_DATA", str(tmp_path / "elsewhere"))
    noise, room = Noise(Path("sounds")), Room(Path("sounds/deep"))
    load(sounds.parent, OneOf([noise]), room)
    for module, folder in ((noise, sounds), (room, sounds / "deep")):
        assert [sound.path for sound in module.sounds or []] == sorted(folder.rglob("*.wav"))


def test_without_a_data_module_they_begin_where_its_root_would_be(
    sounds: Path, quiet: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEC4SR_DATA", str(sounds.parent))
    assert not torch.equal(Noise(Path("sounds"))(quiet), quiet)


@pytest.mark.parametrize("wrong", [{"low": 5.0, "high": 4.0}, {"fewest": 0}, {"fewest": 3, "most": 2}])
def test_an_empty_range_is_refused(wrong: dict[str, Any], sounds: Path) -> None:
    with pytest.raises(ValueError, match="Expected low <= high and 1 <= fewest <= most, got"):
        Noise(sounds, **wrong)


@pytest.mark.parametrize("make", [Noise, Room])
def test_a_folder_without_sounds_is_named_before_training(make: Callable[..., FromFolder], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        with pytest.raises(DataError, match=rf"{tmp_path / folder} is no folder with wav or flac files"):
            load(tmp_path, make(Path(folder)))
    with pytest.raises(DataError, match="is no folder with wav or flac files"):  # a folder that is there is meant
        load(tmp_path, make(tmp_path / "empty", optional=True))


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(ValueError, match=r"augmentations and a chance"):
        OneOf([])
