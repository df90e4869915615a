"""Seconds that are none are refused where they are given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sec4sr_pl.data import Background, SpeakerData
from sec4sr_pl.data.augment import Noise, RandomEqualizer
from sec4sr_pl.data.manifest import shortened

ROOT = Path("nowhere")


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), -1.0, 1e300])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda seconds: SpeakerData(ROOT, crop_seconds=seconds), "crop_seconds above 0"),
        (lambda seconds: SpeakerData(ROOT, development_seconds=seconds), "development_seconds of at least 0"),
        (lambda seconds: Background(ROOT, segment_seconds=seconds), "segment_seconds above 0"),
        (lambda seconds: shortened([], seconds), "max_seconds above 0"),
    ],
)
def test_a_length_of_no_seconds_is_refused(make: Callable[[float], Any], name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match=rf"Expected {name} and at most 86400 \(a day\), got"):
        make(seconds)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    "make",
    [
        lambda value: Noise(ROOT, low=-value, high=value),
        lambda value: RandomEqualizer(response=value),
        lambda value: RandomEqualizer(level=value),
    ],
)
def test_levels_without_an_end_are_refused(make: Callable[[float], Any], value: float) -> None:
    with pytest.raises(ValueError, match="Expected"):
        make(value)
