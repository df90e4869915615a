"""i-vectors against a plain double-precision reference, finite differences, and Kaldi files."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl import kaldi
from sec4sr_pl.backbones import IVector, ivector
from sec4sr_pl.features import MFCC

Speech = tuple[Tensor, Tensor]


def plain_ivector(model: IVector, frames: Tensor) -> NDArray[np.float64]:
    """The formulas, component by component and frame by frame, for one utterance of (frames, inputs)."""
    gmm, extractor = model.models()
    x = frames.double().numpy()
    weights, means, precisions = (part.double().numpy() for part in gmm)
    _, loadings, residuals, offset = (part.double().numpy() for part in extractor)
    log = np.stack(
        [
            np.log(weight) + multivariate_normal(mean, np.linalg.inv(precision)).logpdf(x)
            for weight, mean, precision in zip(weights, means, precisions, strict=True)
        ],
        axis=1,
    ).reshape(len(x), -1)
    posteriors = np.exp(log - logsumexp(log, axis=1, keepdims=True))
    precision, linear = np.eye(loadings.shape[2]), np.zeros(loadings.shape[2])
    linear[0] = offset
    for posterior, loading, residual in zip(posteriors.T, loadings, residuals, strict=True):
        precision += posterior.sum() * loading.T @ residual @ loading
        linear += loading.T @ residual @ (posterior @ x)
    vector = np.linalg.solve(precision, linear)
    vector[0] -= offset
    return vector


def spread(count: int, covariance: Tensor, seed: int) -> Tensor:
    """(count, size, size) covariances near one of them, no two alike."""
    generator, size = torch.Generator().manual_seed(seed), len(covariance)
    factor = torch.linalg.cholesky(covariance)
    noise = torch.eye(size) + 0.5 / size**0.5 * torch.randn(count, size, size, generator=generator)
    return factor @ (0.5 * noise @ noise.mT) @ factor.T


@pytest.fixture
def frames(speech: Speech) -> Speech:
    """Real frames of 72 dimensions."""
    frames, lengths = MFCC()(*speech)
    return frames, lengths


@pytest.fixture
def model(frames: Speech) -> IVector:
    """32 components around frames of speech, with an offset as large as Kaldi's."""
    generator = torch.Generator().manual_seed(0)
    every = torch.cat([row[:length] for row, length in zip(*frames, strict=True)])
    covariance = torch.cov(every.T)
    means = every[torch.randperm(len(every), generator=generator)[:32]]
    weights = torch.rand(32, generator=generator)
    offset = torch.tensor(100.0)
    loadings = torch.linalg.cholesky(covariance) @ (0.2 * torch.randn(32, 72, 20, generator=generator))
    loadings[:, :, 0] = means / offset
    precisions, residuals = (torch.linalg.inv(spread(32, covariance, seed)) for seed in (1, 2))
    gmm = kaldi.FullGMM(weights / weights.sum(), means, precisions)
    return IVector.of(gmm, kaldi.Extractor(gmm.weights, loadings, residuals, offset))


def test_ivectors_are_those_of_the_plain_formulas(model: IVector, frames: Speech, device: torch.device) -> None:
    vectors = model.to(device)(*(tensor.to(device) for tensor in frames)).cpu().double()
    model.cpu()
    for vector, row, length in zip(vectors, *frames, strict=True):
        expected = torch.from_numpy(plain_ivector(model, row[:length]))
        assert (vector - expected).norm() < 1e-4 * expected.norm()
    assert vectors.std(0).min() > 1e-2


def test_a_random_model_is_one_too(frames: Speech) -> None:
    model = IVector()
    expected = torch.from_numpy(plain_ivector(model, frames[0][0]))
    assert_close(model(frames[0][:1])[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_log_densities_carry_the_weights(model: IVector, frames: Speech) -> None:
    own = model.densities.log(frames[0][0, :5])
    for component in (0, 31):
        density = multivariate_normal(
            model.means[component].double().numpy(), np.linalg.inv(model.precisions[component].double().numpy())
        )
        expected = np.log(model.weights[component].item()) + density.logpdf(frames[0][0, :5].double().numpy())
        assert_close(own[component].double(), torch.from_numpy(expected), rtol=3e-5, atol=1e-3)


def test_the_gradient_passes_finite_differences() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = IVector(inputs=4, components=3, embedding_size=3).double()
        model.means /= 10
        model.precisions *= 100
        model.offset += 2.0
        model.prepare()
        frames = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (frames, torch.tensor([5, 3])))


def test_the_gradient_of_the_waveform_passes_finite_differences(model: IVector, speech: Speech) -> None:
    front_end, model = MFCC().double(), model.double()
    waveforms, lengths = speech[0][-2:, : int(speech[1][-2])].double(), speech[1][-2:]
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    direction = torch.randn(waveforms.shape, generator=generator, dtype=torch.float64)

    def value(signal: Tensor) -> Tensor:
        return (model(*front_end(signal, lengths)) * weights).sum()

    leaf = waveforms.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(leaf), leaf)
    step = 1e-9 * direction
    measured = (value(waveforms + step) - value(waveforms - step)) / 2e-9
    assert_close((slope * direction).sum(), measured, rtol=1e-5, atol=0)


def test_pieces_make_the_whole(model: IVector, frames: Speech, monkeypatch: pytest.MonkeyPatch) -> None:
    model, leaf, results = model.double(), frames[0].double().requires_grad_(), []
    for size in (4096, 100, 1):
        monkeypatch.setattr(ivector, "FRAMES", size)
        vectors = model(leaf, frames[1])
        results.append((vectors.detach(), torch.autograd.grad(vectors.sum(), leaf)[0]))
    for vectors, slope in results[1:]:
        assert (vectors - results[0][0]).norm() < 1e-10 * vectors.norm()
        assert (slope - results[0][1]).norm() < 1e-10 * slope.norm()


def test_a_state_dict_holds_the_models_alone_and_brings_what_follows(model: IVector, frames: Speech) -> None:
    state = model.state_dict()
    assert set(state) == {"weights", "means", "precisions", "loadings", "residual_precisions", "offset"}
    other = torch.nn.Sequential(IVector(72, 32, 20))
    other.load_state_dict({f"0.{name}": tensor for name, tensor in state.items()})
    assert torch.equal(other[0](*frames), model(*frames))
    assert torch.equal(copy.deepcopy(model)(*frames), model(*frames))


def test_models_go_through_kaldis_files(model: IVector, frames: Speech, tmp_path: Path) -> None:
    gmm, extractor = model.models()
    kaldi.write_gmm(tmp_path / "ubm", gmm)
    kaldi.write_extractor(tmp_path / "ie", extractor)
    again = IVector.from_kaldi(tmp_path / "ubm", tmp_path / "ie")
    assert_close(again(*frames), model(*frames), rtol=1e-4, atol=1e-4)


def test_models_that_do_not_fit_are_refused() -> None:
    gmm, extractor = IVector(components=8).models()
    with pytest.raises(ValueError, match=r"UBM of 9 components over 72 dimensions.* got 8 over 72"):
        IVector.of(gmm, IVector(components=9).models()[1])
    with pytest.raises(ValueError, match="sizes of at least 1, got 72, 0 and 32"):
        IVector(components=0)
    assert IVector.of(gmm, extractor).embedding_size == 32
