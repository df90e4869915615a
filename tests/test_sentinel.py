"""The sentinel: each flag is raised by a recognizer or an attack with that fault, and by no healthy one."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_campaign import fit, load, write_voices
from torch import Tensor
from torch.nn import functional

from sec4sr_pl import audio
from sec4sr_pl.attacks import (
    CW2,
    FAKEBOB,
    FGSM,
    FMN,
    L2PGD,
    NES,
    PGD,
    SNRPGD,
    Adaptive,
    AssumedThreshold,
    Attack,
    AutoAttack,
    Channel,
    InputDiversity,
    OverTheAirPGD,
    PsychoacousticPGD,
    Replicate,
    Square,
    UniformNoise,
    UniversalPerturbation,
)
from sec4sr_pl.data.base import Utterances, collate
from sec4sr_pl.defenses import AverageSmoothing, Defense, GaussianNoise, Quantization
from sec4sr_pl.recognizer import Ensemble, Recognizer
from sec4sr_pl.robustness import Campaign, summarize
from sec4sr_pl.robustness.campaign import BENIGN
from sec4sr_pl.robustness.probe import ball, limited, onward, queries_victim, white_box, without_substitutes, witness
from sec4sr_pl.robustness.sentinel import CHECKS, Report, beats
from sec4sr_pl.robustness.transfer import Transfer
from sec4sr_pl.scoring import ClosedSet

DOCS = Path(__file__).parent.parent / "docs" / "sentinel.md"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Utterances:
    """Twelve utterances of four speakers, eleven of which the recognizer knows."""
    return load(write_voices(tmp_path_factory.mktemp("voices")))


@pytest.fixture
def recognizer(data: Utterances) -> Recognizer:
    return fit(data)


Examine = Callable[..., Report]


@pytest.fixture
def examine(recognizer: Recognizer, data: Utterances, tmp_path: Path) -> Examine:
    """examine(attacks, defenses=(), scorer=None, ...) -> the report on a campaign of one batch."""

    def run(attacks: Sequence[Attack], defenses: Sequence[Defense] = (), scorer: Any = None, **settings: Any) -> Report:
        victim = Recognizer(recognizer.features, recognizer.backbone, scorer or recognizer.scorer, defenses)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        settings = {"batch_size": 12, "draws": 2, "perceptual": False, **settings}
        campaign = Campaign(victim, data, attacks, folder, **settings)
        campaign.run()
        return summarize(campaign).sentinel

    return run


def ids(report: Report) -> set[str]:
    return {flag.id for flag in report.flags}


def like(scorer: ClosedSet, kind: type[ClosedSet]) -> ClosedSet:
    """Another classifier head with the same weights."""
    other = kind(scorer.embedding_size, scorer.speakers)
    other.load_state_dict(scorer.state_dict())
    return other


def test_a_declared_defense_of_one_member_leaves_those_of_the_others_to_be_asked(recognizer: Recognizer) -> None:
    chains: list[list[Defense]] = [[AverageSmoothing(3)], [Quantization(8), AverageSmoothing(5)]]
    ensemble = Ensemble([recognizer.with_defenses(chain) for chain in chains]).eval()
    ensemble.scorer.threshold.fill_(0.25)
    left = without_substitutes(ensemble)
    assert [type(defense) for defense in left.defenses] == [AverageSmoothing, AverageSmoothing]
    assert left.scorer.threshold == 0.25 and not left.training


class Rounded(ClosedSet):
    """Scores of few digits: the gradient is zero everywhere."""

    def forward(self, embeddings: Tensor) -> Tensor:
        return super().forward(embeddings).mul(50.0).round().div(50.0)


class Saturated(ClosedSet):
    """Scores so far apart that the cross-entropy is zero in float32, and its gradient next to nothing."""

    def forward(self, embeddings: Tensor) -> Tensor:
        return 40.0 * super().forward(embeddings)


class Faint(ClosedSet):
    """Not as far apart: a gradient that float32 can hardly hold."""

    def forward(self, embeddings: Tensor) -> Tensor:
        return 21.0 * super().forward(embeddings)


class Broken(ClosedSet):
    """The right scores by way of a square root at zero, whose slope is infinite."""

    def forward(self, embeddings: Tensor) -> Tensor:
        return super().forward(embeddings) + (embeddings - embeddings).square().sum(1, keepdim=True).sqrt()


class Backwards(Defense):
    """Does nothing, and lets gradients through with the wrong sign."""

    differentiable = False

    def __init__(self) -> None:
        super().__init__("waveform")

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return signal * 1.0, lengths

    def through(self, signal: Tensor, output: Tensor, lengths: Tensor) -> Tensor:
        return output.detach() + (signal.detach() - signal)


class Tired(PGD):
    """Gives up where it has many steps."""

    def perturb(self, score: Any, waveforms: Tensor, *rest: Any) -> Tensor:
        return waveforms if self.steps > 5 else super().perturb(score, waveforms, *rest)


WEAK = PGD(0.0002, 0.00005, 10)
"""Leaves some standing."""


@pytest.mark.whole_probe
def test_a_healthy_campaign_raises_no_flag_and_leaves_nothing_unchecked(examine: Examine) -> None:
    sweep = [PGD(0.0002, 0.00005, 20), PGD(0.0008, 0.0002, 10)]
    energies = [L2PGD(0.01), SNRPGD(40.0)]  # neither a ball of full scale nor the noise in one
    found = examine([WEAK, *sweep, *energies, Square(0.0002, steps=30), FMN(steps=40, confidence=0.5)])
    assert found == Report([], [])
    assert found.lines() == ["Sentinel: no flags (docs/sentinel.md)."]


def test_without_rows_to_compare_it_says_so(examine: Examine) -> None:
    found = examine([FGSM()])
    assert found.flags == []
    assert found.unchecked == ["steps", "unfinished", "unbounded"]
    assert "Nothing to compare for: steps, unfinished, " in found.lines()[-1]


def test_no_eot(examine: Examine) -> None:
    found = examine([FGSM(), PGD(steps=2, draws=2), UniformNoise()], [GaussianNoise(40.0)])
    (flag,) = [flag for flag in found.flags if flag.id == "no-eot"]
    assert "FGSM may" in flag.text and "PGD" not in flag.text
    assert "no-eot" not in ids(examine([PGD(steps=2, draws=2)], [GaussianNoise(40.0)]))


def test_no_eot_is_asked_of_no_attack_that_does_not_query(examine: Examine, tmp_path: Path) -> None:
    sound = tmp_path / "sound.wav"
    audio.write_adversarial(sound, torch.full((160,), 0.001), torch.zeros(160), 0.002)
    assert "no-eot" not in ids(examine([UniversalPerturbation(sound)], [GaussianNoise(40.0)]))
    assert not queries_victim(Transfer(PGD(), [sound])) and not queries_victim(Replicate(UniversalPerturbation(sound)))
    assert queries_victim(AssumedThreshold(PGD(), 0.5)) and queries_victim(Square())


def test_no_gradient(examine: Examine) -> None:
    found = examine([FGSM(), Square(steps=2)], [Quantization(8)])
    (flag,) = [flag for flag in found.flags if flag.id == "no-gradient"]
    assert flag.text.startswith("Quantization has no gradient") and "FGSM may" in flag.text
    assert "no-gradient" not in ids(examine([Adaptive(FGSM(), ["identity"])], [Quantization(8)]))
    assert "no-gradient" not in ids(examine([FGSM()], [AverageSmoothing(3)]))


def test_oblivious(examine: Examine) -> None:
    assert "oblivious" in ids(examine([FGSM()], [AverageSmoothing(3)], adaptive=False))
    assert "oblivious" not in ids(examine([FGSM()], [AverageSmoothing(3)]))
    assert "oblivious" not in ids(examine([FGSM()], adaptive=False))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Rounded, "0 are not finite, 12 zero and 0 below"),
        (Saturated, "0 are not finite, 11 zero and 0 below"),
        (Faint, r"0 are not finite, 0 zero and ([2-9]|1\d) below"),
        (Broken, "12 are not finite, 0 zero and 0 below"),
    ],
)
def test_gradient(examine: Examine, recognizer: Recognizer, kind: type[ClosedSet], words: str) -> None:
    found = examine([FGSM()], scorer=like(recognizer.scorer, kind))
    (flag,) = [flag for flag in found.flags if flag.id == "gradient"]
    assert flag.text.startswith("Of the gradients at 12 utterances") and re.search(words, flag.text)


def test_gradients_on_record_are_those_of_the_cross_entropy(
    recognizer: Recognizer, data: Utterances, tmp_path: Path
) -> None:
    campaign = Campaign(recognizer, data, [FGSM()], tmp_path, batch_size=5, perceptual=False)
    campaign.run()
    for record, (waveform, label, _) in zip(campaign.records(BENIGN), data, strict=True):
        x = waveform[None].double().requires_grad_(True)
        scores = recognizer.double()(x)
        functional.cross_entropy(scores, torch.tensor([label])).backward()
        assert record["gradient"] == pytest.approx(float(x.grad.abs().max()), rel=1e-2)
        others = torch.cat([scores[0, :label], scores[0, label + 1 :]])
        assert record["margin"] == pytest.approx(float(scores[0, label] - others.max()), abs=1e-3)


def test_unchanged(examine: Examine, recognizer: Recognizer) -> None:
    found = examine([PGD(steps=2)], scorer=like(recognizer.scorer, Rounded))
    assert [flag.text for flag in found.flags if flag.id == "unchanged"] == [
        "PGD-2 left 11 of 12 utterances unchanged."
    ]


@pytest.mark.whole_probe
def test_black_box(examine: Examine, recognizer: Recognizer) -> None:
    scorer = like(recognizer.scorer, Rounded)
    attacks = [FGSM(0.02), Square(0.02, steps=60)]
    found = examine([*attacks, FGSM(0.01)], scorer=scorer)
    texts = [flag.text for flag in found.flags if flag.id == "black-box"]
    assert texts[0].startswith("Square-60-eps0.02, without gradients, succeeds on ")
    assert texts[0].endswith("FGSM-eps0.02 on 0.")
    assert re.fullmatch(r"50 queries of Square succeed on \d+ of 11 utterances, FGSM-eps0.01 on 0.", texts[1])
    assert "black-box" not in ids(examine(attacks))  # where gradients work
    assert "black-box" not in examine([FGSM(0.01)]).unchecked  # the campaign brings queries of its own
    assert "black-box" in examine([L2PGD(0.02), Square(0.02, steps=1)]).unchecked  # another norm


@pytest.mark.whole_probe
def test_adaptive(examine: Examine) -> None:
    found = examine([FGSM()], [Backwards()])
    (flag,) = [flag for flag in found.flags if flag.id == "adaptive"]
    aware, unaware = map(int, re.findall(r"on (\d+)", flag.text))
    assert aware + 5 <= unaware <= 11
    for healthy in (Quantization(8), AverageSmoothing(3)):
        report = examine([FGSM()], [healthy])
        assert "adaptive" not in {*ids(report), *report.unchecked}
    assert "adaptive" in examine([Adaptive(FGSM(), ["identity"])], [Quantization(8)]).unchecked


@pytest.mark.whole_probe
def test_epsilon(examine: Examine) -> None:
    shrunk = examine([PGD(0.0008, 0.0002, 5), PGD(0.002, 0.000001, 5)])
    assert "epsilon" in ids(shrunk)
    flat = examine([PGD(0.0004, 0.00002, 10), PGD(0.001, 0.00002, 10)])  # steps that never leave the smaller ball
    (flag,) = [flag for flag in flat.flags if flag.id == "epsilon"]
    assert re.search(r"succeeds on \d+ of 11 utterances, .* of 0.001 instead of 0.0004 on \d+", flag.text)


@pytest.mark.parametrize(
    ("attacks", "words"),
    [
        ([L2PGD(0.03), L2PGD(0.06, step_size=1e-6)], "radius of 0.06 instead of 0.03"),
        ([SNRPGD(20.0, step_size=1e-6), SNRPGD(30.0)], "snr of 20 instead of 30"),
    ],
)
def test_epsilon_sweeps_energies_too(examine: Examine, attacks: list[Attack], words: str) -> None:
    (flag,) = [flag for flag in examine(attacks).flags if flag.id == "epsilon"]
    assert words in flag.text


def test_steps(examine: Examine) -> None:
    found = examine([Tired(0.0008, 0.0002, 5), Tired(0.0008, 0.0002, 6)])
    (flag,) = [flag for flag in found.flags if flag.id == "steps"]
    assert flag.text.startswith("Tired-6-eps0.0008-step0.0002 is weaker than Tired-5-eps0.0008-step0.0002: 0 successes")
    assert "steps" not in ids(examine([PGD(0.0008, 0.0002, 6), PGD(0.0008, 0.0002, 5)]))


def test_unfinished(examine: Examine) -> None:
    found = examine([PGD(0.002, 0.00001, 20)])
    (flag,) = [flag for flag in found.flags if flag.id == "unfinished"]
    assert re.search(r"margin of \d+ utterances that withstood PGD-20-step1e-05 .* goes \d+ % of the way", flag.text)
    assert "unfinished" not in ids(examine([PGD(0.0002, 0.00005, 20)]))


def test_unbounded(examine: Examine, recognizer: Recognizer) -> None:
    scorer = like(recognizer.scorer, Rounded)
    for attack in (FMN(steps=20), PGD(1.0, 0.2, 5), Replicate(FMN(steps=5), copies=1)):
        found = examine([attack], scorer=scorer)
        texts = [flag.text for flag in found.flags if flag.id == "unbounded"]
        assert texts == [f"{attack.name} has no limit and succeeds on 0 of 11 utterances."]
    found = examine([PGD(1.0, 0.01, 5), PGD(0.5, 0.2, 1)])
    assert "unbounded" not in {*ids(found), *found.unchecked}
    found = examine([L2PGD(3.0, steps=1), SNRPGD(steps=1)], scorer=scorer)
    assert {"unbounded", "noise"} <= {*found.unchecked}


def test_noise(examine: Examine) -> None:
    found = examine([FGSM(0.3), FGSM(0.002)])
    (flag,) = [flag for flag in found.flags if flag.id == "noise"]
    assert flag.text.startswith("Uniform noise in the ball of FGSM-eps0.3 succeeds on ")


def test_noise_on_record_is_that_of_the_control_in_each_ball(
    recognizer: Recognizer, data: Utterances, tmp_path: Path
) -> None:
    attacks = [FGSM(), FGSM(0.3), FMN(steps=1), L2PGD(steps=1), SNRPGD(steps=1)]
    campaign = Campaign(recognizer, data, attacks, tmp_path, batch_size=12, perceptual=False)
    campaign.run()
    batch = collate(list(data))
    generator = torch.Generator().manual_seed(campaign.seeds("noise 0.3", batch.names, "attack"))
    noisy = UniformNoise(0.3)(recognizer, batch.waveforms, batch.speakers, batch.lengths, generator=generator)
    records = list(campaign.records(BENIGN))
    assert {tuple(record["noise"]) for record in records} == {("0.002", "0.3")}
    assert [record["noise"]["0.3"] for record in records] == noisy.achieved.tolist()
    assert sum(record["noise"]["0.3"] for record in records) > 6 > sum(record["noise"]["0.002"] for record in records)


def test_a_control_counts_neither_in_the_worst_case_nor_in_r1(
    recognizer: Recognizer, data: Utterances, tmp_path: Path
) -> None:
    tables = []
    for attacks in ([WEAK], [WEAK, UniformNoise(0.3)]):
        campaign = Campaign(recognizer, data, attacks, tmp_path / str(len(attacks)), perceptual=False)
        campaign.run()
        tables.append(summarize(campaign))
    assert tables[0].r1 == tables[1].r1 and tables[0].worst == tables[1].worst
    assert tables[1].rows[1].accuracy.successes < tables[0].rows[0].accuracy.successes


# Parts


@pytest.mark.parametrize(
    ("only_first", "only_second"), [(0, 0), (1, 0), (4, 0), (5, 0), (6, 1), (7, 1), (8, 3), (20, 9)]
)
def test_a_difference_counts_where_chance_makes_it_in_less_than_one_case_of_twenty(
    only_first: int, only_second: int
) -> None:
    both = {f"both {i}" for i in range(20)}
    first, second = ({f"{side} {i}" for i in range(n)} for side, n in (("a", only_first), ("b", only_second)))
    n = only_first + only_second
    chance = sum(math.comb(n, k) for k in range(only_first, n + 1)) / 2**n
    assert beats(both | first, both | second) is (chance < 0.05)
    assert not beats(both | second, both | first)


def test_what_goes_on_from_a_result_has_a_tenth_of_the_steps() -> None:
    assert repr(onward(PGD(steps=50, draws=3, restarts=2))) == repr(PGD(steps=5, draws=3))
    assert repr(onward(PGD(steps=5))) == repr(PGD(steps=1))
    assert repr(onward(AutoAttack(0.001))) == repr(PGD(0.001, 0.0001, 10, loss="margin"))
    for never in (FGSM(), PGD(steps=1), FMN(), Square(), Adaptive(PGD()), PGD(source=NES()), PsychoacousticPGD()):
        assert onward(never) is None


class WithoutGradient(ClosedSet):
    """By way of another library."""

    def forward(self, embeddings: Tensor) -> Tensor:
        return torch.from_numpy(super().forward(embeddings).detach().numpy())


def test_a_recognizer_without_a_gradient_is_attacked_by_queries_and_said_to_have_none(
    examine: Examine, recognizer: Recognizer
) -> None:
    found = examine([Square(steps=3)], scorer=like(recognizer.scorer, WithoutGradient))
    assert {"gradient", "slope"} <= ids(found)


def test_a_suite_is_not_asked_to_beat_an_attack_of_more_steps(examine: Examine) -> None:
    few = AutoAttack(0.0008, steps=1, queries=1, members=[PGD(0.0008, 1e-6, 1)])
    assert "suite" not in ids(examine([few, PGD(0.0008, 0.0002, 20)]))


def test_what_is_crafted_without_the_defenses_is_no_stronger() -> None:
    assert repr(witness(PGD(steps=100, draws=3))) == repr(PGD(steps=20, draws=3))
    assert repr(witness(FGSM(0.001))) == repr(FGSM(0.001))
    assert repr(witness(AutoAttack(0.001))) == repr(PGD(0.001, 0.0002, 20))
    assert repr(witness(AutoAttack(0.001, steps=3))) == repr(PGD(0.001, 0.0002, 3))
    for never in (FMN(), Square(), Adaptive(PGD()), PGD(source=NES()), UniformNoise()):
        assert witness(never) is None


def test_what_sees_gradients_is_a_white_box() -> None:
    assert all(map(white_box, (PGD(), FMN(), AutoAttack(), Adaptive(PGD()), PGD(source=InputDiversity()))))
    assert not any(map(white_box, (PGD(source=NES()), Square(), UniformNoise())))
    behind = InputDiversity(source=InputDiversity(source=NES()))
    assert not any(map(white_box, (PGD(source=behind), OverTheAirPGD(channel=Channel(source=NES())))))


def test_a_wrapper_is_what_its_attack_is(tmp_path: Path) -> None:
    for wrap in (Replicate, lambda attack: AssumedThreshold(attack, 0.5)):
        assert white_box(wrap(PGD())) and white_box(wrap(Replicate(PGD())))
        assert not white_box(wrap(FAKEBOB())) and not white_box(wrap(PGD(source=NES())))
    assert not white_box(Transfer(PGD(), [tmp_path])) and not white_box(Replicate(Transfer(PGD(), [tmp_path])))
    for wrap in (Replicate, lambda attack: AssumedThreshold(attack, 0.5), lambda attack: Transfer(attack, [tmp_path])):
        assert limited(wrap(PGD())) and not limited(wrap(CW2()))
        assert ball(wrap(PGD(0.01))) == 0.01 and ball(wrap(L2PGD())) == ball(wrap(CW2())) == math.inf


def test_no_gradient_spares_an_adaptive_attack_behind_a_wrapper(examine: Examine) -> None:
    found = examine([Replicate(Adaptive(FGSM(), ["identity"]), copies=1)], [Quantization(8)])
    assert "no-gradient" not in ids(found)


def test_the_first_batch_alone_is_probed_and_the_report_stands_in_all_tables(
    recognizer: Recognizer, data: Utterances, tmp_path: Path
) -> None:
    campaign = Campaign(recognizer, data, [PGD(steps=2)], tmp_path, batch_size=5, perceptual=False)
    campaign.run()
    assert [record["further"] is not None for record in campaign.records("PGD-2")] == [True] * 5 + [False] * 7
    summary = summarize(campaign)
    plain = json.loads(summary.to_json())["sentinel"]
    assert plain["unchecked"] == summary.sentinel.unchecked
    assert [tuple(flag.values()) for flag in plain["flags"]] == [tuple(flag) for flag in summary.sentinel.flags]
    assert all(line in summary.to_markdown() for line in summary.sentinel.lines())


def test_every_flag_has_a_paragraph_in_the_docs() -> None:
    assert re.findall(r"^## `([\w-]+)`", DOCS.read_text(encoding="utf-8"), re.MULTILINE) == list(CHECKS)


class Counted(Recognizer):
    """Counts the cost of what it is asked: a row forward is one, forward and back are three."""

    cost = 0

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        Counted.cost += len(waveforms) * (3 if waveforms.requires_grad else 1)
        return super().forward(waveforms, lengths)


@pytest.mark.slow
@pytest.mark.whole_probe
@pytest.mark.parametrize("attack", [PGD(steps=100), AutoAttack()], ids=lambda attack: attack.name)
@pytest.mark.parametrize("defenses", [[], [AverageSmoothing(3)]], ids=["plain", "defended"])
def test_on_two_hundred_utterances_the_checks_cost_at_most_a_tenth(
    attack: Attack, defenses: list[Defense], recognizer: Recognizer, data: Utterances, tmp_path: Path
) -> None:
    """Of the attack's own cost; AutoAttack's where each utterance stands to the end of one of its members."""
    victim = Counted(recognizer.features, recognizer.backbone, recognizer.scorer, defenses).eval()
    campaign = Campaign(victim, data, [attack], tmp_path, batch_size=12, perceptual=False)
    batch = campaign.batch(campaign.batches[0])

    def cost_of(work: Callable[[], object]) -> int:
        before = Counted.cost
        work()
        return Counted.cost - before

    scale = 16 / len(data)  # it would be asked of 16
    probe = scale * cost_of(lambda: campaign.probe(batch))
    further = scale * cost_of(lambda: campaign.further(attack, batch, batch.speakers, batch.waveforms))
    gradients = 3 + len(campaign.balls)  # an utterance's, and noise
    own = 3 * 100
    assert probe + further + 200 * gradients <= 0.1 * 200 * own
