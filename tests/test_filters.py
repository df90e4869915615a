"""Filters and resampling as defenses, beside scipy's and their definitions."""

from collections.abc import Callable
from math import ceil, gcd

import numpy as np
import pytest
import torch
from scipy.signal import butter, buttord, sosfilt, sosfreqz
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl.defenses import AverageSmoothing, BandPass, Defense, Downsampling, LowPass
from sec4sr_pl.defenses.filters import Butterworth, Filter
from sec4sr_pl.types import SAMPLE_RATE

Speech = tuple[Tensor, Tensor]


def sinc_resample(signal: np.ndarray, old: int, new: int) -> np.ndarray:
    """Windowed sinc by its definition: six zero crossings, Hann window, roll-off 0.99."""
    factor = gcd(old, new)
    old, new = old // factor, new // factor
    edge = 0.99 * min(old, new)
    width = ceil(6 * old / edge)
    output = np.zeros(ceil(new * len(signal) / old))
    for index in range(len(output)):
        first = index // new * old - width
        taps = np.arange(max(0, first), min(len(signal), first + 2 * width + old))
        time = np.clip((taps / old - index / new) * edge, -6, 6)
        output[index] = (np.sinc(time) * np.cos(np.pi * time / 12) ** 2 * edge / old) @ signal[taps]
    return output


@pytest.mark.parametrize("ratio", [0.45, 0.5, 0.9])
def test_downsampling_is_the_sinc_resampling_there_and_back(speech: Speech, ratio: float) -> None:
    defense = Downsampling(ratio)
    waveforms, lengths = speech[0][-2:, :3_001], torch.tensor([2_500, 3_001])
    output, _ = defense(waveforms, lengths)
    for own, out, length in zip(waveforms, output, lengths, strict=True):
        low = sinc_resample(own[:length].double().numpy(), SAMPLE_RATE, defense.rate)
        expected = sinc_resample(low, defense.rate, SAMPLE_RATE)[:length]
        np.testing.assert_allclose(out[:length].numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5, 0.12345, float("nan")])
def test_a_ratio_of_rates_that_is_none_or_too_fine_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"Expected a ratio in \(0, 1\) with at most three decimals, got {ratio}"):
        Downsampling(ratio)


FILTERS = [
    LowPass(),
    LowPass(stopband=8_000),
    LowPass(3_000, 3_200, 1.0, 60.0),
    BandPass(),
    BandPass(stopband=(50, 5_000)),
    BandPass((100, 7_000), (20, 7_500)),
]


@pytest.mark.parametrize("make", FILTERS, ids=lambda f: f"{type(f).__name__} {f.stopband}")
def test_a_filter_is_that_of_scipy_in_second_order_sections(speech: Speech, make: LowPass | BandPass) -> None:
    waveforms, lengths = speech
    order, corners = buttord(make.passband, make.stopband, make.ripple, make.attenuation, fs=SAMPLE_RATE)
    kind = "bandpass" if isinstance(make, BandPass) else "lowpass"
    sections = butter(order, corners, kind, output="sos", fs=SAMPLE_RATE)
    output, _ = make(waveforms, lengths)
    for own, out, length in zip(waveforms, output, lengths, strict=True):
        expected = np.clip(sosfilt(sections, own[:length].double().numpy()), -1, 1)
        np.testing.assert_allclose(out[:length].numpy(), expected, rtol=0, atol=1e-6)
    frequencies = torch.tensor([5.0, 40.0, 150, 299, 1_000, 3_999, 4_500, 5_000, 6_000, 7_990])
    _, gains = sosfreqz(sections, frequencies.numpy(), fs=SAMPLE_RATE)
    expected = 20 * np.log10(np.abs(gains))
    audible = expected > -120
    np.testing.assert_allclose(make.response(frequencies)[audible].numpy(), expected[audible], rtol=0, atol=0.05)


def test_the_published_filters_have_the_published_orders_and_their_edges() -> None:
    assert LowPass().order == 24 and BandPass().order == 7 and BandPass(stopband=(50, 5_000)).order == 11
    low = LowPass().response(torch.tensor([0.0, 4_000, 4_500]))
    assert abs(low[0]) < 0.01 and low[1] > -3.01 and low[2] < -40
    band = BandPass().response(torch.tensor([150.0, 300, 1_000, 4_000, 6_000]))
    assert band[0] < -40 and band[1] > -3.01 and abs(band[2]) < 0.01 and band[3] > -3.01 and band[4] < -40


def test_the_upper_stop_edge_of_the_band_pass_does_nothing_and_the_response_says_so() -> None:
    filters = [BandPass(stopband=(150, upper)) for upper in (5_500, 6_500, 7_900)]
    assert {(f.order, *f.corners) for f in filters} == {(7, *filters[0].corners)}
    frequencies = torch.linspace(100, 7_000, 20)
    assert torch.equal(filters[0].response(frequencies), filters[2].response(frequencies))


def test_the_response_of_smoothing_and_resampling_is_that_of_their_kernels() -> None:
    frequencies = torch.tensor([10.0, 500, 1_200, 3_000, 7_000])
    angle = np.pi * frequencies.numpy() / SAMPLE_RATE
    expected = 20 * np.log10(np.abs(np.sin(17 * angle) / (17 * np.sin(angle))))
    np.testing.assert_allclose(AverageSmoothing().response(frequencies).numpy(), expected, rtol=0, atol=0.05)
    kept = Downsampling().response(torch.tensor([0.0, 1_000, 2_500, 4_500, 6_000]))
    assert (kept[:3].abs() < 0.5).all() and (kept[3:] < -40).all()
    with pytest.raises(ValueError, match=r"Expected frequencies from 0 to 8000 Hz, got \[8001"):
        Downsampling().response(torch.tensor([8_001.0]))


@pytest.mark.parametrize("make", [LowPass, BandPass])
def test_filters_keep_real_speech_finite_and_near_its_level(speech: Speech, make: type[Filter]) -> None:
    output, _ = make()(*speech)  # type: ignore[call-arg]
    assert output.isfinite().all() and output.abs().max() < 2 * speech[0].abs().max()
    assert (output.square().sum(1) > 0.02 * speech[0].square().sum(1)).all()  # a voice's lowest harmonics are gone


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: LowPass(4_000, 3_000), r"0 < passband < stopband <= 8000 Hz, got 4000 and 3000"),
        (lambda: LowPass(stopband=8_001), r"got 4000.0 and 8001"),
        (lambda: BandPass((300, 4_000), (350, 6_000)), r"a passband inside the stopband .*, got \(300, 4000\) and"),
        (lambda: BandPass(stopband=(150, 8_000)), r"a passband inside the stopband"),
        (lambda: BandPass(stopband=(299, 4_001)), r"order up to 100 .*, got edges .*: 10427"),
        (lambda: LowPass(ripple=40, attenuation=3), r"0 < ripple < attenuation in dB, got 40 and 3"),
        (lambda: LowPass(0.01, 0.02), r"fades within 3 s"),
    ],
)
def test_parameters_without_meaning_are_refused(make: Callable[[], Defense], told: str) -> None:
    with pytest.raises(ValueError, match=rf"Expected .*{told}"):
        make()


def test_a_filter_follows_the_type_and_device_of_its_signal(speech: Speech, device: torch.device) -> None:
    defense: Butterworth = LowPass()
    assert not defense.state_dict()
    output, _ = defense(speech[0].to(device).double())  # the filter itself was not moved
    assert output.dtype == torch.float64 and output.device.type == device.type
    assert_close(defense.to(device)(speech[0].to(device))[0].double(), output, rtol=0, atol=1e-6)
