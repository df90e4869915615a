"""Scores against many models: PLDA's products, the memory they need, and trials scored against their claims alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_normalization import KINDS, SIZE, Lopsided, draw
from test_spk10 import recognizer as recognizer  # fixture
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from sec4sr_pl import kaldi
from sec4sr_pl.data import VoxCeleb
from sec4sr_pl.enrollment import embed, enroll_first, trial_scores
from sec4sr_pl.normalization import Kind, Normalized
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA, Cosine, EnrolledScorer
from sec4sr_pl.types import REJECT


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that was made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def plda(largest_psi: float = 3.0, speakers: int = 40) -> tuple[PLDA, Tensor]:
    """A scorer of 150 dimensions with one to five utterances a speaker, and tests of some of the speakers."""
    generator = torch.Generator().manual_seed(0)
    psi = torch.logspace(-2, 0, 150, dtype=torch.float64) * largest_psi
    rotation = torch.linalg.qr(torch.randn(150, 150, generator=generator, dtype=torch.float64))[0]
    model = kaldi.PLDAModel(torch.zeros(150), rotation * (1.0 + psi).sqrt()[:, None], psi)
    scorer = PLDA.of(torch.zeros(200), torch.randn(150, 200, generator=generator) / 14, model, "before")
    owners = [speaker for speaker in range(speakers) for _ in range(1 + speaker % 5)]
    embeddings = torch.randn(speakers, 200, generator=generator)[owners]
    embeddings = embeddings + 0.3 * torch.randn(embeddings.shape, generator=generator)
    scorer.enroll(embeddings, [f"{owner:04}" for owner in owners])
    return scorer, embeddings[::3] + 0.3 * torch.randn(embeddings[::3].shape, generator=generator)


def densities(vectors: Tensor, scorer: PLDA) -> Tensor:
    """(batch, speakers) log-likelihood ratios, as differences of the logarithms of Gaussian densities."""
    vectors, (mean, variance) = vectors.double().unsqueeze(1), scorer.models.double().unbind(1)
    same = torch.distributions.Normal(mean, variance.sqrt()).log_prob(vectors)
    other = torch.distributions.Normal(0.0, (1.0 + scorer.psi.double()).sqrt()).log_prob(vectors)
    return (same - other).sum(2)


# The products


@pytest.mark.parametrize("largest_psi", [3.0, 30.0, 300.0])
def test_the_products_are_ratios_of_densities_in_single_precision(largest_psi: float) -> None:
    scorer, tests = plda(largest_psi)
    expected = densities(scorer.project(tests), scorer)
    scores = scorer(tests)
    assert scores.dtype == torch.float32 and expected.max() > 20 and expected.min() < -50
    assert len({float(row[1, -1]) for row in scorer.models}) == 5  # as many variances as numbers of utterances
    assert_close(scores.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_products_have_the_gradient_of_the_densities() -> None:
    scorer, tests = plda()
    weights = draw(len(tests), len(scorer.speakers))
    slopes = []
    for score in (scorer, lambda given: densities(scorer.project(given), scorer)):
        leaf = tests.clone().requires_grad_()
        slopes.append(torch.autograd.grad((score(leaf) * weights).sum(), leaf)[0])
    assert_close(*slopes, rtol=1e-5, atol=1e-5 * float(slopes[1].abs().max()))


# Memory


def test_scores_of_plda_need_no_tensor_of_all_dimensions() -> None:
    scorer, tests = plda(speakers=400)
    with Largest() as largest:
        scorer(tests)
    assert largest.elements == max(len(tests) * 400, 400 * 2 * 150)  # the scores, or the models in double precision


def test_normalization_of_many_speakers_is_prepared_by_parts() -> None:
    scorer, cohort = plda(speakers=600)[0], plda(speakers=700)[1]
    normalized = Normalized(scorer, "s", 5)
    with Largest() as largest:
        normalized.take_cohort(cohort)
    assert len(cohort) == 700 and largest.elements < 700 * 600
    highest = scorer(normalized.cohort).T.sort(1, descending=True).values[:, :5]
    assert_close(normalized.speaker_mean, highest.mean(1))
    assert_close(normalized.speaker_scale, 1 / highest.std(1, correction=0), rtol=1e-4, atol=0)


# Claims


def many(name: str) -> EnrolledScorer:
    generator = torch.Generator().manual_seed(1)
    scorer = {"cosine": Cosine, "plda": lambda: PLDA((), SIZE, SIZE, "before"), "lopsided": Lopsided}[name]()
    if isinstance(scorer, PLDA):
        scorer.psi.copy_(torch.linspace(0.5, 4.0, SIZE))
    scorer.enroll(torch.randn(12, SIZE, generator=generator), ["a", "a", "a", "b", "b", *"cdefghi"])
    return scorer


CLAIMS = torch.tensor([3, 0, 0, 8, 1, 3, 5])


@pytest.mark.parametrize("name", ["cosine", "plda", "lopsided"])
def test_a_claim_is_scored_as_among_all(name: str) -> None:
    scorer, tests = many(name), draw(len(CLAIMS), SIZE)
    assert_close(scorer.claimed(tests, CLAIMS), scorer(tests).gather(1, CLAIMS[:, None]).squeeze(1))


@pytest.mark.parametrize(("kind", "top"), KINDS)
@pytest.mark.parametrize("name", ["cosine", "plda", "lopsided"])
def test_a_claim_is_normalized_by_its_test_and_its_model(name: str, kind: Kind, top: int | None) -> None:
    normalized, tests = Normalized(many(name), kind, top), draw(len(CLAIMS), SIZE)
    normalized.take_cohort(draw(30, SIZE))
    assert_close(normalized.claimed(tests, CLAIMS), normalized(tests).gather(1, CLAIMS[:, None]).squeeze(1))


def seen_by(scorer: type[EnrolledScorer]) -> tuple[type[EnrolledScorer], list[int]]:
    """A scorer that notes against how many models it was asked to score at a time."""
    counts: list[int] = []

    class Seen(scorer):  # type: ignore[misc, valid-type]
        def compare(self, embeddings: Tensor) -> Tensor:
            counts.append(len(self.models))
            return super().compare(embeddings)  # type: ignore[no-any-return]

    return Seen, counts


WRAPPED: dict[str, Callable[[EnrolledScorer], EnrolledScorer]] = {
    "plain": lambda scorer: scorer,
    "normalized": lambda scorer: Normalized(scorer, "s", 4),
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_trial_is_scored_against_its_claim_alone(wrap: str, recognizer: Recognizer, voxceleb: Path) -> None:
    seen, counts = seen_by(Cosine)
    recognizer.scorer = WRAPPED[wrap](seen())
    if isinstance(recognizer.scorer, Normalized):
        recognizer.scorer.take_cohort(draw(9, 32))
    trials = VoxCeleb(voxceleb).trials()
    enroll_first(recognizer, trials, False)
    speakers = recognizer.scorer.speakers
    counts.clear()
    scores, labels = trial_scores(recognizer, trials, False)
    assert set(counts) == ({1} if wrap == "plain" else {1, 9}) and len(speakers) == 15
    assert scores.shape == (120, 1) and labels.tolist() == torch.where(trials.target, 0, REJECT).tolist()
    embeddings = embed(recognizer, VoxCeleb(voxceleb).dataset("trials"))  # in the order of the trials' utterances
    among_all, columns = recognizer.scorer(embeddings), [speakers.index(u.name) for u in trials.enrolled()]
    enrolled = trials.pairs[:, 0].unique(return_inverse=True)[1]
    expected = among_all[trials.pairs[:, 1], torch.tensor(columns)[enrolled]]
    assert_close(scores.squeeze(1), expected, rtol=1e-4, atol=1e-4)


def test_autocast_changes_no_cosines() -> None:
    scorer, tests = many("cosine"), draw(5, SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = scorer(tests)
        half = scorer(tests.bfloat16())
    assert torch.equal(mixed, scorer(tests)) and half.dtype == torch.float32
