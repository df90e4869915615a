"""Success against queries, and its picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ecdf
from test_campaign import fit, load, write_voices

from sec4sr_pl.attacks import FAKEBOB, FGSM, FMN, Objective, Square
from sec4sr_pl.robustness import Campaign
from sec4sr_pl.robustness.campaign import BENIGN
from sec4sr_pl.robustness.plot import plot_queries
from sec4sr_pl.robustness.queries import Curve, query_curves, success_by_queries


def test_a_curve_worked_out_by_hand() -> None:
    achieved, queries = [True, False, True, True, False], [12, 40, 3, 12, 9]
    assert success_by_queries(achieved, queries) == Curve([0, 3, 12, 40], [0.0, 0.2, 0.6, 0.6])
    assert success_by_queries([False], [7]) == Curve([0, 7], [0.0, 0.0])
    assert success_by_queries([True], [7]) == Curve([0, 7], [0.0, 1.0])


def test_where_all_succeed_it_is_the_empirical_distribution_of_the_queries() -> None:
    queries = np.random.default_rng(0).integers(1, 30, 50)
    curve, expected = success_by_queries([True] * 50, queries.tolist()), ecdf(queries).cdf
    assert curve.queries[1:] == expected.quantiles.tolist()
    assert curve.rates[1:] == pytest.approx(expected.probabilities.tolist())


def test_utterances_and_queries_must_go_together() -> None:
    with pytest.raises(ValueError, match="at least one utterance"):
        success_by_queries([], [])
    with pytest.raises(ValueError, match="shorter"):
        success_by_queries([True, False], [1])


def test_a_cap_of_queries_leaves_what_the_curve_says() -> None:
    """An attack that stops by itself, run again with less, has the rate that the curve of the longer run has there."""
    weight = torch.randn(40, generator=torch.Generator().manual_seed(1))
    waveforms = 0.6 * torch.rand(30, 40, generator=torch.Generator().manual_seed(2)) - 0.3

    def run(steps: int) -> Any:
        generators = [torch.Generator().manual_seed(row) for row in range(30)]
        return FAKEBOB(0.3, steps, 0.01, samples=6)(
            lambda w, _: torch.stack([w @ weight, -(w @ weight)], 1),
            waveforms,
            (waveforms @ weight < 0).long(),
            objective=Objective(),
            generator=generators,
        )

    long, short = run(60), run(8)
    curve = success_by_queries(long.achieved.tolist(), long.queries.tolist())
    spent = 9 * 7 + 1  # of an utterance that falls at the ninth look; the last of a run asks no samples
    rate = [rate for queries, rate in zip(*curve, strict=True) if queries <= spent][-1]
    assert 0.0 < rate < curve.rates[-1]
    assert rate == pytest.approx(float(short.achieved.float().mean()))


def test_a_campaigns_curves_count_what_its_tables_count_and_are_drawn(tmp_path: Path) -> None:
    data = load(write_voices(tmp_path / "voices"))
    minimal = FMN("linf", steps=20, enough=0.001)
    attacks = [FGSM(), minimal, Square(0.02, steps=20), FAKEBOB(0.02, steps=6, step_size=0.01, samples=4)]
    campaign = Campaign(fit(data), data, attacks, tmp_path / "out", batch_size=5, perceptual=False)
    campaign.run()
    curves = query_curves(campaign)
    correct = {record["name"] for record in campaign.records(BENIGN) if record["correct"]}
    assert 0 < len(correct) < len(data)
    assert list(curves) == [attack.name for attack in attacks[2:]]  # all utterances of the first cost the same
    assert len({record["queries"] for record in campaign.records(minimal.name)}) > 1  # it goes on after a success
    for name, curve in curves.items():
        records = [record for record in campaign.records(name) if record["name"] in correct]
        assert curve.rates[-1] == pytest.approx(sum(record["achieved"] for record in records) / len(records))
        assert curve.queries[-1] == max(record["queries"] for record in records)
    picture = plot_queries(curves, campaign.output / "queries.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 5_000
    assert not list(campaign.output.glob(".*"))
    assert plot_queries(curves, tmp_path / "again.png").read_bytes() == picture
