"""What attacks reach."""

from typing import NamedTuple, TypeVar

from torch import Tensor

from sec4sr_pl.metrics.counts import ErrorRates, Fraction, counted, rates
from sec4sr_pl.metrics.identification import open_set_flags
from sec4sr_pl.types import REJECT

Number = TypeVar("Number", float, Tensor)


def attack_success_rate(benign_correct: Tensor, achieved: Tensor) -> Tensor:
    """Fraction of the utterances decided correctly before the attack for which the attack reached its goal.

    Errors that were there before the attack are no success. For a targeted attack pass as `benign_correct` the
    utterances that were not decided as the target before.

    Args:
        benign_correct: (batch,) bool, the decision on the original was correct.
        achieved: (batch,) bool, the attack reached its goal.

    Returns:
        () float in [0, 1], NaN where no original was decided correctly.

    Raises:
        ValueError: not two bool tensors of the same (batch,) shape.
    """
    succeeded, eligible = counted(benign_correct, achieved)
    return succeeded / eligible


class AttackSuccessRate(Fraction):
    """Fraction of the benign-correct utterances for which the attack reached its goal: `attack_success_rate`.

    `update` takes (batch,) bool benign_correct and achieved.
    """


class AttackDirections(NamedTuple):
    """Rates at which attacks turn right decisions wrong, () float, NaN where none was right to begin with."""

    accepted: Tensor
    """Imposters, or false claims, that are accepted."""
    rejected: Tensor
    """Enrolled speakers who are rejected."""
    confused: Tensor
    """Enrolled speakers who are taken for another."""


def attack_directions(benign: Tensor, adversarial: Tensor, labels: Tensor) -> AttackDirections:
    """Success of attacks on an open set in each direction, among the utterances decided correctly before.

    Args:
        benign: (batch,) int64, decisions on the originals, indices of speakers or `REJECT`.
        adversarial: (batch,) int64, those under attack.
        labels: (batch,) int64, who speaks, `REJECT` for who is not enrolled, the complement of a false claim.

    Raises:
        ValueError: not three integer tensors of the same (batch,) shape.
    """
    return AttackDirections(*rates(*_direction_counts(benign, adversarial, labels)))


def _direction_counts(benign: Tensor, adversarial: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How often each direction was reached, and how often it could have been, (3,) each."""
    speakers = labels.clamp_min(REJECT)
    missed, _ = open_set_flags(benign, speakers)
    reached, possible = open_set_flags(adversarial, speakers)
    right = ~missed.any(0)
    return (reached & right).sum(1), (possible & right).sum(1)


class AttackDirectionRates(ErrorRates):
    """Success of attacks in each direction, over all utterances seen: `attack_directions`."""

    higher_is_better = None
    kinds = 3

    def update(self, benign: Tensor, adversarial: Tensor, labels: Tensor) -> None:
        """Count a batch, three (batch,) int64."""
        self._count(*_direction_counts(benign, adversarial, labels))

    def compute(self) -> AttackDirections:
        """Return rates, NaN where nobody was decided correctly before."""
        return AttackDirections(*rates(self.errors, self.chances))


def r1_score(benign_accuracy: Number, adversarial_accuracy: Number) -> Number:
    """Harmonic mean 2AB / (A + B) of the accuracies without and under attack, 0 where both are 0.

    Chen et al., "Towards Understanding and Mitigating Audio Adversarial Examples for Speaker Recognition", 2022.

    Args:
        benign_accuracy: A, a float or any tensor, as fraction or percentage.
        adversarial_accuracy: B, of the same kind and on the same scale.
    """
    total = benign_accuracy + adversarial_accuracy
    return 2 * benign_accuracy * adversarial_accuracy / (total + (total == 0))
