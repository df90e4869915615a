"""Campaigns: what stands in records, files and tables, and that neither kill, rank nor repetition changes a byte."""

import copy
import csv
import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from scipy.stats import binomtest
from torch import Tensor

from sec4sr_pl import audio
from sec4sr_pl.attacks import CW2, FGSM, PGD, Adaptive, Attack, AutoAttack, CWinf, Objective
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.data.base import Utterances, collate
from sec4sr_pl.data.manifest import DataError, label, scan
from sec4sr_pl.defenses import Defense, FeCo, GaussianNoise, Quantization
from sec4sr_pl.evaluation import LEFT, report
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Ensemble, Recognizer
from sec4sr_pl.robustness import Campaign, CampaignError, Summary, summarize
from sec4sr_pl.robustness.campaign import BENIGN, PROBE, distortion
from sec4sr_pl.robustness.rates import Rate
from sec4sr_pl.robustness.tables import write_summary
from sec4sr_pl.robustness.targets import Goal, choose_targets
from sec4sr_pl.robustness.terminal import show
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.types import REJECT, SAMPLE_RATE

SPEAKERS = ("anna", "bert", "carl", "dora")
WRONG = "bert-0"  # lies in bert's folder, spoken by dora
EPSILON = 0.002


def voice(speaker: int, index: int, seconds: float) -> np.ndarray:
    """Harmonics of a speaker's own pitch and timbre, in syllables, with some noise; (time,) in [-1, 1]."""
    generator = np.random.default_rng([speaker, index])
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = (100, 135, 180, 240)[speaker] * (1 + 0.03 * np.sin(2 * np.pi * 3 * time + index))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    tones = [np.sin(k * phase) * np.exp(-(((k - 3 - 2 * speaker) / 4) ** 2)) for k in range(1, 20)]
    sound = np.sum(tones, axis=0) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time))
    return 0.3 * sound / np.abs(sound).max() + 0.02 * generator.normal(size=len(time))


def write_voices(root: Path, subtype: str = "PCM_16", utterances: int = 3, seconds: float = 0.7) -> Path:
    """`<root>/test/<speaker>/<speaker>-<index>.wav`, of unequal lengths; one of them in the wrong folder."""
    for speaker, name in enumerate(SPEAKERS):
        (root / "test" / name).mkdir(parents=True)
        for index in range(utterances):
            speaks = SPEAKERS.index("dora") if f"{name}-{index}" == WRONG else speaker
            samples = voice(speaks, index + (speaks != speaker), seconds + 0.041 * index + 0.013 * speaker)
            soundfile.write(root / "test" / name / f"{name}-{index}.wav", samples, SAMPLE_RATE, subtype=subtype)
    return root


def load(root: Path, speakers: tuple[str, ...] = SPEAKERS) -> Utterances:
    """The utterances of a folder of `write_voices`."""
    utterances = scan(root, "test")
    return Utterances(utterances, label(utterances, speakers))


def fit(data: Utterances) -> Recognizer:
    """A random network whose statistics and head were fitted to the voices: right about all but `WRONG`."""
    own = collate([item for item in data if item[2] != WRONG])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        recognizer = Recognizer(LogMel(), AudioNet(), ClosedSet(AudioNet.embedding_size, SPEAKERS)).train()
        for norm in recognizer.modules():
            if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
                norm.momentum = 1.0  # the statistics of this one pass
        recognizer(own.waveforms, own.lengths)
        embeddings = recognizer.eval().embed(own.waveforms, own.lengths)
        center, scale = embeddings.mean(0), embeddings.std(0) + 1e-3
        inputs = (embeddings - center) / scale
        wanted = 4.0 * torch.nn.functional.one_hot(own.speakers, len(SPEAKERS)).float() - 1.0
        solved = torch.linalg.solve(inputs.T @ inputs + torch.eye(inputs.shape[1]), inputs.T @ wanted) / scale[:, None]
        recognizer.scorer.head.weight.copy_(solved.T)
        recognizer.scorer.head.bias.copy_(-center @ solved)
    return recognizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voices(tmp_path_factory.mktemp("voices"))


@pytest.fixture
def data(root: Path) -> Utterances:
    return load(root)


@pytest.fixture
def recognizer(data: Utterances) -> Recognizer:
    return fit(data)


class Seen(FGSM):
    """FGSM that remembers the score function and the utterances of each call."""

    calls: list[tuple[Callable[..., Tensor], Tensor, Tensor, Tensor]]

    def perturb(self, score: Any, waveforms: Tensor, labels: Tensor, lengths: Tensor, *rest: Any) -> Tensor:
        self.__dict__.setdefault("calls", []).append((score.score, waveforms.clone(), labels.clone(), lengths.clone()))
        return super().perturb(score, waveforms, labels, lengths, *rest)


class Whisper(Attack):
    """Less than half a 16-bit step: nothing of it is left in a 16-bit file."""

    def __init__(self) -> None:
        self.epsilon = EPSILON

    def perturb(self, score: Any, waveforms: Tensor, labels: Tensor, lengths: Tensor, *rest: Any) -> Tensor:
        return waveforms + 0.3 / audio.FULL_SCALE


class Nothing(Attack):
    """No change."""

    def __init__(self) -> None:
        self.epsilon = EPSILON

    def perturb(self, score: Any, waveforms: Tensor, labels: Tensor, lengths: Tensor, *rest: Any) -> Tensor:
        return waveforms


Make = Callable[..., Campaign]


@pytest.fixture
def make(recognizer: Recognizer, data: Utterances, tmp_path: Path) -> Make:
    """make(folder, attacks, defenses=(), ...) -> a campaign on the voices; 12 utterances in units of 5, no PESQ."""

    def build(
        folder: str = "campaign", attacks: Any = None, defenses: Any = (), utterances: Any = None, **settings: Any
    ) -> Campaign:
        victim = recognizer.with_defenses(defenses) if defenses else recognizer
        attacks = [FGSM(), PGD(steps=2)] if attacks is None else attacks
        settings = {"batch_size": 5, "perceptual": False, **settings}
        return Campaign(victim, utterances or data, attacks, tmp_path / folder, **settings)

    return build


def files(folder: Path) -> dict[str, bytes]:
    """Everything under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def finish(campaign: Campaign) -> dict[str, bytes]:
    """Run the campaign, write its tables, and read back everything that it left."""
    campaign.run()
    write_summary(summarize(campaign), campaign.output)
    return files(campaign.output)


# Records and audio


def test_each_utterance_has_one_record_in_manifest_order_and_one_file_for_each_attack(
    make: Make, data: Utterances
) -> None:
    campaign = make()
    campaign.run()
    names = [utterance.name for utterance in data.utterances]
    assert names == sorted(names) and len(names) == 12
    for attack in (BENIGN, "FGSM", "PGD-2"):
        assert [record["name"] for record in campaign.records(attack)] == names
    expected = {f"{a}/{name[:4]}/{name}.wav" for a in ("FGSM", "PGD-2") for name in names}
    assert set(files(campaign.output / "audio")) == expected
    for attack in ("FGSM", "PGD-2"):
        for record in campaign.records(attack):
            assert record["audio"] == f"audio/{attack}/{record['name'][:4]}/{record['name']}.wav"


def test_originals_on_the_16_bit_grid_give_16_bit_files_inside_65_steps(make: Make, data: Utterances) -> None:
    campaign = make(attacks=[FGSM(), PGD(steps=6)])
    campaign.run()
    for attack in ("FGSM", "PGD-6"):
        largest = 0
        for record, utterance in zip(campaign.records(attack), data.utterances, strict=True):
            path = campaign.output / record["audio"]
            assert soundfile.info(path).subtype == "PCM_16"
            adversarial, _ = soundfile.read(path, dtype="int16")
            original, _ = soundfile.read(utterance.path, dtype="int16")
            steps = np.abs(adversarial.astype(int) - original)
            assert steps.shape == (utterance.frames,) and steps.max() <= 65
            assert record["linf"] == pytest.approx(steps.max() / 32768, abs=1e-9)
            assert record["l2"] == pytest.approx(np.sqrt((steps.astype(float) ** 2).sum()) / 32768, rel=1e-4)
            snr = 10 * np.log10((original.astype(float) ** 2).sum() / (steps.astype(float) ** 2).sum())
            assert record["snr"] == pytest.approx(snr, abs=1e-3)
            largest = max(largest, steps.max())
        assert largest == 65


@pytest.mark.parametrize("epsilon", [EPSILON, 1e-6])
def test_originals_off_the_16_bit_grid_give_float32_files_inside_the_ball(
    make: Make, tmp_path: Path, epsilon: float
) -> None:
    voices = load(write_voices(tmp_path / "float", "FLOAT", utterances=1))
    campaign = make(attacks=[FGSM(epsilon=epsilon)], utterances=voices)
    campaign.run()
    for record, utterance in zip(campaign.records(campaign.attacks[0].name), voices.utterances, strict=True):
        path = campaign.output / record["audio"]
        assert soundfile.info(path).subtype == "FLOAT"
        adversarial, original = soundfile.read(path)[0], soundfile.read(utterance.path)[0]
        assert 0.5 * epsilon < np.abs(adversarial - original).max() <= epsilon + 2.0**-23


def test_a_file_outside_the_ball_is_an_error_that_names_the_utterance() -> None:
    original = torch.tensor([0.5, -0.25, 0.0])
    assert distortion(original + 65 / 32768, original, EPSILON, "anna-0", False)["linf"] == 65 / 32768
    with pytest.raises(CampaignError, match=r"'anna-0' was changed by 0.00201416, outside the ball of 0.002"):
        distortion(original + 66 / 32768, original, EPSILON, "anna-0", False)
    with pytest.raises(CampaignError, match="changed by nan"):
        distortion(original * torch.nan, original, EPSILON, "anna-0", False)
    assert distortion(original + 1.0, original, torch.inf, "anna-0", False)["linf"] == 1.0


def test_success_is_the_decision_on_the_file_read_again(make: Make, recognizer: Recognizer, data: Utterances) -> None:
    campaign = make(attacks=[PGD(steps=2), FGSM(epsilon=0.00025)])
    campaign.run()
    outcomes = set()
    for attack in campaign.attacks:
        for record in campaign.records(attack.name):
            with torch.no_grad():
                waveform = audio.read(campaign.output / record["audio"])
                decision = int(recognizer.decide(recognizer(waveform[None]))[0])
            speaker = SPEAKERS.index(record["audio"].split("/")[2])
            assert (record["label"], record["decision"]) == (speaker, decision)
            assert record["correct"] is (decision == speaker) and record["achieved"] is (decision != speaker)
            outcomes.add(record["achieved"])
    assert outcomes == {True, False}


def test_what_rounding_to_16_bit_undoes_is_no_success(
    make: Make, recognizer: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = recognizer.forward

    def fooled_off_the_grid(waveforms: Tensor, lengths: Tensor) -> Tensor:
        scores = honest(waveforms, lengths)
        off = torch.tensor([not audio.on_grid(row[:n]) for row, n in zip(waveforms, lengths, strict=True)])
        return torch.where(off[:, None], scores.roll(1, 1), scores)

    monkeypatch.setattr(recognizer, "forward", fooled_off_the_grid)
    campaign = make(attacks=[Whisper()])
    batch = collate(list(campaign.data))
    result = Whisper()(recognizer, batch.waveforms, batch.speakers, batch.lengths)
    assert result.achieved.sum() >= 11  # in memory
    campaign.run()
    benign = {record["name"]: record["decision"] for record in campaign.records(BENIGN)}
    for record in campaign.records("Whisper"):
        assert record["decision"] == benign[record["name"]] and record["linf"] == 0.0
    assert summarize(campaign).rows[0].success.successes == 0


def test_utterances_that_were_wrong_before_the_attack_do_not_count_as_success(make: Make) -> None:
    campaign = make(attacks=[FGSM(epsilon=0.00025), Nothing()])
    campaign.run()
    correct = {record["name"]: record["correct"] for record in campaign.records(BENIGN)}
    assert [name for name, right in correct.items() if not right] == [WRONG]
    records = list(campaign.records("FGSM-eps0.00025"))
    assert next(record for record in records if record["name"] == WRONG)["achieved"]  # it was, and still is
    fooled = [record["name"] for record in records if record["achieved"] and record["name"] != WRONG]
    weak, nothing = summarize(campaign).rows
    assert 0 < len(fooled) < 11
    assert (weak.success.successes, weak.success.trials) == (len(fooled), 11)
    assert (weak.accuracy.successes, weak.accuracy.trials) == (11 - len(fooled), 12)
    assert (nothing.success.successes, nothing.success.trials) == (0, 11)
    assert nothing.accuracy.successes == 11


# Targets


def targets(campaign: Campaign, name: str = BENIGN) -> dict[str, int]:
    return {record["name"]: record["target"] for record in campaign.records(name)}


@pytest.mark.parametrize("goal", ["random", "hardest", "simplest"])
def test_targets_follow_the_goal_and_never_are_the_speaker_or_the_decision(
    make: Make, recognizer: Recognizer, goal: Any
) -> None:
    campaign = make(attacks=[], goal=goal)
    campaign.run()
    chosen = set()
    for (waveform, own, name), target in zip(campaign.data, targets(campaign).values(), strict=True):
        with torch.no_grad():
            scores = recognizer(waveform[None])[0]
        decision = int(scores.argmax())
        others = [speaker for speaker in range(4) if speaker not in (own, decision)]
        assert target in others and len(others) == (2 if name == WRONG else 3)
        if goal != "random":
            pick = min if goal == "hardest" else max
            assert target == pick(others, key=lambda speaker: float(scores[speaker]))
        chosen.add((target - own) % 4)
    assert len(chosen) > 1


def test_targets_are_the_same_for_every_attack_defense_batch_size_and_manner(make: Make) -> None:
    one = make("one", [FGSM(), PGD(steps=1, draws=2)], goal="random")
    others = [
        make("defended", [CWinf(steps=1)], [Quantization(8192)], goal="random"),
        make("oblivious", [FGSM()], [Quantization(8192)], goal="random", adaptive=False, batch_size=3),
        make("drawn", [FGSM()], [FeCo(0.5)], goal="random", batch_size=12),
    ]
    for campaign in (one, *others):
        campaign.run()
    decisions = [record["decision"] for record in one.records(BENIGN)]
    for campaign in (one, *others):
        assert campaign is one or decisions != [record["decision"] for record in campaign.records(BENIGN)]
        for name in (BENIGN, *(attack.name for attack in campaign.attacks)):
            assert targets(campaign, name) == targets(one)


def test_random_targets_come_from_the_seed_and_the_name(make: Make, data: Utterances) -> None:
    first = make("first", [], goal="random")
    again = make("again", [], goal="random", utterances=Utterances(data.utterances[4:9], data.labels[4:9]))
    other = make("other", [], goal="random", seed=1)
    for campaign in (first, again, other):
        campaign.run()
    part = targets(again)
    assert len(part) == 5 and part == {name: target for name, target in targets(first).items() if name in part}
    assert targets(first) != targets(other)


def test_a_targeted_success_is_the_decision_for_the_target(make: Make) -> None:
    campaign = make(attacks=[PGD(steps=5), FGSM(epsilon=0.0005)], goal="hardest")
    campaign.run()
    records = [record for attack in campaign.attacks for record in campaign.records(attack.name)]
    for record in records:
        assert record["achieved"] is (record["decision"] == record["target"])
        assert record["correct"] is (record["decision"] == record["label"])
    assert any(record["achieved"] for record in records)
    assert any(not record["correct"] and not record["achieved"] for record in records)  # wrong, but not as wanted


def test_a_target_that_is_the_speaker_is_no_success() -> None:
    """Of two speakers, an undefended mistake leaves only the speaker: a defense that mends it must not count."""
    scores = torch.tensor([[0.0, 1.0]])
    assert choose_targets(scores, torch.tensor([1]), torch.tensor([0]), ["a"], "simplest", Objective(), 0) == [0]


SCORES = torch.tensor([[5.0, 3.0, 1.0, 2.0]])


@pytest.mark.parametrize(
    ("goal", "decision", "own", "target"),
    [
        ("hardest", 0, 0, 2),
        ("simplest", 0, 0, 1),
        ("simplest", 0, 1, 3),
        ("hardest", 0, 2, 3),
        ("simplest", REJECT, 0, 1),
    ],
)
def test_hardest_is_the_lowest_and_simplest_the_highest_enrolled_candidate(
    goal: Any, decision: int, own: int, target: int
) -> None:
    for threshold in (-torch.inf, 0.0, 9.0):
        found = choose_targets(
            SCORES, torch.tensor([decision]), torch.tensor([own]), ["a"], goal, Objective(threshold), 0
        )
        assert found == [target]


def test_reject_is_a_random_target_only_where_there_is_a_threshold() -> None:
    names = [f"utterance-{index}" for index in range(200)]
    scores, zeros = SCORES.expand(200, 4), torch.zeros(200, dtype=torch.int64)
    closed = choose_targets(scores, zeros, zeros, names, "random", Objective(), 0)
    opened = choose_targets(scores, zeros, zeros, names, "random", Objective(0.5), 0)
    assert set(closed) == {1, 2, 3} and set(opened) == {1, 2, 3, REJECT}
    assert all(30 <= opened.count(target) <= 75 for target in set(opened))  # 50 each, on average
    rejected = choose_targets(scores, zeros - 1, zeros, names, "random", Objective(9.0), 0)
    assert set(rejected) == {1, 2, 3}


def test_without_any_candidate_the_error_names_the_utterance() -> None:
    one = torch.tensor([0])
    with pytest.raises(ValueError, match="no random target for 'lonely'"):
        choose_targets(torch.ones(1, 1), one, one, ["lonely"], "random", Objective(), 0)


@pytest.mark.parametrize("goal", ["random", "hardest", "simplest"])
def test_who_claims_to_be_the_one_enrolled_speaker_can_only_be_rejected(goal: Goal) -> None:
    one = torch.tensor([0])
    assert choose_targets(torch.ones(1, 1), one, one, ["lonely"], goal, Objective(0.0), 0) == [REJECT]


# Adaptive or oblivious, randomized or not


@pytest.mark.parametrize("adaptive", [True, False])
def test_an_adaptive_attack_sees_the_defenses_and_an_oblivious_one_does_not(make: Make, adaptive: bool) -> None:
    attack = Seen()
    campaign = make(attacks=[attack], defenses=[Quantization(4096)], adaptive=adaptive)
    campaign.run()
    seen = campaign.recognizer if adaptive else campaign.undefended
    other = campaign.undefended if adaptive else campaign.recognizer
    if adaptive:  # what the sentinel asks
        assert not len(attack.calls.pop()[0].defenses)
    assert len(attack.calls) == 3
    for score, waveforms, _, lengths in attack.calls:
        with torch.no_grad():
            own = score(waveforms, lengths)  # of the fused form: equal but for rounding
            torch.testing.assert_close(own, seen(waveforms, lengths), rtol=1e-4, atol=1e-4)
            assert (own - other(waveforms, lengths)).abs().max() > 0.01
    for record in campaign.records("Seen"):  # either way the defended system is what is measured
        waveform = audio.read(campaign.output / record["audio"])
        with torch.no_grad():
            assert record["decision"] == int(campaign.recognizer(waveform[None]).argmax())
    summary = summarize(campaign)
    for text in (summary.to_markdown(), summary.to_json()):
        assert ("Oblivious" in text) is not adaptive


def test_records_of_a_randomized_recognizer_are_rates_over_further_draws(make: Make) -> None:
    campaign = make(attacks=[FGSM()], defenses=[FeCo(0.5)], draws=6, batch_size=12)
    campaign.run()
    batch = collate(list(campaign.data))
    for name in (BENIGN, "FGSM"):
        records = list(campaign.records(name))
        if name != BENIGN:
            again = collate([(audio.read(campaign.output / record["audio"]), 0, "") for record in records])
            batch = batch._replace(waveforms=again.waveforms)
        campaign.recognizer.seed(campaign.seeds(name, batch.names, "measure"))
        with torch.no_grad():
            drawn = [campaign.recognizer(batch.waveforms, batch.lengths).argmax(1) for _ in range(7)]
        assert [record["decision"] for record in records] == drawn[0].tolist()
        rates = (torch.stack(drawn[1:]) == batch.speakers).double().mean(0)
        assert [record["correct_rate"] for record in records] == rates.tolist()
        assert 0.0 < rates.mean() < 1.0 and len(set(rates.tolist())) > 2
        if name != BENIGN:
            assert [record["achieved_rate"] for record in records] == (1 - rates).tolist()
    summary = summarize(campaign)
    assert summary.rows[0].accuracy_over_draws == pytest.approx(float(rates.mean()))
    assert "over draws" in summary.to_markdown()


def test_rates_over_draws_of_a_targeted_attack_count_the_target(make: Make) -> None:
    campaign = make(attacks=[PGD(steps=3)], defenses=[FeCo(0.5)], goal="simplest", draws=4)
    campaign.run()
    records = list(campaign.records("PGD-3"))
    assert all(record["correct_rate"] + record["achieved_rate"] <= 1.0 for record in records)
    assert any(record["correct_rate"] + record["achieved_rate"] < 1.0 for record in records)  # a third speaker
    assert any(record["achieved_rate"] > 0.0 for record in records)


def test_a_deterministic_recognizer_has_no_rates_over_draws(make: Make) -> None:
    campaign = make(attacks=[FGSM()], defenses=[Quantization(128)])
    campaign.run()
    assert {record["correct_rate"] for name in (BENIGN, "FGSM") for record in campaign.records(name)} == {None}
    assert {record["achieved_rate"] for record in campaign.records("FGSM")} == {None}
    summary = summarize(campaign)
    assert summary.benign_over_draws is None and "over draws" not in summary.to_markdown()


def test_a_randomized_campaign_leaves_the_same_bytes_twice_and_other_bytes_for_another_seed(make: Make) -> None:
    attacks = [PGD(steps=2, restarts=1, draws=2)]
    settings: dict[str, Any] = {"attacks": attacks, "draws": 3}
    torch.manual_seed(1)
    first = finish(make("first", defenses=[FeCo(0.5)], **settings))
    torch.manual_seed(2)
    torch.rand(7)
    assert finish(make("second", defenses=[FeCo(0.5)], **settings)) == first
    third = finish(make("third", defenses=[FeCo(0.5)], seed=1, **settings))
    assert {path for path in first if path.endswith(".wav") and first[path] != third[path]}


def test_an_ensemble_takes_part_in_a_campaign_and_leaves_the_same_bytes_twice(
    recognizer: Recognizer, data: Utterances, tmp_path: Path
) -> None:
    found = []
    for folder in ("first", "second"):
        defenses: list[list[Defense]] = [[GaussianNoise()], [FeCo(0.5)]]
        ensemble = Ensemble([recognizer.with_defenses(own) for own in defenses])
        campaign = Campaign(ensemble, data, [FGSM()], tmp_path / folder, batch_size=6, draws=2, perceptual=False)
        found.append(finish(campaign))
    assert found[0] == found[1] and len(list(campaign.records("FGSM"))) == 12
    assert all(record["correct_rate"] is not None for record in campaign.records("FGSM"))


def test_attacks_without_eot_on_a_randomized_recognizer_are_called_out_by_name(make: Make) -> None:
    campaign = make(attacks=[FGSM(), FGSM(draws=3), PGD(steps=1)], defenses=[FeCo(0.5)], draws=1)
    campaign.run()
    (flag,) = [flag for flag in summarize(campaign).sentinel.flags if flag.id == "no-eot"]
    assert "(no EOT): FGSM, PGD-1 may" in flag.text
    averaged = make("averaged", [FGSM(draws=3)], [FeCo(0.5)], draws=1)
    averaged.run()
    assert not any(flag.id == "no-eot" for flag in summarize(averaged).sentinel.flags)


def test_a_defense_without_a_gradient_asks_for_the_adaptive_attack(make: Make) -> None:
    blunt = make(attacks=[FGSM()], defenses=[Quantization()])
    blunt.run()
    (flag,) = [flag for flag in summarize(blunt).sentinel.flags if flag.id == "no-gradient"]
    assert flag.text.startswith("Quantization has no gradient") and "FGSM" in flag.text
    adaptive = make("adaptive", [Adaptive(FGSM(), ["identity"])], [Quantization()])
    adaptive.run()
    assert not any(flag.id == "no-gradient" for flag in summarize(adaptive).sentinel.flags)


# Kill and resume, ranks


def test_a_resume_does_only_what_is_missing_and_leaves_the_same_bytes(make: Make) -> None:
    settings: dict[str, Any] = {"defenses": [FeCo(0.5)], "goal": "random", "draws": 2}
    whole = finish(make("whole", [Seen(), PGD(steps=1, restarts=1)], **settings))
    torn = make("torn", [Seen(), PGD(steps=1, restarts=1)], **settings)
    torn.run()
    torn.unit("Seen", 1).unlink()
    torn.unit("PGD-1-x1", 0).unlink()
    torn.unit(BENIGN, 2).unlink()
    for path in (torn.output / "audio" / "Seen").glob("*/*.wav"):
        if path.stem in [torn.data.utterances[i].name for i in torn.batches[1]]:
            path.unlink()
    times = {path: path.stat().st_mtime_ns for path in torn.output.rglob("*.jsonl")}
    attack = Seen()
    done: list[int] = []
    resumed = make("torn", [attack, PGD(steps=1, restarts=1)], **settings)
    resumed.run(progress=done.append)
    write_summary(summarize(resumed), resumed.output)
    assert files(resumed.output) == whole
    assert len(attack.calls) == 1 and len(attack.calls[0][1]) == 5
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())
    assert sum(done) == 3 * 12 + len(resumed.sample)  # what was there counts as progress, too


def test_a_finished_campaign_is_not_attacked_again(make: Make) -> None:
    first = finish(make(attacks=[Seen()]))
    attack = Seen()
    assert finish(make(attacks=[attack])) == first
    assert not hasattr(attack, "calls")


@pytest.mark.parametrize("place", ["records", "audio", "records/FGSM", "audio/FGSM", "audio/FGSM/anna"])
def test_a_campaign_follows_no_link_out_of_its_folder(place: str, make: Make, tmp_path: Path) -> None:
    campaign = make()
    (tmp_path / "elsewhere").mkdir()
    path = campaign.output / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CampaignError, match=f"{place} leads out of .*: remove the link"):
        campaign.run()
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_half_written_files_of_a_killed_process_are_not_taken_for_records(make: Make) -> None:
    whole = finish(make("whole"))
    torn = make("torn")
    litter = [
        torn.unit("FGSM", 0),
        torn.output / "audio" / "FGSM" / "anna" / "anna-0.wav",
        torn.output / "campaign.json",
    ]
    litter = [path.with_name(f".{path.name}.123") for path in litter]
    for path in litter:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'{"name": "anna-0", "lab')
    found = finish(torn)
    assert {path: content for path, content in found.items() if not path.endswith(".123")} == whole


def test_what_a_kill_left_is_gone_when_the_tables_are_there(known: Campaign) -> None:
    folder = known.output / "audio" / "FGSM" / "anna"
    folder.mkdir(parents=True)
    old, young = (folder / f".{name}.wav.0123456789abcdef.partial" for name in ("old", "young"))
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() - LEFT - 1,) * 2)
    report(known, 0.01)
    assert not old.exists() and young.exists()  # another process may be at work on it


def test_a_write_that_fails_leaves_nothing_under_the_name_and_no_litter(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finish(make("whole"))
    campaign = make("full")
    campaign.open()
    honest = Path.write_text

    def disk_full(path: Path, text: str, **rest: Any) -> int:
        honest(path, text[:30], **rest)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", disk_full)
        with pytest.raises(OSError, match="No space left"):
            campaign.run()
    assert set(files(campaign.output)) == {"campaign.json"}
    assert finish(campaign) == whole


def changed(text: str) -> str:
    return text.replace('"correct": false', '"correct": true').replace('"correct": true', '"correct": false', 1)


def copied(campaign: Campaign, source: str) -> str:
    """A unit of FGSM, or the one of another campaign, in place of FGSM's second unit."""
    text = (campaign.output / source).read_text()
    assert text != campaign.unit("FGSM", 1).read_text()
    return text


def misfits(campaign: Campaign, other: Campaign) -> list[str]:
    """What else than itself may stand in the place of FGSM's second unit."""
    text = campaign.unit("FGSM", 1).read_text()
    lines = text.splitlines(keepends=True)
    found = {
        "changed": changed(text),
        "a number changed": text.replace('"queries": 2', '"queries": 1'),
        "doubled": text + lines[-1],
        "one for all": lines[0] * 5,
        "in another order": "".join(reversed(lines)),
        "of another unit": campaign.unit("FGSM", 0).read_text(),
        "of another attack": campaign.unit("PGD-2", 1).read_text(),
        "of another campaign": other.unit("FGSM", 1).read_text(),
        "cut in a line": text[:-40],
        "cut between lines": "".join(lines[:-1]),
        "empty": "",
        "no records": "[1]\n" * 5,
        "deep": "[" * 100_000,
        "the same word twice": text.replace('"correct":', '"correct": true, "correct":', 1),
    }
    assert text not in found.values()
    return [*found.values()]


def test_records_that_do_not_fit_give_no_table(make: Make) -> None:
    campaign, other = make("torn"), make("other", seed=1)
    campaign.run()
    other.run()
    path = campaign.unit("FGSM", 1)
    for text in misfits(campaign, other):
        path.write_text(text)
        with pytest.raises(CampaignError, match=rf"{path} was changed or cut, .*: run the same command again"):
            summarize(campaign)


def test_records_that_do_not_fit_are_named_and_done_again(make: Make) -> None:
    campaign = make()
    expected = finish(campaign)
    cut, swapped = (campaign.unit("FGSM", index) for index in (1, 2))
    swapped.write_bytes(campaign.unit("PGD-2", 2).read_bytes())
    cut.write_text(cut.read_text()[:-40])
    with pytest.warns(UserWarning, match="it is done again") as told:
        assert finish(make()) == expected
    assert [str(one.message).partition(" ")[0] for one in told] == [str(cut), str(swapped)]


def test_audio_that_does_not_fit_is_done_again(make: Make) -> None:
    campaign = make()
    expected = finish(campaign)
    times = {path: path.stat().st_mtime_ns for path in campaign.output.rglob("*.jsonl")}
    cut, missing = (campaign.output / "audio" / name for name in ("FGSM/anna/anna-1.wav", "PGD-2/bert/bert-2.wav"))
    cut.write_bytes(cut.read_bytes()[:-2])
    missing.unlink()
    with pytest.warns(UserWarning, match="it is done again") as told:
        assert finish(make()) == expected
    assert [str(one.message) for one in told] == [
        f"{p} is missing or was changed: it is done again" for p in (cut, missing)
    ]
    again = [path for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert sorted(again) == [campaign.unit("FGSM", 0), campaign.unit("PGD-2", 1)]


def test_records_without_a_campaign_are_not_adopted(make: Make) -> None:
    campaign = make()
    before = finish(campaign)
    (campaign.output / "campaign.json").unlink()
    for other in (make(), make(seed=1)):
        with pytest.raises(CampaignError, match=r"holds records and no campaign.json"):
            other.run()
    assert files(campaign.output) == {name: text for name, text in before.items() if name != "campaign.json"}


def test_names_that_lead_out_of_a_folder_stay_inside_the_campaign(make: Make, data: Utterances) -> None:
    class Outside(FGSM):
        name = "../../FGSM"

    names = [("..", "../../../x"), ("../..", "/x"), ("", "anna/1"), ("anna", "anna%2F1"), ("anna", "x" * 300)]
    odd = [utterance._replace(speaker=s, name=n) for utterance, (s, n) in zip(data.utterances, names, strict=False)]
    campaign = make("deep/deeper/campaign", [Outside()], utterances=Utterances(odd, data.labels[: len(odd)]))
    outside = campaign.output.parents[1]
    campaign.run()
    left = files(outside)
    assert all(path.startswith("deeper/campaign/") for path in left)
    assert len([path for path in left if path.endswith(".wav")]) == len(names)
    assert [record["name"] for record in campaign.records("../../FGSM")] == [name for _, name in names]
    assert summarize(campaign).rows[0].accuracy.trials == len(names)


def test_two_ranks_share_the_batches_and_leave_the_bytes_of_one(make: Make) -> None:
    settings: dict[str, Any] = {"defenses": [FeCo(0.5)], "goal": "simplest", "draws": 2, "batch_size": 2}
    alone = finish(make("alone", [Seen(), PGD(steps=1, restarts=1)], **settings))
    attacks = [Seen(), Seen()]
    for rank in (1, 0):  # in any order
        make("shared", [attacks[rank], PGD(steps=1, restarts=1)], **settings).run(rank, 2)
    shared = finish(make("shared", [Seen(), PGD(steps=1, restarts=1)], **settings))
    assert shared == alone
    attacks[0].calls.pop()  # what the sentinel asks, of the first process alone
    parts = [[str(row[row != 0].tolist()) for call in attack.calls for row in call[1]] for attack in attacks]
    assert [len(set(part)) for part in parts] == [6, 6] and len({*parts[0], *parts[1]}) == 12


def test_more_ranks_than_batches_leave_the_same_bytes(make: Make) -> None:
    alone = finish(make("alone", [FGSM()]))
    for rank in range(5):
        make("shared", [FGSM()]).run(rank, 5)
    assert finish(make("shared", [FGSM()])) == alone


def test_a_table_of_an_unfinished_campaign_says_what_is_missing(make: Make) -> None:
    campaign = make()
    campaign.run(0, 2)
    with pytest.raises(CampaignError, match=r"benign/00001.jsonl is missing: run the same command again"):
        summarize(campaign)


# Refusals


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"goal": "random"}, "goal"),
        ({"adaptive": False}, "adaptive"),
        ({"seed": 1}, "seed"),
        ({"batch_size": 4}, "batch_size"),
        ({"draws": 3}, "draws"),
        ({"perceptual": True}, "perceptual"),
        ({"attacks": [FGSM(loss="margin")]}, "attacks"),
        ({"attacks": [FGSM(), PGD()]}, "attacks"),
        ({"defenses": [Quantization()]}, "recognizer"),
        ({"identity": {"checkpoint": "other"}}, "checkpoint"),
        ({"utterances": "part"}, "manifest, utterances"),
        ({"utterances": "cut"}, "manifest"),
        ({"utterances": "relabelled", "goal": "random"}, "goal, manifest"),
    ],
    ids=str,
)
def test_the_folder_of_another_campaign_is_refused_with_what_differs(
    make: Make, data: Utterances, changed: dict[str, Any], named: str
) -> None:
    base: dict[str, Any] = {"attacks": [FGSM()], "identity": {"checkpoint": "one"}}
    make(**base).open()
    listed = data.utterances
    variants = {
        "part": listed[:6],
        "cut": [u._replace(frames=9000) for u in listed],
        "relabelled": [u._replace(speaker="dora") if u.name == WRONG else u for u in listed],
    }
    if "utterances" in changed:
        chosen = variants[changed["utterances"]]
        changed = {**changed, "utterances": Utterances(chosen, label(chosen, SPEAKERS))}
    with pytest.raises(CampaignError, match=f"another campaign, which differs in {named}: choose another output"):
        make(**{**base, **changed}).run()
    make(**base).open()  # and the folder still is the first one's


@pytest.mark.parametrize("text", ["", "[1, 2]", "3"])
def test_a_campaign_file_that_is_none_is_refused(make: Make, text: str) -> None:
    campaign = make()
    campaign.output.mkdir()
    (campaign.output / "campaign.json").write_text(text)
    with pytest.raises(CampaignError, match=r"campaign.json is no campaign's .*choose another output"):
        campaign.run()


def test_an_output_that_cannot_be_written_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CampaignError, match=r"file/under can't be written .*choose another output"):
        make("file/under").run()


def test_attacks_need_names_of_their_own(make: Make) -> None:
    with pytest.raises(CampaignError, match="names of their own, got PGD-10, PGD-10"):
        make(attacks=[PGD(), PGD(steps=10)])
    names = [attack.name for attack in (PGD(), PGD(step_size=1e-8), PGD(loss="margin"), FGSM(0.004), PGD(draws=5))]
    assert names == ["PGD-10", "PGD-10-step1e-08", "PGD-10-margin", "FGSM-eps0.004", "PGD-10-EOT5"]


def test_a_campaign_needs_utterances_and_positive_sizes(make: Make, recognizer: Recognizer, tmp_path: Path) -> None:
    with pytest.raises(CampaignError, match="at least one utterance"):
        Campaign(recognizer, Utterances([], []), [FGSM()], tmp_path)
    for settings in ({"batch_size": 0}, {"draws": 0}):
        with pytest.raises(CampaignError, match="batch_size and draws >= 1"):
            make(**settings)


def test_a_too_short_utterance_is_named_before_any_work(make: Make, recognizer: Recognizer, data: Utterances) -> None:
    minimum = recognizer.minimum_samples
    short = [u._replace(frames=minimum - 1) if u.name == "carl-1" else u for u in data.utterances]
    with pytest.raises(ValueError, match=rf"'carl-1' has {minimum - 1} samples, .* at least {minimum}"):
        make(utterances=Utterances(short, data.labels))
    enough = [u._replace(frames=minimum) if u.name == "carl-1" else u for u in data.utterances]
    make(attacks=[], utterances=Utterances(enough, data.labels)).run()


def test_an_unknown_speaker_is_an_error_in_a_closed_set_and_rejected_in_an_open_one(data: Utterances) -> None:
    with pytest.raises(DataError, match=r"unknown to the recognizer \(dora\)"):
        label(data.utterances, SPEAKERS[:3])
    assert label(data.utterances, SPEAKERS[:3], closed=False)[-3:] == [REJECT] * 3


# Tables


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 1), (1, 1), (0, 40), (3, 40), (20, 40), (39, 40), (40, 40), (7, 2887)]
)
def test_rates_have_the_wilson_interval_of_scipy(successes: int, trials: int) -> None:
    rate = Rate.of([True] * successes + [False] * (trials - successes))
    expected = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    assert (rate.successes, rate.trials, rate.value) == (successes, trials, successes / trials)
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert str(rate) == f"{100 * rate.value:.1f} [{100 * expected.low:.1f}, {100 * expected.high:.1f}]"


def test_a_rate_of_nothing_is_a_dash() -> None:
    assert Rate.of([]) == (0, 0, None, None, None) and str(Rate.of([])) == "-"


@pytest.fixture
def known(make: Make) -> Campaign:
    """A campaign of two attacks whose records were written by hand: benign 10 of 12, A 6, B 4, both 2."""
    campaign = make(attacks=[FGSM(), PGD()], goal="random", perceptual=True)
    campaign.open()
    right = {BENIGN: range(10), "FGSM": range(6), "PGD-10": [4, 5, 6, 11]}
    names = [utterance.name for utterance in campaign.data.utterances]
    for name, correct in right.items():
        for index, batch in enumerate(campaign.batches):
            records = []
            for i in batch:
                record: dict[str, Any] = {"name": names[i], "label": 1, "target": 2, "correct": i in correct}
                record |= {"decision": 1 if i in correct else 2, "correct_rate": None, "margin": 1.0, "gradient": 1.0}
                record |= {"noise": {"0.002": False}, "further": None, "finite": True}
                if name != BENIGN:
                    record |= {
                        "achieved": i not in correct and i != 3,
                        "achieved_rate": None,
                        "queries": i,
                        "audio": "a",
                    }
                    record |= {"l0": 9, "l1": 1.5, "l2": 0.5, "linf": 0.0 if i == 9 else 0.002}
                    record |= {"snr": None if i == 0 else float(i), "stoi": None}
                    record |= {"pesq": None if i < 4 else 2.5 if name == "FGSM" else 4.5}
                records.append(record)
            campaign.write(name, index, records)
    healthy = {"slopes": [1.0, 1.0, 1.0], "lift": 100.0, "queried": {}, "wide": {}, "oblivious": {}}
    campaign.write(PROBE, 0, [{"name": names[i], **healthy} for i in campaign.sample])
    return campaign


def test_the_numbers_of_the_summary_are_those_worked_out_by_hand(known: Campaign) -> None:
    summary = summarize(known)
    assert summary.benign[:3] == (10, 12, 10 / 12)
    fgsm, pgd = summary.rows
    assert fgsm.accuracy[:2] == (6, 12) and pgd.accuracy[:2] == (4, 12)
    assert fgsm.success[:2] == (4, 10) and pgd.success[:2] == (6, 10)  # of the first ten; utterance 3 fell for nobody
    assert summary.worst[:2] == (2, 12)  # 4 and 5; 11 was wrong before
    benign, mean = 10 / 12, (6 / 12 + 4 / 12) / 2
    assert summary.r1 == pytest.approx(2 * benign * mean / (benign + mean))
    assert fgsm.queries == 5.5
    assert fgsm.changed == 11  # all but utterance 9
    assert fgsm.measures["snr"] == {"mean": 5.7, "undefined": 1}
    assert fgsm.measures["pesq"] == {"mean": 2.5, "undefined": 4}
    assert fgsm.measures["stoi"] == {"mean": None, "undefined": 11}
    assert summary.goal == "random"
    assert [note[:16] for note in summary.notes] == ["Targeted attacks"]


def test_a_target_that_is_the_speaker_does_not_count(known: Campaign) -> None:
    records = known.read("PGD-10", 0)
    records[0] |= {"target": 1, "achieved": True}
    known.write("PGD-10", 0, records)
    assert summarize(known).rows[1].success[:2] == (5, 9)


def strict(text: str) -> Any:
    """Parse JSON, without the NaN and Infinity that Python accepts."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_json_is_strict_and_holds_every_number(known: Campaign) -> None:
    summary = summarize(known)
    found = strict(summary.to_json())
    assert found["benign"] == summary.benign._asdict() and found["worst"] == summary.worst._asdict()
    assert found["r1"] == summary.r1 and found["goal"] == "random"
    assert [row["attack"] for row in found["rows"]] == ["FGSM", "PGD-10"]
    assert found["rows"][1]["success"] == summary.rows[1].success._asdict()
    assert found["rows"][0]["measures"]["pesq"] == {"mean": 2.5, "undefined": 4}


def test_the_csv_has_a_cell_under_every_title_and_a_line_an_attack(known: Campaign) -> None:
    summary = summarize(known)
    lines = list(csv.reader(io.StringIO(summary.to_csv())))
    assert {len(line) for line in lines} == {len(lines[0])} and len(set(lines[0])) == len(lines[0])
    benign, fgsm, pgd, worst = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    assert [row["attack"] for row in (benign, fgsm, pgd, worst)] == ["benign", "FGSM", "PGD-10", "worst case"]
    for row, rate in ((benign, summary.benign), (fgsm, summary.rows[0].accuracy), (worst, summary.worst)):
        cells = [row[f"accuracy{part}"] for part in ("_k", "_n", "", "_low", "_high")]
        assert [float(cell) for cell in cells] == pytest.approx(list(rate))
    assert [float(pgd[f"success{part}"]) for part in ("_k", "_n", "")] == [6, 10, 0.6]
    numbers = {"l0": 9, "l1": 1.5, "l2": 0.5, "linf": 0.002, "snr": 5.7, "pesq": 2.5, "queries": 5.5, "changed": 11}
    assert {name: float(fgsm[name]) for name in numbers} == numbers
    assert [fgsm[f"{name}_undefined"] for name in ("l2", "linf", "snr", "pesq", "stoi")] == ["0", "0", "1", "4", "11"]
    assert (fgsm["stoi"], fgsm["accuracy_over_draws"], benign["success_n"], worst["pesq"]) == ("", "", "", "")


def tables(text: str) -> list[list[list[str]]]:
    """The cells of the tables of a summary: of the attacks, and by length."""
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()] for block in blocks]


def test_the_markdown_has_a_row_an_attack_and_a_cell_under_every_title(known: Campaign) -> None:
    text = summarize(known).to_markdown()
    rows, lengths = tables(text)
    assert [row[0] for row in rows] == ["attack", "---", "none (benign)", "FGSM", "PGD-10", "worst case"]
    assert {len(row) for row in rows} == {len(rows[0])} and {len(row) for row in lengths} == {5}
    assert [row[0] for row in lengths] == ["accuracy % [95 %] by length", "---", "benign", "FGSM", "PGD-10"]
    fgsm = dict(zip(rows[0], rows[3], strict=True))
    assert fgsm["accuracy % [95 %]"] == "50.0 [25.4, 74.6]" and fgsm["n"] == "10"
    assert fgsm["undefined"] == "1 SNR, 4 PESQ, 11 STOI" and (fgsm["PESQ"], fgsm["STOI"]) == ("2.50", "-")
    assert fgsm["changed"] == "11" and (fgsm["L0"], fgsm["L1"]) == ("9", "1.50")
    head, _, _ = text.partition("\n")
    assert head.startswith("Goal: random. 12 utterances of 0.7 to 0.8 s, median 0.8 s. R1 ")
    assert head.endswith(" 55.6 %.")


def test_rows_of_a_randomized_recognizer_have_a_cell_under_every_title(make: Make) -> None:
    campaign = make(attacks=[FGSM()], defenses=[FeCo(0.5)], draws=2)
    campaign.run()
    summary = summarize(campaign)
    lines = list(csv.reader(io.StringIO(summary.to_csv())))
    assert {len(line) for line in lines} == {len(lines[0])}
    column = lines[0].index("accuracy_over_draws")
    assert [float(line[column]) for line in lines[1:3]] == [
        summary.benign_over_draws,
        summary.rows[0].accuracy_over_draws,
    ]
    rows, _ = tables(summary.to_markdown())
    assert {len(row) for row in rows} == {len(rows[0])}


def test_without_attacks_the_summary_is_the_benign_accuracy(make: Make) -> None:
    campaign = make(attacks=[])
    campaign.run()
    summary = summarize(campaign)
    assert (summary.rows, summary.r1, summary.worst) == ([], None, summary.benign)
    assert (
        strict(summary.to_json())["r1"] is None
        and "R1 (benign and mean adversarial accuracy): -." in summary.to_markdown()
    )


def test_failures_of_pesq_and_stoi_are_counted_and_left_out_of_the_means(make: Make, tmp_path: Path) -> None:
    """Speech is measured; silence has no quality, and 0.1 s is too short for both."""
    (tmp_path / "odd" / "test" / "anna").mkdir(parents=True)
    sounds = {"speech": voice(0, 0, 1.0), "silence": np.zeros(SAMPLE_RATE), "short": voice(0, 1, 0.1)}
    for name, samples in sounds.items():
        soundfile.write(tmp_path / "odd" / "test" / "anna" / f"{name}.wav", samples, SAMPLE_RATE)
    odd = load(tmp_path / "odd")
    campaign = make(attacks=[FGSM(), Nothing()], utterances=odd, perceptual=True)
    campaign.run()
    records = {record["name"]: record for record in campaign.records("FGSM")}
    assert records["speech"]["pesq"] > 1.0 and 0.0 < records["speech"]["stoi"] <= 1.0
    assert {records[name][measure] for name in ("silence", "short") for measure in ("pesq", "stoi")} == {None}
    fgsm, nothing = summarize(campaign).rows
    assert records["silence"]["linf"] == 0.0 and fgsm.changed == 2  # what an attack left alone is not measured
    assert fgsm.measures["pesq"] == {"mean": records["speech"]["pesq"], "undefined": 1}
    assert fgsm.measures["stoi"] == {"mean": records["speech"]["stoi"], "undefined": 1}
    assert fgsm.measures["linf"]["undefined"] == 0
    assert nothing.changed == 0 and nothing.measures["snr"] == {"mean": None, "undefined": 0}
    strict(summarize(campaign).to_json())


def test_measures_that_were_not_asked_for_are_not_counted_as_failures(make: Make) -> None:
    campaign = make(attacks=[FGSM()], perceptual=False)
    campaign.run()
    summary = summarize(campaign)
    assert summary.rows[0].measures["pesq"] == summary.rows[0].measures["stoi"] == {"mean": None, "undefined": None}
    assert "PESQ and STOI were not measured." in summary.to_markdown() and "12 PESQ" not in summary.to_markdown()


def test_records_and_tables_hold_no_times_and_no_machine(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    first = finish(make("first"))
    monkeypatch.setattr("time.time", lambda: 12345.0)
    monkeypatch.setattr("os.getpid", lambda: 4321)
    assert finish(make("elsewhere/second")) == first
    assert {"summary.json", "summary.csv", "summary.md"} < set(first)


# The terminal


def shown(summary: Summary, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    show(summary, [Path("/out/summary.json"), Path("/out/[x]/summary.md")], console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def by_length(lines: list[str]) -> int:
    """Where the second table begins."""
    return next(index for index, line in enumerate(lines) if "accuracy % by length" in line)


def test_the_terminal_shows_each_attack_on_one_line_of_80_columns(known: Campaign) -> None:
    summary = summarize(known)
    everything = shown(summary)
    lines, lengths = everything[: by_length(everything)], everything[by_length(everything) :]
    (fgsm,) = [line for line in lines if line.strip().startswith("FGSM")]
    assert fgsm.split() == ["FGSM", "50.0", "[25.4,", "74.6]", "40.0", "[16.8,", "68.7]", "5.7", "2.50"]
    (pgd,) = [line for line in lines if line.strip().startswith("PGD-10")]
    (worst,) = [line for line in lines if line.strip().startswith("worst case")]
    assert "60.0 [31.3, 83.2]" in pgd and "16.7 [4.7, 44.8]" in worst
    assert any("success % of 10" in line for line in lines)
    assert lengths[0].split()[4:8] == ["0.7", "to", "0.7", "s"] and lengths[0].count(" to ") == 4
    under_fgsm = [quarter.accuracy["FGSM"] for quarter in summary.quarters]
    assert sum(rate.successes for rate in under_fgsm) == 6 and {rate.trials for rate in under_fgsm} == {3}
    assert lengths[3].split() == ["FGSM", *(f"{100 * rate.successes / 3:.1f}" for rate in under_fgsm)]
    assert any(line.startswith("R1") and line.endswith(" 55.6 %") for line in lengths)
    assert lengths[-1] == "Full tables: /out/summary.json, /out/[x]/summary.md"
    assert all(len(line) <= 80 for line in everything)
    assert not any("draws" in line for line in everything)


def test_the_terminal_shows_rates_over_draws_and_the_notes(make: Make) -> None:
    campaign = make(attacks=[FGSM(epsilon=0.00123456), PGD(steps=3)], defenses=[FeCo(0.5)], draws=3)
    campaign.run()
    summary = summarize(campaign)
    lines = shown(summary)
    assert any("over draws %" in line for line in lines)
    (pgd,) = [line for line in lines[: by_length(lines)] if line.strip().startswith("PGD-3  ")]
    assert f"{100 * summary.rows[1].accuracy_over_draws:.1f}" in pgd.split()
    assert any("Randomized recognizer" in line for line in lines) and not any("**" in line for line in lines)
    assert all(len(line) <= 80 for line in lines)


def test_an_attack_without_a_ball_is_measured_by_its_successes_alone(make: Make) -> None:
    campaign = make(attacks=[PGD(steps=1), CW2(steps=20, search_steps=2, initial_const=1.0)])
    campaign.run()
    summary = summarize(campaign)
    right = {record["name"] for record in campaign.records(BENIGN) if record["correct"]}
    records = list(campaign.records(campaign.attacks[1].name))
    won = [record["l2"] for record in records if record["name"] in right and record["achieved"]]
    assert 0 < len(won) < len(records)
    assert summary.rows[1].measures["l2"]["mean"] == pytest.approx(sum(won) / len(won))
    assert summary.worst == summary.rows[0].accuracy
    assert any("no ball" in note for note in summary.notes)
    # what was wrong already is rightly left alone
    assert not any(flag.id == "unchanged" for flag in summary.sentinel.flags)


def test_an_ensemble_of_attacks_has_the_draws_of_its_weakest_member() -> None:
    assert AutoAttack(draws=5, steps=2, queries=2).gradient_draws == 1
    assert AutoAttack(version="rand", steps=2).gradient_draws == 20
    assert (PGD().gradient_draws, PGD(draws=7).gradient_draws) == (1, 7)


def test_a_resume_refuses_other_weights(make: Make, recognizer: Recognizer, data: Utterances) -> None:
    campaign = make("same", [FGSM()])
    campaign.open()
    other = copy.deepcopy(recognizer)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(CampaignError, match="differs in weights"):
        Campaign(other, data, [FGSM()], campaign.output, batch_size=5, perceptual=False).open()
