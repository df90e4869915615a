"""Parts of a recognizer that do not fit are refused when they are put together."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sec4sr_pl.backbones import ECAPA, GE2E, AudioNet, IVector, XVector
from sec4sr_pl.features import MFCC, Fbank, FrontEnd, LogMel, Mel
from sec4sr_pl.normalization import Normalized
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA, ClosedSet, Cosine


class Foreign(nn.Module):
    """A backbone that tells no sizes."""

    minimum_frames, masked = 1, True

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The first frame."""
        return frames[:, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recognizer(MFCC(30, deltas=0), IVector(), Cosine()), "IVector takes frames of 72 .* MFCC gives 30"),
        (lambda: Recognizer(Mel(32), GE2E(), Cosine()), "GE2E takes frames of 40 dimensions, but Mel gives 32"),
        (lambda: Recognizer(LogMel(40), AudioNet(), Cosine()), "AudioNet takes frames of 32 .* LogMel gives 40"),
        (lambda: Recognizer(Fbank(24), ECAPA(channels=8), Cosine()), "ECAPA takes frames of 80 .* Fbank gives 24"),
        (
            lambda: Recognizer(MFCC(), IVector(), ClosedSet(512, 2)),
            "ClosedSet takes embeddings of 512 .* IVector gives 32",
        ),
        (
            lambda: Recognizer(MFCC(), IVector(embedding_size=10), PLDA(embedding_size=30)),
            "PLDA takes embeddings of 30 dimensions, but IVector gives 10",
        ),
        (
            lambda: Recognizer(MFCC(30, deltas=0), XVector(), Normalized(PLDA())),
            "Normalized takes embeddings of 32 dimensions, but XVector gives 512",
        ),
    ],
)
def test_parts_of_other_sizes_are_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_sizes_that_are_not_told_are_not_compared() -> None:
    for features in (FrontEnd({}), LogMel(), Fbank()):
        Recognizer(features, Foreign(), ClosedSet(7, 2))


def test_an_enrolled_scorer_is_of_its_embeddings() -> None:
    scorer = Cosine()
    Recognizer(LogMel(), AudioNet(), scorer)
    scorer.enroll(torch.randn(2, 5), ["a", "b"])
    with pytest.raises(ValueError, match="Cosine takes embeddings of 5 dimensions, but AudioNet gives 32"):
        Recognizer(LogMel(), AudioNet(), scorer)


def test_plda_enrolls_embeddings_of_its_models_alone() -> None:
    scorer = PLDA(embedding_size=30)
    with pytest.raises(ValueError, match=r"embeddings of 30 dimensions.*got \(2, 10\)"):
        scorer.enroll(torch.randn(2, 10), ["a", "b"])
    assert scorer.speakers == () and scorer.embedding_size == 30
