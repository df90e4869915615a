"""Faults of an earlier platform that no other test would notice, each shown where the fault would be visible."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from test_campaign import SPEAKERS, fit, load, write_voices

from sec4sr_pl import attacks, defenses
from sec4sr_pl.attacks import FAKEBOB, FGSM, PGD, Attack
from sec4sr_pl.data.base import Utterances
from sec4sr_pl.data.manifest import label
from sec4sr_pl.defenses import Defense
from sec4sr_pl.defenses.codec import Codec
from sec4sr_pl.metrics import identification_error_rate
from sec4sr_pl.robustness import Campaign, summarize
from sec4sr_pl.robustness.campaign import BENIGN
from sec4sr_pl.types import REJECT


def concrete(package: Any, base: type) -> list[Any]:
    """The classes of a kind that a package exports."""
    exported = [getattr(package, name) for name in package.__all__]
    kinds = [kind for kind in exported if inspect.isclass(kind) and issubclass(kind, base)]
    return [pytest.param(kind, id=kind.__name__) for kind in kinds if not inspect.isabstract(kind)]


def taken(kind: type[Attack]) -> dict[str, Any]:
    """The arguments that an attack takes, and their defaults."""
    return {p.name: p.default for p in inspect.signature(kind).parameters.values()}


REQUIRED: dict[str, dict[str, Any]] = {
    "Adaptive": {"attack": PGD()},
    "AssumedThreshold": {"attack": PGD(), "threshold": 0.5},
    "Replicate": {"inner": PGD()},
    "UniversalPerturbation": {"path": Path("learned.wav")},
}
"""Arguments without a default."""


@pytest.mark.parametrize("kind", concrete(attacks, Attack))
def test_every_argument_of_every_attack_is_one_of_the_command_line(kind: type[Attack]) -> None:
    required = REQUIRED.get(kind.__name__, {})
    written = {key: {"class_path": "PGD"} if isinstance(value, PGD) else value for key, value in required.items()}
    given = taken(kind) | written
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--attacks", type=Sequence[Attack])
    parsed = parser.parse_object({"attacks": [{"class_path": kind.__name__, "init_args": given}]})
    (attack,) = parser.instantiate_classes(parsed).attacks
    bare = kind(**required)
    assert repr(attack) == repr(bare) and attack.name == bare.name
    with pytest.raises(Exception, match="stepz"):
        parser.parse_object({"attacks": [{"class_path": kind.__name__, "init_args": {**given, "stepz": 1}}]})


@pytest.mark.parametrize("kind", concrete(defenses, Defense))
def test_every_defense_has_defaults_that_work(kind: type[Defense]) -> None:
    try:
        defense = kind()
        signal = torch.rand(2, 4_000) - 0.5 if defense.after == "waveform" else torch.rand(2, 40, 32)
        output, lengths = defense(signal)
    except ImportError as error:
        pytest.skip(str(error))
    assert output.isfinite().all() and len(output) == len(lengths) == 2
    assert isinstance(defense, Codec) or output.shape[2:] == signal.shape[2:]


@pytest.mark.parametrize("kind", [kind for kind in concrete(attacks, Attack) if "source" in taken(kind.values[0])])
def test_every_attack_that_follows_gradients_averages_draws(kind: type[Attack]) -> None:
    assert "draws" in taken(kind)
    assert kind(draws=7).gradient_draws == 7  # type: ignore[call-arg]


def test_fakebob_halves_the_step_of_the_row_whose_loss_rises_and_of_no_other() -> None:
    """The first row walks down the teeth of a saw, which rises; the second walks down a slope."""

    def score(waveforms: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        place, toothed = waveforms[:, 0], waveforms[:, 1] > 0.0
        loss = 5.0 + place + torch.where(toothed, 0.02 * (-place / 0.01).floor(), 0.0)
        return torch.stack([loss, torch.zeros_like(loss)], 1)

    waveforms, labels = torch.tensor([[0.005, 0.8], [0.005, -0.8]]).double(), torch.tensor([0, 0])
    attack = FAKEBOB(0.5, steps=40, step_size=0.01, momentum=0.0, samples=10)
    together, alone = (
        attack(score, waveforms[rows], labels[rows], generator=[torch.Generator().manual_seed(row) for row in rows])
        for rows in ([0, 1], [1])
    )
    assert torch.equal(together.waveforms[1:], alone.waveforms)
    assert float(alone.waveforms[0, 0]) == pytest.approx(0.005 - 0.4)  # forty whole steps


def test_identification_errors_are_counted_utterance_by_utterance() -> None:
    decisions = torch.tensor([0, 1, 2, REJECT, 1, 0, 2, REJECT])
    speakers = torch.tensor([0, 2, 2, 1, 0, REJECT, REJECT, REJECT])
    pairs = [(d, s) for d, s in zip(decisions.tolist(), speakers.tolist(), strict=True) if s != REJECT]
    wrong = [d not in (s, REJECT) for d, s in pairs]
    assert float(identification_error_rate(decisions, speakers)) == pytest.approx(sum(wrong) / len(wrong))
    assert sum(wrong) / len(wrong) == 2 / 5
    assert identification_error_rate(speakers[:5], speakers[:5]) == 0.0
    assert identification_error_rate(decisions[5:], speakers[5:]).isnan()


@pytest.mark.parametrize(
    ("decisions", "speakers"),
    [
        (torch.tensor([0.0]), torch.tensor([0])),
        (torch.tensor([True]), torch.tensor([0])),
        (torch.tensor([[0]]), torch.tensor([[0]])),
        (torch.tensor([0, 1]), torch.tensor([0])),
    ],
    ids=["float", "bool", "two dimensions", "another size"],
)
def test_what_are_no_decisions_is_refused(decisions: torch.Tensor, speakers: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected .* got"):
        identification_error_rate(decisions, speakers)


# Campaigns


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Utterances:
    return load(write_voices(tmp_path_factory.mktemp("voices")))


def test_an_open_set_with_a_threshold_of_zero_is_attacked_and_measured_as_one(data: Utterances, tmp_path: Path) -> None:
    """Of a threshold of zero taken for none, strangers would be an error, and rejection no success."""
    recognizer = fit(data)
    recognizer.scorer.threshold.fill_(0.0)
    with torch.no_grad():
        recognizer.scorer.head.bias -= 3.1  # about where the best scores end
    labels = label(data.utterances, SPEAKERS[:3], closed=False)  # dora is a stranger
    campaign = Campaign(recognizer, Utterances(data.utterances, labels), [FGSM()], tmp_path, perceptual=False)
    campaign.run()
    assert campaign.objective.threshold == 0.0
    decisions = []
    for record, (waveform, own, _) in zip(campaign.records(BENIGN), campaign.data, strict=True):
        with torch.no_grad():
            best, index = recognizer(waveform[None])[0].max(0)
        decisions.append(int(index) if best > 0.0 else REJECT)
        assert record["decision"] == decisions[-1] and record["label"] == own
    assert 0 < decisions.count(REJECT) < 12


@pytest.mark.parametrize("batch_size", [5, 12])
def test_rates_are_of_utterances_whatever_the_batches(data: Utterances, tmp_path: Path, batch_size: int) -> None:
    campaign = Campaign(fit(data), data, [FGSM(0.0005)], tmp_path, batch_size=batch_size, perceptual=False)
    campaign.run()
    benign = {record["name"] for record in campaign.records(BENIGN) if record["correct"]}
    records = list(campaign.records(campaign.attacks[0].name))
    (row,) = summarize(campaign).rows
    assert row.success[:2] == (sum(r["achieved"] for r in records if r["name"] in benign), 11)
    assert row.accuracy[:2] == (sum(r["decision"] == r["label"] for r in records), 12)
