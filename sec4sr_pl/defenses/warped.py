"""FeCo by warped k-means: an utterance is cut into runs of frames, each replaced by its mean."""

from functools import cache
from typing import Any, Literal

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
    drawn = 1 + random_order(keys, rest, size - 1)
    drawn = drawn.masked_fill(~valid_mask(segments - 1, drawn.shape[1]), frames)
    return pad(drawn.sort(1).values, (1, 0))


def warp(frames: Floats, edges: Integers, segments: Integers, sweeps: int) -> None:
    """Warped k-means, the rule in plain loops: `edges` move until no segment gives a frame to a neighbor.

    A sweep goes through the segments in order; each offers up to half of its frames, its first ones to the segment
    before it, then its last ones to the one behind, until one would not come closer to the means.

    Args:
        frames: (batch, frames, dims).
        edges: (batch, size + 1) starts of segments, then the end of the last; changed in place.
        segments: (batch,) how many of `size` each row has.
        sweeps: the most sweeps.
    """
    dims = frames.shape[2]
    for row in range(len(frames)):
        x, edge, count = frames[row], edges[row], segments[row]
        means = np.zeros((count, dims))
        energy = 0.0
        for i in range(count):
            for frame in range(edge[i], edge[i + 1]):
                for dim in range(dims):
                    means[i, dim] += x[frame, dim] / (edge[i + 1] - edge[i])
                    energy += x[frame, dim] ** 2
        least = 1e-12 * energy / edge[count]  # less is rounding, by which ties could move for ever
        for _ in range(sweeps):
            moved = False
            for i in range(count):
                for side in (1, -1):  # the first frames, the last frames
                    other, border = i - side, i if side == 1 else i + 1
                    if other < 0 or other == count:
                        continue
                    for _ in range((edge[i + 1] - edge[i]) // 2):
                        frame = edge[border] if side == 1 else edge[border] - 1
                        own, others = edge[i + 1] - edge[i], edge[other + 1] - edge[other]
                        far = near = 0.0
                        for dim in range(dims):
                            far += (x[frame, dim] - means[i, dim]) ** 2
                            near += (x[frame, dim] - means[other, dim]) ** 2
                        if far * own / (own - 1) - near * others / (others + 1) <= least:
                            break
                        for dim in range(dims):
                            means[i, dim] -= (x[frame, dim] - means[i, dim]) / (own - 1)
                            means[other, dim] += (x[frame, dim] - means[other, dim]) / (others + 1)
                        edge[border] += side
                        moved = True
            if not moved:
                break


@cache
def compiled_warp() -> Any:
    """`warp` by numba where that is installed; else as it is, with the same numbers but slow."""
    try:
        from numba import njit
    except ImportError:
        return warp
    return njit(warp)


class WarpedFeCo(Compression):
    """Feature compression by warped k-means: max(1, floor(n * ratio)) means of runs of frames, in the order of time.

    The gradient is that of the means; the runs are constant. They are searched on the CPU, in double precision,
    fast where numba is installed (`pip install 'sec4sr_pl[fast]'`).

    Args:
        ratio: runs a frame, in (0, 1].
        after: the stage whose frames are compressed: `raw`, `delta`, `cmvn` or `final`.
        init: `ts`, runs of equal path length (trace segmentation), which draws nothing; or `random` runs.
        sweeps: the most sweeps.

    Raises:
        ValueError: a ratio outside (0, 1], another `init`, negative sweeps, or samples instead of frames.

    Source: Leiva and Vidal, "Warped k-means: An algorithm to cluster sequentially-distributed data", 2013; Chen et al.,
    "Towards understanding and mitigating audio adversarial examples for speaker recognition", 2022.
    """

    def __init__(
        self, ratio: float = 0.2, after: str = "raw", init: Literal["ts", "random"] = "ts", sweeps: int = 50
    ) -> None:
        super().__init__(ratio, after)
        one_of("init", init, ("ts", "random"))
        if sweeps < 0:
            raise ValueError(f"Expected sweeps >= 0, got {sweeps}")
        self.init, self.sweeps = init, sweeps
        self.randomized = init == "random"

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, frames, dims) -> (batch, runs, dims) and the runs of each row."""
        segments, size, frames = self.counts(lengths), self.count(signal.shape[1]), signal.shape[1]
        valid = valid_mask(lengths, frames)
        starts = self.starts(mask_padding(signal.detach(), lengths), lengths, segments, size)
        index = torch.arange(frames, device=starts.device).repeat(len(starts), 1)
        assigned = (torch.searchsorted(starts, index, right=True) - 1).clamp_min(0)  # NaN has no first run
        return cluster_means(signal, assigned, valid, size), segments

    @torch.no_grad()
    def starts(self, frames: Tensor, lengths: Tensor, segments: Tensor, size: int) -> Tensor:
        """The first frame of each run, (batch, size); the length of the row where there is no run."""
        frames = frames.double()
        if self.init == "ts":
            starts = trace_segmentation(frames, lengths, segments, size)
        else:
            starts = random_segmentation(self.draws.keys(len(frames)), lengths, segments, size, frames.shape[1])
        edges = torch.where(valid_mask(segments, size + 1), pad(starts, (0, 1)), lengths.unsqueeze(1)).cpu()
        compiled_warp()(frames.cpu().contiguous().numpy(), edges.numpy(), segments.cpu().numpy(), self.sweeps)
        return edges[:, :-1].to(lengths.device).contiguous()
