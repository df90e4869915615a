"""LogMel against scipy's window, torch.stft and mel filters written out here; gradients, padding, silence, limits."""

import pickle

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import get_window
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from sec4sr_pl.features import FrontEnd, LogMel, LogMelStage, PowerSpectrum, SpecMask, reflect
from sec4sr_pl.types import full_lengths, valid_mask

Speech = tuple[Tensor, Tensor]


def slaney_filters(bands: int = 32, points: int = 1024, top: float = 8_000.0) -> NDArray[np.float64]:
    """(bands, points / 2 + 1) triangles of unit area: linear mel below 1 kHz, logarithmic above (Slaney, 1998)."""
    to_mel = np.where(top < 1_000, top * 3 / 200, 15 + 27 * np.log(top / 1_000) / np.log(6.4))
    mel = np.linspace(0.0, float(to_mel), bands + 2)
    edges = np.where(mel < 15, mel * 200 / 3, 1_000 * 6.4 ** ((mel - 15) / 27))[:, None]
    frequency = np.linspace(0.0, 8_000.0, points // 2 + 1)
    rise = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return np.clip(np.minimum(rise, fall), 0.0, None) * 2 / (edges[2:] - edges[:-2])


def reference_log_mel(waveform: Tensor) -> Tensor:
    """(time,) -> (frames, 32) dB in float64."""
    signal = waveform.double()
    emphasized = signal[1:] - 0.97 * signal[:-1]
    window = torch.from_numpy(get_window("hann", 800, fftbins=True))
    spectrum = torch.stft(emphasized, 1024, 160, 800, window, center=True, pad_mode="reflect", return_complex=True)
    energies = torch.from_numpy(slaney_filters()) @ spectrum.abs().square()
    return 10 * energies.clamp_min(1e-16).log10().T


def plain_power(signal: Tensor, window: Tensor, hop: int, n_fft: int) -> Tensor:
    """What PowerSpectrum computes, left to autograd."""
    return torch.fft.rfft(signal.unfold(1, len(window), hop) * window, n_fft).abs().square()


def gradient(output: Tensor, signal: Tensor, seed: int = 0) -> Tensor:
    """The gradient of a fixed random projection of the output."""
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    (result,) = torch.autograd.grad((output * weights.to(output)).sum(), signal)
    return result


def alone(waveforms: Tensor, lengths: Tensor) -> list[Tensor]:
    """Each utterance as a batch of one, without padding."""
    return [row[None, : int(length)] for row, length in zip(waveforms, lengths, strict=True)]


# values


def test_log_mel_equals_the_reference_in_decibels(speech: Speech, device: torch.device) -> None:
    front_end = LogMel().to(device)
    for utterance in alone(*speech):
        expected = reference_log_mel(utterance[0])
        error = (front_end(utterance.to(device))[0][0].cpu().double() - expected).abs()
        loud = expected > expected.amax(1, keepdim=True) - 40  # single precision rounds on the scale of a frame's peak
        assert error[loud].max() < 3e-4
        assert error.mean() < 5e-5 and error.max() < 1e-2


def test_log_mel_in_double_precision_is_limited_by_its_buffers_alone(speech: Speech) -> None:
    for utterance in alone(*speech):
        frames = LogMel().double()(utterance.double())[0][0]
        assert (frames - reference_log_mel(utterance[0])).abs().max() < 1e-3


def test_parameters_other_than_the_defaults_reach_the_stage(speech: Speech) -> None:
    utterance = speech[0][:1]
    assert LogMel(mels=40)(utterance)[0].shape[2] == LogMel(mels=40).frame_size == 40
    usual, lengths = LogMel()(utterance)
    for changed in (LogMel(window=640), LogMel(n_fft=2048), LogMel(pre_emphasis=0.5)):
        frames, same = changed(utterance)
        assert torch.equal(same, lengths)
        assert (frames - usual).abs().max() > 0.1
    assert LogMel(hop=200)(utterance)[1].item() == 1 + (utterance.shape[1] - 1) // 200


def test_five_seconds_give_500_frames_of_32_bands() -> None:
    frames, lengths = LogMel()(0.1 * torch.randn(1, 80_000, generator=torch.Generator().manual_seed(0)))
    assert frames.shape == (1, 500, 32) and lengths.tolist() == [500]


def test_a_window_that_can_not_be_used_is_refused() -> None:
    with pytest.raises(ValueError, match=r"even number of samples, got 751"):
        LogMel(window=751)
    with pytest.raises(ValueError, match=r"n_fft \(512\) samples, got 800"):
        LogMel(n_fft=512)


def test_a_front_end_runs_its_stages_in_order() -> None:
    class Scale(torch.nn.Module):
        def forward(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            return 2 * signal, lengths

    class Shift(torch.nn.Module):
        def forward(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            return signal + 1, lengths - 1

    signal, lengths = FrontEnd({"b": Scale(), "a": Shift()})(torch.ones(2, 5))
    assert torch.equal(signal, torch.full((2, 5), 3.0)) and lengths.tolist() == [4, 4]


# gradients


def test_the_power_spectrum_has_the_value_and_gradient_of_the_plain_formula(
    speech: Speech, device: torch.device
) -> None:
    signal, window = speech[0].to(device), torch.hann_window(800, device=device)
    results = []
    for function in (PowerSpectrum.apply, plain_power):
        leaf = signal.clone().requires_grad_()
        power = function(leaf, window, 160, 1024)
        results.append((power.detach(), gradient(power, leaf)))
    (power, own), (expected_power, expected) = results
    assert_close(power, expected_power, rtol=1e-4, atol=1e-5 * expected_power.max().item())
    assert (own - expected).norm(dim=1).div(expected.norm(dim=1)).max() < 1e-5


@pytest.mark.parametrize(
    ("size", "hop", "n_fft", "time"),
    [(8, 2, 8, 20), (8, 2, 11, 20), (6, 3, 10, 17), (4, 4, 4, 15), (6, 1, 7, 6), (5, 2, 6, 17), (3, 5, 4, 14)],
    ids=["even", "odd transform", "unused tail", "no overlap", "one frame", "uneven hops", "gaps"],
)
def test_the_power_spectrum_passes_gradcheck(size: int, hop: int, n_fft: int, time: int) -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(2, time, dtype=torch.float64, generator=generator, requires_grad=True)
    window = torch.rand(size, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda x: PowerSpectrum.apply(x, window, hop, n_fft), (signal,))


def test_the_gradient_of_log_mel_is_that_of_the_reference(speech: Speech) -> None:
    front_end = LogMel().double()
    for utterance in alone(*speech)[4:]:
        leaf = utterance.double().requires_grad_()
        own, expected = (gradient(frames, leaf) for frames in (front_end(leaf)[0][0], reference_log_mel(leaf[0])))
        assert (own - expected).norm() < 1e-4 * expected.norm()


def test_autocast_changes_neither_frames_nor_gradient(speech: Speech, device: torch.device) -> None:
    front_end, leaf = LogMel().to(device), speech[0][4:].to(device).requires_grad_()
    lengths = speech[1][4:].to(device)
    frames = front_end(leaf, lengths)[0]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        mixed = front_end(leaf, lengths)[0]
    assert mixed.dtype == torch.float32 and torch.equal(mixed, frames)
    assert torch.equal(gradient(mixed, leaf), gradient(frames, leaf))


# padding


def test_a_padded_row_has_the_frames_it_has_alone_and_zeros_after_them(speech: Speech, device: torch.device) -> None:
    front_end = LogMel().to(device)
    waveforms, lengths = (tensor.to(device) for tensor in speech)
    frames, valid = front_end(waveforms, lengths)
    assert torch.equal(valid, 1 + (lengths - 1) // 160)
    assert frames.shape[1] == int(valid.max())
    for row, count, utterance in zip(frames, valid, alone(waveforms, lengths), strict=True):
        own, own_count = front_end(utterance)
        assert own_count.item() == count and own.shape[1] == count
        assert_close(row[:count], own[0], rtol=0, atol=1e-3)
        assert row[count:].count_nonzero() == 0


def test_a_batch_that_is_computed_in_pieces_is_computed_as_a_whole(speech: Speech) -> None:
    waveforms, lengths = speech
    leaf, copies = waveforms.requires_grad_(), waveforms.detach().repeat(4, 1).requires_grad_()
    front_end = LogMel()
    stage = front_end.stages["raw"]
    assert isinstance(stage, LogMelStage) and stage._rows(copies) < len(copies)
    frames, many = front_end(leaf, lengths)[0], front_end(copies, lengths.repeat(4))[0]
    assert_close(many, frames.repeat(4, 1, 1), rtol=0, atol=1e-3)
    (slope,) = torch.autograd.grad(frames.square().sum(), leaf)
    (slopes,) = torch.autograd.grad(many.square().sum(), copies)
    assert (slopes - slope.repeat(4, 1)).norm() < 1e-4 * slopes.norm()


def test_what_stands_in_the_padding_is_not_heard(speech: Speech) -> None:
    waveforms, lengths = speech
    clean, _ = LogMel()(waveforms, lengths)
    noise = torch.randn(waveforms.shape, generator=torch.Generator().manual_seed(0))
    frames, _ = LogMel()(torch.where(valid_mask(lengths, waveforms.shape[1]), waveforms, noise), lengths)
    assert torch.equal(frames, clean)


def test_the_gradient_is_zero_on_padding_and_as_alone_before_it(speech: Speech, device: torch.device) -> None:
    front_end = LogMel().to(device)
    waveforms, lengths = (tensor.to(device) for tensor in speech)
    leaf = waveforms.requires_grad_()
    (padded,) = torch.autograd.grad(front_end(leaf, lengths)[0].square().sum(), leaf)
    assert padded[~valid_mask(lengths, leaf.shape[1])].count_nonzero() == 0
    for row, length, utterance in zip(padded, lengths, alone(waveforms.detach(), lengths), strict=True):
        own = utterance.clone().requires_grad_()
        (expected,) = torch.autograd.grad(front_end(own)[0].square().sum(), own)
        assert (row[:length] - expected[0]).norm() < 1e-4 * expected.norm()


def test_reflect_mirrors_each_row_at_its_own_end(device: torch.device) -> None:
    lengths = torch.tensor([41, 23, 12, 30, 11], device=device)
    signal = torch.randn(5, 41, generator=torch.Generator().manual_seed(0)).to(device)
    reflected = reflect(signal, lengths, 10)
    assert reflected.shape == (5, 61)
    for row, own, length in zip(reflected, signal, lengths, strict=True):
        expected = functional.pad(own[None, :length], (10, 10), mode="reflect")[0]
        assert torch.equal(row[: length + 20], expected)


def test_reflect_has_the_gradient_of_pad() -> None:
    lengths = torch.tensor([15, 9])
    signal = torch.randn(2, 15, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.randn(2, 23, generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(lengths):
        (own,) = torch.autograd.grad((reflect(signal, lengths, 4) * weights)[row, : length + 8].sum(), signal)
        padded = functional.pad(signal[row : row + 1, :length], (4, 4), mode="reflect")
        (expected,) = torch.autograd.grad((padded[0] * weights[row, : length + 8]).sum(), signal)
        assert_close(own, expected)


# extremes


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0])
def test_a_constant_signal_has_finite_frames_and_gradient(level: float) -> None:
    leaf = torch.full((1, 8_000), level, requires_grad=True)
    frames, _ = LogMel()(leaf)
    (slope,) = torch.autograd.grad(frames.sum(), leaf)
    assert frames.isfinite().all() and slope.isfinite().all()
    if level == 0.0:
        assert (frames == -160.0).all()


def test_speech_with_digital_silence_inside_has_a_finite_gradient(speech: Speech) -> None:
    waveforms, lengths = speech
    waveforms[:, 4_000:8_000] = 0.0
    leaf = waveforms.requires_grad_()
    frames, _ = LogMel()(leaf, lengths)
    (slope,) = torch.autograd.grad(frames.sum(), leaf)
    assert frames.min() == -160.0
    assert slope.isfinite().all() and slope.abs().amax(1).min() > 0


@pytest.mark.parametrize("parameters", [{}, {"window": 320, "n_fft": 512}], ids=["default", "short window"])
def test_the_minimum_input_is_exact(parameters: dict[str, int]) -> None:
    front_end = LogMel(**parameters)
    stage = front_end.stages["raw"]
    assert isinstance(stage, LogMelStage)
    for frames in range(1, 12):
        samples = stage.minimum_input(frames)
        waveform = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(frames))
        result, lengths = stage(waveform, full_lengths(waveform))
        assert lengths.item() == result.shape[1] >= frames and result.isfinite().all()
        try:
            fewer = stage(waveform[:, 1:], full_lengths(waveform[:, 1:]))[1].item()
        except (RuntimeError, IndexError):  # too short to be reflected
            continue
        assert fewer < frames


# masks in training


def hidden_runs(signal: Tensor, masked: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """The frames and the bands of one utterance in which everything was changed."""
    changed = masked[:length] != signal[:length]
    return changed.all(1).nonzero().flatten(), changed.all(0).nonzero().flatten()


def test_spec_mask_hides_one_run_of_bands_and_one_of_frames_with_the_mean(speech: Speech) -> None:
    signal, lengths = LogMel()(*speech)
    mask = SpecMask(bands=6, frames=20)
    masked, same = mask(signal, lengths)
    assert torch.equal(same, lengths)
    for before, after, length in zip(signal, masked, lengths.tolist(), strict=True):
        frames, bands = hidden_runs(before, after, length)
        assert len(frames) <= 20 and len(bands) <= 6
        for run in (frames, bands):
            assert (run.diff() == 1).all()
        expected = before.clone()
        expected[frames] = before[:length].mean()
        expected[:length, bands] = before[:length].mean()
        assert_close(after, expected, rtol=1e-5, atol=1e-5)
    assert mask.eval()(signal, lengths)[0] is signal


def test_each_width_of_a_spec_mask_is_equally_likely_and_every_position_is_hidden() -> None:
    signal, lengths = torch.rand(4_000, 9, 8) + 1, torch.full((4_000,), 9)
    masked, _ = SpecMask(bands=3, frames=4)(signal, lengths)
    runs = [hidden_runs(before, after, 9) for before, after in zip(signal, masked, strict=True)]
    for which, most, size in ((0, 4, 9), (1, 3, 8)):
        share = torch.tensor([len(run[which]) for run in runs]).bincount(minlength=most + 1) / 4_000
        assert len(share) == most + 1
        assert (share - 1 / (most + 1)).abs().max() < 4 * (0.25 / 4_000) ** 0.5
        assert set(torch.cat([run[which] for run in runs]).tolist()) == set(range(size))


def test_a_front_end_with_a_mask_is_itself_in_eval_mode_and_repeats_its_draws(speech: Speech) -> None:
    front_end = LogMel(mask=SpecMask())
    plain, _ = LogMel()(*speech)
    assert torch.equal(front_end.eval()(*speech)[0], plain)
    mask = front_end.train().stages["masked"]
    assert isinstance(mask, SpecMask)
    mask.seed(5)
    first, second = front_end(*speech)[0], front_end(*speech)[0]
    assert not torch.equal(first, plain) and not torch.equal(first, second)
    mask.seed(5)
    twin = pickle.loads(pickle.dumps(front_end))
    assert torch.equal(front_end(*speech)[0], first) and torch.equal(twin(*speech)[0], first)


def test_a_negative_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected bands and frames >= 0, got -1 and 3"):
        SpecMask(-1, 3)
