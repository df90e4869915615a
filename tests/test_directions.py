"""The DET curve and the directions of successful attacks: against scikit-learn and a campaign's counts, in batches."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, det_curve
from torch import Tensor
from torch.testing import assert_close
from torchmetrics import Metric

from sec4sr_pl.metrics import (
    AttackDirectionRates,
    DetectionErrorTradeoff,
    EqualErrorRate,
    attack_directions,
    equal_error_rate,
)
from sec4sr_pl.robustness.errors import directions
from sec4sr_pl.types import REJECT


def scores() -> tuple[Tensor, Tensor]:
    """Of 120 targets and 300 nontargets, some of them equal."""
    generator = np.random.default_rng(0)
    target, nontarget = (generator.normal(mean, 1.0, 300).round(1) for mean in (1.5, 0.0))
    return torch.from_numpy(target[:120]).float(), torch.from_numpy(nontarget).float()


def decisions() -> tuple[Tensor, Tensor, Tensor]:
    """Benign ones, those under attack, and labels of 900 utterances of four speakers and strangers."""
    generator = torch.Generator().manual_seed(0)
    labels, benign, adversarial = torch.randint(REJECT, 4, (3, 900), generator=generator)
    right = torch.rand(900, generator=generator) < 0.6
    return torch.where(right, labels, benign), adversarial, labels


def halves(make: Callable[[], Metric], *rows: tuple[Tensor, ...]) -> Any:
    """What two metrics make of a part of the rows each, one merged into the other."""
    one, other = make(), make()
    one.update(*rows[0])
    for row in rows[1:]:
        other.update(*row)
    one.merge_state(other)
    return one.compute()


def test_the_curve_of_the_class_is_that_of_sklearn_and_of_two_halves() -> None:
    target, nontarget = scores()
    whole = DetectionErrorTradeoff()
    whole.update(target, nontarget)
    curve = whole.compute()
    labels = np.r_[np.ones(len(target)), np.zeros(len(nontarget))]
    false_alarms, misses, _ = det_curve(labels, torch.cat([target, nontarget]).numpy())
    points = torch.stack([curve.false_alarms, curve.misses], 1).numpy()
    for point in zip(false_alarms, misses, strict=True):
        assert np.abs(points - point).max(1).min() < 1e-6
    assert len(points) == len(torch.cat([target, nontarget]).unique()) + 1 >= len(misses)
    merged = halves(
        DetectionErrorTradeoff, (target[:50], nontarget[:10]), (target[50:], nontarget[10:]), (target[:0],) * 2
    )
    assert merged._fields == ("thresholds", "misses", "false_alarms")
    assert all(torch.equal(one, other) for one, other in zip(merged, curve, strict=True))


def test_the_curve_crosses_the_diagonal_at_the_equal_error_rate_of_its_twin() -> None:
    twins = DetectionErrorTradeoff(), EqualErrorRate()
    for metric in twins:
        metric.update(*scores())
    curve, rate = (metric.compute() for metric in twins)
    crossing = np.interp(0.0, (curve.misses - curve.false_alarms).numpy(), curve.misses.numpy())
    assert float(rate) == pytest.approx(crossing, abs=1e-6)
    assert_close(rate, equal_error_rate(*scores()))


def test_the_directions_are_those_of_the_confusion_matrix_and_of_the_campaigns_records() -> None:
    benign, adversarial, labels = decisions()
    right = benign == labels
    assert 400 < right.sum() < 700
    table = confusion_matrix(labels[right], adversarial[right], labels=[REJECT, 0, 1, 2, 3])
    speakers = table[1:].sum()
    confused = (table[1:, 1:].sum() - np.trace(table[1:, 1:])) / speakers
    found = attack_directions(benign, adversarial, labels)
    expected = [table[0, 1:].sum() / table[0].sum(), table[1:, 0].sum() / speakers, confused]
    assert [float(rate) for rate in found] == pytest.approx(expected, abs=1e-6)
    pairs = zip(labels[right].tolist(), adversarial[right].tolist(), strict=True)
    records: Any = [{"name": i, "label": label, "decision": decision} for i, (label, decision) in enumerate(pairs)]
    counted = directions(records, {i: i for i in range(len(records))})
    assert [float(rate) for rate in found] == pytest.approx([rate.value for rate in counted], abs=1e-6)
    assert len(set(expected)) == 3 and min(expected) > 0.05


def test_directions_add_up_over_batches_and_processes() -> None:
    rows = decisions()
    whole, cuts = attack_directions(*rows), (0, 7, 8, 900)
    batches = [tuple(row[a:b] for row in rows) for a, b in pairwise(cuts)]
    merged = halves(AttackDirectionRates, *batches)
    assert merged._fields == ("accepted", "rejected", "confused")
    assert all(torch.equal(one, other) for one, other in zip(merged, whole, strict=True))


@pytest.mark.parametrize(
    ("benign", "adversarial", "label", "expected"),
    [
        (REJECT, 2, REJECT, (1, math.nan, math.nan)),
        (REJECT, 2, ~2, (1, math.nan, math.nan)),  # a false claim to be the third speaker
        (REJECT, REJECT, ~2, (0, math.nan, math.nan)),
        (2, REJECT, 2, (math.nan, 1, 0)),
        (2, 1, 2, (math.nan, 0, 1)),
        (2, 2, 2, (math.nan, 0, 0)),
        (1, 2, 2, (math.nan,) * 3),  # wrong before: no success, whatever becomes of it
        (1, REJECT, 2, (math.nan,) * 3),
        (0, 1, REJECT, (math.nan,) * 3),
    ],
)
def test_a_single_attack_goes_one_way_if_any(
    benign: int, adversarial: int, label: int, expected: tuple[float, ...]
) -> None:
    found = attack_directions(*(torch.tensor([number]) for number in (benign, adversarial, label)))
    assert [float(rate) for rate in found] == pytest.approx(expected, nan_ok=True)


def test_what_are_no_decisions_is_refused() -> None:
    with pytest.raises(ValueError, match="a decision for each label"):
        attack_directions(torch.zeros(2, dtype=torch.int64), *torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"integers, got \(2,\) torch.float32"):
        attack_directions(*torch.zeros(3, 2))
