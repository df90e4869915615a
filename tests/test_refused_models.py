"""Numbers that no system can work with are refused where they come in, or at least not taken without a word."""

from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from test_kaldi import EXTRACTOR, PLDA, UBM
from test_kaldi import at as at  # fixtures
from test_normalization import draw
from test_spk10 import recognizer as recognizer
from test_spk10 import root as root
from test_spk10 import voices as voices
from torch import Tensor

from sec4sr_pl import kaldi, scoring
from sec4sr_pl.data import Spk10
from sec4sr_pl.enrollment import enroll
from sec4sr_pl.normalization import Normalized
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import Cosine, EnrolledScorer


def plda() -> scoring.PLDA:
    """Of four dimensions, taken for trained."""
    scorer = scoring.PLDA((), 6, 4)
    scorer.psi.fill_(2.0)
    return scorer


@pytest.mark.parametrize("make", [Cosine, plda, lambda: Normalized(Cosine())])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_embedding_that_is_not_finite_enrolls_nobody(make: Callable[[], EnrolledScorer], value: float) -> None:
    scorer, embeddings = make(), draw(4, 6)
    scorer.enroll(embeddings, ["a", "b", "a", "b"])
    embeddings[3, 1] = value
    with pytest.raises(ValueError, match="finite embeddings, got 1 that are not, the first of speaker 'b'"):
        scorer.enroll(embeddings, ["a", "b", "a", "b"])


def test_a_cohort_is_as_large_as_its_top_and_finite() -> None:
    scorer, embeddings = Normalized(Cosine(), "s", 5), draw(5, 6)
    scorer.take_cohort(embeddings)
    with pytest.raises(ValueError, match=r"embeddings of 5 or more, got \(4, 6\)"):
        scorer.take_cohort(embeddings[:4])
    embeddings[0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite embeddings of the cohort"):
        scorer.take_cohort(embeddings)


@pytest.mark.parametrize("silent", ["Spk10_enroll/bob/enroll-bob-1", "Spk10_imposter/8/imposter-8-0"])
def test_enrollment_and_calibration_tell_of_files_of_zeros(silent: str, recognizer: Recognizer, voices: Path) -> None:
    soundfile.write(voices / f"{silent}.wav", torch.zeros(4_800).numpy(), 16_000)
    with pytest.warns(UserWarning, match=f"Nothing is to be heard in {Path(silent).name}: all samples are 0"):
        enroll(recognizer, Spk10(voices))


@pytest.mark.parametrize(
    ("read", "text", "change", "message"),
    [
        (kaldi.read_plda, PLDA, ("[ 3 0.1 ]", "[ 3 -0.1 ]"), "line 5: .* none below 0, got -0.1"),
        (kaldi.read_gmm, UBM, ("-1 3 ]", "-4 3 ]"), "line 11: expected a positive definite matrix"),
        (kaldi.read_gmm, UBM, ("  2\n  0.5 1 ]", "  0\n  0 0 ]"), "line 9: expected a positive definite matrix"),
        (kaldi.read_extractor, EXTRACTOR, ("-1 3 ]", "-4 3 ]"), "line 14: expected a positive definite matrix"),
    ],
)
def test_models_that_are_none_are_refused_by_file_and_line(
    read: Callable[[Path], Tensor], text: str, change: tuple[str, str], message: str, at: Callable[[str], Path]
) -> None:
    assert change[0] in text
    read(at(text))
    with pytest.raises(kaldi.KaldiError, match=rf"model\.txt, {message}"):
        read(at(text.replace(*change)))
