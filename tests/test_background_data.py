"""Background training and lists of trials on trees as VoxCeleb's: speaker, session, utterance."""

import re
import shlex
from pathlib import Path

import pytest
import soundfile
from conftest import MakeRecognizer
from test_background_runs import QUICK

from sec4sr_pl import enrollment
from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.data import VoxCeleb, trial_list
from sec4sr_pl.data.manifest import DataError
from sec4sr_pl.training.background.__main__ import main, train

PAGE = Path(__file__).parents[1] / "docs" / "models.md"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def flags(**arguments: object) -> list[str]:
    return [f"--{name}={value}" for name, value in arguments.items()]


def test_the_command_trains_on_sessions_of_speakers(voxceleb: Path, tmp_path: Path) -> None:
    """Ten speakers of four utterances in two folders, of whom the last one of each is held out."""
    data = ["--data=VoxCeleb", f"--data.root={voxceleb}"]
    main([*data, *flags(output=tmp_path / "models", **QUICK)])
    names = sorted(path.name for path in (voxceleb / "vox2_dev" / "wav").iterdir())
    assert load_recognizer(tmp_path / "models" / "recognizer.ckpt").scorer.trained_on == names


def test_files_of_another_rate_are_heard_where_that_is_asked_for(voxceleb: Path, tmp_path: Path) -> None:
    for path in sorted((voxceleb / "vox2_dev" / "wav").glob("*/*/*.wav")):
        target = tmp_path / path.relative_to(voxceleb)
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, soundfile.read(path)[0][::2], 8_000)
    with pytest.raises(DataError, match="8000 samples a second, expected 16000"):
        train(VoxCeleb(tmp_path), tmp_path / "models", **QUICK)  # type: ignore[arg-type]
    train(VoxCeleb(tmp_path, resample=True), tmp_path / "models", **QUICK)  # type: ignore[arg-type]
    assert (tmp_path / "models" / "recognizer.ckpt").is_file()


@pytest.mark.parametrize("name", ["Ann Lee", "Ann\tLee"])
def test_a_path_that_no_list_can_hold_is_not_written(name: str, voxceleb: Path, tmp_path: Path) -> None:
    split = tmp_path / "vox1_test" / "wav"
    split.mkdir(parents=True)
    for new, speaker in zip([name, "bob"], (voxceleb / "vox1_test" / "wav").iterdir(), strict=False):
        (split / new).symlink_to(speaker)
    with pytest.raises(DataError, match=re.escape(f"'{name}/nnnnnnnnnnn/00001.wav' has a space")):
        trial_list.write(VoxCeleb(tmp_path), tmp_path / "list.txt")
    assert not (tmp_path / "list.txt").exists()


def test_the_documented_list_is_read_where_it_was_written(
    voxceleb: Path, tmp_path: Path, make_recognizer: MakeRecognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the data elsewhere, as on the page but for the recognizer's checkpoint."""
    root, here = tmp_path / "root", tmp_path / "here"
    for folder, target in (("vox1_dev", "vox1_test"), ("vox2_dev", "vox2_dev")):
        (root / folder).parent.mkdir(exist_ok=True)
        (root / folder).symlink_to(voxceleb / target)
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("SEC4SR_DATA", str(root))
    save_recognizer(make_recognizer(), here / "trained.ckpt")
    lines = PAGE.read_text().replace("\\\n", " ").splitlines()
    write, enroll = (
        shlex.split(next(line for line in lines if line.startswith(f"python -m {module} ") and "VoxCeleb" in line))[3:]
        for module in ("sec4sr_pl.data.trial_list", "sec4sr_pl.enrollment")
    )
    trial_list.main(write)
    enrollment.main([word.replace("$PWD", str(here)) for word in enroll] + ["--checkpoint=trained.ckpt"])
    assert load_recognizer(here / "ecapa_sv.ckpt").scorer.threshold.isfinite()
