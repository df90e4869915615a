"""Warped k-means, beside the rule by hand."""

import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl.defenses import WarpedFeCo
from sec4sr_pl.defenses import warped as warped_module


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
