"""FeCo, feature compression: the frames of an utterance are replaced by the means of their clusters."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import normalize

from sec4sr_pl.defenses.base import Defense
from sec4sr_pl.draws import uniform
from sec4sr_pl.types import valid_mask

Distance = Literal["L2", "cos"]


def distances(
    frames: Tensor, centers: Tensor, real: Tensor, distance: Distance = "L2", out: Tensor | None = None
) -> Tensor:
    """How far each frame is from each center, up to a number of the frame's own: (batch, frames, centers).

    Centers that are not (batch, centers) `real` are infinitely far. `out` may be memory for it: fresh memory is slow.
    """
    centers = normalize(centers, dim=2) if distance == "cos" else centers  # a frame's own norm does not matter
    squares = torch.zeros_like(centers[..., 0]) if distance == "cos" else centers.square().sum(2)
    offset = squares.masked_fill_(~real, torch.inf).unsqueeze(1)
    return torch.baddbmm(offset, frames, centers.transpose(1, 2), alpha=-2.0, out=out)


def reassign(assigned: Tensor, far: Tensor) -> Tensor:
    """The nearest center of each frame, (batch, frames), by `distances`; where another is as near, as `assigned`.

    Few frames move, and the least of a row is found much faster than where it is.
    """
    moves = far.gather(2, assigned.unsqueeze(2)).squeeze(2) > far.amin(2)
    if far.device.type != "cpu":  # picking the rows would synchronize
        return torch.where(moves, far.argmin(2), assigned)
    return assigned.masked_scatter(moves, far[moves].argmin(1))


def cluster_means(frames: Tensor, assigned: Tensor, valid: Tensor, size: int) -> Tensor:
    """Means of clusters, (batch, size, dims), differentiable; an empty cluster i gives frame i."""
    batch, dims, dtype = len(frames), frames.shape[2], frames.dtype
    frames = frames.to(torch.promote_types(dtype, torch.float32))  # half precision can't count
    first = size * torch.arange(batch, device=frames.device).unsqueeze(1)
    index = torch.where(valid, assigned + first, batch * size).flatten()  # padding goes to a row that is thrown away
    counts = frames.new_zeros(batch * size + 1).index_add_(0, index, frames.new_ones(len(index)))
    counts = counts[:-1].reshape(batch, size, 1)
    sums = frames.new_zeros(batch * size + 1, dims).index_add_(0, index, frames.reshape(-1, dims))
    means = sums[:-1].reshape(batch, size, dims) / counts.clamp_min(1)
    return torch.where(counts > 0, means, frames[:, :size]).to(dtype)


@torch.no_grad()
def kmeans(
    frames: Tensor,
    lengths: Tensor,
    centers: Tensor,
    clusters: Tensor,
    iterations: int,
    tolerance: float,
    distance: Distance = "L2",
) -> Tensor:
    """Lloyd's algorithm on each row: the cluster of each frame, (batch, frames).

    A row stops by itself when the squared sum of its centers' movements is below the tolerance, and leaves the batch:
    its result does not depend on the other rows.
    """
    frames, size = frames.contiguous(), centers.shape[1]
    valid, real = valid_mask(lengths, frames.shape[1]), valid_mask(clusters, size)
    far = distances(frames, centers, real, distance)
    assigned = far.argmin(2)
    found, index = assigned.clone(), torch.arange(len(frames), device=frames.device)
    running = torch.ones_like(index, dtype=torch.bool)
    for iteration in range(iterations):
        means = cluster_means(frames, assigned, valid, size)
        movement = vector_norm(means - centers, dim=2).masked_fill_(~real, 0.0).sum(1)
        running, centers = running & (movement.square() >= tolerance), means
        if frames.device.type == "cpu" or iteration % 8 == 7:  # seldom: it synchronizes a GPU
            keep = running.nonzero().squeeze(1)
            if len(keep) < len(running):
                found[index] = assigned
                parts = (frames, valid, real, centers, index, assigned, running)
                frames, valid, real, centers, index, assigned, running = (part[keep] for part in parts)
            if not len(keep):
                break
        nearest = reassign(assigned, distances(frames, centers, real, distance, out=far[: len(frames)]))
        assigned = torch.where(running.unsqueeze(1), nearest, assigned)
    found[index] = assigned
    return found


def one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that has no meaning.

    Raises:
        ValueError: a value that is not among the choices.
    """
    if value not in choices:
        raise ValueError(f"Expected {name} to be {' or '.join(map(repr, choices))}, got '{value}'")


class FrameDefense(Defense):
    """A defense of frames, not of samples.

    Raises:
        ValueError: samples instead of frames.
    """

    def __init__(self, after: str) -> None:
        super().__init__(after)
        if after == "waveform":
            raise ValueError(
                f"{type(self).__name__} acts on frames: expected a stage of the front end such as 'raw', got 'waveform'"
            )


class Compression(FrameDefense):
    """k = max(1, floor(n * ratio)) frames instead of an utterance's n.

    Raises:
        ValueError: a ratio outside (0, 1], or samples instead of frames.
    """

    compresses = True

    def __init__(self, ratio: float, after: str) -> None:
        super().__init__(after)
        if not 0.0 < ratio <= 1.0:
            raise ValueError(f"Expected a ratio in (0, 1], got {ratio}")
        self.ratio = ratio

    def minimum_input(self, minimum: int) -> int:
        """Frames that leave at least `minimum` clusters."""
        return next(n for n in range(minimum, math.ceil(minimum / self.ratio) + 2) if self.count(n) >= minimum)

    def count(self, frames: int) -> int:
        """Clusters of an utterance with that many frames."""
        return max(1, math.floor(frames * self.ratio + 1e-9))

    def counts(self, lengths: Tensor) -> Tensor:
        """`count` of each of (batch,) lengths."""
        return (lengths.double() * self.ratio + 1e-9).floor().long().clamp_min(1)


class FeCo(Compression):
    """Feature compression by k-means: k = max(1, floor(n * ratio)) cluster means replace an utterance's n frames.

    As published: random distinct frames as start, hard assignment, the output in cluster order, so the order of time is
    lost. The gradient is that of the means; the assignment is constant. Frames are shuffled and compressed at once:
    `order="time"` compresses alone, `Shuffle` shuffles alone. `WarpedFeCo` is the paper's other form.

    Args:
        ratio: clusters a frame, in (0, 1]. 0.2 is the paper's choice at `raw`, its code has 0.5.
        after: the stage whose frames are compressed: `raw`, `delta`, `cmvn` or `final`.
        iterations: how often the centers move at most.
        tolerance: an utterance stops when the squared sum of its centers' movements is below it.
        distance: `L2`, or `cos`: to the center in the most similar direction; centers are plain means in either case.
        start: `random` frames, or frames `uniform` in time, which draws nothing.
        order: of the output: by `cluster`, so that of the start, or by the mean `time` of the clusters' frames.

    Raises:
        ValueError: a ratio outside (0, 1], a negative iterations or tolerance, a word that is none of those above, or
            samples instead of frames.

    Source: Chen et al., "Towards understanding and mitigating audio adversarial examples for speaker recognition",
    2022.
    """

    def __init__(
        self,
        ratio: float = 0.2,
        after: str = "raw",
        iterations: int = 50,
        tolerance: float = 1e-4,
        distance: Distance = "L2",
        start: Literal["random", "uniform"] = "random",
        order: Literal["cluster", "time"] = "cluster",
    ) -> None:
        super().__init__(ratio, after)
        one_of("distance", distance, ("L2", "cos"))
        one_of("start", start, ("random", "uniform"))
        one_of("order", order, ("cluster", "time"))
        if iterations < 0 or not tolerance >= 0.0:
            raise ValueError(f"Expected iterations and tolerance >= 0, got {iterations} and {tolerance}")
        self.iterations, self.tolerance = iterations, tolerance
        self.distance, self.start, self.order = distance, start, order
        self.randomized = start == "random"

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dims) -> (batch, clusters, dims) and the clusters of each row."""
        clusters, size = self.counts(lengths), self.count(signal.shape[1])
        valid = valid_mask(lengths, signal.shape[1])
        with torch.no_grad():
            frames = signal.float()
            if self.distance == "L2":  # centered on the mean, so that squares do not drown the differences
                frames = frames - (frames * valid.unsqueeze(2)).sum(1, keepdim=True) / lengths[:, None, None]
            first = self._first(frames, lengths, clusters, valid)[:, :size]
            centers = frames.gather(1, first.unsqueeze(2).expand(-1, -1, signal.shape[2]))
        with torch.autocast(signal.device.type, enabled=False):
            assigned = kmeans(frames, lengths, centers, clusters, self.iterations, self.tolerance, self.distance)
            means = cluster_means(signal, assigned, valid, size)
        if self.order == "time":
            time = torch.arange(signal.shape[1], dtype=torch.float64, device=signal.device).expand_as(valid)
            time = cluster_means(time.unsqueeze(2), assigned, valid, size).squeeze(2)
            order = time.masked_fill(~valid_mask(clusters, size), torch.inf).sort(dim=1, stable=True).indices
            means = means.gather(1, order.unsqueeze(2).expand_as(means))
        return means, clusters

    def _first(self, frames: Tensor, lengths: Tensor, clusters: Tensor, valid: Tensor) -> Tensor:
        """(batch, >= clusters) distinct frames of each row."""
        if self.start == "random":
            return random_order(self.draws.keys(len(frames)), valid, self.count(frames.shape[1]))
        index = torch.arange(frames.shape[1], device=frames.device)
        middles = (2 * index + 1) * lengths.unsqueeze(1) // (2 * clusters.unsqueeze(1))
        return torch.minimum(middles, lengths.unsqueeze(1) - 1)


def random_order(keys: list[int], valid: Tensor, count: int) -> Tensor:
    """(batch, count) first positions of each row in random order, those that are not valid last."""
    draws = uniform(keys, torch.empty(valid.shape, device=valid.device))
    return draws.masked_fill(~valid, torch.inf).topk(count, largest=False).indices


class Shuffle(FrameDefense):
    """The frames of each utterance in random order, nothing compressed.

    The control of `FeCo` in cluster order, whose effect on layers that look at neighboring frames is in part this.

    Args:
        after: the stage whose frames are shuffled.

    Raises:
        ValueError: samples instead of frames.
    """

    randomized = True

    def __init__(self, after: str = "raw") -> None:
        super().__init__(after)

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dims) -> the same shape."""
        order = random_order(self.draws.keys(len(signal)), valid_mask(lengths, signal.shape[1]), signal.shape[1])
        return signal.gather(1, order.unsqueeze(2).expand_as(signal)), lengths
