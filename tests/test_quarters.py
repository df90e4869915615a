"""Accuracy by length: every utterance is in one quarter, and the quarters are of neighboring lengths."""

from typing import Any

import pytest

from sec4sr_pl.metrics import wilson_interval
from sec4sr_pl.robustness.lengths import quarters

SECONDS = {f"utterance {i}": 1.0 + (7 * i) % 10 for i in range(10)}
"""1 to 10 s, in no order."""
ALONE = {name: name for name in SECONDS}


def records(longest: float) -> list[Any]:
    """Of an attack under which utterances of at most so many seconds stand."""
    return [{"name": name, "correct": seconds <= longest} for name, seconds in SECONDS.items()]


def test_robustness_that_falls_with_length_shows() -> None:
    found = quarters(SECONDS, {"benign": records(9.0), "PGD-10": records(4.0)}, ALONE)
    assert [quarter.title for quarter in found] == ["1.0 to 2.0 s", "3.0 to 5.0 s", "6.0 to 7.0 s", "8.0 to 10.0 s"]
    assert [quarter.accuracy["benign"][:2] for quarter in found] == [(2, 2), (3, 3), (2, 2), (2, 3)]
    assert [quarter.accuracy["PGD-10"][:2] for quarter in found] == [(2, 2), (2, 3), (0, 2), (0, 3)]
    assert found[1].accuracy["PGD-10"][3:] == pytest.approx(wilson_interval(2, 3))


def test_utterances_of_one_length_fill_four_quarters() -> None:
    same = dict.fromkeys(SECONDS, 2.0)
    found = quarters(same, {"benign": records(10.0)}, ALONE)
    assert [quarter.accuracy["benign"].trials for quarter in found] == [2, 3, 2, 3]


def test_few_utterances_have_no_quarters() -> None:
    few = dict(list(SECONDS.items())[:7])
    assert quarters(few, {"benign": records(10.0)[:7]}, ALONE) == []
