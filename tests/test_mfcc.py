"""MFCC against torchaudio's port of Kaldi and plain loops; padding, gradients, VAD."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torchaudio.compliance.kaldi import mfcc

from sec4sr_pl.checkpoint import describe, rebuild
from sec4sr_pl.defenses import FeCo
from sec4sr_pl.features import MFCC, Delta, EnergyVAD, FrontEnd, SlidingMean
from sec4sr_pl.types import full_lengths, valid_mask

Speech = tuple[Tensor, Tensor]


def loud_vad() -> MFCC:
    """A front end whose VAD drops about half of the frames, in noisy neighborhoods too."""
    return MFCC(vad=EnergyVAD(2.5, 0.8, context=2, proportion=0.5, fewest=2))


FRONT_ENDS: dict[str, Callable[[], FrontEnd]] = {
    "i-vector": MFCC,
    "x-vector": lambda: MFCC(30, deltas=0),
    "vad": loud_vad,
    "short windows": lambda: MFCC(mean_window=31),
}


@pytest.fixture(params=FRONT_ENDS.values(), ids=FRONT_ENDS.keys())
def front_end(request: pytest.FixtureRequest) -> FrontEnd:
    made: FrontEnd = request.param()
    return made


def kaldi_mfcc(waveform: Tensor, coefficients: int, snip_edges: bool = False) -> Tensor:
    """(time,) in [-1, 1] -> (frames, coefficients) by torchaudio."""
    return mfcc(
        32_768 * waveform[None],
        num_ceps=coefficients,
        num_mel_bins=30,
        high_freq=7_600.0,
        low_freq=20.0,
        use_energy=True,
        energy_floor=0.0,
        snip_edges=snip_edges,
    )


def alone(waveforms: Tensor, lengths: Tensor) -> list[Tensor]:
    return [row[None, : int(length)] for row, length in zip(waveforms, lengths, strict=True)]


def plain_delta(frames: Tensor, order: int, window: int) -> Tensor:
    """(frames, dims) -> (frames, (order + 1) dims), a slope at a time in wide margins of repeated edges."""
    wide = torch.cat([frames[:1].expand(20, -1), frames, frames[-1:].expand(20, -1)])
    parts = [wide]
    for _ in range(order):
        slope = torch.zeros_like(wide)
        for t in range(window, len(wide) - window):
            slope[t] = sum(n * (parts[-1][t + n] - parts[-1][t - n]) for n in range(1, window + 1))
        parts.append(slope / (2 * sum(n * n for n in range(1, window + 1))))
    return torch.cat([part[20:-20] for part in parts], dim=1)


def plain_sliding_mean(frames: Tensor, window: int) -> Tensor:
    """Kaldi's rule, frame by frame."""
    out = torch.zeros_like(frames)
    for t in range(len(frames)):
        start, end = t - window // 2, t - window // 2 + window
        if start < 0:
            start, end = 0, end - start
        if end > len(frames):
            start, end = max(0, start - (end - len(frames))), len(frames)
        out[t] = frames[t] - frames[start:end].mean(0)
    return out


def plain_vad(energies: Tensor, vad: EnergyVAD) -> Tensor:
    """Kaldi's rule, frame by frame."""
    threshold = vad.threshold + vad.mean_scale * energies.mean()
    voiced = torch.zeros(len(energies), dtype=torch.bool)
    for t in range(len(energies)):
        near = energies[max(0, t - vad.context) : t + vad.context + 1]
        voiced[t] = (near > threshold).sum() >= vad.proportion * len(near)
    return voiced


# values


@pytest.mark.parametrize("coefficients", [24, 30])
def test_cepstra_are_those_of_torchaudios_kaldi(coefficients: int, speech: Speech) -> None:
    stage = MFCC(coefficients).stages["raw"]
    for utterance in alone(*speech):
        expected = kaldi_mfcc(utterance[0], coefficients)
        own, lengths = stage(utterance, full_lengths(utterance))
        assert lengths.tolist() == [len(expected)]
        assert_close(own[0], expected, rtol=1e-5, atol=3e-4)


@pytest.mark.parametrize("precision", [torch.float64, torch.float32], ids=["double", "single"])
def test_cepstra_are_the_same_on_every_device(precision: torch.dtype, speech: Speech, device: torch.device) -> None:
    """In single precision the logarithm of a silent band magnifies the rounding of another FFT."""
    waveforms, lengths = speech[0].to(precision), speech[1]
    expected, _ = MFCC().stages["raw"](waveforms, lengths)
    own, _ = MFCC().stages["raw"].to(device)(waveforms.to(device), lengths.to(device))
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if precision == torch.float64 else {"rtol": 1e-5, "atol": 2e-3}
    assert_close(own.cpu(), expected, **tolerance)


@pytest.mark.parametrize("samples", [80, 81, 161, 239, 240, 399, 400, 401, 1_000])
def test_short_utterances_are_mirrored_as_kaldi_does(samples: int) -> None:
    waveform = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(0))
    frames, lengths = MFCC().stages["raw"](waveform[None], torch.tensor([samples]))
    assert lengths.item() == (samples + 80) // 160
    mirrored = []
    for position in range(-120, lengths.item() * 160 + 120):
        while not 0 <= position < samples:  # as often as it takes; torchaudio does it once
            position = -1 - position if position < 0 else 2 * samples - 1 - position
        mirrored.append(waveform[position])
    assert_close(frames[0], kaldi_mfcc(torch.stack(mirrored), 24, snip_edges=True), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("order", "window"), [(2, 3), (1, 2), (3, 1)])
@pytest.mark.parametrize("frames", [1, 4, 40])
def test_deltas_are_slopes_in_margins_of_repeated_edges(order: int, window: int, frames: int) -> None:
    signal = torch.randn(frames, 5, generator=torch.Generator().manual_seed(0))
    own, lengths = Delta(order, window)(signal[None], torch.tensor([frames]))
    assert lengths.tolist() == [frames]
    assert_close(own[0], plain_delta(signal, order, window))


@pytest.mark.parametrize("window", [300, 31, 30, 1])
@pytest.mark.parametrize("frames", [1, 29, 30, 31, 299, 300, 301, 700])
def test_the_sliding_mean_follows_kaldis_window(window: int, frames: int) -> None:
    signal = 50 + torch.randn(frames, 3, generator=torch.Generator().manual_seed(0))
    assert_close(
        SlidingMean(window)(signal[None], torch.tensor([frames]))[0][0],
        plain_sliding_mean(signal.double(), window).float(),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("proportion", [0.12, 0.6, 1.0])
def test_vad_keeps_the_frames_that_kaldis_rule_keeps(context: int, proportion: float, speech: Speech) -> None:
    vad = EnergyVAD(2.0, 0.8, context, proportion, fewest=0)
    with_vad, without = MFCC(vad=vad), MFCC()
    kept = []
    for utterance in alone(*speech):
        energies = with_vad.stages["raw"](utterance, full_lengths(utterance))[0][0, :, 0]
        voiced = plain_vad(energies, vad)
        frames, lengths = with_vad(utterance)
        assert lengths.item() == voiced.sum()
        assert torch.equal(frames[0, : lengths.item()], without(utterance)[0][0][voiced])
        kept.append(voiced.double().mean().item())
    assert min(kept) < 0.9 and max(kept) > 0.1  # some frames of both kinds


def test_an_utterance_that_is_hardly_voiced_keeps_all_its_frames(speech: Speech) -> None:
    waveforms, lengths = speech
    deaf = MFCC(vad=EnergyVAD(threshold=100.0))
    frames, kept = deaf(waveforms, lengths)
    expected, valid = MFCC()(waveforms, lengths)
    assert torch.equal(kept, valid) and torch.equal(frames, expected)


def test_stages_are_named_and_a_frame_has_its_size(front_end: FrontEnd, speech: Speech) -> None:
    assert list(front_end.stages) == (
        ["raw", "cmvn", "final"] if front_end.frame_size == 30 else ["raw", "delta", "cmvn", "final"]
    )
    assert front_end(*speech)[0].shape[2] == front_end.frame_size


def test_no_two_calls_differ(front_end: FrontEnd, speech: Speech) -> None:
    front_end.train()
    assert torch.equal(front_end(*speech)[0], front_end(*speech)[0])


# padding and gradient


def test_a_padded_row_has_the_frames_it_has_alone_and_zeros_after_them(front_end: FrontEnd, speech: Speech) -> None:
    waveforms, lengths = speech
    noisy = torch.where(valid_mask(lengths, waveforms.shape[1]), waveforms, torch.ones(()))
    for padded in (waveforms, noisy):
        frames, valid = front_end(padded, lengths)
        for row, count, utterance in zip(frames, valid, alone(waveforms, lengths), strict=True):
            own, own_count = front_end(utterance)
            assert own_count.item() == count
            assert_close(row[:count], own[0, :count], rtol=0, atol=1e-3)
            assert row[count:].count_nonzero() == 0


def test_the_gradient_is_that_of_torchaudio_and_zero_on_padding(speech: Speech) -> None:
    stage, (waveforms, lengths) = MFCC().stages["raw"].double(), speech
    leaf = waveforms.double().requires_grad_()
    frames, valid = stage(leaf, lengths)
    weights = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    (slope,) = torch.autograd.grad((frames * weights).sum(), leaf)
    assert slope[~valid_mask(lengths, leaf.shape[1])].count_nonzero() == 0
    for row, factor, count, utterance in zip(slope, weights, valid, alone(waveforms, lengths), strict=True):
        own = utterance.double().requires_grad_()
        (expected,) = torch.autograd.grad((kaldi_mfcc(own[0], 24) * factor[:count]).sum(), own)
        assert (row[: own.shape[1]] - expected[0]).norm() < 1e-4 * expected.norm()


def test_every_stage_passes_finite_differences(front_end: FrontEnd) -> None:
    waveform = 0.1 * torch.randn(2, 900, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([900, 777])
    front_end = front_end.double()
    weights = torch.randn(
        front_end(waveform, lengths)[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    direction = torch.randn(waveform.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def value(step: float) -> Tensor:
        return (front_end(waveform + step * direction, lengths)[0] * weights).sum()

    leaf = waveform.clone().requires_grad_()
    (slope,) = torch.autograd.grad((front_end(leaf, lengths)[0] * weights).sum(), leaf)
    assert_close((slope * direction).sum(), (value(1e-7) - value(-1e-7)) / 2e-7, rtol=1e-5, atol=0)


def test_autocast_changes_no_frames(front_end: FrontEnd, speech: Speech) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = front_end(*speech)[0]
    assert torch.equal(mixed, front_end(*speech)[0])


# in the house


def test_a_front_end_is_described_with_its_vad() -> None:
    front_end = MFCC(30, deltas=0, vad=EnergyVAD(context=2, proportion=0.12))
    assert describe(rebuild(describe(front_end))) == describe(front_end)


def test_means_of_frames_are_voiced_where_most_of_them_are(speech: Speech) -> None:
    front_end, defense = loud_vad(), FeCo(after="cmvn", ratio=0.5)
    signal, lengths = speech
    for name in ("raw", "delta", "cmvn"):
        signal, lengths = front_end.stages[name](signal, lengths)
    fewer, counts = defense(signal, lengths)
    frames, kept = front_end.stages["final"](fewer, counts)
    voiced = (fewer[..., -1] > 0.5) & valid_mask(counts, fewer.shape[1])
    assert torch.equal(kept, voiced.sum(1)) and (kept < counts).any() and (kept > 0).all()
    assert torch.equal(frames[0, : int(kept[0])], fewer[0, voiced[0], :-1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MFCC(31), r"from 1 to mels \(30\) coefficients, got 31"),
        (lambda: MFCC(mean_window=0), "at least 1 frame, got 0"),
        (lambda: Delta(0), "order from 1 to 10 and a window from 1 to 100, got 0 and 3"),
        (lambda: EnergyVAD(proportion=0.0), r"proportion in \(0, 1\] .* got 0.0"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
