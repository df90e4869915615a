"""Recognizers with voice activity detection: with and without lengths, behind FeCo, and where little is voiced."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import MakeRecognizer
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl.attacks import PGD
from sec4sr_pl.backbones import ECAPA, IVector, XVector
from sec4sr_pl.defenses import FeCo
from sec4sr_pl.features import MFCC, EnergyVAD
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.types import full_lengths

Speech = tuple[Tensor, Tensor]


def strict(fewest: int = 32) -> MFCC:
    """The front end of x-vectors, where about half of the frames count as voiced."""
    return MFCC(30, deltas=0, vad=EnergyVAD(2.5, 0.8, context=2, proportion=0.5, fewest=fewest))


def deaf(fewest: int) -> MFCC:
    """Nothing counts as voiced."""
    return MFCC(30, deltas=0, vad=EnergyVAD(threshold=100.0, fewest=fewest))


def small_ecapa() -> ECAPA:
    """A backbone that can't mask."""
    return ECAPA(30, channels=16, embedding_size=24)


@pytest.fixture
def crops(speech: Speech) -> Tensor:
    """(8, time) of one length, all of it speech."""
    waveforms, lengths = speech
    return waveforms[:, : lengths.min()].contiguous()


@pytest.fixture(params=[XVector, small_ecapa], ids=["masked", "not masked"])
def model(request: pytest.FixtureRequest, make_recognizer: MakeRecognizer) -> Recognizer:
    settled = make_recognizer(features=lambda: MFCC(30, deltas=0), backbone=request.param)
    return Recognizer(strict(), settled.backbone, settled.scorer).eval()


def test_frames_that_are_dropped_differ_between_crops_of_one_length(crops: Tensor) -> None:
    frames, kept = strict()(crops)
    assert len(kept.unique()) > 4 and 32 <= kept.min() < 0.6 * frames.shape[1]


def test_scores_without_lengths_are_those_with_all_lengths(model: Recognizer, crops: Tensor) -> None:
    assert_close(model(crops), model(crops, full_lengths(crops)), rtol=0, atol=0)
    for row, crop in zip(model(crops), crops, strict=True):
        assert_close(row, model(crop[None])[0], rtol=1e-4, atol=1e-4)


def test_training_statistics_count_voiced_frames_alone(make_recognizer: MakeRecognizer, crops: Tensor) -> None:
    means = []
    for lengths in (None, full_lengths(crops)):
        recognizer = make_recognizer(features=strict, backbone=XVector).train()
        recognizer(crops, lengths)
        means.append(recognizer.backbone.bn_tdnn5.running_mean)
    assert torch.equal(*means)


def test_an_attack_without_lengths_attacks_the_same_recognizer(model: Recognizer, crops: Tensor) -> None:
    labels = model(crops).argmax(1)
    attack = PGD(steps=3)
    assert torch.equal(
        attack(model, crops, labels).waveforms, attack(model, crops, labels, full_lengths(crops)).waveforms
    )


@pytest.mark.parametrize(("after", "fewest"), [("raw", 32), ("cmvn", 32), ("final", 160)])
def test_the_shortest_utterances_behind_feco_leave_the_backbone_what_it_needs(
    after: str, fewest: int, speech: Speech
) -> None:
    """Means of frames may be voiced in far fewer places than the frames were."""
    backbone, heard = XVector(), list[Tensor]()
    recognizer = Recognizer(strict(fewest), backbone, ClosedSet(512, 2), [FeCo(0.2, after=after)]).eval()
    waveforms = torch.cat([row.unfold(0, recognizer.minimum_samples, 1_000) for row in speech[0][:2]])
    backbone.register_forward_pre_hook(lambda module, inputs: heard.append(inputs[1]))
    assert recognizer.embed(waveforms, full_lengths(waveforms)).isfinite().all()
    assert heard[0].min() >= backbone.minimum_frames


def test_where_means_of_frames_are_seldom_voiced_all_of_them_are_kept(speech: Speech) -> None:
    signal, lengths = speech[0][:2, :25_520], torch.tensor([25_520, 25_520])
    front_end = strict()
    for name in ("raw", "cmvn"):
        signal, lengths = front_end.stages[name](signal, lengths)
    assert signal[..., -1].sum(1).min() >= 32  # enough before
    means, counts = FeCo(0.2, after="cmvn")(signal, lengths)
    assert ((means[..., -1] > 0.5).sum(1) < 32).all()
    frames, kept = front_end.stages["final"](means, counts)
    assert torch.equal(kept, counts) and torch.equal(frames, means[..., :-1])


@pytest.mark.parametrize(("fewest", "kept"), [(0, 0), (1, 99), (99, 99), (100, 99)])
def test_where_too_little_is_voiced_all_is_kept(fewest: int, kept: int) -> None:
    waveform = 0.1 * torch.randn(1, 99 * 160, generator=torch.Generator().manual_seed(0))
    assert deaf(fewest)(waveform)[1].tolist() == [kept]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recognizer(strict(31), XVector(), ClosedSet(512, 2)), "31 frames, but what follows needs 32"),
        (lambda: Recognizer(MFCC(vad=EnergyVAD(fewest=0)), IVector(), ClosedSet(32, 2)), "0 frames, .* needs 1: give"),
        (
            lambda: Recognizer(strict(), XVector(), ClosedSet(512, 2), [FeCo(0.2, after="final")]),
            r"EnergyVAD may leave an utterance 32 frames, but what follows needs 160: give it fewest=160",
        ),
    ],
)
def test_a_vad_that_may_leave_too_little_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
