"""Verification of claimed speakers: the objective, attacks on it, campaigns, and the errors in their tables."""

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve
from test_attacks import ATTACKS, seeded
from test_campaign import finish
from test_spk10 import recognizer as recognizer  # fixtures
from test_spk10 import root as root
from test_spk10 import voices as voices
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl import audio
from sec4sr_pl.attacks import PGD, Attack, Claim, CWinf, Objective
from sec4sr_pl.data import Spk10
from sec4sr_pl.data.base import Utterances
from sec4sr_pl.enrollment import enroll
from sec4sr_pl.evaluation import everybody
from sec4sr_pl.metrics import clustered_interval, open_set_errors, wilson_interval
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.robustness import Campaign, summarize
from sec4sr_pl.robustness.campaign import BENIGN
from sec4sr_pl.types import REJECT

ROWS, SPEAKERS, THRESHOLD = 6, 4, 0.1
GOALS = pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])

# The objective


@GOALS
def test_a_claim_is_the_goal_of_one_speaker_on_the_score_of_the_claimed_one(targeted: bool) -> None:
    scores = torch.randn(200, SPEAKERS, generator=seeded(), dtype=torch.float64)
    speakers = torch.randint(SPEAKERS, (200,), generator=seeded(1))
    accepted = torch.rand(200, generator=seeded(2)) < 0.5
    labels = torch.where(accepted, speakers, ~speakers)
    claim, single = Claim(THRESHOLD, targeted, 0.3), Objective(THRESHOLD, targeted, 0.3)
    own = scores[torch.arange(200), speakers].unsqueeze(1)
    expected = torch.where(accepted, 0, REJECT)
    assert torch.equal(claim.loss(scores, labels), single.loss(own, expected))
    assert torch.equal(claim.achieved(scores, labels), single.achieved(own, expected))
    decided = claim.decide(scores, labels)
    assert torch.equal(decided >= 0, own[:, 0] > THRESHOLD)
    assert torch.equal(torch.maximum(decided, ~decided), speakers)
    assert claim.others(scores, labels, 9).squeeze(1).tolist() == [~label for label in labels.tolist()]
    claim.check(labels, SPEAKERS)


def test_labels_and_thresholds_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="Expected a threshold, by which claims are decided"):
        Claim()
    for label in (SPEAKERS, ~SPEAKERS):
        with pytest.raises(ValueError, match="Expected labels from -4 to 3"):
            Claim(0.0).check(torch.tensor([0, label]), SPEAKERS)
    assert Claim(0.0).decisions(2, SPEAKERS) == Claim(0.0).decisions(~2, SPEAKERS) == [2, ~2]


@GOALS
@pytest.mark.parametrize("attack", [attack for attack, _ in ATTACKS.values()], ids=ATTACKS)
def test_every_attack_on_mixed_claims_is_that_on_the_recognizer_of_each_claimed_speaker(
    attack: Attack, targeted: bool
) -> None:
    weight = 0.3 * torch.randn(SPEAKERS, 400, generator=seeded(1))
    waveforms = 0.6 * torch.rand(ROWS, 400, generator=seeded(2)) - 0.3
    speakers = torch.arange(ROWS) % SPEAKERS

    def score(signal: Tensor, _: Tensor | None) -> Tensor:
        return (signal.unsqueeze(1) * weight).sum(2)  # row by row: a matrix product rounds by its shape

    accepted = score(waveforms, None)[torch.arange(ROWS), speakers] > THRESHOLD
    labels = torch.where(accepted != targeted, speakers, ~speakers)
    together = attack(score, waveforms, labels, None, Claim(THRESHOLD, targeted), [seeded(row) for row in range(ROWS)])
    assert bool(accepted.any()) and not bool(accepted.all())
    for row, speaker in enumerate(speakers.tolist()):
        label = torch.tensor([0 if labels[row] >= 0 else REJECT])
        one = attack(
            lambda signal, lengths, own=speaker: score(signal, lengths)[:, own : own + 1],
            *(waveforms[row : row + 1], label, None, Objective(THRESHOLD, targeted), [seeded(row)]),
        )
        assert_close(together.waveforms[row], one.waveforms[0], rtol=0.0, atol=1e-7)  # a rounding of tanh
        assert (together.achieved[row], together.queries[row]) == (one.achieved[0], one.queries[0])


# Campaigns


@pytest.fixture
def system(recognizer: Recognizer, voices: Path) -> Recognizer:
    enroll(recognizer, Spk10(voices), "SV")
    return recognizer


def claiming(recognizer: Recognizer, voices: Path, output: str, **settings: Any) -> Campaign:
    """Ten claims in units of four; the attack is about as strong as it must be."""
    data, speakers = Spk10(voices), recognizer.scorer.speakers
    data.connect(speakers)
    test = data.dataset("test")
    claims = Utterances(*everybody(test.utterances, test.labels, speakers))
    attacks = [CWinf(epsilon=0.01, step_size=0.002, steps=10)]
    settings = {"batch_size": 4, "perceptual": False, "claims": True, **settings}
    return Campaign(recognizer, claims, attacks, voices / output, **settings)


@torch.no_grad()
def scores_of(campaign: Campaign, name: str) -> Tensor:
    """Of the claimed speaker, read from the files, utterance by utterance, (claims,)."""
    found = []
    for utterance, record in zip(campaign.data.utterances, campaign.records(name), strict=True):
        path = utterance.path if name == BENIGN else campaign.output / record["audio"]
        column = campaign.recognizer.scorer.speakers.index(utterance.name.partition("@")[2])
        found.append(campaign.recognizer(audio.read(path)[None])[0, column])
    return torch.stack(found)


@pytest.mark.parametrize("goal", ["untargeted", "hardest"])
def test_the_errors_of_verification_are_those_of_the_scores(system: Recognizer, voices: Path, goal: Any) -> None:
    campaign = claiming(system, voices, goal, goal=goal)
    campaign.run()
    summary = summarize(campaign, target_prior=0.3)
    true = np.array([label >= 0 for label in campaign.data.labels])
    assert 0 < true.sum() < len(true) == 10
    for name in (BENIGN, campaign.attacks[0].name):
        scores, found = scores_of(campaign, name).numpy(), summary.errors[name]
        accepted = scores > float(system.scorer.threshold)
        assert found["FAR"][:2] == ((accepted & ~true).sum(), (~true).sum())  # type: ignore[index]
        assert found["FRR"][:2] == ((~accepted & true).sum(), true.sum())  # type: ignore[index]
        false_alarms, hits, _ = roc_curve(true, scores, drop_intermediate=False)
        misses = 1.0 - hits
        cost = (0.3 * misses + 0.7 * false_alarms).min() / 0.3
        assert found["minDCF"] == pytest.approx(cost, abs=1e-6)
        after = int((misses <= false_alarms).argmax())
        excess = (misses - false_alarms)[[after - 1, after]]
        rate = np.interp(0.0, excess[::-1], misses[[after, after - 1]])
        assert found["EER"] == pytest.approx(rate, abs=1e-6)
        assert [*found] == ["FAR", "FRR", "EER", "minDCF"]
    benign, attacked = summary.errors.values()
    assert attacked["EER"] > benign["EER"]  # type: ignore[operator]
    if goal == "hardest":
        records = [*campaign.records(BENIGN)]
        assert [record["target"] for record in records] == [~record["decision"] for record in records]


def test_intervals_count_the_claims_of_one_recording_together(system: Recognizer, voices: Path) -> None:
    campaign = claiming(system, voices, "out")
    campaign.run()
    summary = summarize(campaign)
    won, tried = Counter[Any](), Counter[Any]()
    for utterance, record in zip(campaign.data.utterances, campaign.records(BENIGN), strict=True):
        tried[utterance.path] += 1
        won[utterance.path] += record["correct"]
    assert len(tried) < len(campaign.data.utterances) == summary.benign.trials
    expected = clustered_interval([won[path] for path in tried], [*tried.values()])
    assert summary.benign[3:] == expected != wilson_interval(*summary.benign[:2])
    assert "Intervals count the claims of one recording together." in summary.notes


def test_two_processes_and_a_resume_leave_the_bytes_of_one(system: Recognizer, voices: Path) -> None:
    alone = finish(claiming(system, voices, "alone"))
    for rank in (1, 0):
        claiming(system, voices, "two").run(rank, 2)
    assert finish(claiming(system, voices, "two")) == alone
    cut = claiming(system, voices, "alone")
    cut.unit(cut.attacks[0].name, 1).unlink()
    assert finish(claiming(system, voices, "alone")) == alone


def test_the_folder_of_a_list_with_another_label_is_refused(system: Recognizer, voices: Path) -> None:
    claiming(system, voices, "out").open()
    other = claiming(system, voices, "out")
    other.data.labels[0] = ~other.data.labels[0]
    other.identity = other._identity({})
    with pytest.raises(ValueError, match="differs in claims"):
        other.open()


def test_the_errors_of_an_open_set_are_those_of_its_decisions(recognizer: Recognizer, voices: Path) -> None:
    data = Spk10(voices)
    enroll(recognizer, data, "OSI")
    attacks = [PGD(epsilon=0.01, step_size=0.002, steps=10)]
    campaign = Campaign(recognizer, data.dataset("test"), attacks, voices / "out", perceptual=False)
    campaign.run()
    summary = summarize(campaign)
    for name, found in summary.errors.items():
        records = [*campaign.records(name)]
        decisions, labels = (torch.tensor([record[kind] for record in records]) for kind in ("decision", "label"))
        expected = [float(rate) for rate in open_set_errors(decisions, labels)]
        assert [rate.value for rate in found.values()] == pytest.approx(expected)  # type: ignore[union-attr]
        assert [*found] == ["FAR", "FRR", "IER"]
    assert [*summary.errors] == [BENIGN, campaign.attacks[0].name]


def test_every_table_has_the_errors(system: Recognizer, voices: Path) -> None:
    campaign = claiming(system, voices, "out")
    campaign.run()
    summary = summarize(campaign)
    name = campaign.attacks[0].name
    text = summary.to_markdown()
    assert "| errors | FAR % [95 %] | FRR % [95 %] | EER % | minDCF |" in text and "probability 0.01." in text
    below = text[text.index("| errors |") :]
    line = next(line for line in below.splitlines() if line.startswith(f"| {name} |"))
    assert line.split(" | ")[1] == str(summary.errors[name]["FAR"])
    told = json.loads(summary.to_json())["errors"]
    assert told[name]["EER"] == summary.errors[name]["EER"]
    assert told[BENIGN]["FAR"] == summary.errors[BENIGN]["FAR"]._asdict()  # type: ignore[union-attr]
    rows = {row["attack"]: row for row in csv.DictReader(io.StringIO(summary.to_csv()))}
    assert float(rows[name]["EER"]) == summary.errors[name]["EER"]
    assert int(rows[BENIGN]["FRR_n"]) == 3 and rows["worst case"]["EER"] == ""


def test_claims_that_are_all_true_have_no_error_rate_over_thresholds(system: Recognizer, voices: Path) -> None:
    campaign = claiming(system, voices, "out")
    kept = [index for index, label in enumerate(campaign.data.labels) if label >= 0]
    chosen = Utterances(
        *([values[index] for index in kept] for values in (campaign.data.utterances, campaign.data.labels))
    )
    campaign = Campaign(system, chosen, [], voices / "true", perceptual=False, claims=True)
    campaign.run()
    found = summarize(campaign).errors[BENIGN]
    assert (found["EER"], found["minDCF"]) == (None, None) and str(found["FAR"]) == "-"
    assert "| - |" in summarize(campaign).to_markdown()
