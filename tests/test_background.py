"""Background models: likelihoods that never fall, scikit-learn from the same start, known covariances found again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.linalg import block_diag, subspace_angles
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl.backbones import IVector
from sec4sr_pl.kaldi import Extractor, FullGMM, PLDAModel
from sec4sr_pl.training.background import discriminant, extractor, fit_extractor, fit_gmm, fit_lda, fit_plda, mixture
from sec4sr_pl.types import valid_mask

Batches = list[tuple[Tensor, Tensor]]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def batches() -> Batches:
    """Three batches of utterances of different lengths: 5-d frames around 4 centers, moved as a whole by 2 factors."""
    centers, mixing = 6 * draw(4, 5, seed=1), draw(4, 5, 5, seed=2)
    directions, made = draw(4, 5, 2, seed=3), []
    for index in range(3):
        generator = torch.Generator().manual_seed(index)
        lengths = torch.randint(40, 90, (20,), generator=generator)
        part = torch.randint(4, (20, 90), generator=generator)
        moved = (directions[part] @ draw(20, 1, 2, 1, seed=10 + index)).squeeze(3)
        noise = (mixing[part] @ draw(20, 90, 5, 1, seed=20 + index)).squeeze(3)
        frames = centers[part] + moved + noise
        padding = ~valid_mask(lengths, 90)
        made.append((frames.masked_fill(padding.unsqueeze(2), 1e6), lengths))  # must not be heard
    return made


def every_frame(batches: Batches) -> NDArray[np.float64]:
    return torch.cat([frames[valid_mask(lengths, 90)] for frames, lengths in batches]).numpy()


def history(path: Path) -> list[float]:
    return list(torch.load(path, weights_only=True)["history"])


# GMM


def test_a_mixture_is_that_of_scikit_learn_from_the_same_start(batches: Batches) -> None:
    start, frames = mixture.first_gmm(batches, 4, seed=0), every_frame(batches)
    other = GaussianMixture(
        4,
        max_iter=7,
        tol=0.0,
        reg_covar=0.0,
        weights_init=start.weights.numpy(),
        means_init=start.means.numpy(),
        precisions_init=start.precisions.numpy(),
    )
    with pytest.warns(match="did not converge"):
        other.fit(frames)
    own = fit_gmm(batches, 4, iterations=7, seed=0)
    assert_close(own.weights.numpy(), other.weights_, rtol=1e-6, atol=0)
    assert_close(own.means.numpy(), other.means_, rtol=1e-6, atol=1e-6)
    assert_close(own.precisions.numpy(), other.precisions_, rtol=1e-5, atol=1e-6)
    likelihood = mixture.improve(own, batches, 1e-3)[1]
    assert likelihood == pytest.approx(other.score(frames), rel=1e-9)


def test_the_likelihood_of_a_mixture_never_falls(batches: Batches, tmp_path: Path) -> None:
    for seed in range(3):
        fit_gmm(batches, 8, iterations=15, seed=seed, path=tmp_path / f"{seed}")
        likelihoods = history(tmp_path / f"{seed}")
        assert (np.diff(likelihoods) > -1e-9).all()
        assert likelihoods[-1] > likelihoods[0] + 0.5


def test_the_first_means_are_distinct_frames(batches: Batches) -> None:
    frames = {tuple(frame) for frame in every_frame(batches).tolist()}
    start = mixture.first_gmm(batches, 50, seed=0)
    means = {tuple(mean) for mean in start.means.tolist()}
    assert len(means) == 50 and means <= frames
    assert not torch.equal(start.means, mixture.first_gmm(batches, 50, seed=1).means)
    covariance = np.linalg.inv(start.precisions[7].numpy())
    assert_close(covariance, np.cov(every_frame(batches).T, bias=True))


def test_no_variance_falls_below_the_floor() -> None:
    frames = draw(1, 400, 3)
    frames[0, :200] = frames[0, 0] + 1e-6 * frames[0, :200]  # silence, as good as digital
    fitted = fit_gmm([(frames, torch.tensor([400]))], 2, iterations=10, floor=0.01)
    assert fitted.precisions.isfinite().all()
    whole = np.cov(frames[0].numpy().T, bias=True)
    for precision in fitted.precisions.numpy():
        assert np.linalg.eigvals(np.linalg.inv(precision) @ np.linalg.inv(whole)).real.min() > 0.01 * (1 - 1e-6)


def test_a_component_without_frames_keeps_its_place(batches: Batches) -> None:
    start = mixture.first_gmm(batches, 3, seed=0)
    start.means[1] = 1e4
    new, _ = mixture.improve(start, batches, 1e-3)
    assert new.means[1].tolist() == [1e4] * 5 and torch.equal(new.precisions[1], start.precisions[1])
    assert new.weights[1] < 1e-9 and all(part.isfinite().all() for part in new)
    fit = IVector.of(new, extractor.first_extractor(new, 2, seed=0))
    assert fit(batches[0][0], batches[0][1]).isfinite().all()


# extractor


def likelihood_of(gmm: FullGMM, model: Extractor, frames: Tensor) -> float:
    """Log density of an utterance's statistics with the latent vector integrated out, by one Gaussian over all of them.

    Frames of component c, N_c of them, have the mean loadings[c] @ w: their sum over sqrt(N_c) has the mean
    sqrt(N_c) loadings[c] @ w and the residual covariance. What does not depend on the loadings is left out.
    """
    counts, sums = IVector.of(gmm, model).statistics(frames[None], torch.tensor([len(frames)]))
    roots = counts[0].sqrt()[:, None, None]
    stacked = (roots * model.loadings).flatten(0, 1).numpy()
    noise = block_diag(*(np.linalg.inv(precision.numpy()) for precision in model.precisions))
    scaled = (sums[0] / roots[:, 0]).flatten().numpy()
    density = multivariate_normal(stacked[:, 0] * model.offset.item(), noise + stacked @ stacked.T).logpdf(scaled)
    return float(density - multivariate_normal(np.zeros(len(noise)), noise).logpdf(scaled))


def test_the_likelihood_of_the_extractor_is_the_integral_and_never_falls(batches: Batches, tmp_path: Path) -> None:
    gmm = fit_gmm(batches, 4, iterations=10)
    start = extractor.first_extractor(gmm, 3, seed=0)
    first = extractor.improve(gmm, start, batches)[1]
    utterances = [row[:length] for frames, lengths in batches for row, length in zip(frames, lengths, strict=True)]
    assert first == pytest.approx(np.mean([likelihood_of(gmm, start, frames) for frames in utterances]), rel=1e-8)
    fit_extractor(gmm, batches, 3, iterations=12, path=tmp_path / "ie")
    likelihoods = history(tmp_path / "ie")
    assert likelihoods[0] == pytest.approx(first)
    steps = np.diff(likelihoods)
    assert (steps > -1e-8).all() and likelihoods[-1] > likelihoods[0] + 1


def test_an_iteration_of_the_extractor_is_that_of_the_plain_formulas(batches: Batches) -> None:
    gmm = fit_gmm(batches, 4, iterations=5)
    start = extractor.first_extractor(gmm, 3, seed=0)
    model, prior = IVector.of(gmm, start), np.array([start.offset.item(), 0.0, 0.0])
    weighted, crossed = np.zeros((4, 3, 3)), np.zeros((4, 5, 3))
    means, squares = [], []
    for frames, lengths in batches:
        for row, length in zip(frames, lengths, strict=True):
            counts, sums = (part[0].numpy() for part in model.statistics(row[None, :length], length[None]))
            precision, linear = np.eye(3), prior.copy()
            for count, total, loading, residual in zip(counts, sums, start.loadings, start.precisions, strict=True):
                precision += count * (loading.T @ residual @ loading).numpy()
                linear += (loading.T @ residual).numpy() @ total
            mean = np.linalg.solve(precision, linear)
            second = np.linalg.inv(precision) + np.outer(mean, mean)
            weighted += counts[:, None, None] * second
            crossed += sums[:, :, None] * mean
            means.append(mean)
            squares.append(second)
    loadings, mean = crossed @ np.linalg.inv(weighted), np.mean(means, 0)
    covariance = np.mean(squares, 0) - np.outer(mean, mean)
    new = extractor.improve(gmm, start, batches)[0]
    assert_close(new.loadings[:, :, 0].numpy() * new.offset.item(), loadings @ mean, rtol=1e-6, atol=1e-8)
    expected = loadings @ covariance @ loadings.transpose(0, 2, 1)
    assert_close((new.loadings @ new.loadings.mT).numpy(), expected, rtol=1e-5, atol=1e-7)


def test_the_extractor_finds_the_directions_in_which_utterances_move(batches: Batches) -> None:
    gmm = fit_gmm(batches, 4, iterations=20)
    found = fit_extractor(gmm, batches, 3, iterations=20)
    order = torch.cdist(6 * draw(4, 5, seed=1), gmm.means).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    moved = draw(4, 5, 2, seed=3).flatten(0, 1).numpy()
    angles = subspace_angles(moved, found.loadings[order].flatten(0, 1).numpy())
    assert np.degrees(angles.max()) < 10
    vectors = torch.cat([IVector.of(gmm, found)(*batch) for batch in batches])
    assert_close(vectors.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=0.02)


def test_a_basis_is_turned_without_changing_what_the_model_says() -> None:
    loadings, mean, root = draw(4, 5, 3), 5 * draw(3, seed=1), draw(3, 8, seed=2)
    covariance = root @ root.T
    turned, offset = extractor.standardize(loadings, mean, covariance + mean.outer(mean))
    first = torch.tensor([float(offset), 0.0, 0.0], dtype=torch.float64)
    assert_close(turned @ first, loadings @ mean)
    assert_close(turned @ turned.mT, loadings @ covariance @ loadings.mT)


# LDA and PLDA


def speakers(between: Tensor, within: Tensor, count: int, utterances: int, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Embeddings of speakers with from 2 to `utterances` each."""
    size = len(between)
    each = torch.randint(2, utterances + 1, (count,), generator=torch.Generator().manual_seed(seed))
    names = [f"s{index:05}" for index in range(count) for _ in range(int(each[index]))]
    centers = draw(count, size, seed=seed + 1) @ torch.linalg.cholesky(between).T
    around = draw(len(names), size, seed=seed + 2) @ torch.linalg.cholesky(within).T
    return 3.0 + centers.repeat_interleave(each, 0) + around, names


@pytest.fixture
def covariances() -> tuple[Tensor, Tensor]:
    roots = draw(2, 4, 10, seed=9)
    between, within = roots @ roots.mT / 10
    return 2 * between, within


def test_lda_spans_what_scikit_learn_finds(covariances: tuple[Tensor, Tensor]) -> None:
    embeddings, names = speakers(*covariances, 40, 6)
    transform = fit_lda(embeddings, names, 2).numpy()
    other = LinearDiscriminantAnalysis(solver="eigen").fit(embeddings.numpy(), names)
    ratio = transform[:, :-1] / other.scalings_.T[:2]
    assert_close(ratio, np.repeat(ratio[:, :1], 4, axis=1), rtol=1e-6, atol=0)
    reduced = embeddings.numpy() @ transform[:, :-1].T + transform[:, -1]
    assert_close(reduced.mean(0), np.zeros(2), rtol=0, atol=1e-9)
    scatter = discriminant.Scatter.of(torch.from_numpy(reduced), names)
    assert_close(scatter.within / len(names), np.eye(2), rtol=0, atol=1e-9)


def models(plda: PLDAModel) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Covariances between and within speakers."""
    back = np.linalg.inv(plda.transform.numpy())
    return back * plda.psi.numpy() @ back.T, back @ back.T


def test_plda_finds_known_covariances_again(covariances: tuple[Tensor, Tensor]) -> None:
    embeddings, names = speakers(*covariances, 20_000, 5)
    plda = fit_plda(embeddings, names, iterations=30)
    for own, expected in zip(models(plda), covariances, strict=True):
        assert np.linalg.norm(own - expected.numpy()) < 0.03 * np.linalg.norm(expected.numpy())
    assert_close(plda.mean, torch.full((4,), 3.0, dtype=torch.float64), rtol=0, atol=0.05)
    assert plda.psi.diff().max() <= 0


def test_every_speaker_counts_once_for_the_mean_of_plda(covariances: tuple[Tensor, Tensor]) -> None:
    embeddings, names = speakers(*covariances, 12, 4)
    rows = [[index for index, other in enumerate(names) if other == name] for name in sorted(set(names))]
    assert len({len(own) for own in rows}) > 1
    expected = torch.stack([embeddings[own].mean(0) for own in rows]).mean(0)
    assert_close(fit_plda(embeddings, names).mean, expected)


def test_the_likelihood_of_plda_never_falls(covariances: tuple[Tensor, Tensor]) -> None:
    embeddings, names = speakers(*covariances, 12, 4)

    def likelihood(plda: PLDAModel) -> float:
        between, within = models(plda)
        total = 0.0
        for name in sorted(set(names)):
            own = embeddings[[index for index, other in enumerate(names) if other == name]].numpy() - plda.mean.numpy()
            covariance = np.kron(np.ones((len(own), len(own))), between) + np.kron(np.eye(len(own)), within)
            total += multivariate_normal(np.zeros(own.size), covariance).logpdf(own.flatten())
        return total

    likelihoods = [likelihood(fit_plda(embeddings, names, iterations)) for iterations in range(8)]
    assert (np.diff(likelihoods) > -1e-9).all() and likelihoods[-1] > likelihoods[0] + 0.1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], "got 3 embeddings and 2 names of 2 speakers"),
        (["a", "a", "a"], "two or more speakers.* of 1 speakers"),
        (["a", "b", "c"], "of some more than one"),
    ],
)
def test_embeddings_that_tell_nothing_are_refused(names: list[str], message: str) -> None:
    fits: list[Callable[[], object]] = [lambda: fit_plda(draw(3, 2), names), lambda: fit_lda(draw(3, 2), names, 1)]
    for fit in fits:
        with pytest.raises(ValueError, match=message):
            fit()


def test_sizes_that_can_not_be_are_refused(batches: Batches, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from 1 to 1 dimensions after LDA, got 2"):
        fit_lda(draw(4, 3), ["a", "a", "b", "b"], 2)
    with pytest.raises(ValueError, match=r"as many frames as components \(9999\)"):
        fit_gmm(batches, 9999)
    with pytest.raises(ValueError, match="at least 1 iteration, got 0"):
        fit_gmm(batches, 2, iterations=0)
    fit_gmm(batches, 2, iterations=1, path=tmp_path / "gmm")
    with pytest.raises(ValueError, match="gmm holds a model of other sizes"):
        fit_gmm(batches, 3, iterations=1, path=tmp_path / "gmm")


# stop and go


@pytest.mark.parametrize("kind", ["gmm", "extractor"])
def test_a_stopped_run_goes_on_where_it_was(kind: str, batches: Batches, tmp_path: Path) -> None:
    gmm = fit_gmm(batches, 3, iterations=2)

    def fit(iterations: int, name: str, given: Batches) -> FullGMM | Extractor:
        if kind == "gmm":
            return fit_gmm(given, 3, iterations, path=tmp_path / name)
        return fit_extractor(gmm, given, 2, iterations, path=tmp_path / name)

    whole = fit(5, "whole", batches)
    fit(3, "stopped", batches)
    again = fit(5, "stopped", batches)
    assert history(tmp_path / "stopped") == history(tmp_path / "whole")
    for own, expected in zip(again, whole, strict=True):
        assert torch.equal(own, expected)
    done = fit(5, "stopped", [batches[0]])  # all steps are done: the frames make no difference
    assert all(torch.equal(*pair) for pair in zip(done, whole, strict=True))
