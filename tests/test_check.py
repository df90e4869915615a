"""The command that looks a data set over: headers always, samples where asked, all that is wrong in one message."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sec4sr_pl.cli import train
from sec4sr_pl.data.check import main

BASE = [
    "--model.recognizer=sec4sr_pl.recognizer.Recognizer",
    "--model.recognizer.features=LogMel",
    "--model.recognizer.backbone=AudioNet",
    "--model.recognizer.scorer=ClosedSet",
    "--model.recognizer.scorer.embedding_size=32",
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
    "--data=SpeakerData",
]
"""A training of a small network."""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two speakers with two utterances to train on and one to test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 2), ("test", 1)):
        for speaker in ("ann", "bob"):
            for number in range(count):
                write(tmp_path / split / speaker / f"{speaker}-{split}-{number}.wav")
    return tmp_path


def write(path: Path, samples: Any = None, **kwargs: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8_000)
    soundfile.write(str(path), noise if samples is None else samples, 16_000, **kwargs)


def run(root: Path, *args: str) -> None:
    main(["--data=SpeakerData", f"--data.root={root}", "--data.num_workers=0", *args])


def test_it_shows_what_was_read(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(root, "--samples=true")
    shown = capsys.readouterr().out
    assert "All 6 files can be used" in shown
    (train,) = [line.split() for line in shown.splitlines() if "train" in line]
    assert [word for word in train if word != "│"] == ["train", "2", "4", "0.00", "0.50", "0.50"]


def test_it_tells_of_all_folders_at_once_and_ends_with_1(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root / "train" / "ann" / "stereo.wav", np.zeros((100, 2)))
    write(root / "noise" / "many.wav", np.zeros((100, 8)))
    (root / "test" / "bob" / "bob-test-0.wav").unlink()
    noise = "{class_path: Noise, init_args: {folder: noise}}"
    with pytest.raises(SystemExit) as end, pytest.warns(UserWarning, match="test/bob holds no audio and is left out"):
        run(root, f"--data.augmentations=[{noise}]", "--splits=[train,test,nowhere]")
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.count("\n") == 1 and "The data has 3 faults" in error
    for said in ("stereo.wav has 2 channels", "many.wav has 8 channels", "folder .*nowhere"):
        assert said.replace(".*", f"{root}/") in error


def test_samples_are_decoded_where_asked(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root / "train" / "ann" / "silent.wav", np.zeros(8_000))
    write(root / "train" / "ann" / "nan.wav", np.array([0.0, np.nan]), subtype="FLOAT")
    write(root / "train" / "bob" / "cut.flac")
    whole = (root / "train" / "bob" / "cut.flac").read_bytes()
    (root / "train" / "bob" / "cut.flac").write_bytes(whole[:5_000])
    write(root / "test" / "bob" / "clipped.wav", np.sign(np.sin(np.arange(8_000))))
    run(root)
    with pytest.raises(SystemExit), pytest.warns(UserWarning, match=r"clipped\.wav is clipped: 100\.0% of its samples"):
        run(root, "--samples=true")
    error = capsys.readouterr().err
    for said in ("silent.wav is silent", "nan.wav contains NaN", "cut.flac can't be decoded"):
        assert said in error


def test_utterances_that_are_too_short_for_a_checkpoint_are_told(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(root / "test" / "ann" / "short.wav", np.full(960, 0.1))
    checkpoint = Path(__file__).parents[1] / "checkpoints" / "audionet_mini_natural.ckpt"
    run(root)
    with pytest.raises(SystemExit):
        run(root, f"--checkpoint={checkpoint}")
    assert "short.wav has 960 samples, this recognizer needs at least 1121" in capsys.readouterr().err


def test_training_ends_with_the_same_line_before_its_first_step(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root / "train" / "ann" / "stereo.wav", np.zeros((100, 2)))
    write(root / "train" / "bob" / "short.wav", np.full(960, 0.1))  # the last, held out
    write(root / "noise" / "many.wav", np.zeros((100, 8)))
    noise = "{class_path: Noise, init_args: {folder: noise}}"
    data = [f"--data.root={root}", f"--data.augmentations=[{noise}]", "--data.num_workers=0"]
    with pytest.raises(SystemExit) as end:
        train(["fit", *BASE, *data])
    error = capsys.readouterr().err
    assert end.value.code == 1 and error.count("train.py: error: ") == 1
    for said in ("The data has 3 faults", "stereo.wav has 2", "short.wav has 960 samples", "many.wav has 8 channels"):
        assert said in error


def test_a_file_that_is_damaged_after_the_look_is_one_line_from_a_worker(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for speaker in ("ann", "bob"):
        (root / "train" / speaker / f"{speaker}-train-0.wav").unlink()
        write(root / "train" / speaker / f"{speaker}-train-0.flac")
        path = root / "train" / speaker / f"{speaker}-train-0.flac"
        path.write_bytes(path.read_bytes()[:3_000])
    data = [f"--data.root={root}", "--data.num_workers=1", "--data.batch_size=2"]
    with pytest.raises(SystemExit) as end:
        train(["fit", *BASE, *data])
    error = capsys.readouterr().err
    assert end.value.code == 1
    (line,) = [line for line in error.splitlines() if "error:" in line]
    assert "-train-0.flac can't be decoded" in line and "Traceback" not in error
