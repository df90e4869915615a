"""Defenses: what holds for each of them, in a table, then each family by itself."""

import copy
import pickle
import sys
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from math import ceil, gcd
from typing import Literal, NamedTuple

import numpy as np
import pytest
import torch
from conftest import MakeRecognizer
from scipy.ndimage import median_filter
from scipy.signal import butter, buttord, sosfilt, sosfreqz
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl import defenses
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.checkpoint import describe, rebuild
from sec4sr_pl.defenses import (
    AMR,
    AACConstant,
    AACVariable,
    AverageSmoothing,
    BandPass,
    BitDepthReduction,
    Defense,
    Downsampling,
    FeCo,
    GaussianNoise,
    LowPass,
    MedianSmoothing,
    MP3Constant,
    MP3Variable,
    Opus,
    Quantization,
    Shuffle,
    Speex,
    WarpedFeCo,
)
from sec4sr_pl.defenses import feco as feco_module
from sec4sr_pl.defenses import warped as warped_module
from sec4sr_pl.defenses.feco import Distance
from sec4sr_pl.defenses.filters import Butterworth, Filter
from sec4sr_pl.draws import normal
from sec4sr_pl.features import FrontEnd, LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.types import SAMPLE_RATE, full_lengths, valid_mask

Speech = tuple[Tensor, Tensor]


class Row(NamedTuple):
    """A defense and its traits."""

    name: str
    make: Callable[[], Defense]
    after: str
    randomized: bool
    positions: Callable[[int], int]
    """Valid positions of the output, from those of the input."""
    local: bool = True
    """Each output is one input or a mean of inputs that share it with no other output."""
    coarse: bool = False
    """A codec, which does not keep a constant."""


def same(n: int) -> int:
    return n


TABLE = [
    Row("Quantization", Quantization, "waveform", False, same),
    Row("BitDepthReduction", BitDepthReduction, "waveform", False, same),
    Row("GaussianNoise", GaussianNoise, "waveform", True, same, local=False),
    Row("AverageSmoothing", AverageSmoothing, "waveform", False, same, local=False),
    Row("MedianSmoothing", MedianSmoothing, "waveform", False, same, local=False),
    Row("Downsampling", Downsampling, "waveform", False, same, local=False),
    Row("LowPass", LowPass, "waveform", False, same, local=False),
    Row("BandPass", BandPass, "waveform", False, same, local=False),
    *(
        Row(make.__name__, make, "waveform", False, same, coarse=True)
        for make in (Opus, MP3Constant, MP3Variable, AACConstant, AACVariable, Speex, AMR)
    ),
    Row("FeCo", FeCo, "raw", True, lambda n: max(1, n // 5)),
    Row("FeCo half", lambda: FeCo(ratio=0.5), "raw", True, lambda n: max(1, n // 2)),
    Row("FeCo cos", lambda: FeCo(distance="cos"), "raw", True, lambda n: max(1, n // 5)),
    Row("FeCo uniform", lambda: FeCo(start="uniform"), "raw", False, lambda n: max(1, n // 5)),
    Row("FeCo time", lambda: FeCo(order="time"), "raw", True, lambda n: max(1, n // 5)),
    Row("Shuffle", Shuffle, "raw", True, same),
    Row("WarpedFeCo", WarpedFeCo, "raw", False, lambda n: max(1, n // 5)),
    Row("WarpedFeCo random", lambda: WarpedFeCo(0.5, init="random"), "raw", True, lambda n: max(1, n // 2)),
]


@pytest.fixture(params=TABLE, ids=[row.name for row in TABLE])
def row(request: pytest.FixtureRequest) -> Row:
    found: Row = request.param
    try:
        found.make()
    except ImportError as error:
        pytest.skip(str(error))
    return found


@pytest.fixture
def signal(row: Row, speech: Speech) -> tuple[Tensor, Tensor]:
    """What the defense meets in a recognizer: eight waveforms, or the frames of eight utterances."""
    return speech if row.after == "waveform" else LogMel()(*speech)


def seeded(defense: Defense, signal: Tensor, lengths: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    defense.seed(seed)
    output: tuple[Tensor, Tensor] = defense(signal, lengths)
    return output


# every defense


def test_every_defense_has_a_row() -> None:
    assert {getattr(row.make, "__name__", "") for row in TABLE} - {"<lambda>"} == set(defenses.__all__) - {"Defense"}


def test_traits_and_sizes_are_those_of_the_table(row: Row, signal: tuple[Tensor, Tensor], device: torch.device) -> None:
    frames, lengths = (tensor.to(device) for tensor in signal)
    defense = row.make().to(device)
    output, valid = defense(frames, lengths)
    assert (defense.after, defense.randomized) == (row.after, row.randomized)
    assert valid.dtype == torch.int64 and valid.tolist() == [row.positions(int(n)) for n in lengths]
    assert output.shape == (len(frames), int(valid.max()), *frames.shape[2:])
    assert output.dtype == frames.dtype and output.device == frames.device


def test_the_output_stays_in_the_range_of_its_input_and_is_zero_past_its_end(
    row: Row, signal: tuple[Tensor, Tensor]
) -> None:
    output, valid = row.make()(*signal)
    assert output[~valid_mask(valid, output.shape[1])].count_nonzero() == 0
    for own, out, length, size in zip(signal[0], output, signal[1], valid, strict=True):
        own, out = own[:length], out[:size]
        assert out.isfinite().all() and out.std() > 0
        if row.after == "waveform":
            assert out.abs().max() <= 1.0
        else:
            assert (out >= own.amin(0) - 1e-3).all() and (out <= own.amax(0) + 1e-3).all()


def test_a_row_does_not_depend_on_the_other_rows(row: Row, signal: tuple[Tensor, Tensor]) -> None:
    frames, lengths = signal
    defense = row.make()
    output, valid = seeded(defense, frames, lengths)
    others, other_lengths = frames.clone(), lengths.clone()  # the first row keeps its draws
    others[1:], other_lengths[1:] = 0.3 * frames[1:].flip(0), lengths[0]
    changed, _ = seeded(defense, others, other_lengths)
    assert_close(changed[0, : valid[0]], output[0, : valid[0]], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(changed[1:], output[1:])
    alone, _ = seeded(defense, frames[:1], lengths[:1])
    assert_close(alone[0], output[0, : valid[0]], rtol=1e-4, atol=1e-4)
    if not row.randomized:
        for index, length in enumerate(lengths):
            by_itself, _ = defense(frames[index : index + 1, :length])
            assert_close(by_itself[0], output[index, : valid[index]], rtol=1e-5, atol=1e-5)


def test_what_lies_in_the_padding_does_not_matter(row: Row, signal: tuple[Tensor, Tensor]) -> None:
    frames, lengths = signal
    noise = torch.rand(frames.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    valid = valid_mask(lengths, frames.shape[1])
    dirty = torch.where(valid.reshape(valid.shape + (1,) * (frames.dim() - 2)), frames, noise)
    assert_close(seeded(row.make(), dirty, lengths), seeded(row.make(), frames, lengths), rtol=1e-5, atol=1e-5)


def test_the_draws_of_a_row_do_not_depend_on_its_padding(row: Row, signal: tuple[Tensor, Tensor]) -> None:
    frames, lengths = signal[0][1:], signal[1][1:]  # padded to one more than the longest, then to its size
    shorter = frames[:, : int(lengths.max())]
    for index, valid in enumerate(seeded(row.make(), shorter, lengths)[1].tolist()):
        outputs = [seeded(row.make(), padded, lengths)[0][index, :valid] for padded in (frames, shorter)]
        assert_close(*outputs, rtol=1e-4, atol=1e-4)


def test_scores_behind_it_do_not_depend_on_padding(row: Row, make_recognizer: MakeRecognizer, speech: Speech) -> None:
    recognizer = make_recognizer(defenses=[row.make()])
    for index, length in enumerate(speech[1].tolist()) if not row.randomized else [(0, int(speech[1][0]))]:
        recognizer.seed(0)
        together = recognizer(torch.nn.functional.pad(speech[0], (0, 1_003)), speech[1])[index]
        recognizer.seed(0)
        alone = recognizer(speech[0][index : index + 1, :length])[0]
        assert ((together - alone).abs() <= 1e-4 * alone.abs().clamp_min(1.0)).all()


def test_no_lengths_means_full_lengths(row: Row, signal: tuple[Tensor, Tensor]) -> None:
    defense, frames = row.make(), signal[0][:, : int(signal[1].min())]
    output, valid = seeded(defense, frames)
    expected, expected_valid = seeded(defense, frames, full_lengths(frames))
    assert torch.equal(output, expected) and torch.equal(valid, expected_valid)


def test_only_a_randomized_defense_draws_and_a_seed_repeats_its_draws(row: Row, signal: tuple[Tensor, Tensor]) -> None:
    defense, state = row.make().eval(), torch.random.get_rng_state()
    first, _ = seeded(defense, *signal, seed=7)
    second, _ = defense(*signal)
    assert torch.equal(first, second) is not row.randomized
    assert torch.equal(seeded(defense, *signal, seed=7)[0], first)
    assert torch.equal(defense(*signal)[0], second)
    assert torch.equal(seeded(row.make().train(), *signal, seed=7)[0], first)
    assert torch.equal(seeded(defense, *signal, seed=8)[0], first) is not row.randomized
    assert torch.equal(torch.random.get_rng_state(), state)  # the global generator is left alone


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda defense: pickle.loads(pickle.dumps(defense))], ids=["deepcopy", "pickle"]
)
def test_a_copy_goes_on_with_the_draws_of_its_original_but_by_itself(
    row: Row, signal: tuple[Tensor, Tensor], duplicate: Callable[[Defense], Defense]
) -> None:
    defense = row.make()
    seeded(defense, *signal, seed=3)
    twin = duplicate(defense)
    following, _ = defense(*signal)
    after, _ = defense(*signal)
    assert torch.equal(twin(*signal)[0], following)
    assert torch.equal(twin(*signal)[0], after)
    assert type(twin) is type(defense) and twin.after == defense.after


def test_a_checkpoint_can_describe_and_rebuild_it(row: Row, signal: tuple[Tensor, Tensor]) -> None:
    defense = row.make()
    twin = rebuild(describe(defense))
    assert describe(twin) == describe(defense)
    assert torch.equal(seeded(twin, *signal)[0], seeded(defense, *signal)[0])


def test_autocast_changes_neither_output_nor_gradient(
    row: Row, signal: tuple[Tensor, Tensor], device: torch.device
) -> None:
    frames, lengths = (tensor.to(device) for tensor in signal)
    defense, results = row.make().to(device), []
    for enabled in (False, True):
        leaf = frames.clone().requires_grad_()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
            output, _ = seeded(defense, leaf, lengths)
        results.append((output.detach(), *torch.autograd.grad(output.square().sum(), leaf)))
    assert results[1][0].dtype == torch.float32
    assert_close(*results)


def test_the_gradient_reaches_all_valid_positions_and_no_padding(
    row: Row, signal: tuple[Tensor, Tensor], device: torch.device
) -> None:
    frames, lengths = (tensor.to(device) for tensor in signal)
    leaf = frames.clone().requires_grad_()
    output, _ = row.make().to(device)(leaf, lengths)
    (slope,) = torch.autograd.grad(output.sum(), leaf)
    valid = valid_mask(lengths, leaf.shape[1])
    assert slope[~valid].count_nonzero() == 0
    if row.local:  # a sum over means spreads each cluster's 1 evenly over its frames; the identity gives each sample 1
        assert (slope[valid] > 0).all() and (slope[valid] <= 1 + 1e-6).all()
    else:
        assert slope.isfinite().all()
        assert all(own[:length].count_nonzero() > 0.3 * length for own, length in zip(slope, lengths, strict=True))


def test_the_gradient_is_that_of_finite_differences_or_the_identity(row: Row) -> None:
    defense, generator = row.make(), torch.Generator().manual_seed(0)
    shape = (2, 50) if row.after == "waveform" else (2, 20, 3)
    signal = torch.rand(shape, dtype=torch.float64, generator=generator).sub(0.5).requires_grad_()
    lengths = torch.tensor([shape[1], shape[1] - 7])
    if defense.differentiable:
        assert torch.autograd.gradcheck(lambda x: seeded(defense, x, lengths)[0], (signal,), eps=1e-6)
    else:
        weights = torch.rand(shape, dtype=torch.float64, generator=generator)
        (slope,) = torch.autograd.grad((defense(signal, lengths)[0] * weights).sum(), signal)
        assert torch.equal(slope, weights * valid_mask(lengths, shape[1]))


def test_an_utterance_of_a_minute_passes(row: Row) -> None:
    size = 60 * SAMPLE_RATE if row.after == "waveform" else 6_000
    generator = torch.Generator().manual_seed(0)
    signal = 0.1 * torch.randn((1, size) if row.after == "waveform" else (1, size, 8), generator=generator)
    defense = row.make()
    if isinstance(defense, FeCo):
        defense.iterations = 2  # the cap is tested elsewhere
    leaf = signal.requires_grad_()
    output, valid = defense(leaf)
    (slope,) = torch.autograd.grad(output.square().sum(), leaf)
    assert output.isfinite().all() and slope.isfinite().all() and slope.count_nonzero() > 0
    assert valid.tolist() == [row.positions(size)] == [output.shape[1]]


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0])
def test_silence_and_full_scale_stay_what_they_are(row: Row, level: float) -> None:
    waveforms = torch.full((2, 8_000), level)
    signal, lengths = (waveforms, full_lengths(waveforms)) if row.after == "waveform" else LogMel()(waveforms)
    signal[:, 1:-1] = signal[:, 1:2]  # the frames at the edges see the reflection
    signal[:, 0] = signal[:, -1] = signal[:, 1]
    leaf = signal.requires_grad_()
    output, valid = row.make()(leaf, lengths)
    (slope,) = torch.autograd.grad(output.sum(), leaf)
    assert slope.isfinite().all() and output.isfinite().all()
    if row.coarse:  # no codec keeps a constant, but silence it leaves below its own noise
        assert output.abs().max() <= (1.0 if level else 16 / 32_768)
    elif row.local or level == 0.0:
        assert_close(output, signal[:, : int(valid[0])].detach(), rtol=1e-6, atol=1e-6, check_stride=False)
    else:  # noise, and windows that reach beyond the ends
        assert output.abs().max() <= 1.0 and output.abs().max() > 0.3


def test_the_minimum_input_is_exact(row: Row) -> None:
    defense = row.make()
    for minimum in range(1, 30):
        size = defense.minimum_input(minimum)
        assert row.positions(size) >= minimum
        assert size == 1 or row.positions(size - 1) < minimum
        signal = torch.rand((1, size) if row.after == "waveform" else (1, size, 4))
        assert defense(signal)[1].item() == row.positions(size)


def test_a_recognizer_behind_it_scores_the_shortest_utterance_and_refuses_a_shorter(
    row: Row, make_recognizer: MakeRecognizer, speech: Speech
) -> None:
    recognizer = make_recognizer(defenses=[row.make()])
    minimum = recognizer.minimum_samples
    utterance = speech[0][:1, 4_000 : 4_000 + minimum]
    assert recognizer(utterance).isfinite().all()
    with pytest.raises(ValueError, match=rf"'short' has {minimum - 1} samples.*at least {minimum}"):
        recognizer.check(utterance[:, 1:], names=["short"])


def test_a_size_that_no_gradient_fits_is_refused() -> None:
    class Half(Defense):
        differentiable = False

        def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            return signal[:, ::2], (lengths + 1) // 2

    with pytest.raises(ValueError, match=r"Half made \(1, 4\) of \(1, 8\): .* must keep the size"):
        Half("waveform")(torch.ones(1, 8))


def test_a_stage_that_the_front_end_lacks_is_refused_and_its_stages_are_listed(
    row: Row, make_recognizer: MakeRecognizer
) -> None:
    defense = row.make()
    defense.after = "cmvn"
    with pytest.raises(
        ValueError, match=rf"{type(defense).__name__} acts after the stage 'cmvn', but LogMel has waveform, raw$"
    ):
        make_recognizer(defenses=[defense])


# quantization


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


# the other transformations of the waveform


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
        (lambda: BitDepthReduction(0), r"1 to 16 bits, got 0"),
        (lambda: BitDepthReduction(17), r"1 to 16 bits, got 17"),
        (lambda: GaussianNoise(float("nan")), r"a finite snr in dB, got nan"),
        (lambda: GaussianNoise(float("inf")), r"a finite snr in dB, got inf"),
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


# feature compression


class Spy:
    """Stands for `kmeans`, does its work, and keeps the start and the result."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kmeans = feco_module.kmeans
        monkeypatch.setattr(feco_module, "kmeans", self)

    def __call__(self, frames: Tensor, lengths: Tensor, centers: Tensor, *rest: object) -> Tensor:
        self.frames, self.centers, self.rest = frames, centers, rest
        self.assigned: Tensor = self.kmeans(frames, lengths, centers, *rest)  # type: ignore[arg-type]
        return self.assigned


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


@pytest.fixture
def frames(speech: Speech) -> tuple[Tensor, Tensor]:
    """Log-mel frames of eight utterances."""
    found: tuple[Tensor, Tensor] = LogMel()(*speech)
    return found


def means_by_hand(frames: Tensor, lengths: Tensor, assigned: Tensor, clusters: Tensor) -> list[Tensor]:
    """The mean of each cluster of each row; an empty cluster i gives frame i."""
    rows = []
    for row, length, labels, count in zip(frames, lengths, assigned, clusters, strict=True):
        members = [row[:length][labels[:length] == index] for index in range(count)]
        rows.append(torch.stack([m.mean(0) if len(m) else row[i] for i, m in enumerate(members)]))
    return rows


def lloyd_by_hand(frames: Tensor, start: Tensor, iterations: int = 50) -> tuple[Tensor, bool]:
    """Labels of (frames, dims) from (clusters, dims) centers, in double precision, and whether a cluster emptied."""
    centers, emptied = start.double(), False
    for _ in range(iterations):
        labels = torch.cdist(frames.double(), centers, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        emptied |= len(labels.unique()) < len(centers)
        count = torch.tensor([len(centers)])
        centers = means_by_hand(frames[None].double(), torch.tensor([len(frames)]), labels[None], count)[0]
    return labels, emptied


def inertia(frames: Tensor, labels: Tensor, clusters: int) -> float:
    """The squared distances of (frames, dims) to the means of their clusters."""
    own = frames.double()
    means = means_by_hand(own[None], torch.tensor([len(own)]), labels[None], torch.tensor([clusters]))[0]
    return float((own - means[labels]).square().sum())


def sorted_rows(frames: Tensor) -> Tensor:
    return frames[np.lexsort(frames.detach().numpy().T[::-1])]


@pytest.mark.parametrize("ratio", [0.0, -0.2, 1.1])
def test_a_ratio_outside_0_to_1_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"Expected a ratio in \(0, 1\], got {ratio}"):
        FeCo(ratio)


@pytest.mark.parametrize("ratio", ["0.01", "0.2", "0.33", "0.5", "0.7", "0.84", "0.9", "1"])
def test_the_clusters_are_the_floor_of_frames_times_ratio_in_every_row(ratio: str) -> None:
    lengths = torch.arange(1, 301)
    defense = FeCo(float(ratio), iterations=0)
    _, clusters = defense(torch.rand(300, 300, 1), lengths)
    assert clusters.tolist() == [max(1, int(Fraction(ratio) * n)) for n in range(1, 301)]
    assert clusters.tolist() == [defense.count(n) for n in range(1, 301)]


def test_two_far_groups_become_their_means_whatever_the_start_and_the_other_rows(
    frames: tuple[Tensor, Tensor],
) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(5, 2, 32, generator=generator) + torch.tensor([-80.0, 20.0])[:, None]
    batch, lengths = frames[0].clone(), frames[1].clone()
    batch[3] = 0.0
    batch[3, :10], lengths[3] = groups.flatten(0, 1), 10  # two clusters of five frames each
    seen = []
    for seed in range(20):
        for signal, sizes, index in ((batch, lengths, 3), (batch[3:4, :10], lengths[3:4], 0)):
            output, clusters = seeded(FeCo(), signal, sizes, seed)
            assert clusters[index] == 2
            order = output[index, :2, 0].argsort()
            seen.append(bool(order[0] == 0))
            assert_close(output[index, order], groups.mean(0), rtol=1e-5, atol=1e-4)
    assert {True, False} == set(seen)  # the order of clusters is random: time is lost


def test_the_start_is_distinct_valid_frames_each_equally_likely(spy: Spy) -> None:
    frames = torch.arange(15.0).repeat(3_000, 1)[:, :, None]
    lengths = torch.full((3_000,), 10)
    seeded(FeCo(ratio=0.3), frames, lengths)
    start = (spy.centers[:, :3, 0] + 4.5).round().long()  # k-means sees frames without their mean
    assert start.min() == 0 and start.max() == 9
    assert all(len(set(row)) == 3 for row in start.tolist())
    share = start.flatten().bincount() / 9_000
    assert (share - 0.1).abs().max() < 4 * (0.1 * 0.9 / 9_000) ** 0.5
    assert not torch.equal(start[0], start[1])  # rows draw for themselves


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_the_output_is_the_mean_of_each_cluster_in_cluster_order(
    frames: tuple[Tensor, Tensor], spy: Spy, ratio: float
) -> None:
    output, clusters = FeCo(ratio)(*frames)
    for row, expected in zip(output, means_by_hand(*frames, spy.assigned, clusters), strict=True):
        assert_close(row[: len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_the_means_with_the_assignment_held(
    frames: tuple[Tensor, Tensor], spy: Spy, device: torch.device
) -> None:
    leaf, lengths = frames[0].to(device).requires_grad_(), frames[1].to(device)
    output, clusters = FeCo()(leaf, lengths)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(device)
    (slope,) = torch.autograd.grad((output * weights).sum(), leaf)
    rows = means_by_hand(leaf, lengths, spy.assigned, clusters)
    loss = sum(((own * weight[: len(own)]).sum() for own, weight in zip(rows, weights, strict=True)), torch.tensor(0.0))
    (expected,) = torch.autograd.grad(loss, leaf)
    assert_close(slope, expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(2, 10, 3, dtype=torch.float64, generator=generator).mul(5).requires_grad_()
    lengths, defense = torch.tensor([10, 7]), FeCo(ratio=0.4)
    assert torch.autograd.gradcheck(lambda signal: seeded(defense, signal, lengths)[0], (frames,), eps=1e-5)


def test_a_ratio_of_1_only_shuffles_the_frames(frames: tuple[Tensor, Tensor]) -> None:
    output, valid = FeCo(ratio=1.0)(*frames)
    assert torch.equal(valid, frames[1])
    for row, own, length in zip(output, frames[0], frames[1], strict=True):
        assert not torch.allclose(row[:length], own[:length], atol=1.0)
        assert_close(sorted_rows(row[:length]), sorted_rows(own[:length]), rtol=1e-4, atol=1e-3)


def test_a_single_cluster_is_the_mean_of_valid_frames(frames: tuple[Tensor, Tensor]) -> None:
    output, valid = FeCo(ratio=0.001)(*frames)
    assert valid.tolist() == [1] * 8
    for row, own, length in zip(output, frames[0], frames[1], strict=True):
        assert_close(row[0], own[:length].mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_kmeans_is_the_algorithm_of_lloyd_as_scikit_learn_runs_it(
    frames: tuple[Tensor, Tensor], spy: Spy, ratio: float
) -> None:
    _, clusters = FeCo(ratio)(*frames)
    compared = 0
    for row, (length, count) in enumerate(zip(frames[1].tolist(), clusters.tolist(), strict=True)):
        own, start, assigned = spy.frames[row, :length], spy.centers[row, :count], spy.assigned[row, :length]
        labels, emptied = lloyd_by_hand(own, start)
        found = inertia(own, assigned, count)
        assert found == pytest.approx(inertia(own, labels, count), rel=1e-3)
        nearest = feco_module.assign(own[None], start[None], torch.ones(1, count, dtype=torch.bool))[0]
        assert found < 0.99 * inertia(own, nearest, count)
        if not emptied:  # scikit-learn fills an empty cluster in another way
            reference = KMeans(count, init=start.double().numpy(), n_init=1, max_iter=50, tol=0.0, algorithm="lloyd")
            assert found == pytest.approx(reference.fit(own.double().numpy()).inertia_, rel=1e-3)
            compared += 1
    assert compared >= 4


def test_kmeans_treats_a_row_in_a_batch_as_alone(frames: tuple[Tensor, Tensor], spy: Spy) -> None:
    _, clusters = FeCo()(*frames)
    iterations = []
    for row in range(8):
        length, count = frames[1][row : row + 1], clusters[row : row + 1]
        own, start = spy.frames[row : row + 1, : int(length)], spy.centers[row : row + 1, : int(count)]
        assigned = [spy.kmeans(own, length, start, count, limit, 1e-4) for limit in range(51)]
        assert (assigned[-1][0] == spy.assigned[row, : int(length)]).float().mean() > 0.99
        iterations.append(next(i for i, labels in enumerate(assigned) if torch.equal(labels, assigned[-1])))
    assert len(set(iterations)) > 1  # they stop at different times, each by itself


def test_kmeans_stops_at_its_cap_and_at_its_tolerance(frames: tuple[Tensor, Tensor], spy: Spy) -> None:
    FeCo()(*frames)
    arguments = (spy.frames, frames[1], spy.centers, spy.rest[0])
    first = feco_module.assign(spy.frames, spy.centers, valid_mask(spy.rest[0], spy.centers.shape[1]))
    assert torch.equal(spy.kmeans(*arguments, 0, 0.0), first)
    assert torch.equal(spy.kmeans(*arguments, 50, 1e9), first)
    assert not torch.equal(spy.kmeans(*arguments, 1, 0.0), first)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1.0])
def test_no_cluster_of_real_frames_is_left_without_a_value(
    frames: tuple[Tensor, Tensor], spy: Spy, ratio: float
) -> None:
    for seed in range(5):
        output, clusters = seeded(FeCo(ratio), *frames, seed=seed)
        assert output.isfinite().all()
        for row, count in zip(output, clusters, strict=True):
            assert (row[:count].abs().sum(1) > 0).all()


@pytest.mark.parametrize("distinct", [1, 3, 9])
def test_duplicated_frames_give_finite_outputs_and_gradients_among_the_frames(distinct: int) -> None:
    values = -40 + 20 * torch.randn(distinct, 32, generator=torch.Generator().manual_seed(0))
    frames = values[torch.arange(60) % distinct].repeat(4, 1, 1)
    lengths = torch.tensor([60, 47, 12, 5])
    leaf = (frames * valid_mask(lengths, 60).unsqueeze(2)).requires_grad_()
    output, clusters = FeCo(ratio=0.5)(leaf, lengths)  # more clusters than distinct frames: some are empty
    (slope,) = torch.autograd.grad(output.sum(), leaf)
    assert slope.isfinite().all()
    for row, count, length in zip(output, clusters, lengths, strict=True):
        own = values[: min(distinct, int(length))]
        nearest = torch.cdist(row[:count].double(), own.double(), compute_mode="donot_use_mm_for_euclid_dist").amin(1)
        assert row.isfinite().all() and (int(count) < len(own) or nearest.max() < 1e-3)


def test_an_empty_cluster_gives_the_frame_of_its_number(frames: tuple[Tensor, Tensor]) -> None:
    own = frames[0][:1, :6].clone().requires_grad_()
    assigned = torch.tensor([[0, 0, 3, 3, 3, 0]])
    means = feco_module.cluster_means(own, assigned, torch.ones(1, 6, dtype=torch.bool), 4)
    expected = torch.stack([own[0, [0, 1, 5]].mean(0), own[0, 1], own[0, 2], own[0, 2:5].mean(0)])
    assert_close(means[0], expected)
    (slope,) = torch.autograd.grad(means.sum(), own)
    assert_close(slope[0, :, 0], torch.tensor([1 / 3, 4 / 3, 4 / 3, 1 / 3, 1 / 3, 1 / 3]))


# the other forms of feature compression


def test_a_uniform_start_is_the_middles_of_equal_stretches_of_time(frames: tuple[Tensor, Tensor], spy: Spy) -> None:
    _, clusters = FeCo(start="uniform", iterations=0)(*frames)
    for row, (length, count) in enumerate(zip(frames[1].tolist(), clusters.tolist(), strict=True)):
        index = [int((j + Fraction(1, 2)) * length / count) for j in range(count)]
        assert torch.equal(spy.centers[row, :count], spy.frames[row, index])
        assert len(set(index)) == count


@pytest.mark.parametrize("start", ["uniform", "random"])
@pytest.mark.parametrize("distance", ["L2", "cos"])
def test_the_order_of_time_is_that_of_the_clusters_mean_frames(
    frames: tuple[Tensor, Tensor], spy: Spy, distance: Distance, start: Literal["random", "uniform"]
) -> None:
    by_time, clusters = seeded(FeCo(distance=distance, start=start, order="time"), *frames)
    by_cluster, _ = seeded(FeCo(distance=distance, start=start), *frames)
    for row, length, count, labels, own in zip(by_time, frames[1], clusters, spy.assigned, by_cluster, strict=True):
        time = [labels[:length].eq(index).nonzero().double().mean() for index in range(count)]
        time = [torch.tensor(float(i)) if mean.isnan() else mean for i, mean in enumerate(time)]
        assert torch.equal(row[:count], own[torch.stack(time).double().argsort(stable=True)])
        assert not torch.equal(row[:count], own[:count])


def test_all_frames_in_the_order_of_time_are_the_frames(frames: tuple[Tensor, Tensor]) -> None:
    assert_close(FeCo(ratio=1.0, order="time")(*frames), frames, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_kmeans_by_cosine_is_lloyd_with_the_most_similar_center(
    frames: tuple[Tensor, Tensor], spy: Spy, ratio: float
) -> None:
    output, clusters = FeCo(ratio, distance="cos", iterations=5)(*frames)
    for row, (length, count) in enumerate(zip(frames[1].tolist(), clusters.tolist(), strict=True)):
        own, centers = frames[0][row, :length].double().numpy(), spy.centers[row, :count].double().numpy()
        for _ in range(6):
            labels = (1 - cdist(own, centers, "cosine")).argmax(1)
            sets = [own[labels == index] for index in range(count)]
            centers = np.stack([members.mean(0) if len(members) else own[i] for i, members in enumerate(sets)])
        assert (labels == spy.assigned[row, :length].numpy()).mean() > 0.97
        close = np.abs(output[row, :count].numpy() - centers).max(1) < 1e-2
        assert close.mean() > 0.9  # rounding may decide between two similar centers


def test_cosine_does_not_see_the_level_of_a_frame_and_survives_frames_of_zeros() -> None:
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    frames = (directions.repeat(10, 1) * torch.arange(1.0, 21.0).unsqueeze(1))[None]
    output, _ = seeded(FeCo(0.1, distance="cos"), frames, seed=1)
    assert sorted((row / row.norm()).round().tolist() for row in output[0]) in ([[0, 1], [1, 0]], [[0, 1]] * 2)
    silent = torch.zeros(2, 20, 4, requires_grad=True)
    means, _ = FeCo(distance="cos")(silent)
    (slope,) = torch.autograd.grad(means.sum(), silent)
    assert means.count_nonzero() == 0 and slope.isfinite().all()


def test_shuffling_keeps_every_frame_and_loses_their_order(frames: tuple[Tensor, Tensor]) -> None:
    output, valid = Shuffle()(*frames)
    assert torch.equal(valid, frames[1])
    for row, own, length in zip(output, frames[0], frames[1], strict=True):
        assert torch.equal(sorted_rows(row[:length]), sorted_rows(own[:length]))
        assert (row[:length] == own[:length]).all(1).float().mean() < 0.1


def test_shuffling_takes_each_order_equally_often() -> None:
    frames = torch.arange(3.0).repeat(6_000, 1)[:, :, None]
    output, _ = seeded(Shuffle(), frames)
    orders = (output[:, :, 0].long() * torch.tensor([9, 3, 1])).sum(1).unique(return_counts=True)[1]
    assert len(orders) == 6 and (orders - 1_000).abs().max() < 4 * (1_000 * 5 / 6) ** 0.5


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: FeCo(distance="L1"), r"distance to be 'L2' or 'cos', got 'L1'"),  # type: ignore[arg-type]
        (lambda: FeCo(start="first"), r"start to be 'random' or 'uniform', got 'first'"),  # type: ignore[arg-type]
        (lambda: FeCo(order="none"), r"order to be 'cluster' or 'time', got 'none'"),  # type: ignore[arg-type]
        (lambda: WarpedFeCo(init="tz"), r"init to be 'ts' or 'random', got 'tz'"),  # type: ignore[arg-type]
        (lambda: WarpedFeCo(1.5), r"a ratio in \(0, 1\], got 1.5"),
    ],
)
def test_words_without_meaning_are_refused(make: Callable[[], Defense], told: str) -> None:
    with pytest.raises(ValueError, match=f"Expected {told}"):
        make()


@pytest.mark.parametrize("make", [FeCo, Shuffle, WarpedFeCo])
def test_what_acts_on_frames_refuses_samples(make: Callable[..., Defense]) -> None:
    with pytest.raises(ValueError, match=r"acts on frames: expected a stage .* such as 'raw', got 'waveform'"):
        make(after="waveform")


@pytest.mark.parametrize("make", [FeCo, Shuffle, WarpedFeCo])
@pytest.mark.parametrize("stage", ["raw", "delta", "cmvn", "final"])
def test_feature_compression_acts_at_every_stage_of_a_front_end(
    make: Callable[..., Defense], stage: str, speech: Speech
) -> None:
    class Half(torch.nn.Module):
        def minimum_input(self, frames: int) -> int:
            return frames

        def forward(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
            return 0.5 * signal, lengths

    stages = {"raw": LogMel().stages["raw"], "delta": Half(), "cmvn": Half(), "final": Half()}
    chain = Recognizer(FrontEnd(stages), AudioNet(), ClosedSet(32, 2), [make(after=stage)]).chain()
    order = [module.after if isinstance(module, Defense) else name for name, module in zip("abcde", chain, strict=True)]
    assert order.index(stage) == list(stages).index(stage) + 1
    defense = make(after=stage)
    signal, lengths = stages["raw"](*speech)
    assert seeded(defense, signal, lengths)[0].isfinite().all()


# warped k-means


def trace_by_hand(frames: np.ndarray, count: int) -> list[int]:
    """The rule of trace segmentation, frame by frame."""
    path = [0.0]
    for before, after in pairwise(frames):
        path.append(path[-1] + float(np.sqrt(((after - before) ** 2).sum())))
    starts, frame = [], 0
    for segment in range(count):
        while frame < len(path) and path[frame] < segment * path[-1] / count:
            frame += 1
        starts.append(frame)
        frame += 1
    for segment in range(count):
        starts[segment] = min(starts[segment], len(frames) - count + segment)
    return starts


def warp_by_hand(frames: np.ndarray, starts: list[int], sweeps: int = 50) -> list[int]:
    """The rule of warped k-means: segments, sides and frames one after the other, means and counts kept up to date."""
    edges, count = [*starts, len(frames)], len(starts)
    means = [frames[a:b].mean(0) for a, b in pairwise(edges)]
    sizes = [b - a for a, b in pairwise(edges)]

    def moves(frame: np.ndarray, source: int, target: int) -> bool:
        n, m = sizes[source], sizes[target]
        if n < 2:
            return False
        gain = ((frame - means[target]) ** 2).sum() * m / (m + 1) - ((frame - means[source]) ** 2).sum() * n / (n - 1)
        if gain >= 0:
            return False
        means[target] = means[target] + (frame - means[target]) / (m + 1)
        means[source] = means[source] - (frame - means[source]) / (n - 1)
        sizes[source], sizes[target] = n - 1, m + 1
        return True

    for _ in range(sweeps):
        before = list(edges)
        for segment in range(count):
            if segment > 0:
                for _ in range(sizes[segment] // 2):
                    if not moves(frames[edges[segment]], segment, segment - 1):
                        break
                    edges[segment] += 1
            if segment < count - 1:
                for _ in range(sizes[segment] // 2):
                    if not moves(frames[edges[segment + 1] - 1], segment, segment + 1):
                        break
                    edges[segment + 1] -= 1
        if edges == before:
            break
    return edges[:-1]


def found_starts(defense: WarpedFeCo, frames: Tensor, lengths: Tensor) -> list[list[int]]:
    segments = defense.counts(lengths)
    starts = defense.starts(frames, lengths, segments, defense.count(frames.shape[1]))
    return [row[:count].tolist() for row, count in zip(starts, segments, strict=True)]


@pytest.mark.parametrize("sweeps", [1, 2, 50])
def test_warped_kmeans_is_the_rule_by_hand_on_random_inputs(sweeps: int) -> None:
    generator = np.random.default_rng(0)
    moved = 0
    for _ in range(4):
        lengths = generator.integers(1, 80, 25)
        dims, ratio = int(generator.integers(1, 6)), float(generator.uniform(0.05, 0.9))
        frames = torch.zeros(25, int(lengths.max()), dims, dtype=torch.float64)
        for row, length in zip(frames, lengths, strict=True):  # noise around levels that jump
            levels = generator.normal(0, 3, (length // 7 + 1, dims)).repeat(7, 0)[:length]
            row[:length] = torch.from_numpy(levels + generator.normal(size=(length, dims)))
        defense = WarpedFeCo(ratio, sweeps=sweeps)
        for row, length, starts in zip(
            frames, lengths, found_starts(defense, frames, torch.from_numpy(lengths)), strict=True
        ):
            own = row[:length].numpy()
            first = trace_by_hand(own, defense.count(int(length)))
            assert starts == warp_by_hand(own, first, sweeps)
            moved += starts != first
    assert moved > 50


def test_warped_kmeans_is_the_rule_by_hand_on_speech_and_from_any_start(frames: tuple[Tensor, Tensor]) -> None:
    for init in ("ts", "random"):
        defense = WarpedFeCo(0.2, init=init)  # type: ignore[arg-type]
        defense.seed(0)
        found = found_starts(defense, *frames)
        defense.seed(0)
        defense.sweeps = 0
        starts = found_starts(defense, *frames)
        for row, length, first, last in zip(frames[0].double().numpy(), frames[1], starts, found, strict=True):
            if init == "ts":
                assert first == trace_by_hand(row[:length], len(first))
            assert last == warp_by_hand(row[:length], first) != first


def test_segments_start_at_0_and_are_never_empty(frames: tuple[Tensor, Tensor]) -> None:
    jump = frames[0].clone()
    jump[:, 5:] = jump[:, 4:5] + 1e-3  # the whole path lies at the beginning: starts are pulled forward
    still = torch.full_like(jump, 3.0)  # no path at all
    for signal in (frames[0], jump, still):
        for init in ("ts", "random"):
            for ratio in (0.01, 0.2, 0.9, 1.0):
                for starts, length in zip(
                    found_starts(WarpedFeCo(ratio, init=init), signal, frames[1]),  # type: ignore[arg-type]
                    frames[1],
                    strict=True,
                ):
                    assert starts[0] == 0 and starts[-1] < length
                    assert all(a < b for a, b in pairwise(starts))


def test_random_segments_start_at_each_frame_equally_often() -> None:
    defense = WarpedFeCo(0.3, init="random", sweeps=0)
    defense.seed(0)
    starts = torch.tensor(found_starts(defense, torch.zeros(3_000, 11, 1), torch.full((3_000,), 11)))
    assert (starts[:, 0] == 0).all()
    share = starts[:, 1:].flatten().bincount(minlength=11)[1:] / 6_000
    assert (share - 0.1).abs().max() < 4 * (0.1 * 0.9 / 6_000) ** 0.5


def test_warping_gives_the_means_of_its_runs_in_time_with_the_gradient_of_the_means(
    frames: tuple[Tensor, Tensor],
) -> None:
    defense, leaf = WarpedFeCo(), frames[0].requires_grad_()
    output, clusters = defense(leaf, frames[1])
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad((output * weights).sum(), leaf)
    found = found_starts(defense, *frames)
    for row, starts, length, count, out, weight, own in zip(
        leaf.detach(), found, frames[1].tolist(), clusters, output, weights, slope, strict=True
    ):
        edges = list(pairwise([*starts, length]))
        assert_close(out[:count], torch.stack([row[a:b].mean(0) for a, b in edges]), rtol=1e-5, atol=1e-4)
        spread = torch.cat([(weight[i] / (b - a)).expand(b - a, -1) for i, (a, b) in enumerate(edges)])
        assert_close(own[:length], spread, rtol=1e-5, atol=1e-5)


def test_warping_does_not_compress_at_a_ratio_of_1(frames: tuple[Tensor, Tensor]) -> None:
    for init in ("ts", "random"):
        assert_close(WarpedFeCo(1.0, init=init)(*frames), frames)  # type: ignore[arg-type]


def test_frames_that_tie_do_not_move_for_ever() -> None:
    frames = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.7, 0.7, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1])[None, :, None].expand(1, 12, 5)
    once, always = (WarpedFeCo(0.25, sweeps=sweeps)(frames)[0] for sweeps in (20, 2_000))
    assert torch.equal(once, always)


def test_the_compiled_rule_is_the_rule_and_numba_may_be_missing(
    frames: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = WarpedFeCo()(*frames)
    warped_module.compiled_warp.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    assert warped_module.compiled_warp() is warped_module.warp
    assert_close(WarpedFeCo()(*frames), compiled, rtol=0, atol=0)
    warped_module.compiled_warp.cache_clear()
