"""Thresholds estimated from decisions and scores, on linear recognizers and on embeddings of real speech."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from test_campaign import fit, load, write_voices
from test_strong_attacks import ROWS, Linear, seeded, shipped
from torch import Tensor

from sec4sr_pl.attacks import FAKEBOB, PGD, AssumedThreshold, Attack, Objective, Square, estimate_threshold
from sec4sr_pl.robustness import Campaign
from sec4sr_pl.types import REJECT

__all__ = ["shipped"]
STEPS = FAKEBOB(epsilon=2.0, steps=200, step_size=0.005, samples=20)
Decide = Callable[[Tensor], Tensor]


def above(threshold: float) -> Decide:
    """The decision on scores: the best speaker, or nobody."""
    return lambda scores: torch.where(scores.max(1).values > threshold, scores.argmax(1), REJECT)


def rejected(threshold: float, task: str = "OSI") -> tuple[Linear, Tensor]:
    """A recognizer in double precision, and utterances that it rejects."""
    model = Linear(task, targeted=False)
    model.weight, model.waveforms = model.weight.double(), model.waveforms.double()
    waveforms = model.waveforms[model.waveforms @ model.weight < threshold]
    assert len(waveforms) >= 3
    return model, waveforms


@pytest.mark.parametrize("task", ["SV", "OSI"])
@pytest.mark.parametrize("threshold", [0.05, 1.5, 4.0, -0.1])
def test_the_estimate_is_above_the_threshold_by_at_most_one_step(task: str, threshold: float) -> None:
    model, waveforms = rejected(threshold, task)
    found = estimate_threshold(model, above(threshold), waveforms, attack=STEPS, generator=seeded())
    error = found.thresholds - threshold
    assert (error > 0).all()
    assert (error <= 0.005 * model.weight.abs().sum()).all()
    assert found.threshold == pytest.approx(float(found.thresholds.mean()))


def test_scores_near_zero_neither_stop_nor_prolong_the_climb() -> None:
    """Fault L11: candidates a part of a score of zero apart never get anywhere."""
    model, _ = rejected(0.05)
    waveforms = 1e-9 * model.waveforms[:4]
    found = estimate_threshold(model, above(2.0), waveforms, attack=STEPS, generator=seeded())
    error = found.thresholds - 2.0
    assert (error > 0).all() and (error <= 0.005 * model.weight.abs().sum()).all()
    assert found.queries.max() <= 60 * 21


@pytest.mark.parametrize(("smallest_rise", "restored"), [(1.0, True), (100.0, False)])
def test_a_candidate_that_is_passed_restores_the_step_size(smallest_rise: float, restored: bool) -> None:
    points: list[float] = []

    def score(w: Tensor, _: Tensor | None) -> Tensor:
        if len(w) == 1:  # the point itself, not one around it
            points.append(float(w))
        looks = len(points)
        return w - 0.1 * looks + (10.0 if looks > 20 else 0.0)  # falls for 20 looks, so that the steps are halved

    attack = FAKEBOB(2.0, steps=22, step_size=0.01, smallest_step=1e-3, samples=4)
    estimate_threshold(
        score, above(1e3), torch.zeros(1, 1), attack=attack, smallest_rise=smallest_rise, generator=seeded()
    )
    moves = torch.tensor(points).diff().abs()
    assert float(moves[18]) == pytest.approx(0.01 / 8, abs=1e-6)
    assert (float(moves[-1]) == pytest.approx(0.01, abs=1e-6)) is restored


@pytest.mark.parametrize(("cap", "draws"), [(100, 1), (301, 1), (301, 3)])
def test_the_cap_of_queries_holds(cap: int, draws: int) -> None:
    model, waveforms = rejected(0.05)
    model.seen = 0
    attack = FAKEBOB(2.0, samples=20, queries=cap, draws=draws)
    found = estimate_threshold(model, above(1e6), waveforms, attack=attack, generator=seeded())
    assert int(found.queries.max()) == (21 * attack.affordable + 1) * draws <= cap
    assert (22 * (attack.affordable + 1) + 2) * draws > cap  # each step leaves room to look at a success's file
    assert int(found.queries.sum()) == model.seen
    assert found.thresholds.isnan().all() and math.isnan(found.threshold)


def test_every_utterance_counts_and_a_batch_is_its_utterances_one_by_one() -> None:
    """Fault L11: not utterance 0 alone."""
    model, waveforms = rejected(3.0)
    together = estimate_threshold(
        model, above(3.0), waveforms, attack=STEPS, generator=[seeded(row) for row in range(len(waveforms))]
    )
    assert len(set(together.queries.tolist())) > 2
    for row in range(len(waveforms)):
        alone = estimate_threshold(model, above(3.0), waveforms[row : row + 1], attack=STEPS, generator=[seeded(row)])
        assert alone.threshold == pytest.approx(float(together.thresholds[row]), abs=1e-9)
        assert int(alone.queries) == int(together.queries[row])


def test_what_is_accepted_as_it_is_tells_nothing() -> None:
    model, _ = rejected(0.05)
    accepted = model.waveforms @ model.weight > 0.05
    found = estimate_threshold(model, above(0.05), model.waveforms, attack=STEPS, generator=seeded())
    assert accepted.any() and not accepted.all()
    assert torch.equal(found.thresholds.isnan(), accepted)
    assert set(found.queries[accepted].tolist()) == {21}
    none = estimate_threshold(model, above(-1e3), model.waveforms, attack=STEPS, generator=seeded())
    assert math.isnan(none.threshold)
    empty = estimate_threshold(model, above(0.05), model.waveforms[:0], attack=STEPS)
    assert math.isnan(empty.threshold) and len(empty.queries) == 0


@pytest.mark.slow
def test_several_decisions_vote_where_they_are_random() -> None:
    """Fault L11: of one decision after the other the first lucky one ends the climb far below the threshold."""
    model, waveforms = rejected(0.0)
    errors = []
    for draws in (1, 15):
        luck = seeded()

        def decide(scores: Tensor, luck: torch.Generator = luck) -> Tensor:
            flipped = torch.rand(len(scores), generator=luck) < 0.1
            return torch.where(flipped ^ (scores.max(1).values > 5.0), scores.argmax(1), REJECT)

        attack = FAKEBOB(2.0, steps=200, step_size=0.005, samples=20, draws=draws)
        found = estimate_threshold(model, decide, waveforms, attack=attack, generator=seeded())
        errors.append((found.thresholds - 5.0).abs().nanmedian())
    assert errors[1] <= 0.005 * model.weight.abs().sum() < errors[0]


def test_what_is_raised_is_the_best_score_of_all_speakers() -> None:
    """The second speaker is the closer one to half of the utterances."""
    weight = torch.randn(60, generator=seeded(5), dtype=torch.float64)
    waveforms = 0.01 * torch.stack([weight, -weight]).repeat(2, 1)

    def score(w: Tensor, _: Tensor | None) -> Tensor:
        return torch.stack([w @ weight, -(w @ weight)], 1)

    found = estimate_threshold(score, above(3.0), waveforms, attack=STEPS, generator=seeded())
    assert ((found.thresholds > 3.0) & (found.thresholds < 3.0 + 0.005 * weight.abs().sum())).all()


# An attack that does not know the threshold


@pytest.mark.parametrize(("excess", "succeeds"), [(0.01, True), (-0.01, False)])
@pytest.mark.parametrize(
    "inner", [PGD(0.3, 0.01, 60), FAKEBOB(0.3, 200, 0.002), Square(0.3, 400)], ids=lambda a: a.name
)
def test_it_works_with_its_own_threshold_and_the_systems_judges(inner: Any, excess: float, succeeds: bool) -> None:
    """One that stops as soon as it believes to be accepted falls short where it assumes too little."""
    model = Linear("SV", targeted=True)
    model.weight = 0.02 * model.weight  # so that no step leaps over both thresholds
    waveforms = model.waveforms[:6]
    system = Objective(threshold=float((waveforms @ model.weight).max()) + 0.03, targeted=True)
    labels = torch.zeros(6, dtype=torch.int64)
    attack = AssumedThreshold(inner, system.threshold + excess)
    result = attack(model, waveforms, labels, objective=system, generator=seeded())
    believed = model(result.waveforms, None)[:, 0] > attack.threshold
    assert believed.all()
    assert bool(result.achieved.all()) is (succeeds or isinstance(inner, PGD))  # PGD does not stop
    assert attack.epsilon == 0.3


def test_the_attack_of_a_black_box_from_estimate_to_success() -> None:
    model = Linear("OSI", targeted=True)
    model.objective = Objective(4.0, targeted=True)
    labels = torch.zeros(ROWS, dtype=torch.int64)
    found = estimate_threshold(model, above(4.0), model.waveforms[:3], attack=STEPS, generator=seeded())
    attack = AssumedThreshold(FAKEBOB(0.6, steps=400, step_size=0.02, samples=20), found.threshold)
    result = attack(model, model.waveforms, labels, objective=model.objective, generator=seeded())
    assert result.achieved.all()
    assert attack.name == f"FAKEBOB-400x20-eps0.6-step0.02-assumes{found.threshold:g}"


def test_in_a_campaign_told_by_yaml_the_recognizers_decision_judges(tmp_path: Path) -> None:
    """The attack believes that nobody is recognized as it is, so it has nothing to do."""
    data = load(write_voices(tmp_path / "voices"))
    recognizer = fit(data)
    recognizer.scorer.threshold.fill_(-50.0)
    parser = ArgumentParser()
    parser.add_argument("--attack", type=Attack)
    inner = "{class_path: FAKEBOB, init_args: {steps: 1}}"
    told = f"{{class_path: AssumedThreshold, init_args: {{attack: {inner}, threshold: 60}}}}"
    attack = parser.instantiate_classes(parser.parse_args([f"--attack={told}"])).attack
    assert repr(attack) == repr(AssumedThreshold(FAKEBOB(steps=1), 60.0))
    campaign = Campaign(recognizer, data, [attack], tmp_path / "out", perceptual=False)
    campaign.run()
    records = list(campaign.records(attack.name))
    assert {record["linf"] for record in records} == {0.0}
    assert [record["decision"] for record in records] == [record["decision"] for record in campaign.records("benign")]
    assert all(record["achieved"] is not record["correct"] for record in records)


def test_what_has_no_meaning_is_refused() -> None:
    model = Linear("CSI", targeted=False)
    with pytest.raises(ValueError, match="closed set"):
        AssumedThreshold(PGD(), 0.5)(model, model.waveforms, model.labels)
    with pytest.raises(ValueError, match="finite threshold"):
        AssumedThreshold(PGD(), math.nan)
    with pytest.raises(ValueError, match="smallest_rise > 0"):
        estimate_threshold(model, above(0.0), model.waveforms, smallest_rise=0.0)
    with pytest.raises(ValueError, match=r"samples in \[-1, 1\]"):
        estimate_threshold(model, above(0.0), 9.0 * model.waveforms)


@pytest.mark.slow
def test_on_embeddings_of_real_speech_the_error_is_small(shipped: tuple[Any, Tensor, Tensor, Tensor]) -> None:
    """Cosine scores against four enrolled speakers; the threshold lies above all utterances of others."""
    recognizer, waveforms, lengths, _ = shipped

    def cosine(w: Tensor, n: Tensor) -> Tensor:
        return torch.nn.functional.normalize(recognizer.embed(w, n), dim=1) @ enrolled.T

    with torch.no_grad():
        enrolled = torch.nn.functional.normalize(recognizer.embed(waveforms[:4], lengths[:4]), dim=1)
        scores = cosine(waveforms[8:], lengths[8:])
    threshold = float(scores.max()) + 0.02
    attack = FAKEBOB(epsilon=2.0, steps=60, samples=20)
    found = estimate_threshold(cosine, above(threshold), waveforms[8:], lengths[8:], attack, generator=seeded())
    errors = (found.thresholds - threshold)[~found.thresholds.isnan()]
    assert len(errors) >= 2
    assert ((errors > 0) & (errors < 0.01)).all()
