"""Where gradients come from: back-propagation, or queries alone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import CACHED_SAMPLES, CountedScore, Generators, Score
from sec4sr_pl.attacks.memory import Cost

LossOfScores = Callable[[Tensor], Tensor]
"""(batch, speakers) scores -> (batch,) losses to minimize, row by row."""

QUERIED_BYTES = 2**32
"""Memory that an accelerator's answers may take at a time, beside what is there already."""


INFINITE = 1e12
"""What stands for an infinite gradient: beyond any other, and its square is still a number in float32."""


class GradientSource(ABC):
    """Scores at a point, and the gradient of a loss there; one draw of a randomized recognizer."""

    @property
    def name(self) -> str:
        """A short name for tables and folders."""
        return type(self).__name__

    @abstractmethod
    def __call__(
        self, score: Score, waveforms: Tensor, lengths: Tensor, loss: LossOfScores, generators: Generators
    ) -> tuple[Tensor, Tensor]:
        """(batch, speakers) detached scores and the (batch, time) gradient of each row's own loss."""


@dataclass(frozen=True)
class BackPropagation(GradientSource):
    """The exact gradient, of the input only; one forward row an utterance."""

    def __call__(
        self, score: Score, waveforms: Tensor, lengths: Tensor, loss: LossOfScores, generators: Generators
    ) -> tuple[Tensor, Tensor]:
        """Scores and gradient."""
        with torch.enable_grad():
            x = waveforms.detach().requires_grad_(True)
            scores = score(x, lengths)
            return scores.detach(), input_gradient(loss(scores).sum(), x)


class NoGradientError(ValueError):
    """Scores that do not follow from the waveform by operations that have a gradient."""


HALF_SCALE = 2.0**12
"""What a loss is multiplied by, so that its gradients are not too small for float16."""


def input_gradient(loss: Tensor, x: Tensor) -> Tensor:
    """The gradient of a () loss for `x`, outside of autocast, under which what is float32 would be multiplied in half.

    Raises:
        NoGradientError: a loss that does not follow from `x` by operations that have a gradient.
    """
    device = x.device.type
    half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    scale = HALF_SCALE if half else 1.0
    gradient = None
    if loss.requires_grad:
        try:
            with torch.autocast(device, enabled=False):
                (gradient,) = torch.autograd.grad(loss * scale, x, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # somebody else's backward may raise anything
            raise NoGradientError(
                f"The gradient of the scores failed ({str(error).partition(chr(10))[0]}): mend the model (on CUDA an "
                "LSTM or GRU in eval mode needs torch.backends.cudnn.flags(enabled=False) around it), or attack by "
                "queries, e.g. by Square or with source=NES()"
            ) from error
    if gradient is None:
        raise NoGradientError(
            "The scores do not follow from the waveform by operations that have a gradient (they were computed under "
            "no_grad, detached, or by another library): attack by queries, e.g. by Square or with source=NES()"
        )
    return gradient / scale


@dataclass(frozen=True)
class NES(GradientSource):
    """Natural evolution strategies: mean of loss(x + sigma u) u / sigma over antithetic Gaussian directions.

    Asks `samples` + 1 forward rows an utterance. Directions are drawn for valid samples only, and by each row's own
    generator where there are several.

    Args:
        samples: points asked, half of them the mirror images of the others.
        sigma: their distance in each sample, as a fraction of full scale.

    Raises:
        ValueError: an odd number of samples, or sigma not above 0.

    Source: Ilyas et al., "Black-box adversarial attacks with limited queries and information", 2018, algorithm 1.
    """

    samples: int = 50
    sigma: float = 0.001

    @property
    def name(self) -> str:
        """NES, and what differs from the defaults."""
        return "NES" + f"{self.samples}" * (self.samples != 50) + f"sigma{self.sigma:g}" * (self.sigma != 0.001)

    def __post_init__(self) -> None:
        if self.samples < 2 or self.samples % 2 or not 0.0 < self.sigma < torch.inf:
            raise ValueError(
                f"Expected an even number of samples and a finite sigma > 0, got {self.samples} and {self.sigma}"
            )

    def __call__(
        self, score: Score, waveforms: Tensor, lengths: Tensor, loss: LossOfScores, generators: Generators
    ) -> tuple[Tensor, Tensor]:
        """Scores and estimated gradient."""
        scores, total = score(waveforms, lengths), torch.zeros_like(waveforms)
        pairs, most = self.samples // 2, max(1, copies_at_a_time(score, waveforms) // 2)
        for first in range(0, pairs, most):
            count = min(most, pairs - first)
            directions = normal(count, waveforms, lengths, generators)
            points = waveforms + self.sigma * torch.cat([directions, -directions])
            found = score(points.flatten(0, 1), lengths.repeat(2 * count))
            losses = torch.stack([loss(part) for part in found.chunk(2 * count)])
            total += ((losses[:count] - losses[count:]).unsqueeze(2) * directions).sum(0)
        return scores, total / (self.samples * self.sigma)


def copies_at_a_time(score: Score, waveforms: Tensor) -> int:
    """Copies of a (batch, time) that are scored together: what a CPU's cache or an accelerator's memory holds.

    One, until the accelerator has been asked once.
    """
    samples = max(1, waveforms.numel())
    if waveforms.device.type == "cpu":
        return max(1, CACHED_SAMPLES // samples)
    cost: Cost | None = getattr(score, "cost", None)
    if cost is None or cost.bytes_per_sample is None:
        return 1
    return max(1, int(QUERIED_BYTES / (samples * cost.bytes_per_sample)))


BACK_PROPAGATION = BackPropagation()


def scores_and_gradient(
    source: GradientSource | None,
    score: Score,
    waveforms: Tensor,
    lengths: Tensor,
    loss: LossOfScores,
    generators: Generators,
    draws: int = 1,
) -> tuple[Tensor, Tensor]:
    """Scores of each of `draws` passes, (draws, batch, speakers), and the mean of what a source takes for the gradient.

    Without a source: back-propagation. Where a gradient is not finite, which the score takes note of, the mean goes
    nowhere (NaN) or far (infinity): a NaN in a waveform would be taken for a fault of the scores.
    """
    ask, found, total = BACK_PROPAGATION if source is None else source, [], torch.zeros_like(waveforms)
    for _ in range(draws):
        scores, gradient = ask(score, waveforms, lengths, loss, generators)
        if isinstance(score, CountedScore):
            score.note(gradient)
        found.append(scores)
        total += gradient.nan_to_num(0.0, INFINITE, -INFINITE)
    return torch.stack(found), total.div_(draws)


def normal(count: int, like: Tensor, lengths: Tensor, generators: Generators) -> Tensor:
    """Normal draws on the valid samples of (batch, time), `count` of each, (count, batch, time); zero on padding.

    Drawn where the generators live, and brought over at once; reading the lengths synchronizes an accelerator.
    """
    each = generators if isinstance(generators, Sequence) else [generators] * len(like)
    device = like.device if not each or each[0] is None else each[0].device
    draws = torch.zeros(count, *like.shape, device=device, dtype=like.dtype)
    for row, (own, length) in enumerate(zip(each, lengths.tolist(), strict=True)):
        for draw in draws:  # one by one: how many at a time depends on the batch
            draw[row, :length] = torch.randn(length, generator=own, device=device, dtype=like.dtype)
    return draws.to(like.device)


def row_generators(generators: Generators, batch: int) -> list[torch.Generator]:
    """A generator of its own for each row, so that rows which leave do not change the draws of those which stay."""
    if isinstance(generators, Sequence):
        return list(generators)
    device = "cpu" if generators is None else generators.device
    seeds = torch.randint(2**63 - 1, (batch,), generator=generators, device=device).tolist()
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def uniform(like: Tensor, generator: Generators) -> Tensor:
    """Uniform draws in [0, 1) of the shape and device of `like`; the same on every device for a CPU generator."""
    if isinstance(generator, Sequence):  # one number a row seeds its draws: how many follow depends on the padding
        seeds = [int(torch.randint(2**63 - 1, (), generator=own)) for own in generator]
        own = [torch.Generator().manual_seed(seed) for seed in seeds]
        rows = [torch.rand(like.shape[1:], generator=each, dtype=like.dtype) for each in own]
        return torch.stack(rows).to(like.device)
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
