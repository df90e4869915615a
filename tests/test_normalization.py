"""Score normalization: the formulas of z-, t- and s-norm, cohorts in checkpoints, thresholds set afterwards."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeRecognizer
from numpy.typing import NDArray
from test_spk10 import root as root  # fixtures
from test_spk10 import voices as voices
from test_spk10 import write
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.data import SpeakerData, Spk10
from sec4sr_pl.defenses import Quantization
from sec4sr_pl.enrollment import embed, enroll, held_out_scores, main, strangers
from sec4sr_pl.metrics import equal_error_threshold, identification_scores
from sec4sr_pl.normalization import Kind, Normalized
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA, Cosine, EnrolledScorer

SIZE, COHORT = 6, 40
KINDS: list[tuple[Kind, int | None]] = [("z", None), ("t", None), ("s", None), ("z", 9), ("t", 9), ("s", 9)]


class Lopsided(EnrolledScorer):
    """A score that is not the same from both sides, so that none can stand for the other."""

    def model(self, embeddings: Tensor) -> Tensor:
        return embeddings.mean(0) + 0.3

    def compare(self, embeddings: Tensor) -> Tensor:
        weight = torch.arange(1.0, SIZE + 1, dtype=embeddings.dtype)
        return -(weight * (embeddings.unsqueeze(1) - 0.5 * self.models).abs()).sum(2)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def ready(scorer: Callable[..., EnrolledScorer], kind: Kind, top: int | None) -> Normalized:
    normalized = Normalized(scorer(), kind, top)
    normalized.take_cohort(draw(COHORT, SIZE))
    normalized.enroll(draw(7, SIZE), ["b", "a", "b", "c", "a", "a", "c"])
    return normalized


def reference(
    score: Callable[[Any, Any], float],
    model: Callable[[Any], Any],
    speakers: list[NDArray[Any]],
    tests: NDArray[Any],
    cohort: NDArray[Any],
    kind: Kind,
    top: int | None,
) -> list[list[float]]:
    """The formulas of Matejka et al., one trial after the other."""
    rows = []
    for test in tests:
        row = []
        for speaker in speakers:
            to_enrolled = sorted((score(other, model(speaker)) for other in cohort), reverse=True)[:top]
            to_test = sorted((score(test, model(other[None])) for other in cohort), reverse=True)[:top]
            s = score(test, model(speaker))
            z = (s - np.mean(to_enrolled)) / np.std(to_enrolled)
            t = (s - np.mean(to_test)) / np.std(to_test)
            row.append({"z": z, "t": t, "s": 0.5 * (z + t)}[kind])
        rows.append(row)
    return rows


def unit(x: NDArray[Any]) -> NDArray[Any]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


WEIGHT = np.arange(1, SIZE + 1)
SCORERS: dict[str, tuple[Callable[..., EnrolledScorer], Callable[[Any, Any], float], Callable[[Any], Any]]] = {
    "cosine": (Cosine, lambda x, m: float(unit(x) @ m), lambda e: unit(unit(e).mean(0))),
    "lopsided": (Lopsided, lambda x, m: -float((WEIGHT * abs(x - 0.5 * m)).sum()), lambda e: e.mean(0) + 0.3),
}


@pytest.mark.parametrize(("kind", "top"), KINDS)
@pytest.mark.parametrize("name", SCORERS)
def test_scores_are_those_of_the_formulas(name: str, kind: Kind, top: int | None) -> None:
    scorer, score, model = SCORERS[name]
    normalized, tests = ready(scorer, kind, top), draw(5, SIZE)
    enrolled = draw(7, SIZE).double().numpy()
    speakers = [enrolled[[1, 4, 5]], enrolled[[0, 2]], enrolled[[3, 6]]]
    expected = reference(score, model, speakers, tests.double().numpy(), draw(COHORT, SIZE).double().numpy(), kind, top)
    assert normalized.speakers == ("a", "b", "c")
    np.testing.assert_allclose(normalized(tests).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_cohort_smaller_than_top_that_a_checkpoint_brings_counts_as_a_whole() -> None:
    """Checkpoints were written so before such cohorts were refused."""
    small, tests = ready(Cosine, "s", None), draw(5, SIZE)
    large = Normalized(Cosine(small.speakers, SIZE), "s", COHORT + 5, COHORT)
    large.load_state_dict(small.state_dict())
    assert_close(large(tests), small(tests))


@pytest.mark.parametrize(("kind", "top"), KINDS)
def test_scores_of_plda_are_those_of_the_formulas(kind: Kind, top: int | None) -> None:
    """One of the cohort enrolled after the other, in a scorer of its own."""
    plain, cohort, enrolled, tests = PLDA((), SIZE, SIZE), draw(COHORT, SIZE), draw(4, SIZE), draw(5, SIZE)
    plain.psi.copy_(torch.linspace(0.5, 4.0, SIZE))

    def against(model: Tensor, embeddings: Tensor) -> Tensor:
        one = copy.deepcopy(plain)
        one.enroll(model, ["somebody"] * len(model))
        return one(embeddings).squeeze(1)

    normalized = Normalized(copy.deepcopy(plain), kind, top)
    normalized.take_cohort(cohort)
    normalized.enroll(enrolled, ["a", "b", "a", "b"])
    to_test = torch.stack([against(other[None], tests) for other in cohort], 1).sort(1, descending=True).values
    for column, rows in enumerate(([0, 2], [1, 3])):
        score = against(enrolled[rows], tests)
        to_enrolled = against(enrolled[rows], cohort).sort(descending=True).values[:top]
        z = (score - to_enrolled.mean()) / to_enrolled.std(correction=0)
        t = (score - to_test[:, :top].mean(1)) / to_test[:, :top].std(1, correction=0)
        expected = {"z": z, "t": t, "s": (z + t) / 2}[kind]
        assert_close(normalized(tests)[:, column], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "top"), KINDS)
def test_the_gradient_goes_through_scores_and_statistics(kind: Kind, top: int | None) -> None:
    normalized = ready(Cosine, kind, top).double()
    assert torch.autograd.gradcheck(normalized, draw(3, SIZE).double().requires_grad_())


def test_the_whole_cohort_is_the_top_of_it() -> None:
    tests = draw(5, SIZE)
    assert_close(ready(Cosine, "s", COHORT)(tests), ready(Cosine, "s", None)(tests))


@pytest.mark.parametrize(("kind", "top"), KINDS)
def test_a_claim_has_the_score_that_it_has_among_all(kind: Kind, top: int | None) -> None:
    normalized, tests = ready(Lopsided, kind, top), draw(5, SIZE)
    normalized.threshold.fill_(0.25)
    one = normalized.only("b")
    assert one.speakers == ("b",) and one.threshold == 0.25
    assert_close(one(tests), normalized(tests)[:, [1]])
    assert normalized.speakers == ("a", "b", "c")


def test_what_the_cohort_has_to_say_is_computed_once() -> None:
    """At enrollment: a scorer that counts its rows is asked for no more than the utterances' afterwards."""

    class Counted(Lopsided):
        models_made, rows = 0, 0

        def model(self, embeddings: Tensor) -> Tensor:
            Counted.models_made += 1
            return super().model(embeddings)

        def compare(self, embeddings: Tensor) -> Tensor:
            Counted.rows += len(embeddings)
            return super().compare(embeddings)

    normalized = ready(Counted, "s", 9)
    made, Counted.rows = Counted.models_made, 0
    for _ in range(3):
        normalized(draw(5, SIZE))
    assert Counted.models_made == made and Counted.rows == 3 * 2 * 5  # to the speakers, and to the cohort


@pytest.mark.parametrize(("kind", "top"), KINDS)
def test_whatever_changes_cohort_or_speakers_changes_the_scores(kind: Kind, top: int | None) -> None:
    tests, again = draw(5, SIZE), ready(Lopsided, kind, top)
    again.take_cohort(draw(COHORT + 1, SIZE) + 1.0)
    again.enroll(draw(9, SIZE), ["x", "y", "z"] * 3)
    fresh = Normalized(Lopsided(), kind, top)
    fresh.enroll(draw(9, SIZE), ["x", "y", "z"] * 3)  # in the other order
    fresh.take_cohort(draw(COHORT + 1, SIZE) + 1.0)
    loaded = Normalized(Lopsided(["x", "y", "z"], SIZE), kind, top, COHORT + 1)
    loaded.load_state_dict(fresh.state_dict())
    assert fresh.state_dict().keys() == {"threshold", "cohort", "scorer.threshold", "scorer.models"}
    for other in (again, loaded, copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))):
        assert torch.equal(other(tests), fresh(tests))
    assert_close(fresh.double()(tests.double()).float(), again(tests), rtol=1e-4, atol=1e-4)


def test_a_cohort_of_one_score_gives_finite_scores_and_gradients() -> None:
    normalized = Normalized(Cosine(), "s")
    normalized.take_cohort(torch.ones(5, SIZE))
    normalized.enroll(draw(2, SIZE), ["a", "b"])
    tests = draw(3, SIZE).requires_grad_()
    normalized(tests).sum().backward()
    assert tests.grad is not None and bool(tests.grad.isfinite().all())


@pytest.mark.parametrize("wrong", [{"kind": "y"}, {"top": 1}])
def test_arguments_without_meaning_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"Expected kind 'z', 't' or 's' and a top of at least 2, got"):
        Normalized(Cosine(), **wrong)


def test_what_is_missing_is_named() -> None:
    normalized = Normalized(Cosine())
    with pytest.raises(ValueError, match="of 2 or more"):
        normalized.take_cohort(draw(1, SIZE))
    with pytest.raises(ValueError, match="Nobody is enrolled in this Normalized"):
        normalized(draw(2, SIZE))
    normalized.enroll(draw(2, SIZE), ["a", "b"])
    with pytest.raises(ValueError, match=r"no cohort.*--cohort"):
        normalized(draw(2, SIZE))


# recognizers


@pytest.fixture
def recognizer(make_recognizer: MakeRecognizer) -> Recognizer:
    """AudioNet's embeddings, nobody enrolled."""
    trained = make_recognizer()
    return Recognizer(trained.features, trained.backbone, Normalized(Cosine(), "s", 5)).eval()


@pytest.fixture
def background(voices: Path) -> SpeakerData:
    """Eight speakers, one of whom is enrolled and one an imposter."""
    write(voices, "background", {"ann": 2, "103": 2, "26": 2, **{f"stranger{index}": 2 for index in range(6)}})
    for path in (voices / "background").rglob("*.wav"):
        path.write_bytes(sorted(voices.glob("Spk10_imposter/*/*.wav"))[sum(path.name.encode()) % 6].read_bytes())
    return SpeakerData(voices, "background", "Spk10_test")


def test_padding_changes_neither_scores_nor_gradients(recognizer: Recognizer, speech: tuple[Tensor, Tensor]) -> None:
    waveforms, lengths = speech
    scorer = recognizer.scorer
    assert isinstance(scorer, Normalized)
    scorer.take_cohort(recognizer.embed(waveforms, lengths))
    scorer.enroll(recognizer.embed(waveforms[:4], lengths[:4]), ["a", "b", "a", "b"])
    waveforms.requires_grad_()
    scores = recognizer(waveforms, lengths)
    (gradient,) = torch.autograd.grad(scores.square().sum(), waveforms)
    alone = torch.cat([recognizer(row[None, :end]) for row, end in zip(waveforms, lengths.tolist(), strict=True)])
    assert bool(((scores - alone).abs() <= 1e-4 * alone.abs().clamp_min(1.0)).all())
    assert all(not row[end:].any() and row[:end].any() for row, end in zip(gradient, lengths.tolist(), strict=True))


def test_the_cohort_travels_in_the_checkpoint(recognizer: Recognizer, background: SpeakerData, voices: Path) -> None:
    enroll(recognizer, Spk10(voices), cohort=background)
    save_recognizer(recognizer, voices / "ready.ckpt")
    waveforms = torch.stack([waveform for waveform, _, _ in Spk10(voices).dataset("test")])
    loaded = load_recognizer(voices / "ready.ckpt")
    assert torch.equal(loaded(waveforms), recognizer(waveforms))
    assert loaded.scorer.threshold == recognizer.scorer.threshold and loaded.scorer.speakers == ("ann", "bob")


def test_the_cohort_is_of_strangers_alone(background: SpeakerData, voices: Path) -> None:
    speakers = {utterance.speaker for utterance in strangers(background, Spk10(voices)).utterances}
    assert speakers == {f"stranger{index}" for index in range(6)}
    with pytest.raises(ValueError, match="2 or more utterances of strangers, got 0"):
        strangers(SpeakerData(voices, "Spk10_imposter"), Spk10(voices))


def test_the_threshold_is_set_on_normalized_scores_through_the_defenses(
    recognizer: Recognizer, background: SpeakerData, voices: Path
) -> None:
    defended, data = recognizer.with_defenses([Quantization()]), Spk10(voices)
    enroll(defended, data, cohort=background)
    scorer = defended.scorer
    assert isinstance(scorer, Normalized)
    assert_close(scorer.cohort, embed(defended, strangers(background, data)))
    enrollment, others = data.dataset("enroll"), data.dataset("calibration")
    speakers = [utterance.speaker for utterance in enrollment.utterances]
    held_out = held_out_scores(scorer, embed(defended, enrollment), speakers)
    scores = torch.cat([held_out, scorer(embed(defended, others))])
    trials = identification_scores(scores, torch.tensor(enrollment.labels + others.labels))
    assert scorer.threshold == equal_error_threshold(*trials)
    plain = Recognizer(recognizer.features, recognizer.backbone, Cosine(), [Quantization()]).eval()
    enroll(plain, data)
    assert plain.scorer.threshold != scorer.threshold


def test_a_cohort_is_for_a_scorer_that_is_normalized_and_for_no_other(
    recognizer: Recognizer, background: SpeakerData, voices: Path
) -> None:
    with pytest.raises(ValueError, match="Expected a cohort for the scorer Normalized and for no other"):
        enroll(recognizer, Spk10(voices))
    plain = Recognizer(recognizer.features, recognizer.backbone, Cosine())
    with pytest.raises(ValueError, match="Expected a cohort for the scorer Normalized and for no other, got Cosine"):
        enroll(plain, Spk10(voices), cohort=background)


def test_the_command_normalizes(recognizer: Recognizer, background: SpeakerData, voices: Path, tmp_path: Path) -> None:
    plain = Recognizer(recognizer.features, recognizer.backbone, Cosine())
    save_recognizer(plain, tmp_path / "plain.ckpt")
    made = main(
        [
            *(f"--checkpoint={tmp_path / 'plain.ckpt'}", "--data=Spk10", f"--data.root={voices}"),
            *("--scorer=Normalized", "--scorer.scorer=Cosine", "--scorer.kind=t", f"--output={tmp_path / 'out.ckpt'}"),
            *("--cohort=SpeakerData", f"--cohort.root={voices}", "--cohort.train_split=background"),
        ]
    )
    loaded = load_recognizer(tmp_path / "out.ckpt").scorer
    assert isinstance(loaded, Normalized) and loaded.kind == "t" and loaded.cohort_size == 6
    assert torch.equal(loaded.cohort, made.scorer.cohort) and bool(loaded.threshold.isfinite())
