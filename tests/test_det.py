"""Detection error tradeoff: its points, errors at a threshold, and the picture."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from sklearn.metrics import det_curve as sklearn_det_curve
from sklearn.metrics import recall_score
from torch import Tensor

from sec4sr_pl.metrics import DetectionErrorRates, det_curve, detection_errors
from sec4sr_pl.robustness.plot import plot_det


def trials(decimals: int | None = None) -> tuple[Tensor, Tensor]:
    generator = np.random.default_rng(0)
    scores = [generator.normal(mean, 1.0, count) for mean, count in ((1.5, 120), (0.0, 300))]
    return tuple(torch.from_numpy(kind if decimals is None else kind.round(decimals)) for kind in scores)  # type: ignore[return-value]


@pytest.mark.parametrize("decimals", [None, 1])
def test_each_point_is_what_its_threshold_does(decimals: int | None) -> None:
    targets, nontargets = trials(decimals)
    curve = det_curve(targets, nontargets)
    assert curve.thresholds[0] == -math.inf and bool((curve.thresholds.diff() > 0).all())
    assert len(curve.thresholds) == len(torch.cat([targets, nontargets]).unique()) + 1
    for threshold, miss, false_alarm in zip(*curve, strict=True):
        assert detection_errors(targets, nontargets, threshold) == (false_alarm, miss)
    assert (curve.misses[0], curve.false_alarms[0], curve.misses[-1], curve.false_alarms[-1]) == (0, 1, 1, 0)


def test_the_curve_goes_through_the_points_of_sklearn() -> None:
    targets, nontargets = trials(1)
    curve = det_curve(targets, nontargets)
    points = set(zip(curve.false_alarms.tolist(), curve.misses.tolist(), strict=True))
    labels = np.r_[np.ones(len(targets)), np.zeros(len(nontargets))]
    false_alarms, misses, _ = sklearn_det_curve(labels, torch.cat([targets, nontargets]).numpy())
    ours = np.array(sorted(points))
    for point in zip(false_alarms, misses, strict=True):
        assert np.abs(ours - point).max(1).min() < 1e-6


def test_errors_at_a_threshold_are_those_of_sklearn() -> None:
    targets, nontargets = trials(1)
    labels = np.r_[np.ones(len(targets)), np.zeros(len(nontargets))]
    decisions = torch.cat([targets, nontargets]).numpy() > 0.7
    found = detection_errors(targets, nontargets, 0.7)
    assert float(found.false_rejection) == pytest.approx(1 - recall_score(labels, decisions))
    assert float(found.false_acceptance) == pytest.approx(1 - recall_score(labels, decisions, pos_label=0))


def test_a_score_at_the_threshold_is_rejected() -> None:
    assert detection_errors(torch.tensor([0.5]), torch.tensor([0.5]), 0.5) == (0, 1)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_errors_without_trials_of_a_kind_are_nan() -> None:
    assert detection_errors(torch.ones(2), torch.ones(0), 0.5).false_acceptance.isnan()
    assert all(rate.isnan() for rate in DetectionErrorRates(0.5).compute())
    with pytest.raises(ValueError, match="expected `target_scores`"):
        detection_errors(torch.ones(2, 1), torch.ones(2), 0.5)


def test_the_curves_are_drawn_with_gaussian_scores_as_lines(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    curves = {
        f"{distance}": det_curve(
            distance + torch.randn(4_000, generator=generator), torch.randn(4_000, generator=generator)
        )
        for distance in (1, 3)
    }
    picture = imread(plot_det(curves, tmp_path / "det.png"))
    assert picture.shape[0] > 400 and picture.std() > 0.05
    assert [path.name for path in tmp_path.iterdir()] == ["det.png"]
