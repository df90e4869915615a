"""LDA and PLDA of embeddings with known speakers."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from torch import Tensor

from sec4sr_pl.kaldi import PLDAModel

Matrix = NDArray[np.float64]


class Scatter(NamedTuple):
    """What LDA and PLDA need to know of embeddings."""

    counts: Matrix
    """(speakers,) embeddings of each."""
    means: Matrix
    """(speakers, size)."""
    within: Matrix
    """(size, size) sum of squares around the speakers' means."""

    @classmethod
    def of(cls, embeddings: Tensor, speakers: Sequence[str]) -> "Scatter":
        """That of (utterances, size) embeddings with a speaker for each.

        Raises:
            ValueError: fewer than two speakers, no more embeddings than speakers, not a speaker for each, or an
                embedding that is not finite.
        """
        vectors = embeddings.detach().cpu().double().numpy()
        names, index, counts = np.unique(np.asarray(speakers), return_inverse=True, return_counts=True)
        if len(index) != len(vectors) or not 2 <= len(names) < len(vectors):
            raise ValueError(
                "Expected embeddings of two or more speakers, of some more than one, with a speaker for each, "
                f"got {len(vectors)} embeddings and {len(index)} names of {len(names)} speakers"
            )
        if len(broken := names[np.unique(index[~np.isfinite(vectors).all(1)])]):
            raise ValueError(f"Expected finite embeddings, got others of the speakers {', '.join(broken[:5])}")
        means = np.zeros((len(names), vectors.shape[1]))
        np.add.at(means, index, vectors)
        means /= counts[:, None]
        around = vectors - means[index]
        return cls(counts.astype(np.float64), means, around.T @ around)

    def covariance(self, shrinkage: float = 0.0) -> Matrix:
        """(size, size) within speakers, mixed with so large a share of their mean variance in every direction.

        Raises:
            ValueError: a share outside [0, 1], or no variance in some direction.
        """
        size, speakers, total = len(self.within), len(self.counts), int(self.counts.sum())
        if not 0.0 <= shrinkage <= 1.0:
            raise ValueError(f"Expected shrinkage in [0, 1], got {shrinkage}")
        if not shrinkage and total < speakers + size:
            raise ValueError(
                f"Expected at least {speakers + size} embeddings, as many as speakers and dimensions together, for a "
                f"variance within speakers in every direction, got {total} of {speakers} speakers in {size} dimensions"
            )
        covariance: Matrix = self.within / total
        spread = np.trace(covariance) / size * np.eye(size)
        mixed: Matrix = (1.0 - shrinkage) * covariance + shrinkage * spread
        rounding = np.finfo(np.float64).eps * (np.trace(covariance) + self.means.var(0).sum())
        if (rank := np.linalg.matrix_rank(mixed, rounding, hermitian=True)) < size:
            raise ValueError(
                f"Expected embeddings that vary within speakers in each of {size} dimensions, got {rank}: "
                "are there utterances that stand twice?"
            )
        return mixed


def fit_lda(embeddings: Tensor, speakers: Sequence[str], size: int, shrinkage: float = 0.0) -> Tensor:
    """(size, embedding_size + 1) transform, the last column an offset: the directions that tell speakers best apart.

    Transformed embeddings have the mean 0 and, without shrinkage, the covariance I within speakers.

    Args:
        embeddings: (utterances, embedding_size).
        speakers: the name of each utterance's speaker.
        size: dimensions, at most embedding_size and the number of speakers less one.
        shrinkage: of the covariance within speakers, from 0 to 1, towards the same variance in every direction: for few
            embeddings of many dimensions, or of a network that was trained on the same speakers, which vary too little.

    Raises:
        ValueError: as `Scatter.of` and `Scatter.covariance`; also a size that is too large.

    Source: for shrinkage, Friedman, "Regularized discriminant analysis", 1989.
    """
    scatter = Scatter.of(embeddings, speakers)
    most = min(embeddings.shape[1], len(scatter.counts) - 1)
    if not 1 <= size <= most:
        raise ValueError(f"Expected from 1 to {most} dimensions after LDA, got {size}")
    total = scatter.counts.sum()
    mean = scatter.counts @ scatter.means / total
    around = scatter.means - mean
    between = around.T @ (scatter.counts[:, None] * around) / total
    directions = diagonal(between, scatter.covariance(shrinkage))[1][:size]
    return torch.from_numpy(np.column_stack([directions, -directions @ mean]))


def fit_plda(embeddings: Tensor, speakers: Sequence[str], iterations: int = 10) -> PLDAModel:
    """The covariances between and within speakers of the highest likelihood for one mean, by expectation maximization.

    The mean is that of the speakers' means, each counting once, as in Kaldi: it is that of the highest likelihood where
    all have the same number of utterances. Each iteration is done in the basis in which both covariances are diagonal,
    where a speaker's posterior is a division.

    Args:
        embeddings: (utterances, size).
        speakers: the name of each utterance's speaker.
        iterations: of expectation maximization; 0: the covariances that it starts at.

    Raises:
        ValueError: as `Scatter.of` and `Scatter.covariance`; also fewer than 0 iterations.

    Source: the two-covariance model of Brummer and de Villiers, "The speaker partitioning problem", 2010.
    """
    if iterations < 0:
        raise ValueError(f"Expected at least 0 iterations of PLDA, got {iterations}")
    scatter = Scatter.of(embeddings, speakers)
    mean = scatter.means.mean(0)
    around = scatter.means - mean
    between, within = around.T @ around / len(around), scatter.covariance()
    for _ in range(iterations):
        between, within = improve(scatter, around, between, within)
    psi, transform = diagonal(between, within)
    return PLDAModel(*(torch.from_numpy(part) for part in (mean, transform, psi)))


def diagonal(between: Matrix, within: Matrix) -> tuple[Matrix, Matrix]:
    """Variances between speakers, largest first, and the transform to the basis in which those within are 1."""
    psi, columns = eigh(between, within)
    return np.maximum(psi[::-1], 0.0).copy(), columns.T[::-1].copy()


def improve(scatter: Scatter, around: Matrix, between: Matrix, within: Matrix) -> tuple[Matrix, Matrix]:
    """The next covariances between and within speakers.

    Args:
        scatter: of the embeddings.
        around: (speakers, size) means of the speakers around the mean of all.
        between: (size, size).
        within: (size, size).
    """
    psi, transform = diagonal(between, within)
    back = within @ transform.T  # the inverse of the transform
    counts, seen = scatter.counts[:, None], around @ transform.T
    variances = psi / (1.0 + counts * psi)
    means = counts * variances * seen
    left = seen - means
    new_between = means.T @ means + np.diag(variances.sum(0))
    new_within = left.T @ (counts * left) + np.diag((counts * variances).sum(0))
    return (
        back @ new_between @ back.T / len(counts),
        (scatter.within + back @ new_within @ back.T) / counts.sum(),
    )
