"""Feature compression: k-means over frames, beside Lloyd's algorithm by hand and scikit-learn's."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from test_defenses import seeded
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl.backbones import XVector
from sec4sr_pl.defenses import Defense, FeCo, Shuffle, WarpedFeCo
from sec4sr_pl.defenses import feco as feco_module
from sec4sr_pl.defenses.feco import Distance
from sec4sr_pl.features import MFCC, EnergyVAD
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.types import valid_mask

Speech = tuple[Tensor, Tensor]


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
        nearest = feco_module.distances(own[None], start[None], torch.ones(1, count, dtype=torch.bool)).argmin(2)[0]
        assert found < inertia(own, nearest, count)
        if not emptied:  # scikit-learn fills an empty cluster in another way
            reference = KMeans(count, init=start.double().numpy(), n_init=1, max_iter=50, tol=0.0, algorithm="lloyd")
            assert found == pytest.approx(reference.fit(own.double().numpy()).inertia_, rel=1e-3)
            compared += 1
    assert compared >= 4


def test_kmeans_treats_a_row_in_a_batch_as_alone(frames: tuple[Tensor, Tensor], spy: Spy) -> None:
    _, clusters = FeCo(tolerance=1.0)(*frames)
    together, iterations = spy.assigned, []
    for row in range(8):
        length, count = frames[1][row : row + 1], clusters[row : row + 1]
        own, start = spy.frames[row : row + 1, : int(length)], spy.centers[row : row + 1, : int(count)]
        assigned = [spy.kmeans(own, length, start, count, limit, 1.0) for limit in range(51)]
        assert torch.equal(assigned[-1][0], together[row, : int(length)])
        iterations.append(next(i for i, labels in enumerate(assigned) if torch.equal(labels, assigned[-1])))
    assert len(set(iterations)) > 1  # they stop at different times, each by itself


def test_kmeans_stops_at_its_cap_and_at_its_tolerance(frames: tuple[Tensor, Tensor], spy: Spy) -> None:
    FeCo()(*frames)
    arguments = (spy.frames, frames[1], spy.centers, spy.rest[0])
    first = feco_module.distances(spy.frames, spy.centers, valid_mask(spy.rest[0], spy.centers.shape[1])).argmin(2)
    assert torch.equal(spy.kmeans(*arguments, 0, 0.0), first)
    assert torch.equal(spy.kmeans(*arguments, 50, 1e9), first)
    assert not torch.equal(spy.kmeans(*arguments, 1, 0.0), first)


@pytest.mark.parametrize(("tolerance", "expected"), [(13.0, [0, 0, 0, 1, 1, 1]), (13.3, [0, 0, 0, 0, 1, 1])])
def test_the_tolerance_is_of_the_squared_sum_of_movements(tolerance: float, expected: list[int]) -> None:
    frames = torch.tensor([0.0, 0.0, 0.0, 4.9, 5.2, 10.0])[None, :, None]
    centers = torch.tensor([0.0, 10.0])[None, :, None]  # they move by 1.225 and 2.4, the square of the sum is 13.1
    assigned = feco_module.kmeans(frames, torch.tensor([6]), centers, torch.tensor([2]), 50, tolerance)
    assert assigned[0].tolist() == expected


def test_a_frame_leaves_its_center_only_for_a_nearer_one() -> None:
    far = torch.tensor([[[2.0, 2.0, 3.0], [2.0, 2.0, 1.0], [2.0, 1.0, 1.0]]])
    assert feco_module.reassign(torch.tensor([[1, 1, 0]]), far).tolist() == [[1, 2, 1]]


@pytest.mark.parametrize("make", [FeCo, WarpedFeCo])
def test_half_precision_counts_and_measures_in_single(
    make: Callable[..., Defense], frames: tuple[Tensor, Tensor]
) -> None:
    many = torch.full((1, 1_000, 4), 3.0, dtype=torch.bfloat16)  # which counts no further than 256
    assert (make(0.0001)(many)[0] == 3.0).all()
    short = frames[0].bfloat16()
    output, _ = seeded(make(), short, frames[1])
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, seeded(make(), short.float(), frames[1])[0].bfloat16())


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


# its other forms


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
        (lambda: WarpedFeCo(sweeps=-1), "sweeps >= 0, got -1"),
        (lambda: FeCo(iterations=-5), "iterations and tolerance >= 0, got -5 and 0.0001"),
        (lambda: FeCo(tolerance=math.nan), "iterations and tolerance >= 0, got 50 and nan"),
    ],
)
def test_words_without_meaning_are_refused(make: Callable[[], Defense], told: str) -> None:
    with pytest.raises(ValueError, match=f"Expected {told}"):
        make()


@pytest.mark.parametrize("make", [FeCo, Shuffle, WarpedFeCo])
def test_what_acts_on_frames_refuses_samples(make: Callable[..., Defense]) -> None:
    with pytest.raises(ValueError, match=r"acts on frames: expected a stage .* such as 'raw', got 'waveform'"):
        make(after="waveform")


@pytest.mark.parametrize("vad", [None, EnergyVAD(fewest=40)], ids=["all frames", "voiced frames"])
@pytest.mark.parametrize("make", [FeCo, Shuffle, WarpedFeCo])
@pytest.mark.parametrize("stage", ["raw", "delta", "cmvn", "final"])
def test_feature_compression_acts_at_every_stage_of_a_front_end(
    make: Callable[..., Defense], stage: str, vad: EnergyVAD | None, speech: Speech
) -> None:
    waveforms, lengths = speech[0].repeat(1, 2), speech[1] + speech[0].shape[1]
    defense = make(after=stage) if make is Shuffle else make(0.9, after=stage)
    recognizer = Recognizer(MFCC(vad=vad), XVector(72, 16, 24, 12), ClosedSet(12, 2), [defense]).eval()
    chain = recognizer.chain()
    names = list(recognizer.features.stages)
    order = [module.after if isinstance(module, Defense) else name for name, module in zip("abcde", chain, strict=True)]
    assert order.index(stage) == names.index(stage) + 1
    recognizer.seed(0)
    scores = recognizer(waveforms, lengths)
    recognizer.seed(0)
    alone = recognizer(waveforms[:1, : lengths[0]], lengths[:1])  # the first row keeps its draws
    assert scores.isfinite().all() and scores.std(0).min() > 0
    assert_close(scores[:1], alone, rtol=1e-3, atol=1e-4)
