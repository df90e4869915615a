"""What a training step minimizes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from sec4sr_pl.attacks import PGD
from sec4sr_pl.draws import key, uniform
from sec4sr_pl.losses import Margin
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.types import Batch


class Step(NamedTuple):
    """The outcome of an objective on a batch."""

    loss: Tensor
    """() to be minimized."""
    scores: Tensor
    """(rows, speakers) detached."""
    speakers: Tensor
    """(rows,) labels of the rows."""
    adversarial: Tensor
    """(rows,) bool: which rows an adversary made."""
    passes: Tensor | int = 0
    """() forward rows that the adversary spent."""


class TrainingObjective(ABC):
    """A loss of a recognizer on a batch of crops.

    Training crops have one length, so the recognizer is given no lengths and spends no time on masks.

    Args:
        label_smoothing: share of the target that is spread over all speakers.
        margin: taken from the true speakers' cosines in the loss alone: adversaries attack the decision, without it.

    Raises:
        ValueError: label_smoothing outside [0, 1).
    """

    strength: float = 1.0
    """Fraction of the adversary's budget; a schedule may move it."""
    margin: Margin | None = None

    def __init__(self, label_smoothing: float = 0.0, margin: Margin | None = None) -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(f"Expected label_smoothing in [0, 1), got {label_smoothing}")
        self.label_smoothing, self.margin = label_smoothing, margin

    def loss(self, recognizer: Recognizer, scores: Tensor, speakers: Tensor) -> Tensor:
        """() the mean cross-entropy of (rows, speakers) scores."""
        if self.margin is not None:
            scores = self.margin(scores, speakers, recognizer.scorer.scale)  # type: ignore[arg-type]
        return functional.cross_entropy(scores, speakers, label_smoothing=self.label_smoothing)

    @abstractmethod
    def __call__(self, recognizer: Recognizer, batch: Batch, keys: Sequence[int]) -> Step:
        """The loss of a batch; row i draws from keys[i] alone."""


class Standard(TrainingObjective):
    """Cross-entropy on the batch and, beside it, on a copy with uniform noise of random amplitude.

    Args:
        noise: largest amplitude of the noise, as a fraction of full scale; 0: no copy.
        label_smoothing: as in `TrainingObjective`.
        margin: likewise.
    """

    def __init__(self, noise: float = 0.002, label_smoothing: float = 0.0, margin: Margin | None = None) -> None:
        super().__init__(label_smoothing, margin)
        if not 0.0 <= noise <= 1.0:
            raise ValueError(f"Expected noise in [0, 1], got {noise}")
        self.noise = noise

    def __call__(self, recognizer: Recognizer, batch: Batch, keys: Sequence[int]) -> Step:
        """The loss of the batch and its noisy copy."""
        waveforms, speakers = batch.waveforms, batch.speakers
        if self.noise > 0:
            amplitude = self.noise * uniform([key(k, "amplitude") for k in keys], waveforms[:, :1])
            noise = 2.0 * uniform([key(k, "noise") for k in keys], waveforms) - 1.0
            waveforms = torch.cat([waveforms, (waveforms + amplitude * noise).clamp(-1.0, 1.0)])
            speakers = speakers.repeat(2)
        scores = recognizer(waveforms)
        loss = self.loss(recognizer, scores, speakers)
        return Step(loss, scores.detach(), speakers, torch.zeros_like(speakers, dtype=torch.bool))


class AdversarialTraining(TrainingObjective):
    """Cross-entropy on a batch of which a random part is replaced by adversarial examples against the current weights.

    The adversary sees the recognizer as deployed: eval mode, so batch-norm statistics neither move nor depend on its
    batch, and weights without gradient.

    Args:
        attack: the adversary.
        fraction: chance of each row to be attacked.
        label_smoothing: as in `TrainingObjective`.
        margin: likewise.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018; half of each batch in
    Jati et al., 2021.
    """

    def __init__(
        self, attack: PGD, fraction: float = 0.5, label_smoothing: float = 0.0, margin: Margin | None = None
    ) -> None:
        super().__init__(label_smoothing, margin)
        if not 0.0 < fraction <= 1.0:
            raise ValueError(f"Expected fraction in (0, 1], got {fraction}")
        self.attack, self.fraction = attack, fraction

    def __call__(self, recognizer: Recognizer, batch: Batch, keys: Sequence[int]) -> Step:
        """The loss of the batch after the adversary had its part of it."""
        chosen = [index for index, k in enumerate(keys) if key(k, "adversarial") < self.fraction * 2**63]
        rows = torch.tensor(chosen, dtype=torch.int64, device=batch.waveforms.device)
        starts = [torch.Generator().manual_seed(key(keys[index], "start")) for index in chosen]
        waveforms = batch.waveforms.clone()
        result = self.attack.scaled(self.strength)(
            recognizer, waveforms[rows], batch.speakers[rows], generator=starts, measure=False
        )
        waveforms[rows] = result.waveforms
        adversarial = torch.zeros(len(keys), dtype=torch.bool)
        adversarial[chosen] = True
        scores = self.scores(recognizer, waveforms, batch.speakers, key(*keys, "scores"))
        loss = self.loss(recognizer, scores, batch.speakers)
        return Step(loss, scores.detach(), batch.speakers, adversarial.to(waveforms.device), result.queries.sum())

    def scores(self, recognizer: Recognizer, waveforms: Tensor, speakers: Tensor, seed: int) -> Tensor:
        """What the loss is computed on; `seed` is for those who need the chain's draws twice."""
        return recognizer(waveforms)  # type: ignore[no-any-return]


class AWP(AdversarialTraining):
    """Adversarial training at the worst weights near the current ones, which holds back robust overfitting.

    Costs one more pass a step, in train mode, which leaves no trace in batch-norm statistics.

    Args:
        attack: the adversary of the waveform.
        fraction: chance of each row to be attacked.
        label_smoothing: as in `TrainingObjective`.
        radius: how far each weight tensor moves up the loss, as a fraction of its norm.
        margin: as in `TrainingObjective`.

    Source: Wu, Xia, Wang, "Adversarial weight perturbation helps robust generalization", 2020.
    """

    def __init__(
        self,
        attack: PGD,
        fraction: float = 0.5,
        label_smoothing: float = 0.0,
        radius: float = 0.005,
        margin: Margin | None = None,
    ) -> None:
        super().__init__(attack, fraction, label_smoothing, margin)
        if not 0.0 <= radius < torch.inf:
            raise ValueError(f"Expected a finite radius >= 0, got {radius}")
        self.radius = radius

    def scores(self, recognizer: Recognizer, waveforms: Tensor, speakers: Tensor, seed: int) -> Tensor:
        """Scores at the weights that are worst under the same draws of the chain."""
        recognizer.seed(seed)
        weights = self.worst_weights(recognizer, waveforms, speakers)
        recognizer.seed(seed)
        return functional_call(recognizer, weights, waveforms)  # type: ignore[no-any-return]

    def worst_weights(self, recognizer: Recognizer, waveforms: Tensor, speakers: Tensor) -> dict[str, Tensor]:
        """Each weight tensor, moved up the loss; the gradient passes to the weight itself."""
        own = {name: weight for name, weight in recognizer.named_parameters() if weight.requires_grad}
        statistics = {name: buffer.clone() for name, buffer in recognizer.named_buffers()}  # to be updated in vain
        scores = functional_call(recognizer, {**own, **statistics}, waveforms)
        with torch.autocast(waveforms.device.type, enabled=False):  # backward, else products of float32 are in half
            ascent = torch.autograd.grad(self.loss(recognizer, scores, speakers), list(own.values()))
        return {
            name: weight + self.radius * weight.detach().norm() * direction / direction.norm().clamp_min(1e-12)
            for (name, weight), direction in zip(own.items(), ascent, strict=True)
        }
