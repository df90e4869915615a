"""FeCo by warped k-means: an utterance is cut into runs of frames, each replaced by its mean."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from sec4sr_pl.defenses.feco import Compression, cluster_means, one_of, random_order
from sec4sr_pl.types import mask_padding, valid_mask

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def trace_segmentation(frames: Tensor, lengths: Tensor, segments: Tensor, size: int) -> Tensor:
    """Starts of segments along which the frames travel equally far, (batch, size).

    Segment j starts at the first unused frame at which the path has reached j / segments of its length; starts too late
    to leave a frame for each segment that follows are pulled forward.
    """
    steps = (frames[:, 1:] - frames[:, :-1]).norm(dim=2)
    path = pad(mask_padding(steps, lengths - 1).cumsum(1), (1, 0))
    index = torch.arange(size, device=frames.device)
    reached = torch.searchsorted(path, index * path[:, -1:] / segments.unsqueeze(1))
    unused = (reached - index).cummax(1).values + index
    return torch.minimum(unused, (lengths - segments).unsqueeze(1) + index)


def random_segmentation(keys: list[int], lengths: Tensor, segments: Tensor, size: int, frames: int) -> Tensor:
    """Starts of segments, (batch, size): the first frame, and distinct frames drawn from the rest."""
    rest = valid_mask(lengths - 1, max(frames - 1, 1))
    drawn = 1 + random_order(keys, rest)[:, : size - 1]
    drawn = drawn.masked_fill(~valid_mask(segments - 1, drawn.shape[1]), frames)
    return pad(drawn.sort(1).values, (1, 0))


def move_edges(
    frames: Floats, sums: Floats, edges: Integers, rows: Integers, index: Integers, step: int, least: Floats
) -> NDArray[np.bool_]:
    """Move edges one frame at a time while that brings frames closer to the means of their segments.

    The segment behind an edge (`step` 1) or before it (-1) offers up to half of its frames to the other.

    Args:
        frames: (batch, frames, dims).
        sums: (batch, frames + 1, dims) of the frames before each.
        edges: (batch, segments + 1), changed in place.
        rows: of each edge.
        index: of each edge in its row.
        step: direction.
        least: (batch,) a smaller gain is rounding.

    Returns:
        Whether each edge moved.
    """
    left, place, right = edges[rows, index - 1], edges[rows, index], edges[rows, index + 1]
    last = place + step * ((right - place if step > 0 else place - left) // 2)
    live = np.flatnonzero(place != last)
    while live.size:
        row, at = rows[live], place[live]
        before, after = at - left[live], right[live] - at
        middle, means = sums[row, at], []
        means.append((middle - sums[row, left[live]]) / before[:, None])
        means.append((sums[row, right[live]] - middle) / after[:, None])
        frame = frames[row, at if step > 0 else at - 1]
        near, far = (((frame - mean) ** 2).sum(1) for mean in means)
        if step > 0:
            change = near * before / (before + 1) - far * after / (after - 1)
        else:
            change = far * after / (after + 1) - near * before / (before - 1)
        live = live[change < -least[row]]
        place[live] += step
        live = live[place[live] != last[live]]
    moved: NDArray[np.bool_] = place != edges[rows, index]
    edges[rows, index] = place
    return moved


def warp(frames: Floats, starts: Integers, lengths: Integers, segments: Integers, sweeps: int) -> Integers:
    """Warped k-means: the starts of segments, (batch, size), at which no segment gives a frame to a neighbor.

    A sweep goes through the segments in order; each offers its first frames to the segment before it, then its last
    ones to the one behind, until one is refused. Sweeps follow until nothing moves. A segment reads no edge that is
    touched three segments further, so sweep s works on segment i while sweep s - 1 works on i + 3: one pass, vectorized
    over utterances and sweeps, with the result of the sweeps one by one. Segments near which nothing has moved since
    they were looked at are passed over.
    """
    size = starts.shape[1]
    edges = np.where(np.arange(size + 1) < segments[:, None], np.pad(starts, ((0, 0), (0, 1))), lengths[:, None])
    sums = np.pad(frames, ((0, 0), (1, 0), (0, 0))).cumsum(1)
    least = 1e-12 * (frames**2).sum((1, 2)) / lengths
    real = np.pad(np.arange(size) < segments[:, None], ((0, 0), (2, 2)))  # two more at both ends spare the borders
    waiting = real.copy()
    for step in range(size + 3 * sweeps):
        if not waiting.any():
            break
        sweep = np.arange(max(0, -((size - 1 - step) // 3)), min(step // 3, sweeps - 1) + 1)
        segment = step - 3 * sweep
        rows, columns = np.nonzero(waiting[:, segment + 2])
        current = segment[columns]
        waiting[rows, current + 2] = False
        for side, has in ((1, current > 0), (-1, current < segments[rows] - 1)):
            row, index = rows[has], current[has] + (side < 0)
            moved = move_edges(frames, sums, edges, row, index, side, least)
            row, index = row[moved], index[moved]
            for reader in range(4):  # the segments that read this edge: two before it, two behind
                waiting[row, index + reader] = real[row, index + reader]
    return edges[:, :-1].copy()


class WarpedFeCo(Compression):
    """Feature compression by warped k-means: max(1, floor(n * ratio)) means of runs of frames, in the order of time.

    The gradient is that of the means; the runs are constant. They are searched on the CPU, in double precision.

    Args:
        ratio: runs a frame, in (0, 1].
        after: the stage whose frames are compressed: `raw`, `delta`, `cmvn` or `final`.
        init: `ts`, runs of equal path length (trace segmentation), which draws nothing; or `random` runs.
        sweeps: the most sweeps.

    Raises:
        ValueError: a ratio outside (0, 1], another `init`, or samples instead of frames.

    Source: Leiva and Vidal, "Warped k-means: An algorithm to cluster sequentially-distributed data", 2013; Chen et al.,
    "Towards understanding and mitigating audio adversarial examples for speaker recognition", 2022.
    """

    def __init__(
        self, ratio: float = 0.2, after: str = "raw", init: Literal["ts", "random"] = "ts", sweeps: int = 50
    ) -> None:
        super().__init__(ratio, after)
        one_of("init", init, ("ts", "random"))
        self.init, self.sweeps = init, sweeps
        self.randomized = init == "random"

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dims) -> (batch, runs, dims) and the runs of each row."""
        segments, size, frames = self.counts(lengths), self.count(signal.shape[1]), signal.shape[1]
        valid = valid_mask(lengths, frames)
        starts = self.starts(mask_padding(signal.detach(), lengths), lengths, segments, size)
        index = torch.arange(frames, device=starts.device).repeat(len(starts), 1)
        assigned = torch.searchsorted(starts, index, right=True) - 1
        return cluster_means(signal, assigned, valid, size), segments

    @torch.no_grad()
    def starts(self, frames: Tensor, lengths: Tensor, segments: Tensor, size: int) -> Tensor:
        """The first frame of each run, (batch, size); the length of the row where there is no run."""
        frames = frames.double()
        if self.init == "ts":
            starts = trace_segmentation(frames, lengths, segments, size)
        else:
            starts = random_segmentation(self.draws.keys(len(frames)), lengths, segments, size, frames.shape[1])
        arrays = [tensor.cpu().numpy() for tensor in (frames, starts, lengths, segments)]
        found = warp(arrays[0], arrays[1], arrays[2], arrays[3], self.sweeps)
        return torch.from_numpy(found).to(lengths.device)
