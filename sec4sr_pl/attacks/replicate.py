"""The Replicate attack on feature compression: what is said several times survives it."""

import torch
from torch import Tensor

from sec4sr_pl.attacks.base import Attack, CountedScore, Generators, Score, borrowed
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.types import mask_padding


class Replicate(Attack):
    """Attacks the recognizer without its compression (FeCo), then repeats the result.

    In k copies each frame stands k times, so that clusters for one frame in k can hold the copies of one frame each:
    compression then undoes the repetition instead of the attack. Copies begin on the hop of the front end, where frames
    repeat exactly, so all but the last are cut to a multiple of it. The result is longer than the utterance; the
    budget of the inner attack holds between it and the utterance repeated likewise (`present`).

    The paper describes the attack in words and there is no public code. Inferred are: that all copies hold the same
    perturbation, how copies are cut and joined, and that defenses other than the compression are attacked through.

    Args:
        inner: what crafts the waveform to repeat.
        surrogate: crafted on, module or function; None: the recognizer without those of its defenses that compress.
        copies: of the waveform, one over the ratio of the compression.
        hop: of the front end's frames, in samples.

    Raises:
        ValueError: a parameter outside its range, or, when it is called, no recognizer and no surrogate.

    Source: Chen et al., "Towards understanding and mitigating audio adversarial examples for speaker recognition",
    2022, adaptive attacks on FeCo.
    """

    distance, knowledge = "of its attack", "gradient, and which defenses compress"
    returns, randomized = "as its attack, repeated", "`draws` of its attack"

    def __init__(self, inner: Attack, surrogate: Score | None = None, copies: int = 5, hop: int = 160) -> None:
        if copies < 1 or hop < 1:
            raise ValueError(f"Expected copies >= 1 and hop >= 1, got {copies} and {hop}")
        self.inner, self.surrogate, self.copies, self.hop = inner, surrogate, copies, hop
        self.epsilon = inner.epsilon

    @property
    def name(self) -> str:
        """Replicate-5-PGD-10."""
        marks = [] if self.surrogate is None else [f"on-{type(self.surrogate).__name__}"]
        return "-".join(["Replicate", str(self.copies), *marks, self.inner.name])

    @property
    def gradient_draws(self) -> int:
        """Those of the attack."""
        return self.inner.gradient_draws

    def perturb(
        self,
        score: CountedScore,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """What the attack finds without the compression; it is not repeated yet."""
        if self.surrogate is None:
            plain = score.of(lambda r: r.with_defenses([defense for defense in r.defenses if not defense.compresses]))
            return self.inner.perturb(plain, waveforms, labels, lengths, objective, generator)
        with borrowed(self.surrogate) as surrogate:
            return self.inner.perturb(score.on(surrogate), waveforms, labels, lengths, objective, generator)

    def present(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, time) waveforms, and (batch,) lengths, `copies` times; each row follows its own length."""
        period = self.period(lengths).unsqueeze(1)
        longer = waveforms.shape[1] + (self.copies - 1) * int(self.period(torch.tensor(waveforms.shape[1])))
        place = torch.arange(longer, device=waveforms.device)
        source = place - period * (place // period).clamp_max(self.copies - 1)
        total = lengths + (self.copies - 1) * period.squeeze(1)
        return mask_padding(waveforms.gather(1, source.clamp_max(waveforms.shape[1] - 1)), total), total

    def period(self, lengths: Tensor) -> Tensor:
        """Samples from copy to copy: whole hops, or all of what is shorter than one."""
        return (lengths // self.hop * self.hop).where(lengths >= self.hop, lengths)
