"""PLDA scores against the Gaussian integral by scipy, Kaldi's order of averaging, gradients, files and checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl import kaldi
from sec4sr_pl.backbones import IVector
from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.features import MFCC
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA, normalize_length

SPEAKERS = ["b", "a", "b", "b", "c", "a"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(averaged: str, psi: Tensor | None = None) -> PLDA:
    """12-d embeddings to 5-d, in double precision."""
    psi = draw(5, seed=1).abs() * 3 if psi is None else psi
    plda = kaldi.PLDAModel(0.3 * draw(5, seed=2), draw(5, 5, seed=3), psi)
    return PLDA.of(draw(12, seed=4), draw(5, 13, seed=5), plda, averaged).double()


def enrolled(averaged: str) -> tuple[PLDA, Tensor]:
    scorer, embeddings = make(averaged), 2 * draw(6, 12, seed=6)
    scorer.enroll(embeddings, SPEAKERS)
    return scorer, embeddings


def joint(vectors: Tensor, psi: Tensor) -> float:
    """Log density of (utterances, size) of one speaker: every dimension has psi shared and 1 of each utterance."""
    total = 0.0
    for column, between in zip(vectors.numpy().T, psi.numpy(), strict=True):
        covariance = between * np.ones((len(column), len(column))) + np.eye(len(column))
        total += multivariate_normal(np.zeros(len(column)), covariance).logpdf(column)
    return total


@pytest.mark.parametrize("averaged", ["before", "after"])
def test_scores_are_ratios_of_gaussian_integrals(averaged: str) -> None:
    scorer, embeddings = enrolled(averaged)
    tests = 2 * draw(4, 12, seed=7)
    scores = scorer(tests)
    assert scorer.speakers == ("a", "b", "c") and scores.shape == (4, 3)
    for column, name in enumerate(scorer.speakers):
        own = embeddings[[index for index, speaker in enumerate(SPEAKERS) if speaker == name]]
        if averaged == "before":  # so many utterances, whose mean is known: how they lie around it is of no account
            around = draw(len(own), 5, seed=8)
            known = scorer.project(own.mean(0), len(own)) + around - around.mean(0)
        else:
            known = scorer.project(own).mean(0, keepdim=True)
        for row, test in enumerate(scorer.project(tests)):
            expected = (
                joint(torch.cat([known, test[None]]), scorer.psi)
                - joint(known, scorer.psi)
                - joint(test[None], scorer.psi)
            )
            assert scores[row, column].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("utterances", [1, 3])
def test_the_projection_is_the_chain_of_kaldis_steps(utterances: int) -> None:
    scorer, embedding = make("before"), 2 * draw(12, seed=6)
    reduced = scorer.lda.numpy() @ np.append((embedding - scorer.center).numpy(), 1.0)
    unit = reduced * np.sqrt(5) / np.linalg.norm(reduced)
    vector = scorer.transform.numpy() @ (unit - scorer.mean.numpy())
    vector *= np.sqrt(5 / np.sum(vector**2 / (scorer.psi.numpy() + 1 / utterances)))
    assert_close(scorer.project(embedding, utterances), torch.from_numpy(vector))


def test_dimensions_without_speakers_say_nothing() -> None:
    scorer = make("before", torch.zeros(5, dtype=torch.float64))
    scorer.enroll(draw(6, 12), SPEAKERS)
    assert_close(scorer(draw(4, 12, seed=1)), torch.zeros(4, 3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_one_utterance_is_the_same_in_both_orders_and_more_are_not() -> None:
    tests = draw(4, 12, seed=7)
    before, after = (enrolled(averaged)[0](tests) for averaged in ("before", "after"))
    assert_close(before[:, 2], after[:, 2])
    assert (before[:, :2] - after[:, :2]).abs().min() > 1e-3


def test_the_gradient_of_length_normalization_is_orthogonal_to_its_input() -> None:
    vectors, weights = draw(3, 5).requires_grad_(), draw(3, 5, seed=1)
    assert_close(normalize_length(vectors).norm(dim=1), torch.full((3,), 5**0.5, dtype=torch.float64))
    (slope,) = torch.autograd.grad((normalize_length(vectors) * weights).sum(), vectors)
    assert_close((slope * vectors).sum(1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert slope.norm() > 0.1
    assert torch.autograd.gradcheck(normalize_length, vectors)


@pytest.mark.parametrize("averaged", ["before", "after"])
def test_scores_pass_finite_differences(averaged: str) -> None:
    assert torch.autograd.gradcheck(enrolled(averaged)[0], (2 * draw(3, 12, seed=7)).requires_grad_())


def test_autocast_changes_no_scores() -> None:
    scorer = enrolled("after")[0].float()
    tests = draw(4, 12, seed=7).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = scorer(tests)
    assert torch.equal(mixed, scorer(tests))


def test_one_speaker_alone_has_the_column_it_had() -> None:
    scorer, tests = enrolled("before")[0].float(), draw(4, 12, seed=7).float()
    assert torch.equal(scorer.only("b")(tests), scorer(tests)[:, 1:2])


def test_models_go_through_kaldis_files(tmp_path: Path) -> None:
    scorer, embeddings = enrolled("before")
    kaldi.write_vector(tmp_path / "mean", scorer.center)
    kaldi.write_matrix(tmp_path / "lda", scorer.lda)
    kaldi.write_plda(tmp_path / "plda", kaldi.PLDAModel(scorer.mean, scorer.transform, scorer.psi))
    again = PLDA.from_kaldi(tmp_path / "mean", tmp_path / "lda", tmp_path / "plda", "before").double()
    again.enroll(embeddings, SPEAKERS)
    tests = draw(4, 12, seed=7)
    assert_close(again(tests), scorer(tests), rtol=1e-9, atol=1e-9)


def test_an_enrolled_recognizer_travels_in_a_checkpoint(speech: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recognizer = Recognizer(MFCC(), IVector(), PLDA(averaged="before")).eval()
        recognizer.scorer.psi.fill_(2.0)
    with pytest.raises(ValueError, match="Nobody is enrolled in this PLDA"):
        recognizer(*speech)
    recognizer.scorer.enroll(recognizer.embed(*speech), ["x", "y"] * 4)
    recognizer.scorer.threshold.fill_(0.25)
    save_recognizer(recognizer, tmp_path / "r.ckpt")
    again = load_recognizer(tmp_path / "r.ckpt")
    assert again.scorer.speakers == ("x", "y") and again.scorer.threshold.item() == 0.25
    assert torch.equal(again(*speech), recognizer(*speech))


def test_what_does_not_fit_is_refused() -> None:
    plda = kaldi.PLDAModel(torch.zeros(5), torch.eye(5), torch.ones(5))
    with pytest.raises(ValueError, match=r"transform of 5 x 12 with or without .* got \(5, 11\)"):
        PLDA.of(torch.zeros(12), torch.zeros(5, 11), plda)
    with pytest.raises(ValueError, match="'before' or 'after', got 'mean'"):
        PLDA(averaged="mean")  # type: ignore[arg-type]
    assert PLDA.of(torch.zeros(12), torch.zeros(5, 12), plda).embedding_size == 12
