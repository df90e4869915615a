"""An attack that never sees its victim: crafted on other recognizers, judged on this one."""

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from sec4sr_pl.attacks import Attack, Objective
from sec4sr_pl.attacks.base import CountedScore, Generators, borrowed
from sec4sr_pl.checkpoint import checksum, load_recognizer
from sec4sr_pl.recognizer import Ensemble, Recognizer


class Transfer(Attack):
    """An attack on surrogates, whose mean score stands for the victim's; the victim is only asked for the outcome.

    Args:
        attack: what crafts, e.g. `MIFGSM(source=InputDiversity())`; its queries of the surrogates are not counted.
        surrogates: checkpoints of recognizers of the victim's speakers; they are loaded when they are needed.

    Raises:
        ValueError: no surrogate; when it is called, surrogates of other speakers than the victim's, or that reject
            nobody where the victim does (or the other way around).

    Source: Papernot et al., "Practical black-box attacks against machine learning", 2017; Liu et al., "Delving into
    transferable adversarial examples and black-box attacks", 2017 (ensembles).
    """

    queries_victim = False
    knowledge = "other recognizers"

    def __init__(self, attack: Attack, surrogates: Sequence[Path]) -> None:
        if not surrogates:
            raise ValueError("Expected at least one surrogate, got none")
        self.attack, self.surrogates = attack, [Path(path) for path in surrogates]
        self.epsilon = attack.epsilon

    @property
    def name(self) -> str:
        """Transfer-PGD-10, and the surrogates' file names."""
        return "-".join(["Transfer", self.attack.name, *(path.stem for path in self.surrogates)])

    @property
    def identity(self) -> str:
        """The parameters and the surrogates' content."""
        return " ".join([super().identity, *(checksum(path) for path in self.surrogates)])

    @cached_property
    def surrogate(self) -> Recognizer | Ensemble:
        """The recognizer that is attacked."""
        members = [load_recognizer(path) for path in self.surrogates]
        return members[0] if len(members) == 1 else Ensemble(members).eval()

    def perturb(
        self,
        score: CountedScore,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """What the attack makes of the utterances on the surrogate, with the surrogate's threshold."""
        surrogate = self.surrogate.to(waveforms.device)
        threshold = float(surrogate.scorer.threshold)
        victim = score.score
        if isinstance(victim, (Recognizer, Ensemble)) and victim.scorer.speakers != surrogate.scorer.speakers:
            raise ValueError(f"Expected surrogates of the victim's speakers, {self.surrogates[0]} has others")
        if (threshold == -math.inf) != (objective.threshold == -math.inf):
            raise ValueError(f"Expected thresholds of victim and surrogate, got {objective.threshold} and {threshold}")
        own = generator[0] if isinstance(generator, Sequence) else generator
        surrogate.seed(int(torch.randint(2**62, (), generator=own, device="cpu" if own is None else own.device)))
        with borrowed(surrogate) as fast:
            counted = CountedScore(fast, waveforms, score.masked)
            aim = dataclasses.replace(objective, threshold=threshold)
            return self.attack.perturb(counted, waveforms, labels, lengths, aim, generator)

    def present(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As the attack does."""
        return self.attack.present(waveforms, lengths)
