"""What can't be enrolled or evaluated is told so in the words of its user, and no figure comes of it silently."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import MakeRecognizer
from test_spk10 import enrolled as enrolled  # fixtures
from test_spk10 import recognizer as recognizer
from test_spk10 import root as root
from test_spk10 import voices as voices
from test_spk10 import write

from sec4sr_pl import enrollment
from sec4sr_pl.checkpoint import save_recognizer
from sec4sr_pl.data import SpeakerData, Spk10
from sec4sr_pl.enrollment import Task
from sec4sr_pl.evaluation import evaluate, main
from sec4sr_pl.kaldi import PLDAModel
from sec4sr_pl.normalization import Normalized
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA


@pytest.mark.parametrize("make", [lambda: PLDA((), 6, 4), lambda: Normalized(PLDA((), 6, 4))])
def test_an_untrained_plda_enrolls_nobody(make: Callable[[], PLDA]) -> None:
    scorer = make()
    with pytest.raises(ValueError, match=r"untrained.*training\.background\.backend.*PLDA\.from_kaldi"):
        scorer.enroll(torch.randn(4, 6), ["a", "b", "a", "b"])
    assert scorer.speakers == ()


@pytest.mark.parametrize(
    ("lda", "psi"), [(torch.eye(4, 6), 2 * torch.ones(4)), (torch.eye(4, 6).flip(1), torch.ones(4))]
)
def test_a_plda_with_anything_learned_is_trained(lda: torch.Tensor, psi: torch.Tensor) -> None:
    """Mean and center may be 0 in data that were centered before."""
    scorer = PLDA.of(torch.zeros(6), lda, PLDAModel(torch.zeros(4), torch.eye(4), psi))
    scorer.enroll(torch.randn(4, 6), ["a", "b", "a", "b"])
    assert scorer.speakers == ("a", "b")


def test_the_command_does_not_enroll_an_untrained_plda(
    make_recognizer: MakeRecognizer, voices: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_recognizer(make_recognizer(["x", "y"]), voices / "trained.ckpt")
    flags = [f"--checkpoint={voices / 'trained.ckpt'}", "--scorer=PLDA", "--data=Spk10", f"--data.root={voices}"]
    with pytest.raises(SystemExit) as stop:
        enrollment.main([*flags, f"--output={voices / 'ready.ckpt'}"])
    assert stop.value.code == 1 and not (voices / "ready.ckpt").exists()
    assert "This PLDA is untrained" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--claims=true"], ["--part=trials"]])
def test_a_recognizer_without_speakers_names_the_command_that_enrolls(
    flags: list[str], recognizer: Recognizer, voices: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = voices / "nobody.ckpt"
    save_recognizer(recognizer, path)
    with pytest.raises(SystemExit):
        main([f"--checkpoint={path}", "--data=Spk10", "--attacks=[]", f"--output={voices / 'out'}", *flags])
    shown = " ".join(capsys.readouterr().err.split())
    assert f"Nobody is enrolled in {path}: " in shown
    assert f"python -m sec4sr_pl.enrollment --checkpoint {path}" in shown


@pytest.mark.parametrize("claims", [False, True])
def test_data_in_which_nobody_enrolled_is_heard_are_told(
    claims: bool, enrolled: Callable[[Task], Path], voices: Path
) -> None:
    checkpoint, settings = enrolled("SV"), {"accelerator": "cpu", "perceptual": False, "claims": claims}
    write(voices, "strangers", {"x": 1, "y": 1})
    samples = (voices / "Spk10_test" / "ann" / "test-ann-0.wav").read_bytes()
    for path in (voices / "strangers").rglob("*.wav"):
        path.write_bytes(samples)
    data = SpeakerData(voices, "Spk10_enroll", "strangers")
    with pytest.warns(UserWarning, match="^None of the 2 enrolled speakers is heard in the part test"):
        evaluate(checkpoint, data, [], voices / "out", **settings)  # type: ignore[arg-type]
    lines = [line for path in (voices / "out").rglob("benign/*.jsonl") for line in path.open()]
    assert all(json.loads(line)["label"] < 0 for line in lines)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        evaluate(checkpoint, Spk10(voices), [], voices / "heard", **settings)  # type: ignore[arg-type]
