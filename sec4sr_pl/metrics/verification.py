"""Errors of whether a claim is true: scores of targets beside those of others."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sec4sr_pl.metrics.counts import ErrorRates, rates


def equal_error_rate(target_scores: Tensor, nontarget_scores: Tensor) -> Tensor:
    """Rate at which misses equal false alarms: where the linearly interpolated ROC crosses the diagonal.

    The sweep is exact, over all thresholds that separate two scores; scores may have any scale.

    Args:
        target_scores: (targets,) scores of trials that should be accepted.
        nontarget_scores: (nontargets,) scores of trials that should be rejected.

    Returns:
        () float in [0, 1], NaN where there are no targets or no nontargets.

    Raises:
        ValueError: scores that are not 1-D float, or hold NaN.
    """
    _, misses, false_alarms = _error_rates(target_scores, nontarget_scores)
    excess = misses - false_alarms  # grows from -1 to 1
    after = (excess < 0).sum()
    before = after - 1
    weight = excess[before] / (excess[before] - excess[after])
    return torch.lerp(misses[before], misses[after], weight)


def equal_error_threshold(target_scores: Tensor, nontarget_scores: Tensor) -> Tensor:
    """Threshold between two neighboring scores at which misses and false alarms differ least; the lowest of equals.

    A trial is accepted if its score is above the threshold. Where all scores are equal it is that score: all rejected.
    Arguments are those of `equal_error_rate`.

    Returns:
        () float, on the scale of the scores.

    Raises:
        ValueError: scores that are not 1-D float, hold NaN, or are none of either kind.
    """
    _check_both(target_scores, nontarget_scores)
    scores, misses, false_alarms = _error_rates(target_scores, nontarget_scores)
    return _thresholds(scores)[(misses - false_alarms)[1:].abs().argmin()]


def _thresholds(scores: Tensor) -> Tensor:
    """Between each two neighbors of distinct ascending scores, and the highest: accepted is what lies above."""
    middles = scores[:-1] + (scores[1:] - scores[:-1]) / 2
    middles = torch.where(middles < scores[1:], middles, scores[:-1])  # between adjacent floats the middle rounds up
    return torch.cat([middles, scores[-1:]])


def min_dcf(
    target_scores: Tensor,
    nontarget_scores: Tensor,
    target_prior: float = 0.01,
    miss_cost: float = 1.0,
    false_alarm_cost: float = 1.0,
) -> Tensor:
    """Detection cost at the best threshold, over the cost of the better constant answer (NIST SRE).

    Args:
        target_scores: as in `equal_error_rate`.
        nontarget_scores: likewise.
        target_prior: probability of a target trial, in (0, 1).
        miss_cost: cost of a rejected target, above 0.
        false_alarm_cost: cost of an accepted nontarget, above 0.

    Returns:
        () float in [0, 1], NaN where there are no targets or no nontargets.

    Raises:
        ValueError: scores that are not 1-D float or hold NaN, a prior or cost out of range.
    """
    costs = _costs(target_scores, nontarget_scores, target_prior, miss_cost, false_alarm_cost)[1]
    return costs.min() / min(miss_cost * target_prior, false_alarm_cost * (1 - target_prior))


def min_dcf_threshold(
    target_scores: Tensor,
    nontarget_scores: Tensor,
    target_prior: float = 0.01,
    miss_cost: float = 1.0,
    false_alarm_cost: float = 1.0,
) -> Tensor:
    """Threshold between two neighboring scores, or the highest, of the lowest detection cost; the lowest of equals.

    Arguments and errors are those of `min_dcf`; there must be scores of both kinds.

    Returns:
        () float, on the scale of the scores.
    """
    _check_both(target_scores, nontarget_scores)
    scores, costs = _costs(target_scores, nontarget_scores, target_prior, miss_cost, false_alarm_cost)
    return _thresholds(scores)[costs[1:].argmin()]


def _costs(
    target_scores: Tensor, nontarget_scores: Tensor, target_prior: float, miss_cost: float, false_alarm_cost: float
) -> tuple[Tensor, Tensor]:
    """Distinct scores, and the detection cost for each row of `_error_rates`."""
    _check_costs(target_prior, miss_cost, false_alarm_cost)
    scores, misses, false_alarms = _error_rates(target_scores, nontarget_scores)
    return scores, miss_cost * target_prior * misses + false_alarm_cost * (1 - target_prior) * false_alarms


def _check_both(target_scores: Tensor, nontarget_scores: Tensor) -> None:
    if min(target_scores.numel(), nontarget_scores.numel()) == 0:
        raise ValueError(f"expected scores of both kinds, got {len(target_scores)} and {len(nontarget_scores)}")


def _check_costs(target_prior: float, miss_cost: float, false_alarm_cost: float) -> None:
    if not 0 < target_prior < 1:
        raise ValueError(f"expected target_prior between 0 and 1, got {target_prior}")
    if not (miss_cost > 0 and false_alarm_cost > 0):
        raise ValueError(f"expected costs above 0, got {miss_cost} of a miss, {false_alarm_cost} of a false alarm")


def _check_scores(target_scores: Tensor, nontarget_scores: Tensor) -> None:
    for name, scores in (("target_scores", target_scores), ("nontarget_scores", nontarget_scores)):
        if scores.dim() != 1 or not scores.is_floating_point():
            raise ValueError(f"expected `{name}` (trials,) float, got {tuple(scores.shape)} {scores.dtype}")


def _check_comparable(scores: Tensor) -> None:
    if scores.isnan().any():
        raise ValueError(f"expected scores to compare, got {int(scores.isnan().sum())} NaN among {len(scores)}")


def _error_rates(target_scores: Tensor, nontarget_scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct scores, ascending; miss and false-alarm rates accepting all, then only above the first, second, ..."""
    _check_scores(target_scores, nontarget_scores)
    scores = torch.cat([target_scores.detach(), nontarget_scores.detach()])
    _check_comparable(scores)
    scores = torch.unique(scores.to(torch.promote_types(scores.dtype, torch.float32)))

    def rejected(trials: Tensor) -> Tensor:
        counts = torch.searchsorted(trials.detach().to(scores.dtype).sort().values, scores, right=True)
        return torch.cat([counts.new_zeros(1), counts])

    targets, nontargets = len(target_scores), len(nontarget_scores)  # 0 / 0 is NaN
    return scores, rejected(target_scores) / targets, (nontargets - rejected(nontarget_scores)) / nontargets


class DETCurve(NamedTuple):
    """Error rates at every threshold that tells two scores apart, ascending; (points,) each."""

    thresholds: Tensor
    """A trial is accepted if its score is above; the first is -inf, which accepts all."""
    misses: Tensor
    """Rates of rejected targets, from 0 to 1."""
    false_alarms: Tensor
    """Rates of accepted nontargets, from 1 to 0."""


def det_curve(target_scores: Tensor, nontarget_scores: Tensor) -> DETCurve:
    """The curve of detection error tradeoff; it crosses the diagonal at the equal error rate.

    Arguments and errors are those of `equal_error_rate`. Source: Martin et al., "The DET curve in assessment of
    detection task performance", 1997.

    Returns:
        A point for each distinct score and one before; rates are NaN where there are no scores of their kind.
    """
    scores, misses, false_alarms = _error_rates(target_scores, nontarget_scores)
    return DETCurve(torch.cat([scores.new_tensor([-math.inf]), scores]), misses, false_alarms)


class DetectionErrors(NamedTuple):
    """Rates of the two errors of verification, () float, NaN where there are no trials of the kind."""

    false_acceptance: Tensor
    """Nontargets who are accepted, FAR."""
    false_rejection: Tensor
    """Targets who are rejected, FRR."""


def detection_errors(target_scores: Tensor, nontarget_scores: Tensor, threshold: float | Tensor) -> DetectionErrors:
    """Error rates of verification at a threshold that was set on other trials.

    Args:
        target_scores: as in `equal_error_rate`.
        nontarget_scores: likewise.
        threshold: a trial is accepted if its score is above.

    Raises:
        ValueError: scores that are not 1-D float, or hold NaN.
    """
    return DetectionErrors(*rates(*_detection_counts(target_scores, nontarget_scores, threshold)))


def _detection_counts(targets: Tensor, nontargets: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """How often each error was made, and how often it could have been, (2,) each."""
    _check_scores(targets, nontargets)
    _check_comparable(torch.cat([targets, nontargets]))
    # a comparison rounds a number to the type of the scores, and a threshold has digits that half precision has not
    errors = torch.stack([(nontargets.double() > threshold).sum(), (targets.double() <= threshold).sum()])
    return errors, errors.new_tensor([len(nontargets), len(targets)])


def verification_scores(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores of target and of nontarget trials (SV): every utterance claims to be every speaker.

    Args:
        scores: (batch, speakers).
        labels: (batch,) true speakers, or `REJECT`.

    Returns:
        (targets,) and (nontargets,).
    """
    target = labels.unsqueeze(1) == torch.arange(scores.shape[1], device=scores.device)
    return scores[target], scores[~target]


class DetectionErrorRates(ErrorRates):
    """FAR and FRR of verification at a threshold, over all trials seen: `detection_errors`.

    Args:
        threshold: set on other trials.
        kwargs: those of `torchmetrics.Metric`.
    """

    kinds = 2

    def __init__(self, threshold: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def update(self, target_scores: Tensor, nontarget_scores: Tensor) -> None:
        """Count a batch of trials, (targets,) and (nontargets,) float; one of them may be empty."""
        self._count(*_detection_counts(target_scores, nontarget_scores, self.threshold))

    def compute(self) -> DetectionErrors:
        """Return rates, NaN where there were no trials of the kind."""
        return DetectionErrors(*rates(self.errors, self.chances))


class _Trials(Metric):
    """Keeps the scores of all trials, in the precision of the metric (`set_dtype`), float32 unless told."""

    is_differentiable = False
    higher_is_better: bool | None = False
    full_state_update = False
    target_scores: list[Tensor]
    nontarget_scores: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("target_scores", [], dist_reduce_fx="cat")
        self.add_state("nontarget_scores", [], dist_reduce_fx="cat")

    def update(self, target_scores: Tensor, nontarget_scores: Tensor) -> None:
        """Keep the scores of a batch of trials, (targets,) and (nontargets,) float; one of them may be empty."""
        _check_scores(target_scores, nontarget_scores)
        self.target_scores.append(target_scores.detach().to(self.dtype))
        self.nontarget_scores.append(nontarget_scores.detach().to(self.dtype))

    def _scores(self) -> tuple[Tensor, Tensor]:
        kinds = (self.target_scores, self.nontarget_scores)
        target, nontarget = (dim_zero_cat(kind) if len(kind) else torch.empty(0, device=self.device) for kind in kinds)
        return target, nontarget


class EqualErrorRate(_Trials):
    """Rate at which misses equal false alarms, over all trials seen: `equal_error_rate`."""

    def compute(self) -> Tensor:
        """Return () float in [0, 1], NaN where there are no targets or no nontargets."""
        return equal_error_rate(*self._scores())


class MinDCF(_Trials):
    """Normalized detection cost at the best threshold, over all trials seen: `min_dcf`."""

    def __init__(
        self, target_prior: float = 0.01, miss_cost: float = 1.0, false_alarm_cost: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        _check_costs(target_prior, miss_cost, false_alarm_cost)
        self.target_prior = target_prior
        self.miss_cost = miss_cost
        self.false_alarm_cost = false_alarm_cost

    def compute(self) -> Tensor:
        """Return () float in [0, 1], NaN where there are no targets or no nontargets."""
        return min_dcf(*self._scores(), self.target_prior, self.miss_cost, self.false_alarm_cost)


class DetectionErrorTradeoff(_Trials):
    """The curve of detection error tradeoff, over all trials seen: `det_curve`."""

    higher_is_better = None

    def compute(self) -> DETCurve:
        """Return (points,) each; rates are NaN where there are no scores of their kind."""
        return det_curve(*self._scores())
