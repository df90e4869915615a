"""What goes wrong inside a class that a command line names is said in one line, without the configuration around it."""

import warnings
from pathlib import Path

import pytest
from conftest import MakeRecognizer
from test_enrollment import write_ivector_models
from test_spk10 import root as root  # fixtures
from test_spk10 import voices as voices

from sec4sr_pl import enrollment, evaluation
from sec4sr_pl.checkpoint import save_recognizer
from sec4sr_pl.cli import train
from sec4sr_pl.command import unwrapped

CONFIGS = Path(__file__).parents[1] / "configs"
BACKBONE, FEATURES = ("--recognizer.init_args." + part for part in ("backbone", "features"))
NORMALIZED = "{class_path: Normalized, init_args: {scorer: Cosine, top: 1}}"
HUB = "{class_path: sec4sr_pl.backbones.ECAPA.pretrained, init_args: {source: hub}}"
STEP = "--defenses=[{class_path: Quantization, init_args: {step: -3}}]"


def test_an_error_that_is_no_dump_is_what_it_was() -> None:
    error = ValueError("a")
    error.__cause__ = KeyError("b")
    assert unwrapped(error) is error


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (f"{BACKBONE}.init_args.ubm=none.txt", "There is no file none.txt"),
        (f"{BACKBONE}.init_args.extractor=half.txt", "half.txt, line 3: expected <SigmaInv>, got the end of the file"),
        (f"{BACKBONE}={HUB}", "hub/embedding_model.ckpt was refused"),
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


def test_the_cause_of_failed_data_is_all_that_training_says(tmp_path: Path) -> None:
    config = CONFIGS / "train" / "mini_natural.yaml"
    with pytest.raises(SystemExit, match=r"^train\.py: error: Expected batch sizes and crops_per_utterance >= 1 and n"):
        train(["fit", f"--config={config}", f"--data.init_args.root={tmp_path}", "--data.init_args.batch_size=0"])


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
