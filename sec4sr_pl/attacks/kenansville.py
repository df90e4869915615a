"""Kenansville: what machines hear and people do not is taken out of an utterance, by scores alone."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sec4sr_pl.attacks.base import Attack, CountedScore, Generators
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.rows import Rows
from sec4sr_pl.attacks.written import as_written

LONGEST_WINDOW = 3_000
"""Samples of the longest window of singular spectrum analysis."""
COMPONENTS = 64
"""Of a singular spectrum, filtered at a time."""


class Decomposition(ABC):
    """An utterance as a sum of components, of which the weak ones can be left out."""

    @abstractmethod
    def without(self, strength: float) -> Tensor:
        """The (time,) utterance without its weak components: all of it at strength 0, the strongest one alone at 1."""


class FourierSpectrum(Decomposition):
    """The discrete Fourier transform of a (time,) utterance; `without` removes magnitudes below a part of the highest.

    The spectrum is that of the utterance's own samples, without padding.
    """

    def __init__(self, waveform: Tensor) -> None:
        self.time = len(waveform)
        self.spectrum = torch.fft.rfft(waveform)
        self.magnitudes = self.spectrum.abs()

    def without(self, strength: float) -> Tensor:
        """The inverse transform, of as many samples."""
        weak = self.magnitudes < strength * self.magnitudes.max()
        left: Tensor = torch.fft.irfft(self.spectrum.masked_fill(weak, 0.0), self.time)
        return left


class SingularSpectrum(Decomposition):
    """Singular spectrum analysis of a (time,) utterance; `without` keeps a part of its principal components.

    The components are the singular vectors of the matrix of all windows of 5 % of the utterance (at most 3,000
    samples), found as the eigenvectors of the covariance between lags; that matrix is never built. What is kept is
    filtered by each component and back, and averaged over the windows that hold a sample. In double precision.
    """

    def __init__(self, waveform: Tensor) -> None:
        self.time, self.type = len(waveform), waveform.dtype
        self.window = max(1, min(LONGEST_WINDOW, self.time // 20))
        signal = waveform.double()
        vectors = torch.linalg.eigh(lag_covariance(signal, self.window)).eigenvectors
        self.components = vectors.flip(1).T  # the strongest first
        self.spectrum = torch.fft.rfft(signal)
        place = torch.arange(self.time, device=waveform.device)
        nearest_end = torch.minimum(place, self.time - 1 - place) + 1
        self.windows = nearest_end.clamp_max(min(self.window, self.time - self.window + 1))
        self.kept, self.sum = 0, torch.zeros_like(self.spectrum)

    def without(self, strength: float) -> Tensor:
        """The sum of the strongest components, brought up to date by those that it did not hold last time."""
        kept = max(1, math.floor(self.window * (1.0 - strength)))
        first, last = sorted((self.kept, kept))
        for index in range(first, last, COMPONENTS):
            response = torch.fft.rfft(self.components[index : min(last, index + COMPONENTS)], self.time)
            courses = torch.fft.irfft(self.spectrum * response.conj(), self.time)[:, : self.time - self.window + 1]
            change = (torch.fft.rfft(courses, self.time) * response).sum(0)
            self.sum = self.sum + (change if kept > self.kept else -change)
        self.kept = kept
        left: Tensor = torch.fft.irfft(self.sum, self.time) / self.windows
        return left.to(self.type)


def lag_covariance(signal: Tensor, window: int) -> Tensor:
    """Products of the windows of a (time,) signal, summed over windows: (window, window), sum_t x[t + i] x[t + j].

    The first row is a correlation; each other follows from the one before, with a window more at the end and one less
    at the beginning.
    """
    time, count = len(signal), len(signal) - window + 1
    head, tail = signal[: window - 1], signal[count:]
    covariance = signal.new_empty(window, window)
    correlation = torch.fft.irfft(torch.fft.rfft(signal[:count], time).conj() * torch.fft.rfft(signal), time)
    covariance[0] = covariance[:, 0] = correlation[:window]
    for row in range(1, window):
        change = tail[row - 1] * tail - head[row - 1] * head
        covariance[row, 1:] = covariance[row - 1, :-1] + change
    return covariance


DECOMPOSITIONS: dict[str, Callable[[Tensor], Decomposition]] = {"fft": FourierSpectrum, "ssa": SingularSpectrum}


class Kenansville(Attack):
    """Leaves out the weak components of an utterance, as few as the goal needs, without a ball.

    Bisects each utterance's strength in [0, 1] from the middle: where the goal is achieved, with the objective's
    confidence and in every draw, less is left out, elsewhere more. Returns the least changed waveform that achieved it,
    or the utterance itself. One that needs no change leaves at once. Waveforms are judged as a file will hold them: the
    end of a bisection lies so close to the border that rounding to 16 bits would undo it.

    "fft" removes the bins of the utterance's spectrum whose magnitude is below `strength` times the highest. "ssa"
    keeps the part 1 - `strength` of its principal components (`SingularSpectrum`): about 20 s a long utterance on a
    CPU, and 150 MB.

    Args:
        method: "fft" or "ssa".
        rounds: of the bisection.
        draws: passes against randomized recognizers.

    Raises:
        ValueError: a parameter outside its range.

    Source: Abdullah et al., "Hear 'no evil', see 'Kenansville': efficient and transferable black-box attacks on speech
    recognition and voice identification systems", 2021.
    """

    distance, knowledge, returns = "none", "scores", "least changed success"

    epsilon = math.inf

    def __init__(self, method: Literal["fft", "ssa"] = "fft", rounds: int = 15, draws: int = 1) -> None:
        if method not in DECOMPOSITIONS:
            raise ValueError(f"Expected method 'fft' or 'ssa', got {method!r}")
        if rounds < 1 or draws < 1:
            raise ValueError(f"Expected rounds >= 1 and draws >= 1, got {rounds} and {draws}")
        self.method, self.rounds, self.draws = method, rounds, draws

    @property
    def name(self) -> str:
        """Kenansville-fft, and what differs from the defaults."""
        marks = [str(self.rounds)] * (self.rounds != 15) + [f"EOT{self.draws}"] * (self.draws > 1)
        return "-".join(["Kenansville", self.method, *marks])

    def perturb(
        self,
        score: CountedScore,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        generator: Generators,
    ) -> Tensor:
        """The least changed achieving waveform of each utterance, or the utterance itself."""
        best, time = waveforms.clone(), waveforms.shape[1]
        rows = Rows.of(score, labels, lengths, generator, clean=waveforms, x=waveforms)
        if not rows.keep(~self.look(rows, objective)):
            return best
        decompose = DECOMPOSITIONS[self.method]
        spectra = [decompose(row[:length]) for row, length in zip(rows.x, rows.lengths.tolist(), strict=True)]
        low, high = torch.zeros_like(rows.x[:, 0]), torch.ones_like(rows.x[:, 0])
        for _ in range(self.rounds):
            strength = (low + high) / 2.0
            left = [spectrum.without(part) for spectrum, part in zip(spectra, strength.tolist(), strict=True)]
            found = torch.stack([functional.pad(row, (0, time - len(row))) for row in left]).clamp(-1.0, 1.0)
            rows.x = as_written(found, rows.clean, self.epsilon)
            achieved = self.look(rows, objective)
            best[rows.index[achieved]] = rows.x[achieved]
            low, high = torch.where(achieved, low, strength), torch.where(achieved, strength, high)
        return best

    def look(self, rows: Rows, objective: Objective) -> Tensor:
        """Whether the goal is achieved in every draw, (rows,) bool."""
        drawn = [objective.loss(rows.score(rows.x, rows.lengths), rows.labels) for _ in range(self.draws)]
        return (torch.stack(drawn) < 0.0).all(0)
