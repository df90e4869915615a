"""Kenansville against plain transforms, on recognizers whose border is known, and on real speech."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from test_strong_attacks import GOALS, TASKS, Linear, Noisy, seeded, shipped
from torch import Tensor

from sec4sr_pl import audio
from sec4sr_pl.attacks import Kenansville, Objective
from sec4sr_pl.attacks.kenansville import FourierSpectrum, SingularSpectrum, lag_covariance

__all__ = ["shipped"]
METHODS = pytest.mark.parametrize("method", ["fft", "ssa"])


def signal(size: int, seed: int = 0) -> Tensor:
    """Two tones in noise."""
    time = torch.arange(size, dtype=torch.float64)
    noise = torch.randn(size, generator=seeded(seed), dtype=torch.float64)
    return 0.3 * torch.sin(0.2 * time) + 0.1 * torch.sin(0.9 * time + 1.0) + 0.02 * noise


def plain_singular_spectrum(waveform: Tensor, kept: int) -> Tensor:
    """By the definition: the matrix of all windows, its singular vectors, and means over its diagonals."""
    x, window = waveform.numpy(), min(3_000, len(waveform) // 20)
    windows = np.lib.stride_tricks.sliding_window_view(x, window)
    left, values, right = np.linalg.svd(windows / math.sqrt(len(windows)), full_matrices=False)
    low_rank = math.sqrt(len(windows)) * (left[:, :kept] * values[:kept]) @ right[:kept]
    diagonals = [np.diagonal(low_rank[:, ::-1], window - 1 - place) for place in range(window)]
    lower = [np.diagonal(low_rank[:, ::-1], -place) for place in range(1, len(windows))]
    return torch.tensor([diagonal.mean() for diagonal in [*diagonals, *lower]])


@pytest.mark.parametrize("size", [20, 401, 900])
def test_a_singular_spectrum_is_that_of_the_plain_decomposition(size: int) -> None:
    waveform, window = signal(size), size // 20
    spectrum = SingularSpectrum(waveform)
    for strength in (0.5, 0.9, 0.2, 0.0, 1.0, 0.7, 0.7):  # up and down: what was summed before is used again
        kept = max(1, math.floor(window * (1.0 - strength)))
        expected = plain_singular_spectrum(waveform, kept)
        torch.testing.assert_close(spectrum.without(strength), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(spectrum.without(0.0), waveform, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("size", "window"), [(50, 1), (50, 7), (51, 40)])
def test_the_lag_covariance_is_that_of_the_windows(size: int, window: int) -> None:
    windows = signal(size).unfold(0, window, 1)
    torch.testing.assert_close(lag_covariance(signal(size), window), windows.T @ windows, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [1, 2, 99, 100])
def test_a_fourier_spectrum_keeps_odd_and_even_lengths(size: int) -> None:
    """Fault L9: an inverse transform that is not told the length loses the last of an odd number of samples."""
    waveform = signal(size)
    spectrum = FourierSpectrum(waveform)
    bins = np.fft.rfft(waveform.numpy())
    for strength in (0.0, 0.1, 0.5, 1.0):
        strong = np.where(abs(bins) < strength * abs(bins).max(), 0.0, bins)
        expected = torch.from_numpy(np.fft.irfft(strong, size))
        torch.testing.assert_close(spectrum.without(strength), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(spectrum.without(0.0), waveform, rtol=0, atol=1e-12)


class Energy:
    """Knows loud utterances from quiet ones: two speakers (CSI), or one (SV), by the energy of the valid samples."""

    def __init__(self, border: float) -> None:
        self.border = border

    def __call__(self, waveforms: Tensor, lengths: Tensor) -> Tensor:
        energy = waveforms.square().sum(1) / lengths
        return torch.stack([energy - self.border, self.border - energy], 1)


@METHODS
def test_as_little_as_the_goal_needs_is_left_out(method: Any) -> None:
    """Energy falls with every component, so the border lies between two strengths that a plain search finds."""
    waveforms = torch.stack([signal(400, seed).float() for seed in range(3)])
    border = 0.9 * float(waveforms.square().mean(1).min())
    model, labels = Energy(border), torch.zeros(3, dtype=torch.int64)
    result = Kenansville(method)(model, waveforms, labels)
    assert result.achieved.all()
    for row in range(3):
        spectrum = (FourierSpectrum if method == "fft" else SingularSpectrum)(waveforms[row])
        grid = [step / 2**12 for step in range(2**12 + 1)]
        falls = [float(spectrum.without(strength).square().mean()) < border for strength in grid]
        expected = spectrum.without(grid[falls.index(True)])
        torch.testing.assert_close(result.waveforms[row], expected, rtol=0, atol=1e-5)
        weaker = spectrum.without(grid[falls.index(True) - 1])
        assert (weaker - waveforms[row]).norm() < (result.waveforms[row] - waveforms[row]).norm()


@METHODS
@pytest.mark.parametrize("targeted", [False, True])
def test_a_target_is_searched_in_the_same_direction(method: Any, targeted: bool) -> None:
    """Fault L8: with two speakers, leaving one is reaching the other, so both goals end at the same waveform."""
    waveforms = torch.stack([signal(400, seed).float() for seed in range(3)])
    model = Energy(0.9 * float(waveforms.square().mean(1).min()))
    leave = Kenansville(method)(model, waveforms, torch.zeros(3, dtype=torch.int64))
    reach = Kenansville(method)(model, waveforms, torch.ones(3, dtype=torch.int64), objective=Objective(targeted=True))
    assert reach.achieved.all()
    assert torch.equal(leave.waveforms, reach.waveforms)


@METHODS
@GOALS
@TASKS
def test_what_is_found_achieves_the_goal_of_every_task_and_the_rest_comes_back(
    task: str, targeted: bool, method: Any
) -> None:
    model = Linear(task, targeted)
    result = Kenansville(method)(model, model.waveforms, model.labels, objective=model.objective)
    assert torch.equal(result.waveforms[~result.achieved], model.waveforms[~result.achieved])
    assert result.achieved.any()
    assert set(result.queries.tolist()) == {1 + 15 + 1}


def test_an_utterance_that_needs_no_change_leaves_at_once() -> None:
    model = Linear("CSI", targeted=False)
    mixed = torch.where(torch.arange(12) < 4, model.labels, 1 - model.labels)
    result = Kenansville()(model, model.waveforms, mixed)
    assert result.queries.tolist() == [17] * 4 + [2] * 8
    assert torch.equal(result.waveforms[4:], model.waveforms[4:])


@METHODS
def test_a_row_in_a_padded_batch_is_the_row_alone(method: Any) -> None:
    lengths = torch.tensor([401, 300, 255])
    waveforms = torch.zeros(3, 401)
    for row, size in enumerate(lengths.tolist()):
        waveforms[row, :size] = signal(size, row).float()
    model = Energy(0.95 * float((waveforms.square().sum(1) / lengths).min()))
    labels = torch.zeros(3, dtype=torch.int64)
    together = Kenansville(method)(model, waveforms, labels, lengths)
    assert together.achieved.all()
    for row, size in enumerate(lengths.tolist()):
        alone = Kenansville(method)(model, waveforms[row : row + 1, :size], labels[:1])
        torch.testing.assert_close(alone.waveforms[0], together.waveforms[row, :size], rtol=0, atol=1e-6)


def test_what_leaves_the_range_is_judged_as_it_will_be_heard() -> None:
    """A clipped sine keeps less than its fundamental, whose peaks are beyond full scale."""
    waveforms = (3.0 * torch.sin(2 * math.pi * torch.arange(100) / 50)).clamp(-1.0, 1.0).unsqueeze(0)
    seen: list[float] = []

    def score(w: Tensor, _: Tensor) -> Tensor:
        seen.append(float(w.abs().max()))
        return torch.stack([w[:, 0] * 0 + 1.0, w[:, 0] * 0], 1)

    assert FourierSpectrum(waveforms[0]).without(0.5).abs().max() > 1.1
    Kenansville()(score, waveforms, torch.tensor([0]))
    assert max(seen) == 1.0


@METHODS
def test_what_is_found_is_judged_as_a_file_will_hold_it(method: Any) -> None:
    """The end of a bisection lies at the border, on either side of which rounding may put it."""
    waveforms = audio.round_inside_ball(signal(400).float(), torch.zeros(400), math.inf).unsqueeze(0)
    for part in (0.92, 0.94, 0.96, 0.98):
        model = Energy(part * float(waveforms.square().mean()))
        result = Kenansville(method)(model, waveforms, torch.zeros(1, dtype=torch.int64))
        assert result.achieved.all()
        assert audio.on_grid(result.waveforms[0])


def test_with_draws_a_success_is_no_lucky_draw() -> None:
    rates = []
    for draws in (1, 20):
        score = Noisy(deviation=0.3)
        result = Kenansville(draws=draws)(score, score.model.waveforms, score.model.labels)
        fresh = [Objective().achieved(score(result.waveforms, None), score.model.labels) for _ in range(50)]
        changed = (result.waveforms != score.model.waveforms).any(1)
        rates.append(float(torch.stack(fresh)[:, changed].float().mean()))
    assert rates[1] > rates[0]
    assert rates[1] > 0.9


@pytest.mark.parametrize("wrong", [{"method": "dct"}, {"rounds": 0}, {"draws": 0}])
def test_a_parameter_outside_its_range_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Kenansville(**wrong)


def test_methods_and_rounds_are_in_the_name() -> None:
    assert Kenansville().name == "Kenansville-fft"
    assert Kenansville("ssa", 8, 3).name == "Kenansville-ssa-8-EOT3"


@pytest.mark.slow
@METHODS
def test_real_speech_falls_before_most_of_it_is_gone(method: Any, shipped: Any) -> None:
    recognizer, waveforms, lengths, labels = (part[:4] if isinstance(part, Tensor) else part for part in shipped)
    lengths = lengths - torch.tensor([0, 1, 1_000, 4_001])
    waveforms = waveforms.masked_fill(torch.arange(waveforms.shape[1]) >= lengths.unsqueeze(1), 0.0)
    with torch.no_grad():
        labels = recognizer(waveforms, lengths).argmax(1)
    result = Kenansville(method)(recognizer, waveforms, labels, lengths)
    change = (result.waveforms - waveforms).norm(dim=1)
    assert result.achieved.all()
    assert (change < 0.8 * waveforms.norm(dim=1)).all()
