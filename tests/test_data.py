"""Data: a sorted cached manifest, crops that depend on nothing but their name, splits and ranks without repetition."""

import os
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from scipy.stats import kstest
from torch import Tensor, nn

from sec4sr_pl import audio
from sec4sr_pl.data import SpeakerData, Spk251, SyntheticVoices, Utterance
from sec4sr_pl.data.augment import RandomEqualizer
from sec4sr_pl.data.base import Crops, EpochSampler, Utterances, collate
from sec4sr_pl.data.manifest import DataError, find_root, label, scan, split_development
from sec4sr_pl.types import REJECT, Batch

try:
    import espeakng_loader  # type: ignore[import-untyped, unused-ignore]  # noqa: F401

    missing = False
except ImportError:
    missing = True

TINY = {
    "train": {"ada": [9_000, 12_000, 20_000], "bob": [30_000], "eve": [8_000, 4_000, 16_000, 7_000, 5_000]},
    "test": {"ada": [5_000, 6_000], "bob": [7_000, 8_000], "eve": [9_000]},
}
"""split -> speaker -> samples of each utterance."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of each test is its own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def write(path: Path, samples: int = 8_000, rate: int = 16_000, channels: int = 1) -> Path:
    """Noise that no two files share."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(list(path.name.encode()))
    soundfile.write(str(path), generator.uniform(-0.5, 0.5, (samples, channels)), rate)
    return path


def fill(root: Path, splits: dict[str, dict[str, list[int]]]) -> Path:
    for split, speakers in splits.items():
        for speaker, utterances in speakers.items():
            for number, samples in enumerate(utterances):
                write(root / split / speaker / f"{speaker}-{split}-{number}.wav", samples)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three speakers, with three, one and five utterances."""
    return fill(tmp_path / "tiny", TINY)


def batches(loader: Any, epoch: int = 0) -> list[Batch]:
    """What a trainer would get in an epoch."""
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    return list(loader)


def as_rank(data: SpeakerData, rank: int, replicas: int, place: str = "cpu") -> SpeakerData:
    strategy = SimpleNamespace(root_device=torch.device(place))
    data.trainer = SimpleNamespace(world_size=replicas, global_rank=rank, strategy=strategy)  # type: ignore[assignment]
    return data


def by_name(loaded: list[Batch]) -> dict[str, Tensor]:
    """name -> waveform without padding; each name once."""
    rows = [(n, w[:size]) for b in loaded for n, w, size in zip(b.names, b.waveforms, b.lengths, strict=True)]
    assert len({name for name, _ in rows}) == len(rows)
    return dict(rows)


# The manifest


def test_the_manifest_is_sorted_as_strings(tmp_path: Path) -> None:
    for name in ("b/10", "b/9", "b/100", "10/z", "9/y", "B/x", "100/w"):
        write(tmp_path / "train" / f"{name}.wav")
    found = [(utterance.speaker, utterance.name) for utterance in scan(tmp_path, "train")]
    assert found == [("10", "z"), ("100", "w"), ("9", "y"), ("B", "x"), ("b", "10"), ("b", "100"), ("b", "9")]


def test_the_manifest_does_not_depend_on_the_order_of_the_file_system(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scan(root, "train")
    listdir, scandir = os.listdir, os.scandir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    monkeypatch.setattr(os, "scandir", lambda path: sorted(scandir(path), key=lambda entry: entry.name, reverse=True))
    assert scan(root, "train") == expected


def test_an_utterance_is_a_whole_file(root: Path) -> None:
    first = scan(root, "train")[0]
    path = root / "train" / "ada" / "ada-train-0.wav"
    assert first == Utterance("ada-train-0", "ada", path, 0, 9_000, 16_000)


def test_wav_and_flac_in_any_case_are_found_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a.wav", "b.flac", "c.WAV", "d.Flac"):
        write(tmp_path / "train" / "s" / name)
    for name in ("notes.txt", "e.wav.part", "f.mp3"):
        (tmp_path / "train" / "s" / name).write_text("no audio")
    (tmp_path / "train" / "README.md").write_text("no speaker")
    assert [utterance.name for utterance in scan(tmp_path, "train")] == ["a", "b", "c", "d"]


def test_hidden_files_and_folders_are_ignored(root: Path) -> None:
    expected = scan(root, "train")
    write(root / "train" / "ada" / "._ada-train-0.wav")
    (root / "train" / "ada" / ".unfinished.wav").write_bytes(b"half")
    write(root / "train" / ".trash" / "t.wav")
    assert scan(root, "train") == expected


def test_a_second_scan_reads_no_headers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scan(root, "train")

    def no_info(path: Path) -> None:
        raise AssertionError(f"read the header of {path}")

    monkeypatch.setattr(audio, "info", no_info)
    assert scan(root, "train") == expected


def test_a_changed_added_or_removed_file_is_seen(root: Path) -> None:
    scan(root, "train")
    path = root / "train" / "ada" / "ada-train-1.wav"
    write(path, 12_345)
    assert scan(root, "train")[1].frames == 12_345
    size, mtime = path.stat().st_size, path.stat().st_mtime_ns
    soundfile.write(str(path), np.zeros(2 * 12_345), 16_000, subtype="PCM_U8")
    assert path.stat().st_size == size  # as many bytes, twice as many samples: only the time tells
    os.utime(path, ns=(mtime + 1, mtime + 1))
    assert scan(root, "train")[1].frames == 2 * 12_345
    write(root / "train" / "ada" / "another.wav")
    assert "another" in [utterance.name for utterance in scan(root, "train")]
    path.unlink()
    assert "ada-train-1" not in [utterance.name for utterance in scan(root, "train")]


def test_files_of_equal_age_are_told_apart_by_folder_and_by_size(tmp_path: Path) -> None:
    frames = {"one": 1_000, "two": 2_000}
    for folder, samples in frames.items():
        path = write(tmp_path / folder / "train" / "s" / "u.wav", samples)
        os.utime(path, ns=(0, 0))  # as unpacked from an archive
    assert {folder: scan(tmp_path / folder, "train")[0].frames for folder in frames} == frames
    path = write(tmp_path / "two" / "train" / "s" / "u.wav", 3_000)
    os.utime(path, ns=(0, 0))
    assert scan(tmp_path / "two", "train")[0].frames == 3_000


def test_a_damaged_cache_is_read_anew(root: Path, cache: Path) -> None:
    expected = scan(root, "train")
    (path,) = cache.rglob("*.csv")
    whole = path.read_text()
    for damaged in ("", whole[: len(whole) // 2], whole.replace("9000", "nine"), whole + whole):
        path.write_text(damaged)
        assert scan(root, "train") == expected
        assert path.read_text() == whole


def test_a_cache_that_cannot_be_written_does_no_harm(root: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert len(scan(root, "train")) == 9


def test_an_utterance_whose_name_is_not_unique_is_called_by_its_path(root: Path) -> None:
    before = {utterance.name for utterance in scan(root, "train")}
    write(root / "train" / "bob" / "ada-train-0.flac")
    after = {utterance.name for utterance in scan(root, "train")}
    assert before - after == {"ada-train-0"} and after - before == {"ada/ada-train-0", "bob/ada-train-0"}


def test_a_path_that_stands_twice_is_refused(root: Path) -> None:
    write(root / "train" / "ada" / "ada-train-0.flac")
    with pytest.raises(DataError, match=r"ada-train-0\.wav gives the utterance id 'ada/ada-train-0', as does .*\.flac"):
        scan(root, "train")


def test_a_missing_folder_names_the_expected_tree_and_how_to_set_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*/train: .*train/<speaker>/<utterance>\.wav.*SEC4SR_DATA"):
        scan(tmp_path, "train")


@pytest.mark.parametrize("name", [None, "notes.txt", "train.wav"])
def test_a_folder_without_speakers_is_refused(tmp_path: Path, name: str | None) -> None:
    (tmp_path / "train").mkdir()
    if name is not None:
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="train holds no <speaker>/<utterance>"):
        scan(tmp_path, "train")


def test_another_sample_rate_is_refused_unless_resampling_is_asked(root: Path) -> None:
    write(root / "train" / "ada" / "slow.wav", 4_001, rate=8_000)
    with pytest.raises(DataError, match=r"slow\.wav has 8000 samples a second, expected 16000.*resample true"):
        scan(root, "train")
    slow = next(utterance for utterance in scan(root, "train", resample=True) if utterance.name == "slow")
    assert (slow.frames, slow.rate) == (8_002, 8_000)
    data = SpeakerData(root, resample=True, crop_seconds=0.25)
    assert all(row.isfinite().all() for row in by_name(batches(data.train_dataloader())).values())
    with pytest.raises(DataError, match="slow"):
        scan(root, "train")  # the cache keeps the rate, too


@pytest.mark.parametrize("samples", [b"", b"no audio"])
def test_a_broken_file_is_named_at_once(root: Path, samples: bytes) -> None:
    (root / "train" / "eve" / "broken.wav").write_bytes(samples)
    with pytest.raises(DataError, match=r"eve/broken\.wav"):
        scan(root, "train")


def test_a_stereo_file_is_refused(root: Path) -> None:
    write(root / "train" / "eve" / "stereo.wav", channels=2)
    with pytest.raises(DataError, match=r"stereo\.wav has 2 channels, expected 1"):
        scan(root, "train")


def test_the_root_is_the_argument_then_sec4sr_data_then_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEC4SR_DATA", raising=False)
    assert find_root(None) == Path("data")
    monkeypatch.setenv("SEC4SR_DATA", "/from/the/variable")
    assert find_root(None) == Path("/from/the/variable")
    assert find_root(tmp_path) == tmp_path
    assert SpeakerData().root == Path("/from/the/variable")
    assert SpeakerData(tmp_path).root == tmp_path
    assert SyntheticVoices().root == Path("data/synthetic-voices")  # nothing is written beside somebody's data


# Labels


def test_labels_are_positions_among_the_speakers(root: Path) -> None:
    utterances = scan(root, "test")
    assert label(utterances, ["eve", "ada", "bob"]) == [1, 1, 2, 2, 0]


def test_a_closed_set_names_whom_it_does_not_know(root: Path) -> None:
    with pytest.raises(DataError, match=r"1 speakers .*unknown.*\(bob\); it knows 2: ada, eve"):
        label(scan(root, "test"), ["ada", "eve"])


def test_an_open_set_rejects_whom_it_does_not_know(root: Path) -> None:
    assert label(scan(root, "test"), ["eve"], closed=False) == [REJECT] * 4 + [0]


def test_speakers_are_those_of_the_training_split_sorted(root: Path) -> None:
    assert SpeakerData(root).speakers == ("ada", "bob", "eve")


def test_connect_makes_labels_index_the_speakers_of_the_recognizer(root: Path) -> None:
    data = SpeakerData(root)
    assert data.dataset("test").labels == [0, 0, 1, 1, 2]
    data.connect(["eve", "zoe", "bob", "ada"])
    assert data.speakers == ("eve", "zoe", "bob", "ada")
    for part in ("train", "development", "test"):
        dataset = data.dataset(part)
        names = [data.speakers[index] for index in dataset.labels]
        assert names == [utterance.speaker for utterance in dataset.utterances]
    data.connect(["eve"])
    with pytest.raises(DataError, match="ada, bob"):
        data.test_dataloader()


def test_another_part_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match="'train', 'development', 'test' and, of a list, 'trials', got 'dev'"):
        SpeakerData(root).utterances("dev")


# Training and development


def times_used(utterances: list[Utterance]) -> dict[Path, NDArray[np.int64]]:
    """File -> how often each of its samples is used."""
    used: dict[Path, NDArray[np.int64]] = {}
    for utterance in utterances:
        counts = used.setdefault(utterance.path, np.zeros(audio.info(utterance.path).frames, np.int64))
        assert 0 <= utterance.start < utterance.start + utterance.frames <= len(counts)
        counts[utterance.start : utterance.start + utterance.frames] += 1
    return used


def test_of_one_utterance_the_last_stretch_is_held_out(root: Path) -> None:
    data = SpeakerData(root, development_fraction=0.2, development_seconds=0.1)
    (train,) = [utterance for utterance in data.utterances("train") if utterance.speaker == "bob"]
    (development,) = [utterance for utterance in data.utterances("development") if utterance.speaker == "bob"]
    assert (train.start, train.frames, development.start, development.frames) == (0, 24_000, 24_000, 6_000)
    assert train.path == development.path and train.name != development.name
    waveforms = by_name(batches(data.val_dataloader()))
    assert torch.equal(waveforms[development.name], audio.read(train.path)[24_000:])


@pytest.mark.parametrize(
    ("frames", "minimum", "stretch"),
    [
        (100_000, 8_000, 10_000),  # the fraction
        (30_000, 8_000, 8_000),  # the least
        (15_999, 8_000, 7_999),  # never more than is left to train on
        (2, 8_000, 1),
    ],
)
def test_the_held_out_stretch_is_a_fraction_at_least_a_minimum_at_most_half(
    frames: int, minimum: int, stretch: int
) -> None:
    whole = Utterance("u", "s", Path("u.wav"), 0, frames, 16_000)
    (train,), (development,) = split_development([whole], 0.1, minimum)
    assert (train.frames, development.frames) == (frames - stretch, stretch)
    assert (train.start, development.start) == (0, frames - stretch)


@pytest.mark.parametrize(("fraction", "held_out"), [(0.1, 1), (0.2, 1), (0.4, 2), (0.99, 4)])
def test_of_several_utterances_the_last_are_held_out_and_one_at_least_is_trained_on(
    root: Path, fraction: float, held_out: int
) -> None:
    data = SpeakerData(root, development_fraction=fraction)
    parts = {
        part: [utterance.name for utterance in data.utterances(part) if utterance.speaker == "eve"]
        for part in ("train", "development")
    }
    names = [f"eve-train-{number}" for number in range(5)]
    assert parts == {"train": names[: 5 - held_out], "development": names[5 - held_out :]}


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.95])
def test_train_and_development_share_no_sample_and_take_none_of_the_test(root: Path, fraction: float) -> None:
    data = SpeakerData(root, development_fraction=fraction)
    used = times_used(data.utterances("train") + data.utterances("development"))
    assert used.keys() == {utterance.path for utterance in scan(root, "train")}
    assert all((counts == 1).all() for counts in used.values())
    assert not used.keys() & times_used(data.utterances("test")).keys()
    for part in ("train", "development"):
        assert {utterance.speaker for utterance in data.utterances(part)} == {"ada", "bob", "eve"}
    names = [utterance.name for part in ("train", "development", "test") for utterance in data.utterances(part)]
    assert len(set(names)) == len(names)


def test_crops_never_reach_the_held_out_stretch(root: Path) -> None:
    data = SpeakerData(root, development_fraction=0.3, crop_seconds=1.0, crops_per_utterance=50, num_workers=0)
    whole = audio.read(root / "train" / "bob" / "bob-train-0.wav")
    crops = by_name(batches(data.train_dataloader()))
    offsets = [offset(crop, whole) for name, crop in crops.items() if name.startswith("bob")]
    assert len(offsets) == 50 and max(offsets) + 16_000 <= 21_000


# Crops


def offset(crop: Tensor, whole: Tensor) -> int:
    """Where the crop stands, once."""
    starts = torch.nonzero(whole[: len(whole) - len(crop) + 1] == crop[0]).flatten().tolist()
    (found,) = [start for start in starts if torch.equal(whole[start : start + len(crop)], crop)]
    return int(found)


def crops_of(data: SpeakerData) -> Crops:
    dataset = data.train_dataloader().dataset
    assert isinstance(dataset, Crops)
    return dataset


@pytest.mark.parametrize("augmentations", [[], [RandomEqualizer()]], ids=["plain", "augmented"])
def test_crops_do_not_depend_on_workers_batch_size_or_ranks(root: Path, augmentations: list[nn.Module]) -> None:
    def crops(workers: int, batch_size: int, replicas: int = 1) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for rank in range(replicas):
            torch.manual_seed(1_000 * workers + batch_size + rank)  # the global generator has no say
            data = SpeakerData(
                root,
                batch_size=batch_size,
                crop_seconds=0.2,
                crops_per_utterance=2,
                num_workers=workers,
                augmentations=augmentations,
            )
            found |= by_name(batches(as_rank(data, rank, replicas).train_dataloader(), epoch=3))
        return found

    expected = crops(0, 64)
    assert len(expected) == 14
    for other in (crops(2, 64), crops(0, 3), crops(0, 1), crops(2, 5), crops(0, 2, replicas=2)):
        assert other.keys() == expected.keys()
        assert all(torch.equal(other[name], expected[name]) for name in expected)


def test_crops_do_not_depend_on_the_other_utterances(root: Path) -> None:
    options: dict[str, Any] = {"crop_seconds": 0.2, "num_workers": 0, "augmentations": [RandomEqualizer()]}
    expected = by_name(batches(SpeakerData(root, **options).train_dataloader()))
    shutil.rmtree(root / "train" / "ada")
    rest = by_name(batches(SpeakerData(root, **options).train_dataloader()))
    assert 0 < len(rest) < len(expected)
    assert all(torch.equal(rest[name], expected[name]) for name in rest)


@pytest.mark.parametrize("augmentations", [[], [RandomEqualizer()]], ids=["plain", "augmented"])
def test_crops_differ_between_epochs_seeds_and_repeats(root: Path, augmentations: list[nn.Module]) -> None:
    def crops(epoch: int, seed: int) -> dict[str, Tensor]:
        data = SpeakerData(
            root, crop_seconds=0.2, crops_per_utterance=2, num_workers=0, augmentations=augmentations, seed=seed
        )
        return by_name(batches(data.train_dataloader(), epoch))

    first = crops(0, 0)
    for other in (crops(1, 0), crops(0, 1)):
        assert other.keys() == first.keys()
        assert not any(torch.equal(other[name], first[name]) for name in first)
    assert not any(torch.equal(first[name], first[name.replace("#0", "#1")]) for name in first if name.endswith("#0"))


def test_workers_that_stay_alive_see_the_next_epoch(root: Path) -> None:
    options: dict[str, Any] = {"crop_seconds": 0.2, "batch_size": 2}
    staying = SpeakerData(root, num_workers=2, **options).train_dataloader()
    for epoch in (0, 1):
        fresh = by_name(batches(SpeakerData(root, num_workers=0, **options).train_dataloader(), epoch))
        seen = by_name(batches(staying, epoch))
        assert all(torch.equal(seen[name], fresh[name]) for name in fresh)


def test_a_crop_is_a_stretch_of_its_utterance_and_every_offset_is_as_likely(root: Path) -> None:
    data = SpeakerData(root, crop_seconds=0.25, crops_per_utterance=400, num_workers=0)
    crops = crops_of(data)
    index = [utterance.name for utterance in crops.source.utterances].index("ada-train-0")
    whole = audio.read(root / "train" / "ada" / "ada-train-0.wav")
    offsets = []
    for repeat in range(400):
        crop, speaker, name = crops[0, index * 400 + repeat]
        assert (crop.shape, speaker, name) == ((4_000,), 0, f"ada-train-0#{repeat}")
        offsets.append(offset(crop, whole))
    assert kstest(np.array(offsets) / 5_000, "uniform").pvalue > 1e-3


def test_crops_of_a_stretch_stay_inside_it(root: Path) -> None:
    path = root / "train" / "bob" / "bob-train-0.wav"
    stretch = Utterance("bob-stretch", "bob", path, 20_000, 5_000, 16_000)
    crops = Crops(Utterances([stretch], [0]), 1_000, 50, seed=0)
    offsets = [offset(crops[0, repeat][0], audio.read(path)) for repeat in range(50)]
    assert len(crops) == 50 and min(offsets) >= 20_000 and max(offsets) + 1_000 <= 25_000


def test_a_crop_as_long_as_its_utterance_is_the_utterance(root: Path) -> None:
    data = SpeakerData(root, crop_seconds=0.5, num_workers=0)
    crops = by_name(batches(data.train_dataloader()))
    assert torch.equal(crops["eve-train-0#0"], audio.read(root / "train" / "eve" / "eve-train-0.wav"))


def test_a_short_utterance_is_tiled(root: Path) -> None:
    data = SpeakerData(root, crop_seconds=1.0, num_workers=0)
    whole = audio.read(root / "train" / "eve" / "eve-train-1.wav")
    crops = by_name(batches(data.train_dataloader()))
    assert len(whole) == 4_000
    assert torch.equal(crops["eve-train-1#0"], whole.repeat(4))
    whole = audio.read(root / "train" / "ada" / "ada-train-0.wav")
    assert torch.equal(crops["ada-train-0#0"], torch.cat([whole, whole])[:16_000])


class Recorder(nn.Module):
    """Adds what the global generator says next."""

    def forward(self, waveforms: Tensor) -> Tensor:
        assert waveforms.dim() == 2 and waveforms.shape[0] == 1 and not torch.is_grad_enabled()
        return waveforms + torch.rand(1)


def test_augmentations_leave_every_global_generator_as_it_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_seed(seed: int) -> None:
        raise AssertionError("seeded the GPUs")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", no_seed)
    crops = crops_of(SpeakerData(root, crop_seconds=0.2, num_workers=0, augmentations=[Recorder()]))
    before = torch.get_rng_state()
    first, second = crops[0, 0][0], crops[0, 1][0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(17)
    assert torch.equal(crops[0, 0][0], first) and torch.equal(crops[0, 1][0], second)


def test_augmentations_draw_anew_for_each_epoch_seed_and_repeat(root: Path) -> None:
    def added(epoch: int, seed: int, repeat: int) -> float:
        options: dict[str, Any] = {"crop_seconds": 0.5, "crops_per_utterance": 2, "seed": seed}
        index = 2 * 3 + repeat  # eve-train-0, as long as a crop: there is one crop of it
        plain = crops_of(SpeakerData(root, **options))[epoch, index]
        changed = crops_of(SpeakerData(root, augmentations=[Recorder()], **options))[epoch, index]
        assert changed[2] == f"eve-train-0#{repeat}"
        return float((changed[0] - plain[0]).mean())

    draws = [added(*drawn) for drawn in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    assert len({round(draw, 3) for draw in draws}) == 4


def test_augmentations_run_in_the_order_given(root: Path) -> None:
    class Scale(nn.Module):
        def forward(self, waveforms: Tensor) -> Tensor:
            return 0.5 * waveforms

    class Shift(nn.Module):
        def forward(self, waveforms: Tensor) -> Tensor:
            return waveforms + 0.25

    plain = crops_of(SpeakerData(root, crop_seconds=0.2))[0, 0][0]
    changed = crops_of(SpeakerData(root, crop_seconds=0.2, augmentations=[Scale(), Shift()]))[0, 0][0]
    assert torch.equal(changed, 0.5 * plain + 0.25)


# Ranks


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 utterances to train on, 5 for development, 19 to test on."""
    train = {speaker: [1_600] * 6 for speaker in "abcd"} | {"e": [1_600] * 3}
    test = {speaker: [1_600] * 4 for speaker in "abcd"} | {"e": [1_600] * 3}
    return fill(tmp_path_factory.mktemp("many"), {"train": train, "test": test})


@pytest.mark.parametrize(("place", "pinned"), [("cpu", False), ("cuda", True)])
def test_memory_is_pinned_for_a_gpu_that_is_used(place: str, pinned: bool, many: Path) -> None:
    assert as_rank(SpeakerData(many), 0, 1, place).train_dataloader().pin_memory == pinned


@pytest.mark.parametrize("epoch", [0, 5])
def test_two_ranks_see_at_each_step_the_batch_that_one_process_of_twice_the_size_sees(many: Path, epoch: int) -> None:
    def steps(rank: int, replicas: int, batch_size: int) -> list[list[str]]:
        data = as_rank(SpeakerData(many, batch_size=batch_size, crop_seconds=0.1, num_workers=0), rank, replicas)
        return [batch.names for batch in batches(data.train_dataloader(), epoch)]

    alone = steps(0, 1, 4)
    assert [len(names) for names in alone] == [4] * 5 + [2]  # 27 less one of each speaker for development
    for left, right, both in zip(steps(0, 2, 2), steps(1, 2, 2), alone, strict=True):
        assert sorted(left + right) == sorted(both)


@pytest.mark.parametrize("replicas", [2, 3, 4, 5])
def test_an_uneven_end_gives_every_rank_as_many_batches_and_misses_nobody(many: Path, replicas: int) -> None:
    seen, sizes = set(), []
    for rank in range(replicas):
        data = as_rank(SpeakerData(many, batch_size=2, crop_seconds=0.1, num_workers=0), rank, replicas)
        loaded = batches(data.train_dataloader())
        sizes.append([len(batch.names) for batch in loaded])
        seen |= {name for batch in loaded for name in batch.names}
    assert all(size == sizes[0] for size in sizes)
    assert len(seen) == 22


def test_each_epoch_of_training_has_its_own_order_and_the_same_in_every_run(many: Path) -> None:
    def order(epoch: int) -> list[str]:
        data = SpeakerData(many, batch_size=4, crop_seconds=0.1, num_workers=0)
        return [name for batch in batches(data.train_dataloader(), epoch) for name in batch.names]

    manifest = [f"{utterance.name}#0" for utterance in SpeakerData(many).utterances("train")]
    orders = [order(epoch) for epoch in range(3)]
    assert all(sorted(names) == manifest for names in orders)
    assert len({tuple(names) for names in [manifest, *orders]}) == 4
    assert order(1) == orders[1]


def test_the_order_of_an_epoch_is_its_own_and_repeats(many: Path) -> None:
    def order(epoch: int, seed: int) -> list[tuple[int, int]]:
        sampler = EpochSampler(range(100), 1, 0, shuffle=True, seed=seed)  # type: ignore[arg-type]
        sampler.set_epoch(epoch)
        return list(sampler)

    assert sorted(order(2, 0)) == [(2, index) for index in range(100)]
    assert order(2, 0) == order(2, 0)
    assert len({tuple(index for _, index in order(epoch, 0)) for epoch in range(5)}) == 5
    assert [index for _, index in order(0, 0)] != [index for _, index in order(0, 7)]


@pytest.mark.parametrize("part", ["val", "test"])
@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_evaluation_meets_each_utterance_once_over_all_ranks(many: Path, part: str, replicas: int) -> None:
    seen: Counter[str] = Counter()
    for rank in range(replicas):
        data = as_rank(SpeakerData(many, eval_batch_size=2), rank, replicas)
        loader = data.val_dataloader() if part == "val" else data.test_dataloader()
        loaded = batches(loader)
        assert loaded
        seen.update(name for batch in loaded for name in batch.names)
    expected = SpeakerData(many).utterances("development" if part == "val" else "test")
    assert seen == Counter(utterance.name for utterance in expected)


def test_one_process_evaluates_in_manifest_order(many: Path) -> None:
    data = SpeakerData(many, eval_batch_size=4)
    names = [name for batch in batches(data.test_dataloader()) for name in batch.names]
    assert names == [utterance.name for utterance in data.utterances("test")]


def test_fewer_utterances_than_ranks_are_refused(root: Path) -> None:
    data = as_rank(SpeakerData(root), 5, 6)
    with pytest.raises(DataError, match="test part has 5 utterances, too few for 6 processes"):
        data.test_dataloader()


# Batches


def test_a_batch_is_padded_with_zeros_and_knows_its_lengths(root: Path) -> None:
    data = SpeakerData(root, eval_batch_size=5)
    (batch,) = batches(data.test_dataloader())
    assert batch.waveforms.shape == (5, 9_000) and batch.waveforms.dtype == torch.float32
    assert batch.lengths.tolist() == [5_000, 6_000, 7_000, 8_000, 9_000] and batch.lengths.dtype == torch.int64
    assert batch.speakers.tolist() == [0, 0, 1, 1, 2] and batch.speakers.dtype == torch.int64
    for row, size, utterance in zip(batch.waveforms, batch.lengths, data.utterances("test"), strict=True):
        assert torch.equal(row[:size], audio.read(utterance.path))
        assert not row[size:].any()
    assert batch.names == [utterance.name for utterance in data.utterances("test")]


def test_collate_keeps_the_reject_label() -> None:
    batch = collate([(torch.ones(3), REJECT, "a"), (torch.ones(1), 4, "b")])
    assert batch.speakers.tolist() == [REJECT, 4]
    assert batch.waveforms.tolist() == [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]


def test_whole_utterances_can_be_resampled(tmp_path: Path) -> None:
    path = write(tmp_path / "train" / "s" / "u.wav", 4_000, rate=8_000)
    dataset = Utterances(scan(tmp_path, "train", resample=True), [0], resample=True)
    waveform, speaker, name = dataset[0]
    assert torch.equal(waveform, audio.read(path, resample=True))
    assert (len(dataset), len(waveform), speaker, name) == (1, 8_000, 0, "u")


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"eval_batch_size": 0},
        {"crops_per_utterance": 0},
        {"num_workers": -1},
        {"crop_seconds": 0.0},
        {"development_fraction": 0.0},
        {"development_fraction": 1.0},
        {"development_seconds": -1.0},
    ],
    ids=str,
)
def test_parameters_outside_their_range_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        SpeakerData(tmp_path, **wrong)


# Data sets


def test_spk251_has_251_speakers_and_251_test_utterances(corpus: Path) -> None:
    data = Spk251(corpus, eval_batch_size=4, num_workers=0, batch_size=4)
    assert len(data.speakers) == 251
    assert list(data.speakers) == sorted(data.speakers)
    test = data.dataset("test")
    assert len(test) == 251 and sorted(test.labels) == list(range(251))
    for part in ("train", "development"):
        assert {utterance.speaker for utterance in data.utterances(part)} == set(data.speakers)
    heard = times_used(data.utterances("train") + data.utterances("development"))
    assert all((counts == 1).all() for counts in heard.values())
    assert not {path.stem for path in heard} & {utterance.name for utterance in data.utterances("test")}
    batch: Batch = next(iter(data.test_dataloader()))
    assert batch.waveforms.shape == (4, int(batch.lengths.max()))
    assert batch.waveforms.abs().amax(1).gt(0.01).all() and batch.waveforms.abs().max() <= 1.0
    crops: Batch = next(iter(data.train_dataloader()))
    assert crops.waveforms.shape == (4, 32_000)


@pytest.mark.skipif(missing, reason="needs eSpeak NG: pip install espeakng-loader")
def test_synthetic_voices_speak_when_asked_and_are_served(tmp_path: Path) -> None:
    data = SyntheticVoices(
        tmp_path / "voices", voices=3, train_utterances=2, test_utterances=1, batch_size=3, num_workers=0
    )
    assert not (tmp_path / "voices").exists()
    assert len(data.speakers) == 3
    assert [len(data.utterances(part)) for part in ("train", "development", "test")] == [3, 3, 3]
    (batch,) = batches(data.train_dataloader())
    assert batch.waveforms.shape == (3, 32_000) and sorted(batch.speakers.tolist()) == [0, 1, 2]
    (test,) = batches(data.test_dataloader())
    assert test.speakers.tolist() == [0, 1, 2] and test.lengths.min() > 16_000
    assert test.waveforms.abs().amax(1).gt(0.3).all()


# Augmentations


def impulses(batch: int = 1, time: int = 4_096, height: float = 0.01) -> Tensor:
    """A flat spectrum; low, so that no response makes it clip."""
    waveforms = torch.zeros(batch, time)
    waveforms[:, time // 2] = height
    return waveforms


def decibels(waveforms: Tensor, height: float = 0.01) -> Tensor:
    """The response at each frequency from 0 to 8 kHz."""
    return 20.0 * (torch.fft.rfft(waveforms.double()).abs() / height).log10()


@pytest.mark.parametrize("time", [31_999, 32_000])
def test_an_equalizer_without_deviation_is_the_identity(time: int) -> None:
    waveforms = 2.0 * torch.rand(3, time) - 1.0
    assert (RandomEqualizer(0.0, 0.0)(waveforms) - waveforms).abs().max() < 1e-5


@pytest.mark.parametrize("knots", [2, 5, 9])
def test_an_equalizer_has_the_response_that_was_drawn(knots: int) -> None:
    equalizer = RandomEqualizer(response=3.0, level=2.0, knots=knots)
    torch.manual_seed(0)
    measured = decibels(equalizer(impulses(4)))
    torch.manual_seed(0)
    drawn, level = 3.0 * torch.randn(4, knots), 2.0 * torch.randn(4, 1)
    mel = 2_595.0 * np.log10(1.0 + np.linspace(0.0, 8_000.0, 2_049) / 700.0)
    places = np.linspace(0.0, mel[-1], knots)
    for row in range(4):
        expected = np.interp(mel, places, drawn[row].numpy()) + level[row].item()
        assert np.abs(measured[row].numpy() - expected).max() < 1e-2


def test_an_equalizer_draws_with_the_deviations_asked_for() -> None:
    torch.manual_seed(0)
    ends = decibels(RandomEqualizer(response=3.0, level=0.0)(impulses(4_000, 64)))[:, [0, -1]]
    assert ends.mean().abs() < 0.2 and ends.std(0).sub(3.0).abs().max() < 0.15
    assert torch.corrcoef(ends.T)[0, 1].abs() < 0.06
    levels = decibels(RandomEqualizer(response=0.0, level=2.0)(impulses(4_000, 64)))
    assert levels.std(1).max() < 1e-3
    assert levels[:, 0].mean().abs() < 0.15 and abs(levels[:, 0].std() - 2.0) < 0.1


def test_an_equalizer_never_clips_and_keeps_the_shape_of_what_it_scales_down() -> None:
    torch.manual_seed(0)
    loud = (2.0 * torch.rand(64, 4_000) - 1.0).sign()
    out = RandomEqualizer(response=6.0, level=12.0)(loud)
    assert out.abs().max() <= 1.0
    scaled_down = out.abs().amax(1) > 1.0 - 1e-6
    assert scaled_down.any() and not scaled_down.all()
    quiet_equalizer = RandomEqualizer(response=6.0, level=12.0)
    torch.manual_seed(0)
    torch.rand(64, 4_000)
    quiet = quiet_equalizer(1e-3 * loud)
    ratio = out / (1e3 * quiet)
    assert (ratio.std(1) < 1e-2).all()  # scaled as a whole, not clipped


def test_an_equalizer_gives_each_row_its_own_response() -> None:
    out = RandomEqualizer()(impulses(2))
    assert not torch.allclose(out[0], out[1])


@pytest.mark.parametrize("wrong", [{"response": -1.0}, {"level": -1.0}, {"knots": 1}], ids=str)
def test_an_equalizer_refuses_what_makes_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Expected response and level >= 0 and knots >= 2"):
        RandomEqualizer(**wrong)
