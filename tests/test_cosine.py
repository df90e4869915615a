"""Enrolled scorers: cosines against scikit-learn, what travels in a checkpoint, what a copy shares."""

from pathlib import Path

import pytest
import torch
from conftest import MakeRecognizer
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import normalize
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl.attacks import PGD, Objective
from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.defenses import Quantization
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import Cosine
from sec4sr_pl.types import REJECT

NAMES = ["bob", "ann", "bob", "cleo", "bob", "ann"]
Speech = tuple[Tensor, Tensor]


@pytest.fixture
def embeddings() -> Tensor:
    """Of six utterances, of lengths that differ."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 16, generator=generator) * torch.tensor([1.0, 5.0, 0.1, 3.0, 9.0, 2.0])[:, None]


@pytest.fixture
def enrolled(embeddings: Tensor) -> Cosine:
    scorer = Cosine()
    scorer.enroll(embeddings, NAMES)
    return scorer


@pytest.fixture
def recognizer(make_recognizer: MakeRecognizer, speech: Speech) -> Recognizer:
    """AudioNet's embeddings against three enrolled speakers, with a threshold."""
    trained = make_recognizer()
    recognizer = Recognizer(trained.features, trained.backbone, Cosine()).eval()
    recognizer.scorer.enroll(recognizer.embed(*speech)[:6], NAMES)
    recognizer.scorer.threshold.fill_(0.25)
    return recognizer


def test_a_score_is_the_cosine_to_the_mean_of_unit_vectors(enrolled: Cosine, embeddings: Tensor) -> None:
    tests = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    units = normalize(embeddings.numpy())
    means = [units[[i for i, name in enumerate(NAMES) if name == own]].mean(0) for own in ("ann", "bob", "cleo")]
    assert enrolled.speakers == ("ann", "bob", "cleo")
    assert enrolled(tests) == pytest.approx(torch.from_numpy(cosine_similarity(tests.numpy(), means)), abs=1e-6)
    plain = cosine_similarity(tests.numpy(), embeddings[[0, 2, 4]].mean(0, keepdim=True).numpy())
    assert abs(enrolled(tests)[:, [1]].numpy() - plain).max() > 0.01  # a long vector has no more say


def test_nobody_enrolled_is_an_error_that_says_what_to_do(embeddings: Tensor) -> None:
    scorer = Cosine()
    assert scorer.speakers == ()
    with pytest.raises(ValueError, match=r"Nobody is enrolled in this Cosine: call enroll.*sec4sr_pl\.enrollment"):
        scorer(embeddings)


def test_enrollment_refuses_what_does_not_fit(embeddings: Tensor) -> None:
    for wrong, names in ((embeddings, NAMES[:5]), (embeddings[0], NAMES), (embeddings[:0], [])):
        with pytest.raises(ValueError, match=r"a speaker for each, got"):
            Cosine().enroll(wrong, names)


def test_enrolling_again_forgets_speakers_and_threshold(enrolled: Cosine, embeddings: Tensor) -> None:
    enrolled.threshold.fill_(0.0)
    enrolled.enroll(embeddings[:2], ["zoe", "yan"])
    assert enrolled.speakers == ("yan", "zoe") and enrolled.threshold == -torch.inf
    assert enrolled(embeddings).shape == (6, 2)


def test_models_hold_no_graph_and_do_not_follow_the_embeddings(embeddings: Tensor) -> None:
    scorer, leaf = Cosine(), embeddings.clone().requires_grad_()
    scorer.enroll(leaf, NAMES)
    before = scorer.models.clone()
    assert not scorer.models.requires_grad
    with torch.no_grad():
        leaf.zero_()
    assert torch.equal(scorer.models, before)


@pytest.mark.parametrize("threshold", [0.0, -torch.inf, 0.3])
def test_names_models_and_threshold_travel_in_the_checkpoint(
    recognizer: Recognizer, speech: Speech, tmp_path: Path, threshold: float
) -> None:
    recognizer.scorer.threshold.fill_(threshold)
    save_recognizer(recognizer, tmp_path / "enrolled.ckpt")
    loaded = load_recognizer(tmp_path / "enrolled.ckpt")
    assert loaded.scorer.speakers == ("ann", "bob", "cleo") and loaded.scorer.threshold == threshold
    scores = recognizer(*speech)
    assert torch.equal(loaded(*speech), scores)
    assert torch.equal(loaded.decide(scores), recognizer.decide(scores))


def test_a_scorer_without_speakers_travels_too(recognizer: Recognizer, speech: Speech, tmp_path: Path) -> None:
    recognizer.scorer = Cosine()
    save_recognizer(recognizer, tmp_path / "empty.ckpt")
    loaded = load_recognizer(tmp_path / "empty.ckpt")
    with pytest.raises(ValueError, match="Nobody is enrolled"):
        loaded(*speech)
    loaded.scorer.enroll(loaded.embed(*speech)[:6], NAMES)
    assert loaded(*speech).shape == (8, 3)


def test_behind_other_defenses_a_copy_is_enrolled(recognizer: Recognizer, speech: Speech) -> None:
    before = recognizer(*speech)
    defended = recognizer.with_defenses([Quantization()])
    assert defended.scorer.speakers == recognizer.scorer.speakers
    defended.scorer.enroll(defended.embed(*speech)[:2], ["dan", "eve"])
    assert recognizer.scorer.speakers == ("ann", "bob", "cleo") and recognizer.scorer.threshold == 0.25
    assert torch.equal(recognizer(*speech), before)


def test_verification_knows_one_of_the_speakers(recognizer: Recognizer, speech: Speech, tmp_path: Path) -> None:
    one = Recognizer(recognizer.features, recognizer.backbone, recognizer.scorer.only("cleo")).eval()
    scores = one(*speech)
    assert one.scorer.speakers == ("cleo",)
    assert_close(scores, recognizer(*speech)[:, 2:])
    assert one.decide(torch.tensor([[0.25], [0.26]])).tolist() == [REJECT, 0]
    save_recognizer(one, tmp_path / "cleo.ckpt")
    assert torch.equal(load_recognizer(tmp_path / "cleo.ckpt")(*speech), scores)
    with pytest.raises(ValueError, match="enrolled speakers ann, bob, cleo, got 'dan'"):
        recognizer.scorer.only("dan")


def test_attacks_follow_the_gradient_through_enrolled_scores(recognizer: Recognizer, speech: Speech) -> None:
    waveforms, lengths = speech
    scores = recognizer(waveforms, lengths)
    recognizer.scorer.threshold.fill_(float(scores.max(1).values.median()))
    threshold = float(recognizer.scorer.threshold)
    labels = recognizer.decide(scores)
    assert 0 < (labels == REJECT).sum() < len(labels)
    result = PGD(steps=20)(recognizer, waveforms, labels, lengths, Objective(threshold))
    moved = recognizer.decide(recognizer(result.waveforms, lengths))
    assert torch.equal(result.achieved, moved != labels)
    assert result.achieved.float().mean() > 0.5
