"""Rates as two counts, so that one process and many report the same, and how sure they are."""

import math
from statistics import NormalDist
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric


def counted(selected: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the selected rows have the flag, and how many are selected, of two (batch,) bool.

    Raises:
        ValueError: not two bool tensors of the same (batch,) shape.
    """
    for given in (selected, flags):
        if given.dim() != 1 or given.dtype != torch.bool:
            raise ValueError(f"expected (batch,) bool, got {tuple(given.shape)} {given.dtype}")
    if selected.shape != flags.shape:
        raise ValueError(f"expected flags of the same utterances, got {len(selected)} and {len(flags)}")
    return (flags & selected).sum(), selected.sum()


class Fraction(Metric):
    """Fraction of the selected rows that have a flag, without reading anything back from the device.

    torchmetrics' MeanMetric ignores its weights with nan_strategy="disable", and synchronizes with any other.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    flagged: Tensor
    selected: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("flagged", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("selected", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, selected: Tensor, flags: Tensor) -> None:
        """Count a batch, two (batch,) bool."""
        flagged, chosen = counted(selected, flags)
        self.flagged = self.flagged + flagged
        self.selected = self.selected + chosen

    def compute(self) -> Tensor:
        """Return () float, NaN where no row was selected."""
        return self.flagged / self.selected


def rates(errors: Tensor, chances: Tensor) -> tuple[Tensor, ...]:
    """Errors of each kind as fraction of the chances to make them, NaN where there were none."""
    return (errors / chances).unbind()


class ErrorRates(Metric):
    """Counts errors of several kinds, and how often each could have been made."""

    is_differentiable = False
    higher_is_better: bool | None = False
    full_state_update = False
    kinds: ClassVar[int]
    errors: Tensor
    chances: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("errors", torch.zeros(self.kinds, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("chances", torch.zeros(self.kinds, dtype=torch.int64), dist_reduce_fx="sum")

    def _count(self, errors: Tensor, chances: Tensor) -> None:
        self.errors = self.errors + errors
        self.chances = self.chances + chances


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a rate (Wilson, 1927), lower and upper end in [0, 1].

    No trials give (0, 1), the limit of the formula: nothing is known.

    Raises:
        ValueError: not 0 <= successes <= trials, or confidence outside (0, 1).
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials, got {successes} of {trials}")
    if not 0 < confidence < 1:
        raise ValueError(f"expected a confidence between 0 and 1, got {confidence}")
    if trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    center = (successes + z**2 / 2) / (trials + z**2)
    reach = z / (trials + z**2) * math.sqrt(successes * (trials - successes) / trials + z**2 / 4)
    return (center - reach if successes > 0 else 0.0), (center + reach if successes < trials else 1.0)
