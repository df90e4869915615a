"""What attacks reach."""

from typing import TypeVar

from torch import Tensor

from sec4sr_pl.metrics.counts import Fraction, counted

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


def r1_score(benign_accuracy: Number, adversarial_accuracy: Number) -> Number:
    """Harmonic mean 2AB / (A + B) of the accuracies without and under attack, 0 where both are 0.

    Chen et al., "Towards Understanding and Mitigating Audio Adversarial Examples for Speaker Recognition", 2022.

    Args:
        benign_accuracy: A, a float or any tensor, as fraction or percentage.
        adversarial_accuracy: B, of the same kind and on the same scale.
    """
    total = benign_accuracy + adversarial_accuracy
    return 2 * benign_accuracy * adversarial_accuracy / (total + (total == 0))
