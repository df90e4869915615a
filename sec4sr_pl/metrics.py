"""Numbers of the tables: robustness, verification errors, and how audible a perturbation is.

Each metric is a pure function; those watched during training have a `torchmetrics.Metric` twin whose states are sums or
concatenations, so that one process and many report the same value.
"""

import math
import warnings
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sec4sr_pl.types import REJECT, SAMPLE_RATE, mask_padding

Number = TypeVar("Number", float, Tensor)
Signal = Tensor | NDArray[Any]


# Robustness


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
    succeeded, eligible = _count(benign_correct, achieved)
    return succeeded / eligible


def _count(selected: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
    for given in (selected, flags):
        if given.dim() != 1 or given.dtype != torch.bool:
            raise ValueError(f"expected (batch,) bool, got {tuple(given.shape)} {given.dtype}")
    if selected.shape != flags.shape:
        raise ValueError(f"expected flags of the same utterances, got {len(selected)} and {len(flags)}")
    return (flags & selected).sum(), selected.sum()


def r1_score(benign_accuracy: Number, adversarial_accuracy: Number) -> Number:
    """Harmonic mean 2AB / (A + B) of the accuracies without and under attack, 0 where both are 0.

    Chen et al., "Towards Understanding and Mitigating Audio Adversarial Examples for Speaker Recognition", 2022.

    Args:
        benign_accuracy: A, a float or any tensor, as fraction or percentage.
        adversarial_accuracy: B, of the same kind and on the same scale.
    """
    total = benign_accuracy + adversarial_accuracy
    return 2 * benign_accuracy * adversarial_accuracy / (total + (total == 0))


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
        flagged, chosen = _count(selected, flags)
        self.flagged = self.flagged + flagged
        self.selected = self.selected + chosen

    def compute(self) -> Tensor:
        """Return () float, NaN where no row was selected."""
        return self.flagged / self.selected


class AttackSuccessRate(Fraction):
    """Fraction of the benign-correct utterances for which the attack reached its goal: `attack_success_rate`.

    `update` takes (batch,) bool benign_correct and achieved.
    """


# Identification


def identification_error_rate(decisions: Tensor, speakers: Tensor) -> Tensor:
    """Fraction of the enrolled speakers' utterances that an open-set recognizer accepts as somebody else (IER).

    Rejected ones are no identification errors, and those of strangers do not count.

    Args:
        decisions: (batch,) int64, indices of speakers or `REJECT`.
        speakers: (batch,) int64, who speaks, `REJECT` for who is not enrolled.

    Returns:
        () float in [0, 1], NaN where no enrolled speaker spoke.

    Raises:
        ValueError: not two integer tensors of the same (batch,) shape.
    """
    wrong, enrolled = _count(*_identified(decisions, speakers))
    return wrong / enrolled


def _identified(decisions: Tensor, speakers: Tensor) -> tuple[Tensor, Tensor]:
    """Who is enrolled, and who is accepted as somebody else, two (batch,) bool."""
    for given in (decisions, speakers):
        if given.dim() != 1 or given.is_floating_point() or given.dtype == torch.bool:
            raise ValueError(f"expected (batch,) integers, got {tuple(given.shape)} {given.dtype}")
    if decisions.shape != speakers.shape:
        raise ValueError(f"expected decisions on the same utterances, got {len(decisions)} and {len(speakers)}")
    return speakers != REJECT, (decisions != REJECT) & (decisions != speakers)


class IdentificationErrorRate(Fraction):
    """Fraction of the enrolled speakers' utterances that are accepted as somebody else: `identification_error_rate`."""

    def update(self, decisions: Tensor, speakers: Tensor) -> None:
        """Count a batch, two (batch,) int64."""
        super().update(*_identified(decisions, speakers))


# Verification


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


def _error_rates(target_scores: Tensor, nontarget_scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct scores, ascending; miss and false-alarm rates accepting all, then only above the first, second, ..."""
    _check_scores(target_scores, nontarget_scores)
    scores = torch.cat([target_scores.detach(), nontarget_scores.detach()])
    if scores.isnan().any():
        raise ValueError(f"expected scores to compare, got {int(scores.isnan().sum())} NaN among {len(scores)}")
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
        ValueError: scores that are not 1-D float.
    """
    return DetectionErrors(*_rates(*_detection_counts(target_scores, nontarget_scores, threshold)))


def _detection_counts(targets: Tensor, nontargets: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """How often each error was made, and how often it could have been, (2,) each."""
    _check_scores(targets, nontargets)
    errors = torch.stack([(nontargets > threshold).sum(), (~(targets > threshold)).sum()])
    return errors, errors.new_tensor([len(nontargets), len(targets)])


def _rates(errors: Tensor, chances: Tensor) -> tuple[Tensor, ...]:
    return (errors / chances).unbind()


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


def identification_scores(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Best scores of enrolled speakers who were found, and of imposters (OSI).

    Arguments are those of `verification_scores`.

    Returns:
        (found,) and (imposters,): an enrolled speaker taken for another is an error at any threshold.
    """
    best, found = scores.max(dim=1)
    return best[found == labels], best[labels == REJECT]


class OpenSetErrors(NamedTuple):
    """Rates of the three errors of open-set identification, () float, NaN where nobody could make one."""

    false_acceptance: Tensor
    """Imposters who are accepted, FAR."""
    false_rejection: Tensor
    """Enrolled speakers who are rejected, FRR."""
    identification_error: Tensor
    """Enrolled speakers who are accepted as another, IER."""


def open_set_errors(decisions: Tensor, labels: Tensor) -> OpenSetErrors:
    """Error rates of decisions in an open set; with one enrolled speaker FAR and FRR are those of verification.

    Args:
        decisions: (batch,) speakers, or `REJECT`.
        labels: (batch,) true speakers, or `REJECT`.

    Raises:
        ValueError: shapes that differ.
    """
    return OpenSetErrors(*_rates(*_open_set_counts(decisions, labels)))


def _open_set_counts(decisions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How often each error was made, and how often it could have been, (3,) each."""
    if decisions.dim() != 1 or decisions.shape != labels.shape:
        raise ValueError(f"expected a decision for each label, got {tuple(decisions.shape)} for {tuple(labels.shape)}")
    (enrolled, confused), accepted = _identified(decisions, labels), decisions != REJECT
    wrong = [accepted & ~enrolled, ~accepted & enrolled, confused & enrolled]
    return torch.stack(wrong).sum(1), torch.stack([~enrolled, enrolled, enrolled]).sum(1)


class _ErrorRates(Metric):
    """Counts errors of several kinds, and how often each could have been made."""

    is_differentiable = False
    higher_is_better = False
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


class DetectionErrorRates(_ErrorRates):
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
        return DetectionErrors(*_rates(self.errors, self.chances))


class OpenSetErrorRates(_ErrorRates):
    """FAR, FRR and IER of open-set identification, over all utterances seen: `open_set_errors`."""

    kinds = 3

    def update(self, decisions: Tensor, labels: Tensor) -> None:
        """Count a batch, two (batch,) int64."""
        self._count(*_open_set_counts(decisions, labels))

    def compute(self) -> OpenSetErrors:
        """Return rates, NaN where nobody could make an error."""
        return OpenSetErrors(*_rates(self.errors, self.chances))


class _Trials(Metric):
    """Keeps the scores of all trials, in the precision of the metric (`set_dtype`), float32 unless told."""

    is_differentiable = False
    higher_is_better = False
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


# Audibility


def signal_to_noise_ratio(adversarial: Tensor, original: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Energy of the original over that of the perturbation, 10 log10(sum x^2 / sum delta^2), in dB.

    It depends neither on the scale nor on the duration of the utterance.

    Args:
        adversarial: (batch, time) waveforms after the attack.
        original: (batch, time) waveforms before it.
        lengths: (batch,) valid samples; the others do not count. None: all are valid.

    Returns:
        (batch,) dB, +inf where nothing was changed, -inf where only the original is silent.

    Raises:
        ValueError: waveforms that are not float and of one shape (batch, time), lengths that are not (batch,).
    """
    signal, delta = _signal_and_delta(adversarial, original, lengths)
    noise = torch.linalg.vector_norm(delta, dim=1)
    ratio: Tensor = 20 * (torch.linalg.vector_norm(signal, dim=1) / noise).log10()
    return ratio.masked_fill(noise == 0, math.inf)


def l2_norm(adversarial: Tensor, original: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Euclidean norm of the perturbation of waveforms in [-1, 1]; not divided by the duration, with which it grows.

    Arguments and errors are those of `signal_to_noise_ratio`.

    Returns:
        (batch,), in units of full scale.
    """
    _, delta = _signal_and_delta(adversarial, original, lengths)
    norm: Tensor = torch.linalg.vector_norm(delta, dim=1)
    return norm


def linf_norm(adversarial: Tensor, original: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Largest change of a sample of waveforms in [-1, 1].

    Arguments and errors are those of `signal_to_noise_ratio`.

    Returns:
        (batch,), as fraction of full scale.
    """
    _, delta = _signal_and_delta(adversarial, original, lengths)
    return delta.abs().amax(dim=1)


def perceptual_evaluation_of_speech_quality(adversarial: Signal, original: Signal) -> float:
    """Wide-band PESQ (ITU-T P.862.2) of one utterance at 16 kHz, with the original as reference.

    The package `pesq` has room for 50 stretches of speech and crashes the process on more, which takes more than 20 s;
    so a longer utterance is cut into equal pieces of at most 20 s whose mean is returned.

    Args:
        adversarial: (time,) waveform after the attack.
        original: (time,) waveform before it.

    Returns:
        Mean opinion score in about [1.04, 4.64]; NaN where PESQ is not defined: under 0.25 s, no speech in the original
        (or in a piece of it), an adversarial waveform that is silent, samples that are not finite.

    Raises:
        ValueError: signals that are not float and of one shape (time,).
        ImportError: the package pesq is missing.
    """
    try:
        from pesq import PesqError, pesq
    except ImportError as error:
        raise ImportError("PESQ needs the package pesq: pip install pesq") from error
    degraded, reference = _utterance(adversarial, original)
    pieces = max(1, math.ceil(len(reference) / (20 * SAMPLE_RATE)))
    scores = []
    for ours, theirs in zip(np.array_split(degraded, pieces), np.array_split(reference, pieces), strict=True):
        usable = theirs.any() and np.isfinite(ours).all() and np.isfinite(theirs).all()
        code = pesq(SAMPLE_RATE, theirs, ours, "wb", on_error=PesqError.RETURN_VALUES) if usable else math.nan
        scores.append(float(code) if code > 0 else math.nan)  # errors are negative
    return sum(scores) / pieces


def short_time_objective_intelligibility(adversarial: Signal, original: Signal) -> float:
    """STOI, not the extended one, of one utterance at 16 kHz, with the original as reference.

    Taal et al., "An Algorithm for Intelligibility Prediction of Time-Frequency Weighted Noisy Speech", 2011.

    Arguments and errors are those of `perceptual_evaluation_of_speech_quality`.

    Returns:
        Mean correlation in [-1, 1]; NaN where STOI is not defined: under about 0.4 s of speech in the original, or
        samples that are not finite.
    """
    try:
        from pystoi import stoi
    except ImportError as error:
        raise ImportError("STOI needs the package pystoi: pip install pystoi") from error
    degraded, reference = _utterance(adversarial, original)
    if not (reference.any() and np.isfinite(degraded).all() and np.isfinite(reference).all()):
        return math.nan
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
        try:
            return float(stoi(reference, degraded, SAMPLE_RATE, extended=False))
        except (RuntimeWarning, IndexError):  # the latter where there is not even one frame
            return math.nan


def _utterance(adversarial: Signal, original: Signal) -> tuple[NDArray[Any], NDArray[Any]]:
    signals = (adversarial, original)
    ours, theirs = (x.detach().cpu().double().numpy() if isinstance(x, Tensor) else x for x in signals)
    if ours.ndim != 1 or ours.shape != theirs.shape or not ours.dtype.kind == theirs.dtype.kind == "f":
        raise ValueError(
            f"expected two float waveforms of one shape (time,), "
            f"got {ours.shape} {ours.dtype} and {theirs.shape} {theirs.dtype}"
        )
    return ours, theirs


def _check_waveforms(adversarial: Tensor, original: Tensor, lengths: Tensor | None) -> None:
    for name, waveforms in (("adversarial", adversarial), ("original", original)):
        if waveforms.dim() != 2 or waveforms.shape[1] == 0 or not waveforms.is_floating_point():
            raise ValueError(f"expected `{name}` (batch, time) float, got {tuple(waveforms.shape)} {waveforms.dtype}")
    if adversarial.shape != original.shape:
        raise ValueError(f"expected waveforms of one shape, got {tuple(adversarial.shape)} and {tuple(original.shape)}")
    if lengths is not None and lengths.shape != original.shape[:1]:
        raise ValueError(f"expected `lengths` {tuple(original.shape[:1])}, got {tuple(lengths.shape)}")


def _signal_and_delta(adversarial: Tensor, original: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Original and perturbation, zero in the padding."""
    _check_waveforms(adversarial, original, lengths)
    dtype = torch.promote_types(original.dtype, torch.float32)
    signal, changed = original.to(dtype), adversarial.to(dtype)
    if lengths is not None:
        signal, changed = mask_padding(signal, lengths), mask_padding(changed, lengths)
    return signal, changed - signal


class _FiniteMean(Metric):
    """Mean over the utterances for which a measure is finite, and the number of the others."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    measure: ClassVar[str]
    """Names the state that sums: a MetricCollection merges metrics with equal states, as two that only failed have."""
    finite: Tensor
    failed: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state(self.measure, torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("finite", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("failed", torch.tensor(0), dist_reduce_fx="sum")

    def _count(self, values: Tensor) -> None:
        finite = values.isfinite()
        setattr(self, self.measure, getattr(self, self.measure) + values.where(finite, 0.0).sum())
        self.finite = self.finite + finite.sum()
        self.failed = self.failed + (~finite).sum()

    def compute(self) -> Tensor:
        """Return () float, NaN where the measure was finite for no utterance."""
        mean: Tensor = getattr(self, self.measure) / self.finite
        return mean

    def failures(self) -> Tensor:
        """Return () int64, utterances left out of the mean on all processes; every process has to ask."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self.failed.clone()


class SignalToNoiseRatio(_FiniteMean):
    """Mean dB over the utterances that were changed: `signal_to_noise_ratio`. Unchanged ones are `failures`."""

    measure = "decibels"

    def update(self, adversarial: Tensor, original: Tensor, lengths: Tensor | None = None) -> None:
        """Count a batch, two (batch, time) waveforms and (batch,) valid samples."""
        self._count(signal_to_noise_ratio(adversarial.detach(), original.detach(), lengths))


class PerceptualEvaluationOfSpeechQuality(_FiniteMean):
    """Mean wide-band PESQ where it is defined: `perceptual_evaluation_of_speech_quality`."""

    measure = "quality"

    def update(self, adversarial: Tensor, original: Tensor, lengths: Tensor | None = None) -> None:
        """Count a batch, two (batch, time) waveforms and (batch,) valid samples."""
        self._count(_each(perceptual_evaluation_of_speech_quality, adversarial, original, lengths))


class ShortTimeObjectiveIntelligibility(_FiniteMean):
    """Mean STOI where it is defined: `short_time_objective_intelligibility`."""

    measure = "intelligibility"

    def update(self, adversarial: Tensor, original: Tensor, lengths: Tensor | None = None) -> None:
        """Count a batch, two (batch, time) waveforms and (batch,) valid samples."""
        self._count(_each(short_time_objective_intelligibility, adversarial, original, lengths))


def _each(
    measure: Callable[[Signal, Signal], float], adversarial: Tensor, original: Tensor, lengths: Tensor | None
) -> Tensor:
    """(batch,) measure that exists only for one utterance at a time, on the CPU."""
    _check_waveforms(adversarial, original, lengths)
    ends = [original.shape[1]] * len(original) if lengths is None else lengths.tolist()
    rows = zip(adversarial.detach().cpu(), original.detach().cpu(), ends, strict=True)
    return torch.tensor([measure(ours[:end], theirs[:end]) for ours, theirs, end in rows], device=original.device)
