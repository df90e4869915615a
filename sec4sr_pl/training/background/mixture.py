"""A Gaussian mixture with full covariances, by expectation maximization."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from sec4sr_pl.backbones.ivector import FRAMES, Densities, products
from sec4sr_pl.kaldi import FullGMM, triangle
from sec4sr_pl.training.background.iteration import Frames, iterate
from sec4sr_pl.types import valid_mask


def fit_gmm(
    batches: Frames,
    components: int,
    iterations: int = 20,
    floor: float = 1e-3,
    seed: int = 0,
    path: Path | None = None,
    identity: str = "",
) -> FullGMM:
    """A mixture of the frames, which starts at frames drawn at random and the covariance of all.

    Args:
        batches: frames, on the device and in the precision to compute in.
        components: of the mixture.
        iterations: of expectation maximization.
        floor: smallest variance in any direction, as a share of that of all frames.
        seed: of the first means.
        path: keeps each iteration, to go on from.
        identity: tells these frames from any other, e.g. that of a `Corpus`.

    Raises:
        ValueError: no component, fewer frames than components, or as `iterate`.
    """
    if components < 1:
        raise ValueError(f"Expected at least 1 component, got {components}")
    return iterate(
        batches,
        lambda shown: first_gmm(shown, components, seed),
        lambda gmm, shown: improve(gmm, shown, floor),
        iterations,
        "GMM",
        path,
        frames=identity,
        seed=seed,
        floor=floor,
    )


def rows(batches: Frames) -> Iterator[Tensor]:
    """The valid frames, (frames, inputs), a few thousand at a time."""
    for frames, lengths in batches:
        yield from torch.split(frames[valid_mask(lengths, frames.shape[1])], FRAMES)


def first_gmm(batches: Frames, components: int, seed: int) -> FullGMM:
    """Means at distinct frames, each as likely as another, with the covariance of all frames."""
    generator = torch.Generator().manual_seed(seed)
    chosen: Tensor | None = None
    tickets = torch.empty(0)
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for part in rows(batches):
        drawn = torch.cat([tickets, torch.rand(len(part), generator=generator)])
        tickets, lowest = drawn.topk(min(components, len(drawn)), largest=False)
        chosen = (part if chosen is None else torch.cat([chosen, part]))[lowest.to(part.device)]
        precise = part.double()
        count, total, squares = count + len(part), precise.sum(0) + total, precise.T @ precise + squares
    if chosen is None or len(chosen) < components:
        raise ValueError(f"Expected at least as many frames as components ({components}), got {count}")
    mean = total / count
    precision = torch.linalg.inv(squares / count - mean.outer(mean)).to(chosen)
    weights = torch.full((components,), 1.0 / components).to(chosen)
    return FullGMM(weights, chosen, precision.repeat(components, 1, 1))


def improve(gmm: FullGMM, batches: Frames, floor: float) -> tuple[FullGMM, float]:
    """One iteration: the next mixture, and the mean log-likelihood of a frame under this one.

    A component to which fewer frames belong than a frame has dimensions keeps its mean and covariance.
    """
    densities, (components, inputs) = Densities.of(gmm), gmm.means.shape
    like = gmm.means.double()
    likelihood, counts, sums = like.new_zeros(()), like.new_zeros(components), torch.zeros_like(like)
    packed = like.new_zeros(components, inputs * (inputs + 1) // 2)
    for part in rows(batches):
        log = densities.log(part)
        evidence = log.logsumexp(0)
        posteriors = (log - evidence).exp()
        likelihood += evidence.sum()
        counts += posteriors.sum(1)
        sums += posteriors @ part
        packed += posteriors @ products(part).T
    total = counts.sum()
    least = floor * covariance(total, sums.sum(0), packed.sum(0))
    enough = counts >= inputs
    means = torch.where(enough.unsqueeze(1), sums / counts.clamp_min(1.0).unsqueeze(1), like)
    spread = covariance(counts.clamp_min(1.0), sums, packed)
    precisions = torch.linalg.inv(floored(spread[enough], least))
    new = gmm.precisions.to(torch.float64, copy=True)
    new[enough] = precisions
    return FullGMM(*(part.to(gmm.means) for part in (counts / total, means, new))), float(likelihood / total)


def covariance(count: Tensor, sums: Tensor, packed: Tensor) -> Tensor:
    """(..., inputs, inputs) from (...) numbers of frames, sums of them, and sums of their products."""
    first, second = triangle(sums.shape[-1], sums.device)
    mean = sums / count.unsqueeze(-1)
    full: Tensor = mean.new_empty(*mean.shape, mean.shape[-1])
    full[..., first, second] = full[..., second, first] = packed / count.unsqueeze(-1)
    return full - mean.unsqueeze(-1) * mean.unsqueeze(-2)


def floored(covariances: Tensor, least: Tensor) -> Tensor:
    """Covariances whose variance in any direction is at least that of `least`."""
    factor = torch.linalg.cholesky(least)
    whitened = torch.linalg.solve_triangular(factor, covariances, upper=False)
    whitened = torch.linalg.solve_triangular(factor, whitened.mT, upper=False)
    values, vectors = torch.linalg.eigh(whitened)
    root: Tensor = factor @ (vectors * values.clamp_min(1.0).sqrt().unsqueeze(-2))
    return root @ root.mT
