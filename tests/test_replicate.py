"""Replicate: what is repeated survives compression; attacks whose result is longer than the utterance."""

from typing import Any

import pytest
import torch
from conftest import MakeRecognizer
from test_campaign import EPSILON, SPEAKERS, finish, fit, load, write_voices
from test_strong_attacks import Linear, seeded, shipped
from torch import Tensor

from sec4sr_pl import audio
from sec4sr_pl.attacks import FGSM, PGD, Objective, Replicate
from sec4sr_pl.defenses import AverageSmoothing, FeCo, Quantization, WarpedFeCo
from sec4sr_pl.robustness import Campaign, summarize

__all__ = ["shipped"]
Speech = tuple[Tensor, Tensor]


@pytest.mark.parametrize(("copies", "hop"), [(1, 4), (2, 4), (3, 1), (3, 5)])
def test_copies_follow_each_other_on_the_hop_and_the_last_is_whole(copies: int, hop: int) -> None:
    lengths = torch.tensor([23, 20, 9, 3])
    waveforms = torch.rand(4, 23, generator=seeded()).masked_fill(torch.arange(23) >= lengths.unsqueeze(1), 0.0)
    repeated, total = Replicate(FGSM(), copies=copies, hop=hop).present(waveforms, lengths)
    for row, size in enumerate(lengths.tolist()):
        whole = waveforms[row, :size]
        cut = whole[: size // hop * hop] if size >= hop else whole
        expected = torch.cat([cut] * (copies - 1) + [whole])
        assert int(total[row]) == len(expected)
        assert torch.equal(repeated[row, : len(expected)], expected)
        assert not repeated[row, len(expected) :].any()
    assert repeated.shape[1] == int(total.max())


def test_compression_undoes_the_repetition_instead_of_the_attack(shipped: tuple[Any, Tensor, Tensor, Tensor]) -> None:
    """With starts evenly in time each cluster begins as another frame, and ends as the copies of that one frame."""
    recognizer, waveforms, _, labels = shipped
    defended = recognizer.with_defenses([FeCo(start="uniform")])
    attack, lengths = PGD(0.001, 0.0002), torch.full((12,), 16_000)
    plain = attack(recognizer, waveforms, labels)
    result = Replicate(attack)(defended, waveforms, labels)
    assert result.lengths.tolist() == [5 * 16_000] * 12
    assert torch.equal(result.waveforms[:, :16_000], plain.waveforms)
    with torch.no_grad():
        heard = defended(*Replicate(FGSM(0.0)).present(waveforms, lengths))
        assert (defended(waveforms).argmax(1) == labels).float().mean() < 0.5  # its frames are not those of training
    assert (heard.argmax(1) == labels).float().mean() > 0.9
    assert 0.2 < plain.achieved.float().mean() < 1.0
    assert (result.achieved == plain.achieved).float().mean() >= 0.9


def test_only_what_compresses_is_left_out(make_recognizer: MakeRecognizer, speech: Speech) -> None:
    waveforms, lengths = speech[0].double(), speech[1]
    kept = [AverageSmoothing(), Quantization()]
    defended = make_recognizer(defenses=[kept[0], FeCo(), kept[1], WarpedFeCo()]).double()
    uncompressed = make_recognizer(defenses=kept).double()
    labels = uncompressed(waveforms, lengths).argmax(1)
    result = Replicate(PGD(steps=2))(defended, waveforms, labels, lengths)
    expected = PGD(steps=2)(uncompressed, waveforms, labels, lengths).waveforms
    assert torch.equal(result.waveforms, Replicate(PGD()).present(expected, lengths)[0])
    assert result.queries.tolist() == [2 + 1] * 8


@pytest.mark.parametrize("with_lengths", [False, True])
def test_a_surrogate_is_attacked_in_its_place_and_given_back(
    make_recognizer: MakeRecognizer, speech: Speech, with_lengths: bool
) -> None:
    """Neither a recognizer nor a function needs to be told what the other one is."""
    waveforms, lengths = speech[0][:, :12_000], speech[1].clamp_max(12_000) if with_lengths else None
    surrogate, victim = make_recognizer(seed=1).train(), make_recognizer(defenses=[FeCo()])
    labels = victim(waveforms, lengths).argmax(1)

    def function(w: Tensor, n: Tensor) -> Tensor:
        return w[:, :10] * 3.0 + n.unsqueeze(1)

    for of in (surrogate, function):
        expected = PGD(steps=2)(of, waveforms, labels, lengths).waveforms
        result = Replicate(PGD(steps=2), of)(victim, waveforms, labels, lengths)
        assert torch.equal(result.waveforms[:, :1_120], expected[:, :1_120])
    assert surrogate.training and all(weight.requires_grad for weight in surrogate.parameters())
    assert Replicate(PGD(), surrogate).name == "Replicate-5-on-Recognizer-PGD-10"


def test_success_is_measured_on_the_whole_result() -> None:
    model = Linear("CSI", targeted=False)

    def longer(w: Tensor, lengths: Tensor) -> Tensor:
        assert w.shape[1] == int(lengths.max())
        return model(w[:, -60:], lengths)

    attack = Replicate(PGD(0.001, 0.0005), longer, copies=2, hop=7)
    result = attack(longer, model.waveforms, model.labels)
    assert result.waveforms.shape == (12, 60 + 56)
    assert torch.equal(result.achieved, Objective().achieved(longer(result.waveforms, result.lengths), model.labels))


def test_in_parts_as_if_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, attack = Linear("CSI", targeted=False), Replicate(PGD(0.001), lambda w, _: model(w, None), hop=7)
    last = lambda w, _: model(w[:, -60:], None)  # noqa: E731
    lengths = torch.tensor([60, 50, 31] * 4)
    whole = attack(last, model.waveforms, model.labels, lengths)
    monkeypatch.setattr("sec4sr_pl.attacks.base.CACHED_SAMPLES", 5 * 60)
    parts = attack(last, model.waveforms, model.labels, lengths)
    torch.testing.assert_close(parts.waveforms, whole.waveforms, rtol=0, atol=1e-6)
    assert torch.equal(parts.lengths, whole.lengths)


def test_a_function_without_a_surrogate_and_bad_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="Expected a recognizer, whose defenses are known"):
        Replicate(PGD())(lambda w, _: w[:, :2], torch.zeros(1, 9), torch.tensor([0]))
    for wrong in ({"copies": 0}, {"hop": 0}):
        with pytest.raises(ValueError, match="Expected copies >= 1 and hop >= 1"):
            Replicate(PGD(), **wrong)  # type: ignore[arg-type]
    assert Replicate(PGD()).name == "Replicate-5-PGD-10"


def test_a_campaign_measures_a_longer_result_against_the_utterance_repeated_likewise(tmp_path: Any) -> None:
    data = load(write_voices(tmp_path / "voices"))
    recognizer = fit(data).with_defenses([FeCo()])
    inner = FGSM(EPSILON)
    campaign = Campaign(recognizer, data, [Replicate(inner, copies=2)], tmp_path / "out", batch_size=5)
    left = finish(campaign)
    records = list(campaign.records("Replicate-2-FGSM"))
    assert len(records) == len(data) == 12 and len(SPEAKERS) > 1
    for record, (waveform, _, _) in zip(records, data, strict=True):
        heard = audio.read(campaign.output / record["audio"])
        cut = waveform[: len(waveform) // 160 * 160]
        expected = torch.cat([cut, waveform])
        assert len(heard) == len(expected)
        assert 0.9 * EPSILON <= record["linf"] <= EPSILON
        change = (heard - expected).double()
        ratio = 10.0 * (expected.double().square().sum() / change.square().sum()).log10()
        assert record["snr"] == pytest.approx(float(ratio), abs=1e-3)
        assert record["stoi"] is None or record["stoi"] > 0.5
    assert left == {**left, **finish(campaign)}  # a resume finds it done
    assert summarize(campaign).rows[0].attack == "Replicate-2-FGSM"
