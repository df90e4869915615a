"""`~/` at the beginning of a path is the user's home, wherever a command gets the path from."""

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import MakeRecognizer

from sec4sr_pl import command, enrollment
from sec4sr_pl.audio import AudioInfo
from sec4sr_pl.checkpoint import save_recognizer
from sec4sr_pl.cli import train
from sec4sr_pl.data import Spk10, download
from sec4sr_pl.types import SAMPLE_RATE

SPLITS = {"Spk10_enroll": "ab", "Spk10_imposter": "xy", "train": "abc"}
TRAINING = """
trainer:
  max_steps: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: ~/root
  logger: {class_path: pytorch_lightning.loggers.CSVLogger, init_args: {save_dir: ~/logs, name: "", version: ""}}
  callbacks:
    - class_path: LastCheckpoint
      init_args: {dirpath: ~/run}
model:
  recognizer:
    class_path: sec4sr_pl.recognizer.Recognizer
    init_args:
      features: {class_path: LogMel}
      backbone: {class_path: AudioNet}
      scorer: {class_path: ClosedSet, init_args: {embedding_size: 32}}
data: {class_path: SpeakerData, init_args: {root: ~/voices, batch_size: 2, crop_seconds: 0.4, num_workers: 0}}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home, with voices; the current folder is another, and empty."""
    home, here = tmp_path / "home", tmp_path / "here"
    generator = np.random.default_rng(0)
    for split, speakers in SPLITS.items():
        for speaker in speakers:
            folder = home / "voices" / split / speaker
            folder.mkdir(parents=True)
            for number in range(2):
                noise = generator.normal(scale=0.1, size=SAMPLE_RATE // 2)
                soundfile.write(folder / f"{split}-{speaker}{number}.wav", noise, SAMPLE_RATE)
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return home


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~/data", "HOME/data"),
        (Path("~/data"), Path("HOME/data")),
        (Path("~"), Path("HOME")),
        ({"dirpath": "~/a"}, {"dirpath": "HOME/a"}),
        (["~/a", "b/~/c"], ["HOME/a", "b/~/c"]),
        (Namespace(a=Namespace(b=["~/c"])), Namespace(a=Namespace(b=["HOME/c"]))),
        ("~speaker", "~speaker"),
        ("a~/b", "a~/b"),
        (None, None),
        (7, 7),
        (("~/a", 7), ("HOME/a", 7)),
        (AudioInfo(frames=3, rate=2, channels=1), AudioInfo(frames=3, rate=2, channels=1)),
    ],
)
def test_only_a_tilde_before_the_first_slash_is_the_home(
    given: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "HOME")
    assert command.at_home(given) == expected


def test_a_command_finds_and_writes_at_home_what_flags_and_yaml_name_there(
    home: Path, make_recognizer: MakeRecognizer
) -> None:
    save_recognizer(make_recognizer(["x", "y"]), home / "trained.ckpt")
    (home / "enroll.yaml").write_text("checkpoint: ~/trained.ckpt\ndata: {class_path: Spk10}\nscorer: Cosine\n")
    enrollment.main(["--config=~/enroll.yaml", "--data.root=~/voices", "--output=~/made/ready.ckpt"])
    assert (home / "made" / "ready.ckpt").exists() and not list(Path().iterdir())


def test_a_download_is_at_home(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    download.main(["Spk10_enroll", "--root=~/voices"])
    assert f"{home / 'voices' / 'Spk10_enroll'} is there" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_training_keeps_its_checkpoints_and_logs_at_home_and_finds_them_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    (home / "train.yaml").write_text(TRAINING)
    train(["fit", "--config=~/train.yaml"])
    shutil.copy(home / "run" / "last.ckpt", home / "other.ckpt")
    again = train(["fit", "--config=~/train.yaml", "--ckpt_path=~/other.ckpt", "--trainer.max_steps=2"])
    assert again.trainer.global_step == 2
    assert again.trainer.default_root_dir == str(home / "root")
    assert (home / "logs" / "metrics.csv").exists() and not list(Path().iterdir())


def test_a_variable_names_the_data_at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEC4SR_DATA", "~/voices")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/caches")
    assert len(Spk10().utterances("enroll")) == 4
    assert list((home / "caches" / "sec4sr_pl").iterdir()) and not list(Path().iterdir())
