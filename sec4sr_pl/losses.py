"""Margins, which training takes from the score of the true speaker of each row."""

from abc import ABC
from typing import ClassVar

from speechbrain.nnet import losses as library
from torch import Tensor
from torch.nn import functional


class Margin(ABC):
    """A margin on cosines: cross-entropy of what it returns pulls each speaker closer together.

    Args:
        margin: as the subclass says; 0: none.

    Raises:
        ValueError: a margin outside [0, 1].
    """

    strength: float = 1.0
    """Fraction of the margin; a schedule may move it."""
    of_cosines: ClassVar[type[library.AngularMargin]]

    def __init__(self, margin: float = 0.2) -> None:
        if not 0.0 <= margin <= 1.0:
            raise ValueError(f"Expected a margin in [0, 1], got {margin}")
        self.margin = margin

    def __call__(self, scores: Tensor, speakers: Tensor, scale: float) -> Tensor:
        """(batch, speakers) logits, those of the true speakers reduced.

        Args:
            scores: (batch, speakers) cosines times `scale`.
            speakers: (batch,) the true ones.
            scale: that of the scorer.
        """
        targets = functional.one_hot(speakers, scores.shape[1]).to(scores)
        logits: Tensor = self.of_cosines(self.strength * self.margin, scale)(scores / scale, targets)
        return logits


class AdditiveMargin(Margin):
    """AM-softmax: the margin is taken from the cosine.

    Source: Wang et al., "Additive margin softmax for face verification", 2018.
    """

    of_cosines = library.AngularMargin


class AdditiveAngularMargin(Margin):
    """AAM-softmax: the margin, in radians, is added to the angle.

    Where that would pass 180 degrees the cosine is reduced by margin * sin(margin) instead, so that it goes on falling.
    Cosines stop 1e-7 short of -1 and 1, where the angle's gradient has no bound; in single precision.

    Source: Deng et al., "ArcFace: Additive angular margin loss for deep face recognition", 2019; for speakers Xiang et
    al., "Margin matters: Towards more discriminative deep neural network embeddings for speaker recognition", 2019.
    """

    of_cosines = library.AdditiveAngularMargin
