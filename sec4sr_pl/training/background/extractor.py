"""The i-vector extractor, by expectation maximization."""

from pathlib import Path

import torch
from torch import Tensor

from sec4sr_pl.backbones.ivector import COMPONENTS, IVector
from sec4sr_pl.kaldi import Extractor, FullGMM, triangle
from sec4sr_pl.training.background.iteration import Frames, fingerprint, iterate

OFFSET = 100.0
"""Prior mean of the first dimension at the start, Kaldi's."""


def fit_extractor(
    gmm: FullGMM,
    batches: Frames,
    size: int,
    iterations: int = 10,
    seed: int = 0,
    path: Path | None = None,
    identity: str = "",
) -> Extractor:
    """Loadings that make the frames of the utterances most likely; residual covariances are those of the GMM.

    Args:
        gmm: aligns the frames.
        batches: frames of utterances, on the GMM's device and in the precision to compute in.
        size: dimensions of an i-vector.
        iterations: of expectation maximization.
        seed: of the first loadings.
        path: keeps each iteration, to go on from.
        identity: tells these frames from any other, e.g. that of a `Corpus`.

    Raises:
        ValueError: no dimension, or as `iterate`.

    Source: Kenny et al., "Eigenvoice modeling with sparse training data", 2005, with the prior estimated as well
    (minimum divergence), in Kaldi's form.
    """
    if size < 1:
        raise ValueError(f"Expected i-vectors of at least 1 dimension, got {size}")
    return iterate(
        batches,
        lambda _: first_extractor(gmm, size, seed),
        lambda extractor, shown: improve(gmm, extractor, shown),
        iterations,
        "i-vector extractor",
        path,
        frames=identity,
        seed=seed,
        GMM=fingerprint(gmm),
    )


def first_extractor(gmm: FullGMM, size: int, seed: int) -> Extractor:
    """The means along the first dimension, and small random directions."""
    components, inputs = gmm.means.shape
    random = torch.randn(components, inputs, size, generator=torch.Generator().manual_seed(seed))
    loadings = torch.linalg.cholesky(torch.linalg.inv(gmm.precisions)) @ (0.1 * random.to(gmm.means))
    loadings[:, :, 0] = gmm.means / OFFSET
    return Extractor(gmm.weights, loadings, gmm.precisions, gmm.means.new_tensor(OFFSET))


@torch.no_grad()
def improve(gmm: FullGMM, extractor: Extractor, batches: Frames) -> tuple[Extractor, float]:
    """One iteration: the next extractor, and the log-likelihood of an utterance under this one, up to a constant."""
    model = IVector.of(gmm, extractor)
    components, inputs, size = extractor.loadings.shape
    first, second = triangle(size, gmm.means.device)
    like = gmm.means.double()
    utterances, likelihood, counts = 0, like.new_zeros(()), like.new_zeros(components)
    total, squares = like.new_zeros(size), like.new_zeros(len(first))
    weighted = like.new_zeros(components, len(first))
    crossed = like.new_zeros(components * inputs, size)
    for frames, lengths in batches:
        occupied, sums = model.statistics(frames, lengths)
        mean, factor = model.posterior(occupied, sums)
        around = torch.cholesky_inverse(factor) + mean.unsqueeze(2) * mean.unsqueeze(1)
        packed = around[:, first, second]
        fit = 0.5 * (factor.mT @ mean.unsqueeze(2)).square().sum()
        likelihood += fit - factor.diagonal(dim1=1, dim2=2).log().sum() - 0.5 * len(mean) * model.offset.square()
        utterances += len(mean)
        counts += occupied.sum(0)
        total += mean.sum(0)
        squares += packed.sum(0)
        weighted += occupied.T @ packed
        crossed += sums.flatten(1).T @ mean
    loadings = extractor.loadings.to(torch.float64, copy=True)
    crossed = crossed.reshape(components, inputs, size)
    for part in torch.split((counts >= inputs).nonzero().squeeze(1), COMPONENTS):  # the others keep their loadings
        normal = like.new_empty(len(part), size, size)
        normal[:, first, second] = normal[:, second, first] = weighted[part]
        loadings[part] = torch.linalg.solve(normal, crossed[part].mT).mT
    prior = like.new_empty(size, size)
    prior[first, second] = prior[second, first] = squares / utterances
    loadings, offset = standardize(loadings, total / utterances, prior)
    new = Extractor(extractor.weights, loadings, extractor.precisions, offset)
    return Extractor(*(part.to(gmm.means) for part in new)), float(likelihood / utterances)


def standardize(loadings: Tensor, mean: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The same model in a basis in which latent vectors have the covariance I and their mean lies along the first axis.

    Args:
        loadings: (components, inputs, embedding_size).
        mean: (embedding_size,) of the latent vectors.
        second: (embedding_size, embedding_size) mean of their squares.

    Returns:
        Loadings and the prior mean of the first dimension.
    """
    factor = torch.linalg.cholesky(second - mean.outer(mean))
    white = torch.linalg.solve_triangular(factor, mean.unsqueeze(1), upper=False).squeeze(1)
    offset = white.norm()
    normal = white / offset
    normal[0] -= 1.0  # the reflection that takes the mean to the first axis
    length = normal.square().sum().clamp_min(torch.finfo(normal.dtype).tiny)
    turned = factor - 2.0 / length * (factor @ normal).outer(normal)
    return loadings @ turned, offset
