"""Numbers of which nothing sensible can be made are refused at once, and never give a full table."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sec4sr_pl.attacks import CW2, FAKEBOB, FMN, MIFGSM, NES, Claim, Objective
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.augment import Noise, RandomEqualizer
from sec4sr_pl.data.batches import bounded
from sec4sr_pl.data.manifest import DataError, Utterance, shortened
from sec4sr_pl.defenses import LowPass
from sec4sr_pl.features import MFCC, EnergyVAD, Fbank, LogMel, Mel
from sec4sr_pl.scoring import ClosedSet, Cosine, CosineClosedSet
from sec4sr_pl.training.objectives import Standard

NUMBERS = (math.nan, math.inf, -math.inf)
UTTERANCE = Utterance("a", "ann", Path("a.wav"), 0, 16_000, 16_000)


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize(
    "make",
    [
        lambda value: CW2(learning_rate=value),
        lambda value: FAKEBOB(step_size=value),
        lambda value: NES(sigma=value),
        lambda value: FMN(step_size=value),
        lambda value: MIFGSM(momentum=value),
        lambda value: MIFGSM(radius=value),
        lambda value: Objective(confidence=value),
        lambda value: Claim(0.0, confidence=value),
        lambda value: LowPass(attenuation=value),
        lambda value: LogMel(pre_emphasis=value),
        lambda value: Mel(level=value),
        lambda value: MFCC(low=value),
        lambda value: MFCC(high=value),
        lambda value: MFCC(lifter=value),
        lambda value: EnergyVAD(threshold=value),
        lambda value: EnergyVAD(mean_scale=value),
        lambda value: CosineClosedSet(8, 2, scale=value),
        lambda value: Standard(noise=value),
        lambda value: Noise(Path("noise"), low=value, high=value),
        lambda value: RandomEqualizer(response=value),
        lambda value: RandomEqualizer(level=value),
        lambda value: SpeakerData(Path("."), crop_seconds=value),
        lambda value: SpeakerData(Path("."), development_seconds=value),
        lambda value: shortened([UTTERANCE], value),
    ],
)
def test_a_number_that_is_not_finite_is_refused(make: Callable[[float], Any], value: float) -> None:
    with pytest.raises(ValueError, match="Expected"):
        make(value)


def test_a_threshold_of_nan_decides_nothing() -> None:
    for goal in (Objective, Claim):
        with pytest.raises(ValueError, match="Expected a threshold"):
            goal(math.nan)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    "make",
    [
        lambda value: LogMel(mels=value),
        lambda value: LogMel(window=value),
        lambda value: LogMel(hop=value),
        lambda value: Mel(hop=value),
        lambda value: Fbank(mels=value),
        lambda value: MFCC(mels=value),
        lambda value: MFCC(lifter=value),
        lambda value: ClosedSet(value, 4),
        lambda value: Cosine().enroll(torch.zeros(3, max(value, 0)), ["ann", "bob", "cat"]),
        lambda value: bounded([UTTERANCE], value),
        lambda value: shortened([UTTERANCE], value),
    ],
)
def test_a_number_of_nothing_is_refused(make: Callable[[int], Any], value: int) -> None:
    with pytest.raises(ValueError, match="Expected"):
        make(value)


def test_an_index_of_no_utterance_is_no_data_set(tmp_path: Path) -> None:
    """An attack learned on it was a file of zeros."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "index.csv").touch()
    with pytest.raises(DataError, match=r"index.csv has no row"):
        SpeakerData(tmp_path).utterances("train")
