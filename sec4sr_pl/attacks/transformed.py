"""Gradients through a random transformation of the waveform."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import Generators, Score
from sec4sr_pl.attacks.memory import Cost
from sec4sr_pl.attacks.source import BACK_PROPAGATION, GradientSource, LossOfScores, uniform
from sec4sr_pl.types import mask_padding


@dataclass(frozen=True)
class Transformed(GradientSource):
    """Another source's answer through one draw of a random, differentiable transformation; a subclass writes `draw`."""

    source: GradientSource | None = field(default=None, kw_only=True)

    @property
    def name(self) -> str:
        """Its own name, what differs from the defaults, and the source behind it."""
        own = [(item.name, getattr(self, item.name), item.default) for item in fields(self) if item.name != "source"]
        changed = [f"{name}{value:g}" for name, value, default in own if value != default]
        return "-".join([type(self).__name__, *changed, *([] if self.source is None else [self.source.name])])

    @abstractmethod
    def draw(self, like: Tensor, lengths: Tensor, generators: Generators) -> Callable[[Tensor], Tensor]:
        """A transformation of waveforms of the shape (batch, time) of `like`, drawn for each row by itself.

        It keeps the shape; what it leaves on padding does not matter.
        """

    def __call__(
        self, score: Score, waveforms: Tensor, lengths: Tensor, loss: LossOfScores, generators: Generators
    ) -> tuple[Tensor, Tensor]:
        """Scores and gradient of the transformed waveforms, whichever and however many the source behind asks for."""
        behind = Behind(score, self.draw(waveforms, lengths, generators), max(1, len(waveforms)))
        return (self.source or BACK_PROPAGATION)(behind, waveforms, lengths, loss, generators)


class Behind:
    """A score function behind a transformation of (batch, time) waveforms, or of copies of the batch."""

    def __init__(self, score: Score, transform: Callable[[Tensor], Tensor], batch: int) -> None:
        self.score, self.transform, self.batch = score, transform, batch
        self.cost: Cost | None = getattr(score, "cost", None)

    def __call__(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        """Scores of what comes out."""
        changed = torch.cat([self.transform(copy) for copy in torch.split(waveforms, self.batch)])
        return self.score(mask_padding(changed, lengths), lengths)


@dataclass(frozen=True)
class InputDiversity(Transformed):
    """Input diversity: now and then an utterance is resampled to a random shorter length and padded at random.

    Resampling is linear interpolation, the counterpart of the paper's resizing of images. Wraps the source of any
    gradient attack, so that its examples transfer better to other recognizers.

    Args:
        probability: that an utterance is changed.
        shortest: least length, as a part of the utterance's.
        source: of the gradients, None: back-propagation.

    Raises:
        ValueError: a parameter outside its range.

    Source: Xie et al., "Improving transferability of adversarial examples with input diversity", 2019, equation 6.
    """

    probability: float = 0.5
    shortest: float = 0.9

    def __post_init__(self) -> None:
        if not (0.0 <= self.probability <= 1.0 and 0.0 < self.shortest <= 1.0):
            raise ValueError(
                f"Expected probability in [0, 1] and shortest in (0, 1], got {self.probability} and {self.shortest}"
            )

    def draw(self, like: Tensor, lengths: Tensor, generators: Generators) -> Callable[[Tensor], Tensor]:
        """One length and place for each row."""
        applied, length, place = uniform(like.new_empty(len(like), 3), generators).unsqueeze(2).unbind(1)
        factor = torch.where(applied < self.probability, self.shortest + (1.0 - self.shortest) * length, 1.0)
        last = (lengths.unsqueeze(1) - 1).to(like)
        offset = (place * (1.0 - factor) * last).round()
        position = (torch.arange(like.shape[1], device=like.device) - offset) / factor
        inside = (position >= 0.0) & (position <= last)
        before = position.clamp_min(0.0).minimum(last).floor()
        after, weight = (before + 1.0).minimum(last).long(), (position - before) * inside
        index = before.long()

        def resample_and_pad(waveforms: Tensor) -> Tensor:
            blended = waveforms.gather(1, index) * (1.0 - weight) + waveforms.gather(1, after) * weight
            return blended * inside

        return resample_and_pad
