"""Defenses: what holds for each of them, in a table."""

import copy
import pickle
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import pytest
import torch
from conftest import MakeRecognizer, halved
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl import defenses
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
from sec4sr_pl.features import LogMel
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


@pytest.fixture
def speech(speech: Speech) -> Speech:
    """Half of it: defenses cost as long as their input."""
    return halved(*speech)


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


ALIKE = ("MP3Variable", "AACVariable", "FeCo half")
"""They differ from another row in a parameter of its encoder, or of its own."""


@cache
def made(make: Callable[[], Defense]) -> Defense:
    """To be copied: a codec measures its delay when it is made, a filter is designed."""
    return make()


@pytest.fixture(
    params=[pytest.param(row, id=row.name, marks=[pytest.mark.slow] * (row.name in ALIKE)) for row in TABLE]
)
def row(request: pytest.FixtureRequest) -> Row:
    found: Row = request.param
    try:
        return found._replace(make=partial(copy.deepcopy, made(found.make)))
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture
def signal(row: Row, speech: Speech) -> tuple[Tensor, Tensor]:
    """What the defense meets in a recognizer: eight waveforms, or the frames of eight utterances."""
    return speech if row.after == "waveform" else LogMel()(*speech)


def seeded(defense: Defense, signal: Tensor, lengths: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    defense.seed(seed)
    output: tuple[Tensor, Tensor] = defense(signal, lengths)
    return output


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
    (output, valid), (padded, _) = (seeded(row.make(), signal, lengths) for signal in (shorter, frames))
    for index, count in enumerate(valid.tolist()):
        assert_close(padded[index, :count], output[index, :count], rtol=1e-4, atol=1e-4)


def test_scores_behind_it_do_not_depend_on_padding(row: Row, make_recognizer: MakeRecognizer, speech: Speech) -> None:
    recognizer = make_recognizer(defenses=[row.make()])
    recognizer.seed(0)
    together = recognizer(torch.nn.functional.pad(speech[0], (0, 1_003)), speech[1])
    for index, length in enumerate(speech[1].tolist()) if not row.randomized else [(0, int(speech[1][0]))]:
        recognizer.seed(0)
        alone = recognizer(speech[0][index : index + 1, :length])[0]
        assert ((together[index] - alone).abs() <= 1e-4 * alone.abs().clamp_min(1.0)).all()


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
    "duplicate",
    [
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda defense: pickle.loads(pickle.dumps(defense)), id="pickle", marks=pytest.mark.slow),
    ],
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


@pytest.mark.parametrize("sick", [pytest.param(0, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("value", [torch.nan, pytest.param(torch.inf, marks=pytest.mark.slow)])
def test_what_is_no_number_stays_in_its_row(row: Row, signal: tuple[Tensor, Tensor], sick: int, value: float) -> None:
    defense = row.make()
    clean, lengths = seeded(defense, *signal)
    broken = signal[0].clone()
    broken[sick, 7] = value
    output, _ = seeded(defense, broken, signal[1])
    assert value == torch.inf or output[sick, : lengths[sick]].isnan().any()  # a median or a clamp may take it away
    others = torch.arange(len(output)) != sick
    assert_close(output[others], clean[others])


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
