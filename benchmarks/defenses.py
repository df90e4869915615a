"""Defenses against the plain ways to compute the same, forward and backward, on noise and random walks.

Both run in turn in one process, so that a busy machine slows both; the ratio of medians is the figure.
"""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from scipy.signal import butter
from torch import Tensor
from torch.nn.functional import conv1d, pad
from torchaudio.functional import lfilter

from sec4sr_pl.defenses import AverageSmoothing, BandPass, FeCo, LowPass, MedianSmoothing, WarpedFeCo
from sec4sr_pl.defenses.filters import Butterworth
from sec4sr_pl.types import SAMPLE_RATE

Way = Callable[[Tensor], Tensor]


def unfolded_median(waveforms: Tensor, size: int) -> Tensor:
    """Medians of windows that are laid out in memory."""
    return pad(waveforms, (size // 2, size // 2)).unfold(1, size, 1).median(2).values


def convolved_mean(waveforms: Tensor, size: int) -> Tensor:
    """Means of windows by a convolution."""
    return conv1d(waveforms.unsqueeze(1), torch.full((1, 1, size), 1 / size), padding=size // 2).squeeze(1)


def recursive(waveforms: Tensor, defense: Butterworth) -> Tensor:
    """The filter section by section, by torchaudio: in direct form its own recursion diverges."""
    corners = defense.corners[0] if len(defense.corners) == 1 else defense.corners
    kind = "lowpass" if len(defense.corners) == 1 else "bandpass"
    for section in torch.from_numpy(butter(defense.order, corners, kind, output="sos", fs=SAMPLE_RATE)).float():
        waveforms = lfilter(waveforms, section[3:], section[:3], clamp=False)
    return waveforms.clamp(-1.0, 1.0)


def looped_kmeans(frames: Tensor, defense: FeCo) -> Tensor:
    """K-means of one utterance after the other, one cluster's mean after the other, as the published code."""
    outputs = []
    for own in frames:
        count = defense.count(len(own))
        centers = own[(2 * torch.arange(count) + 1) * len(own) // (2 * count)].detach()
        for _ in range(defense.iterations + 1):
            labels = torch.cdist(own.detach(), centers).argmin(1)
            members = [labels == index for index in range(count)]
            sets = [own.detach()[mask] if mask.any() else own.detach()[i : i + 1] for i, mask in enumerate(members)]
            means = torch.stack([each.mean(0) for each in sets])
            movement = (means - centers).norm(dim=1).sum().square()
            centers = means
            if movement < defense.tolerance:
                break
        outputs.append(torch.stack([own[mask].mean(0) if mask.any() else own[i] for i, mask in enumerate(members)]))
    return torch.stack(outputs)


def looped_warp(frames: Tensor, defense: WarpedFeCo) -> Tensor:
    """Warped k-means of one utterance after the other, in NumPy, frame by frame."""
    outputs = []
    for own in frames:
        x, count = own.detach().double().numpy(), defense.count(len(own))
        path = np.concatenate([[0.0], np.sqrt((np.diff(x, axis=0) ** 2).sum(1)).cumsum()])
        edges, frame = [], 0
        for segment in range(count):
            while frame < len(path) and path[frame] < segment * path[-1] / count:
                frame += 1
            edges.append(frame)
            frame += 1
        edges = [min(edge, len(x) - count + segment) for segment, edge in enumerate(edges)] + [len(x)]
        means = [x[a:b].mean(0) for a, b in pairwise(edges)]
        moved, sweeps = True, 0
        while moved and sweeps < defense.sweeps:
            moved, sweeps = False, sweeps + 1
            for i in range(count):
                for side in (1, -1):
                    other, border = i - side, i if side == 1 else i + 1
                    if not 0 <= other < count:
                        continue
                    for _ in range((edges[i + 1] - edges[i]) // 2):
                        frame = edges[border] if side == 1 else edges[border] - 1
                        n, m = edges[i + 1] - edges[i], edges[other + 1] - edges[other]
                        far, near = ((x[frame] - means[i]) ** 2).sum(), ((x[frame] - means[other]) ** 2).sum()
                        if near * m / (m + 1) >= far * n / (n - 1):
                            break
                        means[i] = means[i] - (x[frame] - means[i]) / (n - 1)
                        means[other] = means[other] + (x[frame] - means[other]) / (m + 1)
                        edges[border] += side
                        moved = True
        outputs.append(torch.stack([own[a:b].mean(0) for a, b in pairwise(edges)]))
    return torch.stack(outputs)


def gradient(way: Way, signal: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and d(its weighted sum)/d(signal)."""
    leaf = signal.clone().requires_grad_(True)
    output = way(leaf)
    weights = torch.linspace(0.5, 1.5, output.numel()).reshape(output.shape)
    return output.detach(), torch.autograd.grad((output * weights).sum(), leaf)[0]


def compare(name: str, signal: Tensor, ours: Way, theirs: Way, rounds: int) -> None:
    """Print the medians, their ratio, and how far outputs are apart."""
    (first, first_slope), (second, second_slope) = gradient(ours, signal), gradient(theirs, signal)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for way, spent in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            gradient(way, signal)
            spent.append(1e3 * (time.perf_counter() - start))
    own, other = map(statistics.median, times)
    apart = (first - second).norm() / second.norm()
    slopes = (first_slope - second_slope).norm() / second_slope.norm()
    print(f"  {name:46} {own:8.1f} ms {other:9.1f} ms  ratio {other / own:7.2f}  differ {apart:.0e}, {slopes:.0e}")


def main(rounds: int = 11, batch: int = 16, seconds: float = 5.0) -> None:
    """Print a line for each defense."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.rand(batch, round(10 * seconds), generator=generator).repeat_interleave(SAMPLE_RATE // 10, 1)
    waveforms = 0.2 * steps * torch.randn(steps.shape, generator=generator).clamp(-3, 3)
    walk = torch.randn(batch, round(100 * seconds), 32, generator=generator).cumsum(1)
    frames = (
        -40.0 + 2.0 * walk + 3.0 * torch.randn(walk.shape, generator=generator)
    )  # neighbors are alike, as in speech
    mean, median, low, band = AverageSmoothing(), MedianSmoothing(), LowPass(), BandPass()
    kmeans, warped = FeCo(start="uniform"), WarpedFeCo()
    print(
        f"batch {batch} x {seconds} s, {torch.get_num_threads()} threads, {rounds} rounds in turn, forward + backward"
    )
    compare(
        "median of 7 / unfold and median", waveforms, lambda x: median(x)[0], lambda x: unfolded_median(x, 7), rounds
    )
    compare("mean of 17 / conv1d", waveforms, lambda x: mean(x)[0], lambda x: convolved_mean(x, 17), rounds)
    for defense in (low, band):
        name = f"{type(defense).__name__}, order {defense.order} / lfilter by sections"
        compare(name, waveforms, lambda x, d=defense: d(x)[0], lambda x, d=defense: recursive(x, d), rounds)  # type: ignore[misc]
    few = max(1, rounds // 3)
    compare("k-means / a loop over utterances", frames, lambda x: kmeans(x)[0], lambda x: looped_kmeans(x, kmeans), few)
    compare("warped k-means / plain Python", frames, lambda x: warped(x)[0], lambda x: looped_warp(x, warped), few)


if __name__ == "__main__":
    main()
