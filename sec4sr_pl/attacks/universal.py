"""One change for every utterance: learned over a data set, kept as a sound, laid over whatever comes."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from sec4sr_pl import audio
from sec4sr_pl.attacks.base import Attack, CountedScore, Generators, Score, borrowed
from sec4sr_pl.attacks.gradient import PGD
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.types import full_lengths, mask_padding


class UniversalPerturbation(Attack):
    """A perturbation learned before, repeated over each utterance; norm L-infinity, no query.

    It is read anew at each call, so that the attack can be configured before it is learned.

    Args:
        path: of `python -m sec4sr_pl.robustness.universal`, a 16-bit wav file that can be listened to.
        epsilon: radius of the ball, as a fraction of full scale.

    Raises:
        ValueError: epsilon outside [0, 2]; when it is used, a file that is missing, damaged, or outside the ball.

    Source: Moosavi-Dezfooli et al., "Universal adversarial perturbations", 2017.
    """

    queries_victim = False
    knowledge, returns = "other utterances", "the utterance under it"
    randomized = "`draws`, when it is learned"

    def __init__(self, path: Path, epsilon: float = 0.002) -> None:
        if not 0.0 <= epsilon <= 2.0:
            raise ValueError(f"Expected epsilon in [0, 2], got {epsilon}")
        self.path, self.epsilon = Path(path), epsilon

    @property
    def name(self) -> str:
        """Universal, the file, and what differs from the defaults."""
        return "-".join(["Universal", self.path.stem] + [f"eps{self.epsilon:g}"] * (self.epsilon != 0.002))

    @property
    def identity(self) -> str:
        """The parameters and the sound."""
        return f"{super().identity} {hashlib.sha256(self.read().numpy().tobytes()).hexdigest()}"

    def read(self) -> Tensor:
        """The perturbation, (samples,)."""
        if not self.path.is_file():
            raise ValueError(f"There is no perturbation {self.path}: learn it by sec4sr_pl.robustness.universal")
        perturbation = audio.read(self.path)
        if not perturbation.numel() or perturbation.abs().max() > self.epsilon + 1e-9:
            raise ValueError(
                f"Expected a perturbation of at most {self.epsilon:g} in {self.path}, got a larger or none"
            )
        return perturbation

    def perturb(
        self,
        score: CountedScore,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """The utterances under the perturbation."""
        return laid_over(self.read().to(waveforms), waveforms)


def laid_over(perturbation: Tensor, waveforms: Tensor) -> Tensor:
    """(batch, time) waveforms plus the (samples,) perturbation, repeated and cut to their time."""
    time = waveforms.shape[1]
    return waveforms + perturbation.repeat(-(-time // len(perturbation)))[:time]


def learn(
    attack: PGD,
    score: Score,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    samples: int,
    objective: Objective | None = None,
    generator: Generators = None,
) -> Tensor:
    """The universal perturbation, (samples,), of stochastic PGD: a step of the attack for each batch.

    Every gradient is divided by its largest sample, so that no utterance outweighs the others.

    Args:
        attack: its ball (not one that silence lacks, as SNRPGD's), step size, draws, loss and source.
        score: a recognizer, or any function (waveforms, lengths) -> scores.
        batches: (batch, time) waveforms, (batch,) labels and (batch,) valid samples; as many passes as they hold.
        samples: length of the perturbation.
        objective: the goal; default: leave the label in a closed set.
        generator: of the source's random draws.

    Raises:
        ValueError: no samples, a score function that fails or gives other than (batch, speakers) scores, or gradients
            that are not finite.

    Source: Shafahi et al., "Universal adversarial training", 2020, algorithm 2.
    """
    if samples < 1:
        raise ValueError(f"Expected samples >= 1, got {samples}")
    objective, perturbation = Objective() if objective is None else objective, torch.zeros(samples)
    with torch.inference_mode(False), torch.no_grad(), borrowed(score) as fast:
        for waveforms, labels, lengths in batches:
            perturbation = perturbation.to(waveforms)
            x = mask_padding(laid_over(perturbation, waveforms).clamp(-1.0, 1.0), lengths)
            counted = CountedScore(fast, waveforms, masked=True)
            gradient = mask_padding(attack.gradient(counted, x, labels, lengths, objective, generator), lengths)
            if bool(counted.broken.any()):
                raise ValueError(
                    f"Expected finite gradients, got others in rows {counted.broken.nonzero().flatten().tolist()} of a "
                    "batch: from them nothing can be learned"
                )
            gradient = gradient / gradient.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
            folded = functional.pad(gradient.sum(0), (0, -x.shape[1] % samples)).reshape(1, -1, samples).sum(1)
            zero = torch.zeros_like(folded)
            step = attack.step_size * attack.direction(folded, zero, full_lengths(folded))
            perturbation = attack.project(perturbation - step, zero, full_lengths(folded))[0]
    return perturbation
