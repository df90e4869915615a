"""An output that can't be written ends a command before it looks at anything else, and so before its work."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sec4sr_pl import enrollment, evaluation
from sec4sr_pl.data import shards, trial_list
from sec4sr_pl.robustness import universal
from sec4sr_pl.training.background import __main__ as background
from sec4sr_pl.training.background import backend

MISSING = ["--checkpoint=/nowhere.ckpt"]
COMMANDS: dict[str, tuple[Callable[[list[str]], Any], list[str], str]] = {
    "evaluate": (evaluation.main, [*MISSING, "--attacks=[FGSM]"], "summary.md"),
    "enroll": (enrollment.main, MISSING, ""),
    "universal": (universal.main, MISSING, ""),
    "background": (background.main, [], "final_ubm.txt"),
    "backend": (backend.main, MISSING, "plda.txt"),
    "shards": (shards.main, [], "test/index.csv"),
    "trials": (trial_list.main, [], ""),
}
"""Each command, what it needs beside data and output, and a file of it under the output, "" for the output itself."""


def folder(path: Path) -> None:
    path.mkdir(parents=True)


def link(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("outside")


def below_a_file(path: Path) -> None:
    path.parents[0].parent.mkdir(parents=True, exist_ok=True)
    path.parents[0].touch()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("wrong", "said"),
    [(folder, "got a folder"), (link, "got a symbolic link"), (below_a_file, "Not a directory")],
)
def test_an_output_that_cannot_be_written_is_one_line_before_the_work(
    name: str, wrong: Callable[[Path], None], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the checkpoint nor the data is there, which would be told next."""
    main, arguments, below = COMMANDS[name]
    output = tmp_path / "deep" / "out"
    target = output / below
    wrong(target)
    before = {path: path.lstat().st_mode for path in tmp_path.rglob("*")}
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--data=SpeakerData", f"--data.root={tmp_path / 'nowhere'}", f"--output={output}"])
    text = capsys.readouterr().err
    assert stop.value.code == 1 and text.count("\n") == 1
    assert said in text and str(output if wrong is below_a_file else target) in text
    assert {path: path.lstat().st_mode for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("name", ["enroll", "universal", "trials"])
def test_no_input_is_written_over(name: str, linked: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main, arguments, _ = COMMANDS[name]
    (tmp_path / "disk" / "ann").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    split = tmp_path / "data" / "train"
    split.symlink_to(tmp_path / "disk") if linked else (tmp_path / "disk").rename(split)
    recording, trials, other = split / "ann" / "a.wav", tmp_path / "data" / "t.txt", tmp_path / "data" / "made.wav"
    data = ["--data=SpeakerData", f"--data.root={tmp_path / 'data'}", "--data.trials=t.txt"]
    for output, told in (
        (recording, "an input, which would be written over"),
        (trials, "an input, which would be written over"),
        (other, "There is no"),
    ):
        output.write_text("before")
        with pytest.raises(SystemExit):
            main([*arguments, *data, f"--output={output}"])
        assert told in capsys.readouterr().err and output.read_text() == "before"


@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_that_can_be_written_leaves_no_trace_of_the_trial(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, arguments, _ = COMMANDS[name]
    with pytest.raises(SystemExit):
        main([*arguments, "--data=SpeakerData", f"--data.root={tmp_path / 'nowhere'}", f"--output={tmp_path / 'out'}"])
    assert "nowhere" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
