"""Synthetic speech by eSpeak NG."""

import hashlib
import itertools
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sec4sr_pl.data import speech_synthesis
from sec4sr_pl.data.speech_synthesis import MAX_UTTERANCES, SPEAKERS, synthesize

try:
    import espeakng_loader  # type: ignore[import-untyped, unused-ignore]  # noqa: F401

    missing = False
except ImportError:
    missing = True
needs_engine = pytest.mark.skipif(missing, reason="needs eSpeak NG: pip install espeakng-loader")


def read(path: Path) -> NDArray[np.float64]:
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2") / 32_768


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.wav")
    }


def spectrum(signal: NDArray[np.float64]) -> NDArray[np.float64]:
    """(40,) mean logarithmic power in bands that widen with frequency, of a crop of two seconds."""
    frames = np.lib.stride_tricks.sliding_window_view(signal[:32_000], 400)[::160] * np.hanning(400)
    power = np.abs(np.fft.rfft(frames, 512)) ** 2
    edges = np.unique(np.geomspace(3, 257, 41).astype(int))
    bands = [power[:, low:high].mean(axis=1) for low, high in itertools.pairwise(edges)]
    return np.asarray(np.log(np.stack(bands) + 1e-7).mean(axis=1))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten speakers, six utterances each to train on and three to test on."""
    folder = tmp_path_factory.mktemp("speech")
    synthesize(folder, "train", speakers=10, utterances=6)
    synthesize(folder, "test", speakers=10, utterances=3, first_utterance=6)
    return folder


@needs_engine
def test_files_are_16_khz_mono_16_bit_of_two_to_four_seconds_and_never_clip(root: Path) -> None:
    paths = sorted(root.rglob("*.wav"))
    assert len(paths) == 90
    for path in paths:
        with wave.open(str(path), "rb") as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
            assert 2.0 <= file.getnframes() / 16_000 <= 4.0
        assert 0.35 < np.abs(read(path)).max() < 0.65


@needs_engine
def test_utterance_ids_are_unique_and_name_their_speaker(root: Path) -> None:
    paths = list(root.rglob("*.wav"))
    assert len({path.stem for path in paths}) == len(paths)
    assert all(path.stem.rsplit("-", 1)[0] == path.parent.name for path in paths)


@needs_engine
def test_the_same_arguments_write_the_same_bytes(root: Path, tmp_path: Path) -> None:
    assert digests(synthesize(tmp_path, "train", 10, 6)) == digests(root / "train")


@needs_engine
def test_an_utterance_depends_on_neither_the_others_nor_their_order(root: Path, tmp_path: Path) -> None:
    alone = digests(synthesize(tmp_path, "alone", speakers=2, utterances=1, first_utterance=7))
    together = digests(root / "test")
    assert len(alone) == 2
    assert alone == {name: together[name] for name in alone}


@needs_engine
def test_another_seed_says_it_differently(root: Path, tmp_path: Path) -> None:
    other = digests(synthesize(tmp_path, "train", 2, 2, seed=1))
    assert not set(other.values()) & set(digests(root / "train").values())


@needs_engine
def test_train_and_test_share_speakers_but_no_audio(root: Path) -> None:
    train, test = root / "train", root / "test"
    speakers = {path.name for path in train.iterdir() if path.is_dir()}
    assert speakers == {path.name for path in test.iterdir() if path.is_dir()} == {s.name for s in SPEAKERS[:10]}
    assert len(set(digests(train).values()) | set(digests(test).values())) == 90


def test_no_sentence_is_said_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said: list[str] = []

    def listen(text: str, *_: object) -> NDArray[np.float64]:
        said.append(text)
        return np.zeros(160)

    monkeypatch.setattr(speech_synthesis, "_utterance", listen)
    synthesize(tmp_path, "train", 30, 6)
    synthesize(tmp_path, "test", 30, 2, first_utterance=6)
    assert len(set(said)) == len(said) == 240


@needs_engine
def test_the_nearest_mean_spectrum_names_most_speakers(root: Path) -> None:
    names = [speaker.name for speaker in SPEAKERS[:10]]
    centroids = np.stack(
        [np.mean([spectrum(read(path)) for path in (root / "train" / name).iterdir()], axis=0) for name in names]
    )
    right = [
        names[int(np.square(centroids - spectrum(read(path))).sum(axis=1).argmin())] == path.parent.name
        for path in (root / "test").rglob("*.wav")
    ]
    assert len(right) == 30
    assert np.mean(right) >= 0.75


@needs_engine
@pytest.mark.parametrize("index", range(0, len(SPEAKERS), 11))
def test_speakers_beyond_the_first_speak_and_repeat_themselves(index: int) -> None:
    first, again = (
        speech_synthesis._utterance("The young pilot sold two bicycles.", SPEAKERS[index], np.random.default_rng(3))
        for _ in range(2)
    )
    assert first.size > 16_000
    assert np.array_equal(first, again)


def test_names_of_speakers_are_unique_and_safe_for_files() -> None:
    assert len({speaker.name for speaker in SPEAKERS}) == len(SPEAKERS)
    assert all(speaker.name.isascii() and speaker.name.replace("-", "").isalnum() for speaker in SPEAKERS)


@needs_engine
def test_a_complete_folder_is_kept_and_one_made_with_other_arguments_is_replaced(tmp_path: Path) -> None:
    folder = synthesize(tmp_path, "train", 1, 2)
    wav = next(folder.rglob("*.wav"))
    before = wav.stat().st_mtime_ns
    assert synthesize(tmp_path, "train", 1, 2) == folder
    assert wav.stat().st_mtime_ns == before
    synthesize(tmp_path, "train", 2, 1)
    assert sorted(path.stem for path in folder.rglob("*.wav")) == sorted(f"{s.name}-0000" for s in SPEAKERS[:2])
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "train" / "recording.wav"
    theirs.parent.mkdir()
    theirs.write_bytes(b"theirs")
    with pytest.raises(FileExistsError, match="train"):
        synthesize(tmp_path, "train", 1, 1)
    assert theirs.read_bytes() == b"theirs"


def test_an_interrupted_generation_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written: list[int] = []

    def interrupted(*_: object) -> NDArray[np.float64]:
        written.append(len(list(tmp_path.rglob("*.wav"))))
        if len(written) == 3:
            raise KeyboardInterrupt
        return np.zeros(160)

    monkeypatch.setattr(speech_synthesis, "_utterance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path, "train", 2, 2)
    assert written == [0, 1, 2]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": ""}, "plain folder name, got ''"),
        ({"split": "a/b"}, "plain folder name"),
        ({"split": ".."}, "plain folder name"),
        ({"speakers": 0}, "got 0"),
        ({"speakers": len(SPEAKERS) + 1}, f"Expected 1 to {len(SPEAKERS)} speakers"),
        ({"utterances": 0}, "at least 1 utterance"),
        ({"first_utterance": -1}, "from number -1"),
        ({"first_utterance": MAX_UTTERANCES}, f"0 to {MAX_UTTERANCES - 1}"),
        ({"seed": -1}, "got -1"),
    ],
)
def test_bad_arguments_say_what_was_expected(arguments: dict[str, object], message: str, tmp_path: Path) -> None:
    good: dict[str, object] = {"split": "train", "speakers": 1, "utterances": 1}
    with pytest.raises(ValueError, match=message):
        synthesize(tmp_path, **(good | arguments))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_engine_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match="pip install espeakng-loader"):
        synthesize(tmp_path, "train", 1, 1)
    assert list(tmp_path.iterdir()) == []


@needs_engine
def test_an_unknown_voice_is_refused_instead_of_replaced_by_another() -> None:
    nobody = SPEAKERS[0]._replace(variant="nobody")
    with pytest.raises(RuntimeError, match="nobody"):
        speech_synthesis._utterance("Good morning.", nobody, np.random.default_rng(0))
