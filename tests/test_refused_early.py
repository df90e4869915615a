"""What the list of utterances or an argument tells is refused before an utterance is read, with a way out."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import MakeRecognizer
from test_spk10 import recognizer as recognizer  # fixtures
from test_spk10 import root as root
from test_spk10 import voices as voices
from test_spk10 import write

from sec4sr_pl import audio
from sec4sr_pl.attacks import FGSM
from sec4sr_pl.checkpoint import save_recognizer
from sec4sr_pl.data import SpeakerData, Spk10
from sec4sr_pl.data.base import Utterances
from sec4sr_pl.enrollment import embed, enroll, held_out_scores
from sec4sr_pl.evaluation import evaluate
from sec4sr_pl.normalization import Normalized
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA, Cosine, EnrolledScorer
from sec4sr_pl.types import SAMPLE_RATE

WAYS = r"got one of 1 \(ann\): add another, .* \(--task SV --data.trials LIST\), .* \(--task CSI, a closed set\)$"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The files whose samples were read."""
    found: list[Any] = []
    original = audio.read
    monkeypatch.setattr(audio, "read", lambda *arguments: found.append(arguments[0]) or original(*arguments))  # type: ignore[func-returns-value]
    return found


def one_utterance(root: Path) -> None:
    next((root / "Spk10_enroll" / "ann").iterdir()).unlink()


def no_imposters(root: Path) -> None:
    shutil.rmtree(root / "Spk10_imposter")


def a_short_imposter(root: Path) -> None:
    soundfile.write(root / "Spk10_imposter" / "8" / "brief.wav", np.zeros(99), SAMPLE_RATE)


def nothing(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("harm", "arguments", "told"),
    [
        (one_utterance, {}, WAYS),
        (one_utterance, {"task": "SV"}, WAYS),
        (no_imposters, {}, "There is no folder .*Spk10_imposter"),
        (a_short_imposter, {}, "'brief' has 99 samples, this recognizer needs at least"),
        (nothing, {"max_seconds": 0.01}, r"'enroll-ann-0' has 160 samples, .*, as are 8 others"),
        (nothing, {"max_seconds": 0.0}, "Expected max_seconds above 0"),
        (nothing, {"target_prior": 2.0}, r"target_prior in \(0, 1\)"),
        (nothing, {"batch_size": 0}, "batch_size >= 1"),
    ],
)
def test_an_enrollment_is_refused_before_anything_is_read(
    harm: Callable[[Path], None],
    arguments: dict[str, Any],
    told: str,
    recognizer: Recognizer,
    voices: Path,
    read: list[Any],
) -> None:
    harm(voices)
    with pytest.raises(ValueError, match=told):
        enroll(recognizer, Spk10(voices), **arguments)
    assert not read


@pytest.mark.parametrize(
    ("scorer", "told"),
    [
        (PLDA((), 32, 4), "This PLDA is untrained"),
        (Normalized(PLDA((), 32, 4)), "This PLDA is untrained"),
        (Normalized(Cosine(), top=100), "Expected a cohort of 100 or more utterances of strangers, got [1-4]"),
    ],
)
def test_a_scorer_that_cannot_be_enrolled_is_refused_before_anything_is_read(
    scorer: EnrolledScorer, told: str, recognizer: Recognizer, voices: Path, read: list[Any]
) -> None:
    write(voices, "train", {"zoe": 4})
    cohort = SpeakerData(voices) if isinstance(scorer, Normalized) else None
    with pytest.raises(ValueError, match=told):
        enroll(Recognizer(recognizer.features, recognizer.backbone, scorer), Spk10(voices), cohort=cohort)
    assert not read


def test_a_closed_set_enrolls_one_utterance_a_speaker(recognizer: Recognizer, voices: Path) -> None:
    one_utterance(voices)
    enroll(recognizer, Spk10(voices), task="CSI")
    assert recognizer.scorer.speakers == ("ann", "bob")


def test_nobody_is_held_out_of_a_model_of_one_utterance(recognizer: Recognizer, voices: Path) -> None:
    one_utterance(voices)
    utterances = Spk10(voices).utterances("enroll")
    embeddings = embed(recognizer, Utterances(utterances, [0] * len(utterances)))
    recognizer.scorer.enroll(embeddings, [utterance.speaker for utterance in utterances])
    with pytest.raises(ValueError, match=WAYS):
        held_out_scores(recognizer.scorer, embeddings, [utterance.speaker for utterance in utterances])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"attacks": [FGSM(), FGSM()]}, "Expected attacks with names of their own"),
        ({"batch_size": 0}, "Expected batch_size and draws >= 1"),
        ({"draws": 0}, "Expected batch_size and draws >= 1"),
        ({"max_seconds": 0.0}, "Expected max_seconds above 0"),
        ({"max_seconds": 0.01}, r"has 160 samples, this recognizer needs at least .*, as are 3 others"),
    ],
)
def test_an_evaluation_of_trials_is_refused_before_their_enrollment(
    arguments: dict[str, Any], told: str, make_recognizer: MakeRecognizer, voices: Path, read: list[Any]
) -> None:
    made = make_recognizer()
    scorer = Cosine(["x"], 32)
    scorer.threshold.fill_(0.5)
    save_recognizer(Recognizer(made.features, made.backbone, scorer), voices / "ready.ckpt")
    files = [f"{name}/enroll-{name}-{number}.wav" for name in ("ann", "bob") for number in range(2)]
    (voices / "trials.txt").write_text(f"1 {files[0]} {files[1]}\n0 {files[0]} {files[2]}\n0 {files[1]} {files[3]}\n")
    data = SpeakerData(voices, trials=Path("trials.txt"), trial_splits=["Spk10_enroll"])
    settings = {"attacks": [FGSM()], "part": "trials", "accelerator": "cpu", **arguments}
    with pytest.raises(ValueError, match=told):
        evaluate(voices / "ready.ckpt", data, output=voices / "out", **settings)
    assert not read and not (voices / "out").exists()
