"""The worst of the gradients that stand for a missing one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import MakeRecognizer, halved
from torch import Tensor

from sec4sr_pl import audio
from sec4sr_pl.attacks import APGD, FGSM, NES, PGD, Adaptive, CWinf, Objective
from sec4sr_pl.attacks.written import as_written
from sec4sr_pl.defenses import Defense, FeCo, GaussianNoise, MedianSmoothing, Quantization
from sec4sr_pl.recognizer import Ensemble, Recognizer

Speech = tuple[Tensor, Tensor]
FEW = NES(samples=4)


@pytest.fixture
def speech(speech: Speech) -> Speech:
    """Half of it: defenses cost as long as their input."""
    return halved(*speech)


class Halved(Quantization):
    """Quantization that offers a second gradient: half of the first."""

    gradients = ("identity", "half")

    def through(self, signal: Tensor, output: Tensor, lengths: Tensor) -> Tensor:
        passed = super().through(signal, output, lengths)
        return passed if self.gradient == "identity" else passed * 0.5 + output * 0.5


def margins(recognizer: Recognizer, waveforms: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
    with torch.no_grad():
        return Objective().loss(recognizer(waveforms, lengths), labels)


@pytest.fixture
def defended(make_recognizer: MakeRecognizer) -> Recognizer:
    return make_recognizer(defenses=[Halved(2_000)])


@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=3), CWinf(steps=3)], ids=lambda attack: attack.name)
def test_it_is_never_weaker_than_the_oblivious_attack(defended: Recognizer, speech: Speech, attack: PGD) -> None:
    waveforms, lengths = speech
    labels = defended(waveforms, lengths).argmax(1)
    oblivious = attack(defended.with_defenses([]), waveforms, labels, lengths).waveforms
    oblivious = as_written(oblivious, waveforms, attack.epsilon)
    adaptive = Adaptive(attack, nes=FEW)(defended, waveforms, labels, lengths)
    weaker = margins(defended, oblivious, labels, lengths) - margins(defended, adaptive.waveforms, labels, lengths)
    standing = margins(defended, oblivious, labels, lengths) >= 0
    assert (weaker[standing] >= -1e-5).all()
    assert adaptive.achieved[~standing].all()
    assert ((adaptive.waveforms - waveforms).abs() <= attack.epsilon + 1e-7).all()
    assert all(audio.on_grid(row) for row in adaptive.waveforms)  # as on the disk


@pytest.mark.parametrize("make", [MedianSmoothing, lambda: FeCo(start="uniform")], ids=["median", "feco"])
def test_it_is_never_weaker_than_its_attack_where_the_gradient_is_exact(
    make: Callable[[], Defense], make_recognizer: MakeRecognizer, speech: Speech
) -> None:
    recognizer, attack = make_recognizer(defenses=[make()]).double(), PGD(steps=3)
    waveforms, lengths = speech[0].double(), speech[1]
    labels = recognizer(waveforms, lengths).argmax(1)
    own = as_written(attack(recognizer, waveforms, labels, lengths).waveforms, waveforms, attack.epsilon)
    adaptive = Adaptive(attack, nes=FEW)(recognizer, waveforms, labels, lengths)
    plain = margins(recognizer, own, labels, lengths)
    assert adaptive.achieved[plain < 0].all()
    standing = plain >= 0
    assert (margins(recognizer, adaptive.waveforms, labels, lengths) <= plain + 1e-4)[standing].all()


def test_it_is_the_worst_of_all_members_from_both_starts(defended: Recognizer, speech: Speech) -> None:
    waveforms, lengths = speech[0].double(), speech[1]  # in single precision rounding decides some signs
    defended.double()
    labels, attack = defended(waveforms, lengths).argmax(1), PGD(steps=2)
    never = Objective(confidence=1e6)  # nobody falls, so every member meets every utterance
    result = Adaptive(attack, nes=FEW)(defended, waveforms, labels, lengths, never, torch.Generator().manual_seed(0))
    oblivious = attack(defended.with_defenses([]), waveforms, labels, lengths).waveforms
    candidates = [oblivious]
    for name in ("identity", "half"):
        for start in (waveforms, oblivious):
            chosen = defended.with_gradient(name).fused().requires_grad_(False)  # as it is attacked
            candidates.append(attack.descend(chosen, start, waveforms, labels, lengths, never))
    candidates = [as_written(x, waveforms, attack.epsilon) for x in candidates]
    found = torch.stack([margins(defended, x, labels, lengths) for x in candidates])
    reached = margins(defended, result.waveforms, labels, lengths)
    assert (reached <= found.min(0).values + 1e-4).all()
    by_queries = (result.waveforms - torch.stack(candidates)).abs().amax(2).amin(0) > 1e-6
    assert torch.allclose(reached[~by_queries], found.min(0).values[~by_queries], atol=1e-4)
    # oblivious 2 + its margin, 2 gradients x 2 starts x (2 + 1), NES 2 starts x (2 x 5 + 1); the base measures again
    assert result.queries.tolist() == [3 + 2 * 2 * 3 + 2 * 11 + 1] * len(waveforms)


def test_chosen_members_are_named_and_alone(defended: Recognizer, speech: Speech) -> None:
    waveforms, lengths = speech
    labels = defended(waveforms, lengths).argmax(1)
    attack = Adaptive(PGD(steps=2), ["identity"])
    assert attack.name == "Adaptive-PGD-2-identity" and Adaptive(PGD()).name == "Adaptive-PGD-10"
    result = attack(defended, waveforms, labels, lengths, Objective(confidence=1e6))
    assert result.queries.tolist() == [3 + 2 * 3 + 1] * len(waveforms)


def test_queries_too_start_from_the_utterance_and_from_the_oblivious_example(
    defended: Recognizer, speech: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveforms, lengths = speech
    labels, starts, descend = defended(waveforms, lengths).argmax(1), [], PGD.descend

    def watched(attack: PGD, score: Recognizer, start: Tensor, *rest: Any) -> Tensor:
        starts.append((isinstance(attack.source, NES), torch.equal(start, waveforms)))
        return descend(attack, score, start, *rest)

    monkeypatch.setattr(PGD, "descend", watched)
    Adaptive(PGD(steps=2), ["NES"], FEW)(defended, waveforms, labels, lengths, Objective(confidence=1e6))
    assert starts == [(False, True), (True, True), (True, False)]


def test_an_utterance_that_falls_is_not_attacked_further(make_recognizer: MakeRecognizer, speech: Speech) -> None:
    waveforms, lengths = speech
    recognizer = make_recognizer(defenses=[Quantization(2)])
    labels = recognizer(waveforms, lengths).argmax(1)
    wrong = (labels + 1) % 10  # achieved from the start
    mixed = torch.where(torch.arange(len(labels)) < 4, labels, wrong)
    result = Adaptive(FGSM(epsilon=0.0))(recognizer, waveforms, mixed, lengths)
    assert (result.queries[4:] == 3).all() and (result.queries[:4] > 3).all()


def test_the_gradient_of_a_name_reaches_the_defenses_that_know_it(make_recognizer: MakeRecognizer) -> None:
    recognizer = make_recognizer(defenses=[Halved(), Quantization()])
    other = recognizer.with_gradient("half")
    assert [defense.gradient for defense in other.defenses] == ["half", "identity"]
    assert [defense.gradient for defense in recognizer.defenses] == ["identity", "identity"]
    both = Ensemble([recognizer, recognizer]).with_gradient("half")
    assert [defense.gradient for defense in both.defenses] == ["half", "identity"] * 2
    noisy = make_recognizer(defenses=[GaussianNoise()])
    assert noisy.with_gradient("half").defenses[0].draws is noisy.defenses[0].draws


def test_a_function_whose_defenses_are_unknown_is_refused(defended: Recognizer, speech: Speech) -> None:
    labels = torch.zeros(8, dtype=torch.int64)
    score: Callable[[Tensor, Tensor], Tensor] = lambda waveforms, lengths: defended(waveforms, lengths)  # noqa: E731
    with pytest.raises(ValueError, match="Expected a recognizer, whose defenses are known, got function"):
        Adaptive(PGD())(score, speech[0], labels, speech[1])
    with pytest.raises(ValueError, match="at least one member"):
        Adaptive(PGD(), [])
    with pytest.raises(ValueError, match="Expected members among identity, half, NES, got gian"):
        Adaptive(PGD(), ["gian"])(defended, speech[0], labels, speech[1])
    for attack in (PGD(restarts=2), APGD()):
        with pytest.raises(ValueError, match="without restarts, got"):
            Adaptive(attack)  # type: ignore[arg-type]
