"""Defenses: what holds for each of them, in a table, then quantization and feature compression by themselves."""

import copy
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import MakeRecognizer
from sklearn.cluster import KMeans
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl import defenses
from sec4sr_pl.checkpoint import describe, rebuild
from sec4sr_pl.defenses import Defense, FeCo, Quantization
from sec4sr_pl.defenses import feco as feco_module
from sec4sr_pl.features import LogMel
from sec4sr_pl.types import full_lengths, valid_mask

Speech = tuple[Tensor, Tensor]


class Row(NamedTuple):
    """A defense and its traits."""

    name: str
    make: Callable[[], Defense]
    after: str
    randomized: bool
    positions: Callable[[int], int]
    """Valid positions of the output, from those of the input."""


TABLE = [
    Row("Quantization", Quantization, "waveform", False, lambda n: n),
    Row("FeCo", FeCo, "raw", True, lambda n: max(1, n // 5)),
    Row("FeCo half", lambda: FeCo(ratio=0.5), "raw", True, lambda n: max(1, n // 2)),
]


@pytest.fixture(params=TABLE, ids=[row.name for row in TABLE])
def row(request: pytest.FixtureRequest) -> Row:
    found: Row = request.param
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
    assert {type(row.make()).__name__ for row in TABLE} == set(defenses.__all__) - {"Defense"}


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
            assert torch.equal(defense(frames[index : index + 1, :length])[0][0], output[index, :length])


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
    # a sum over means spreads each cluster's 1 evenly over its frames; the identity gives each sample 1
    assert (slope[valid] > 0).all() and (slope[valid] <= 1 + 1e-6).all()


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0])
def test_silence_and_full_scale_stay_what_they_are(row: Row, level: float) -> None:
    waveforms = torch.full((2, 8_000), level)
    signal, lengths = (waveforms, full_lengths(waveforms)) if row.after == "waveform" else LogMel()(waveforms)
    signal[:, 1:-1] = signal[:, 1:2]  # the frames at the edges see the reflection
    signal[:, 0] = signal[:, -1] = signal[:, 1]
    leaf = signal.requires_grad_()
    output, valid = row.make()(leaf, lengths)
    (slope,) = torch.autograd.grad(output.sum(), leaf)
    assert slope.isfinite().all()
    assert_close(output, signal[:, : int(valid[0])].detach(), rtol=1e-6, atol=1e-6, check_stride=False)


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
        assert found < 0.99 * inertia(own, feco_module.assign(own[None], start[None], clusters[row, None])[0], count)
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
    first = feco_module.assign(*arguments[:1], *arguments[2:])  # type: ignore[arg-type]
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
