"""What goes wrong inside a class that a command line names is said in one line, without the configuration around it."""

import json
import os
import signal
import time
import warnings
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import MakeRecognizer
from test_enrollment import write_ivector_models
from test_spk10 import root as root  # fixtures
from test_spk10 import voices as voices
from torch.utils.data import DataLoader, Dataset

from sec4sr_pl import checkpoint, enrollment, evaluation
from sec4sr_pl.checkpoint import save_recognizer
from sec4sr_pl.cli import train
from sec4sr_pl.command import LENGTH, TRACEBACK, Terminated, one_line_errors, unwrapped
from sec4sr_pl.data.manifest import DataError

CONFIGS = Path(__file__).parents[1] / "configs"
BACKBONE, FEATURES = ("--recognizer.init_args." + part for part in ("backbone", "features"))
NORMALIZED = "{class_path: Normalized, init_args: {scorer: Cosine, top: 1}}"
HUB = "{class_path: sec4sr_pl.backbones.ECAPA.pretrained, init_args: {source: hub}}"
STEP = "--defenses=[{class_path: Quantization, init_args: {step: -3}}]"


def test_a_full_disk_that_names_no_file_is_told_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), one_line_errors("prog"), Path("/dev/full").open("w") as file:
        file.write("x")
    assert "prog: error: [Errno 28] No space left on device: there is no room for an output" in capsys.readouterr().err


def test_an_error_that_is_no_dump_is_what_it_was() -> None:
    error = ValueError("a")
    error.__cause__ = KeyError("b")
    assert unwrapped(error) is error


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (f"{BACKBONE}.init_args.ubm=none.txt", "There is no file none.txt"),
        (f"{BACKBONE}.init_args.extractor=half.txt", "half.txt, line 3: expected <SigmaInv>, got the end of the file"),
        (f"{BACKBONE}={HUB}", "hub/embedding_model.ckpt is damaged"),
        (f"{FEATURES}.init_args.deltas=0", "IVector takes frames of 72 dimensions, but MFCC gives 24"),
        (f"--recognizer.init_args.scorer={NORMALIZED}", "Expected kind 'z', 't' or 's' and a top of at least 2"),
        (f"--scorer={NORMALIZED}", "Expected kind 'z', 't' or 's' and a top of at least 2"),
        (STEP, "Expected a step of 1 to 32768"),
    ],
)
def test_the_cause_of_a_failed_enrollment_is_its_only_line(
    flag: str,
    said: str,
    voices: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_ivector_models(tmp_path / "runs" / "ivector")
    extractor = (tmp_path / "runs" / "ivector" / "final_ie.txt").read_text()
    Path("half.txt").write_text(extractor[: len(extractor) // 2])
    Path("hub").mkdir()
    Path("hub/embedding_model.ckpt").write_text("<html>")
    with pytest.raises(SystemExit) as stopped:
        enrollment.main([f"--config={CONFIGS / 'enroll' / 'ivector_kaldi.yaml'}", f"--data.root={voices}", flag])
    (line,) = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1
    assert line.startswith("python -m sec4sr_pl.enrollment: error: ") and said in line
    assert "Namespace" not in line and "Union" not in line


def test_the_cause_of_a_failed_evaluation_is_its_only_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluation.main(["--checkpoint=none.ckpt", "--data=Spk10", "--attacks=[FGSM]", "--output=out", STEP])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("evaluate.py: error: Expected a step of 1 to 32768")


def test_the_cause_of_failed_data_is_all_that_training_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = CONFIGS / "train" / "mini_natural.yaml"
    with pytest.raises(SystemExit) as stopped:
        train(["fit", f"--config={config}", f"--data.init_args.root={tmp_path}", "--data.init_args.batch_size=0"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 1
    assert said.startswith("train.py: error: Expected batch sizes and crops_per_utterance >= 1 and n")


def test_a_command_asks_nothing_deprecated_of_its_parser(
    make_recognizer: MakeRecognizer, voices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "all")
    save_recognizer(make_recognizer(), tmp_path / "trained.ckpt")
    flags = [f"--checkpoint={tmp_path / 'trained.ckpt'}", f"--data.root={voices}", "--scorer=Cosine"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "(?s).*deprecated in v", DeprecationWarning)
        enrollment.main(["--data=Spk10", *flags, f"--output={tmp_path / 'ready.ckpt'}"])
    assert (tmp_path / "ready.ckpt").exists()


# The guard around every command


def ended(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """The status of a command in which something is raised, and its line on stderr."""
    with pytest.raises(SystemExit) as stopped, one_line_errors("prog"):
        raise error
    (line,) = capsys.readouterr().err.splitlines()
    return stopped.value.code, line


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (DataError("a file\nis  stereo"), 1, "prog: error: a file is stereo"),
        (
            OSError(28, "No space left on device", "a.wav"),
            1,
            "prog: error: [Errno 28] No space left on device: 'a.wav'",
        ),
        (ArgumentError(None, "no such flag"), 2, "prog: error: no such flag; see prog --help"),
        (KeyError("x"), 1, "prog: error: KeyError: 'x' (SEC4SR_TRACEBACK=1 shows where)"),
        (MemoryError(), 1, "prog: error: MemoryError (SEC4SR_TRACEBACK=1 shows where)"),
        (ValueError(), 1, "prog: error: ValueError (SEC4SR_TRACEBACK=1 shows where)"),
        (ValueError("a file called \x1b[2J"), 1, r"prog: error: a file called \x1b[2J"),
        (KeyboardInterrupt(), 130, "prog: interrupted; the same command goes on with what is there"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_raised_is_one_line_and_a_status(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(error, capsys) == (status, said)


def test_a_long_error_keeps_its_beginning_and_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    _, line = ended(ValueError("begins " + "x" * 10 * LENGTH + " ends"), capsys)
    assert len(line) < LENGTH + 50 and "begins" in line and line.endswith(" ends")


class Damaged(Dataset[int]):
    """One item, which can't be read."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (DataError("a.wav is stereo"), "a.wav is stereo"),
        (KeyError("x"), "KeyError: 'x' (SEC4SR_TRACEBACK=1 shows where)"),
        (json.JSONDecodeError("Expecting value", "", 0), "Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_an_error_of_a_loaders_worker_is_told_without_its_traceback(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), one_line_errors("prog"):
        next(iter(DataLoader(Damaged(error), num_workers=1)))
    assert said in capsys.readouterr().err
    assert len(capsys.readouterr().err.splitlines()) <= 1


def test_a_variable_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(KeyError), one_line_errors("prog"):
        raise KeyError("x")


@pytest.fixture
def sigterm() -> Iterator[None]:
    """The handler of before, afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm")
@pytest.mark.parametrize("follows", [None, RuntimeError("DataLoader worker is killed by signal: Terminated.")])
def test_sigterm_is_status_143_whatever_follows_from_it(
    follows: Exception | None, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Terminated:
            if follows is None:
                raise
            raise follows from None

    with pytest.raises(SystemExit) as stopped, one_line_errors("prog", "it starts over"):
        work()
    assert stopped.value.code == 143
    assert capsys.readouterr().err == "prog: interrupted; it starts over\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # a launcher may send another


@pytest.mark.usefixtures("sigterm")
def test_sigterm_that_a_library_takes_for_an_error_of_its_own_is_status_143() -> None:
    with pytest.raises(SystemExit) as stopped, one_line_errors("prog"), suppress(BaseException):
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143


@pytest.mark.usefixtures("sigterm")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_meets_the_end_of_an_object_is_not_lost(
    sent: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    class Ends:
        def __del__(self) -> None:
            signal.raise_signal(sent)

    def work() -> None:
        Ends()
        for _ in range(1_000):
            time.sleep(0.01)

    with pytest.raises(SystemExit) as stopped, one_line_errors("prog"):
        work()
    assert stopped.value.code == 128 + sent
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_command_that_ends_well_gives_the_signal_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with one_line_errors("prog"):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_export_of_a_checkpoint_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        checkpoint.main([str(tmp_path / "none.ckpt"), str(tmp_path / "out.ckpt")])
    assert stopped.value.code == 1 and list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err.startswith("python -m sec4sr_pl.checkpoint: error: There is no checkpoint ")


def test_a_resume_of_the_last_checkpoint_does_not_start_over_where_nobody_says_in_which_folder_it_lies(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        train(
            [
                "fit",
                f"--config={CONFIGS / 'train' / 'demo.yaml'}",
                "--trainer.callbacks=LastCheckpoint",
                "--ckpt_path=last",
            ]
        )
    assert "Expected a dirpath of LastCheckpoint or ModelCheckpoint" in capsys.readouterr().err
