"""Defenses of the waveform: quantization, noise and smoothing."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter
from test_defenses import seeded
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl.defenses import (
    AverageSmoothing,
    BitDepthReduction,
    Defense,
    GaussianNoise,
    MedianSmoothing,
    Quantization,
)
from sec4sr_pl.draws import normal
from sec4sr_pl.types import valid_mask

Speech = tuple[Tensor, Tensor]


@pytest.mark.parametrize("step", [1, 128, 512, 1_000, 20_000, 32_768])
def test_quantization_is_rounding_on_the_16_bit_scale(speech: Speech, step: int) -> None:
    waveforms = torch.cat([speech[0][0], torch.linspace(-1, 1, 9_999)])[None]
    output, _ = Quantization(step)(waveforms)
    scaled = waveforms.numpy().astype(np.float64) * 32_768
    expected = np.clip(np.round(scaled / step) * step / 32_768, -1.0, 1.0)
    assert_close(output.double().numpy(), expected, rtol=0, atol=1e-7)
    assert torch.equal(Quantization(step)(output)[0], output)


def test_quantization_has_512_steps_by_default_and_leaves_7_bits() -> None:
    output, _ = Quantization()(torch.linspace(-1, 1, 65_537)[None])
    assert Quantization().step == 512
    assert len(output.unique()) == 2**7 + 1  # -1 and 1 are both levels


def test_the_gradient_of_quantization_is_the_identity(speech: Speech) -> None:
    waveforms, lengths = speech
    leaf, weights = (1.2 * waveforms).requires_grad_(), torch.randn(waveforms.shape)
    output, _ = Quantization()(leaf, lengths)
    (slope,) = torch.autograd.grad((output * weights).sum(), leaf)
    assert torch.equal(slope, weights * valid_mask(lengths, leaf.shape[1]))


@pytest.mark.parametrize("step", [0, -512, 32_769])
def test_a_step_outside_the_16_bit_scale_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"Expected a step of 1 to 32768 .* got {step}"):
        Quantization(step)


@pytest.mark.parametrize("bits", [1, 4, 7, 8, 16])
def test_bit_depth_reduction_leaves_its_bits(speech: Speech, bits: int) -> None:
    output, _ = BitDepthReduction(bits)(*speech)
    assert torch.equal(output, Quantization(2 ** (16 - bits))(*speech)[0])
    ramp, _ = BitDepthReduction(bits)(torch.linspace(-1, 1, 2**17)[None])
    assert len(ramp.unique()) == 2**bits + 1  # -1 and 1 are both levels


def test_noise_is_white_and_has_its_distance_from_each_utterance(speech: Speech) -> None:
    for snr in (16.0, 25.0, 40.0):
        output, _ = seeded(GaussianNoise(snr), *speech)
        for own, out, length in zip(*speech[:1], output, speech[1], strict=True):
            noise = (out - own)[:length].double()
            ratio = 10 * (own[:length].double().square().sum() / noise.square().sum()).log10()
            assert ratio.item() == pytest.approx(snr, abs=0.2)
            assert abs(noise.mean()) < 4 * noise.std() / len(noise) ** 0.5
            neighbors = (noise[1:] * noise[:-1]).mean() / noise.square().mean()
            assert abs(neighbors) < 4 / len(noise) ** 0.5


def test_noise_is_the_normal_draws_of_the_rows_keys(speech: Speech) -> None:
    waveforms, lengths = 0.25 * speech[0], speech[1]
    defense = GaussianNoise()
    output, _ = seeded(defense, waveforms, lengths, seed=5)
    defense.seed(5)
    draws = normal(defense.draws.keys(8), waveforms)
    for own, out, drawn, length in zip(waveforms.numpy(), output.numpy(), draws.numpy(), lengths, strict=True):
        own = own[:length].astype(np.float64)
        expected = own + drawn[:length] * np.sqrt(np.mean(own**2) / 10**1.6)
        np.testing.assert_allclose(out[:length], np.clip(expected, -1, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 7, 17, 19])
def test_smoothing_is_that_of_numpy_and_scipy(speech: Speech, size: int) -> None:
    mean, median = AverageSmoothing(size)(*speech)[0], MedianSmoothing(size)(*speech)[0]
    for index, length in enumerate(speech[1]):
        own = speech[0][index, :length].double().numpy()
        expected = np.convolve(own, np.full(size, 1 / size), "same")
        np.testing.assert_allclose(mean[index, :length].numpy(), expected, rtol=0, atol=1e-6)
        expected = median_filter(own, size, mode="constant")
        np.testing.assert_array_equal(median[index, :length].numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("size", [3, 7, 19])
def test_the_gradient_of_a_median_goes_to_one_sample_of_its_window_also_among_equals(speech: Speech, size: int) -> None:
    waveforms = Quantization(2_048)(speech[0])[0]  # most windows hold the same level several times
    leaf, weights = waveforms.requires_grad_(), torch.rand(waveforms.shape) + 0.5
    output, _ = MedianSmoothing(size)(leaf)
    (slope,) = torch.autograd.grad((output * weights).sum(), leaf)
    half = size // 2
    windows = torch.nn.functional.pad(waveforms.detach(), (half, half)).unfold(1, size, 1)
    source = torch.arange(waveforms.shape[1]) + (windows == output.detach().unsqueeze(2)).int().argmax(2)
    expected = torch.zeros(8, waveforms.shape[1] + 2 * half).scatter_add(1, source, weights)
    assert_close(slope, expected[:, half : half + waveforms.shape[1]])


@pytest.mark.parametrize("make", [AverageSmoothing, MedianSmoothing])
@pytest.mark.parametrize("size", [0, -3, 4])
def test_a_window_without_a_middle_is_refused(make: type[Defense], size: int) -> None:
    with pytest.raises(ValueError, match=f"Expected an odd kernel_size of at least 1, got {size}"):
        make(size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: BitDepthReduction(0), r"1 to 16 bits, got 0"),
        (lambda: BitDepthReduction(17), r"1 to 16 bits, got 17"),
        (lambda: GaussianNoise(float("nan")), r"a finite snr in dB, got nan"),
        (lambda: GaussianNoise(float("inf")), r"a finite snr in dB, got inf"),
    ],
)
def test_parameters_without_meaning_are_refused(make: Callable[[], Defense], told: str) -> None:
    with pytest.raises(ValueError, match=rf"Expected .*{told}"):
        make()
