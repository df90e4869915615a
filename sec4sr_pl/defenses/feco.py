"""FeCo, feature compression: the frames of an utterance are replaced by the means of their clusters."""

import math

import torch
from torch import Tensor

from sec4sr_pl.defenses.base import Defense
from sec4sr_pl.draws import uniform
from sec4sr_pl.types import valid_mask


def assign(frames: Tensor, centers: Tensor, clusters: Tensor) -> Tensor:
    """The nearest center (L2) of each frame, (batch, frames), among the first `clusters` of each row."""
    distances = centers.square().sum(2).unsqueeze(1) - 2.0 * frames @ centers.transpose(1, 2)
    return distances.masked_fill(~valid_mask(clusters, centers.shape[1]).unsqueeze(1), torch.inf).argmin(2)


def cluster_means(frames: Tensor, assigned: Tensor, valid: Tensor, size: int) -> Tensor:
    """Means of clusters, (batch, size, dims), differentiable; an empty cluster i gives frame i."""
    index = assigned.masked_fill(~valid, size)  # padding goes to a cluster that is thrown away
    counts = frames.new_zeros(len(frames), size + 1).scatter_add(1, index, torch.ones_like(index, dtype=frames.dtype))
    sums = frames.new_zeros(len(frames), size + 1, frames.shape[2])
    sums = sums.scatter_add(1, index.unsqueeze(2).expand_as(frames), frames)
    counts = counts[:, :size, None]
    return torch.where(counts > 0, sums[:, :size] / counts.clamp_min(1), frames[:, :size])


@torch.no_grad()
def kmeans(
    frames: Tensor, lengths: Tensor, centers: Tensor, clusters: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """Lloyd's algorithm on each row: the cluster of each frame, (batch, frames).

    A row stops by itself when the squared sum of its centers' movements is below the tolerance, so its result does not
    depend on the other rows.
    """
    valid = valid_mask(lengths, frames.shape[1])
    assigned = assign(frames, centers, clusters)
    running = torch.ones(len(frames), dtype=torch.bool, device=frames.device)
    for iteration in range(iterations):
        means = cluster_means(frames, assigned, valid, centers.shape[1])
        movement = (means - centers).norm(dim=2).masked_fill(~valid_mask(clusters, centers.shape[1]), 0.0).sum(1)
        running = running & (movement.square() >= tolerance)
        if (frames.device.type == "cpu" or iteration % 8 == 7) and not running.any():  # seldom: it synchronizes a GPU
            break
        centers = torch.where(running[:, None, None], means, centers)
        assigned = torch.where(running[:, None], assign(frames, centers, clusters), assigned)
    return assigned


class FeCo(Defense):
    """Feature compression by k-means: k = max(1, floor(n * ratio)) cluster means replace an utterance's n frames.

    As published: random distinct frames as start, hard assignment, the output in cluster order, so the order of time is
    lost. The gradient is that of the means; the assignment is constant. Frames are shuffled and compressed at once.

    Args:
        ratio: clusters a frame, in (0, 1].
        after: the stage whose frames are compressed: `raw`, `delta`, `cmvn` or `final`.
        iterations: the most iterations of Lloyd's algorithm.
        tolerance: an utterance stops when the squared sum of its centers' movements is below it.

    Raises:
        ValueError: a ratio outside (0, 1], or samples instead of frames.

    Source: Chen et al., "Towards understanding and mitigating audio adversarial examples for speaker recognition",
    2022.
    """

    randomized = True

    def __init__(self, ratio: float = 0.2, after: str = "raw", iterations: int = 50, tolerance: float = 1e-4) -> None:
        super().__init__(after)
        if after == "waveform":
            raise ValueError("FeCo compresses frames: expected a stage of the front end such as 'raw', got 'waveform'")
        if not 0.0 < ratio <= 1.0:
            raise ValueError(f"Expected a ratio in (0, 1], got {ratio}")
        self.ratio, self.iterations, self.tolerance = ratio, iterations, tolerance

    def minimum_input(self, minimum: int) -> int:
        """Frames that leave at least `minimum` clusters."""
        return next(n for n in range(minimum, math.ceil(minimum / self.ratio) + 2) if self.count(n) >= minimum)

    def count(self, frames: int) -> int:
        """Clusters of an utterance with that many frames."""
        return max(1, math.floor(frames * self.ratio + 1e-9))

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dims) -> (batch, clusters, dims) and the clusters of each row."""
        clusters = (lengths.double() * self.ratio + 1e-9).floor().long().clamp_min(1)  # as in `count`
        size = self.count(signal.shape[1])
        valid = valid_mask(lengths, signal.shape[1])
        draws = uniform(self.draws.keys(len(signal)), signal[..., 0].float())
        start = draws.masked_fill(~valid, torch.inf).argsort(1)[:, :size]
        with torch.no_grad():  # centered on the mean, so that squares do not drown the differences
            centered = signal.float()
            centered = centered - (centered * valid.unsqueeze(2)).sum(1, keepdim=True) / lengths[:, None, None]
            centers = centered.gather(1, start.unsqueeze(2).expand(-1, -1, signal.shape[2]))
        with torch.autocast(signal.device.type, enabled=False):
            assigned = kmeans(centered, lengths, centers, clusters, self.iterations, self.tolerance)
        return cluster_means(signal, assigned, valid, size), clusters
