"""How audible a perturbation is."""

import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from sec4sr_pl.types import SAMPLE_RATE, mask_padding

Signal = Tensor | NDArray[Any]


def signal_to_noise_ratio(adversarial: Tensor, original: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Energy of the original over that of the perturbation, 10 log10(sum x^2 / sum delta^2), in dB.

    It depends neither on the scale nor on the duration of the utterance.

    Args:
        adversarial: (batch, time) waveforms after the attack.
        original: (batch, time) waveforms before it.
        lengths: (batch,) valid samples; the others do not count. None: all are valid.

    Returns:
        (batch,) float64 dB, +inf where nothing was changed, -inf where only the original is silent.

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
        (batch,) float64, in units of full scale.
    """
    _, delta = _signal_and_delta(adversarial, original, lengths)
    norm: Tensor = torch.linalg.vector_norm(delta, dim=1)
    return norm


def l1_norm(adversarial: Tensor, original: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Sum of the magnitudes of the perturbation of waveforms in [-1, 1]; not divided by the duration.

    Arguments and errors are those of `signal_to_noise_ratio`.

    Returns:
        (batch,) float64, in units of full scale.
    """
    _, delta = _signal_and_delta(adversarial, original, lengths)
    return delta.abs().sum(dim=1)


def l0_norm(adversarial: Tensor, original: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Number of changed samples; not divided by the duration.

    Arguments and errors are those of `signal_to_noise_ratio`.

    Returns:
        (batch,) int64.
    """
    _, delta = _signal_and_delta(adversarial, original, lengths)
    return delta.count_nonzero(dim=1)


def linf_norm(adversarial: Tensor, original: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Largest change of a sample of waveforms in [-1, 1].

    Arguments and errors are those of `signal_to_noise_ratio`.

    Returns:
        (batch,) float64, as fraction of full scale.
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
    """Original and perturbation, zero in the padding; float64, in which no square of a float32 over- or underflows."""
    _check_waveforms(adversarial, original, lengths)
    signal, changed = original.double(), adversarial.double()
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
        self.add_state(self.measure, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
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
    values = [measure(ours[:end], theirs[:end]) for ours, theirs, end in rows]
    return torch.tensor(values, dtype=torch.float64, device=original.device)
