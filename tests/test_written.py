"""Attacks that stop when they succeed: the success must outlast the rounding of the file that it becomes."""

import pytest
import torch
from torch import Tensor

from sec4sr_pl.attacks import APGD, FAKEBOB, Attack, Objective, SirenAttack, Square
from sec4sr_pl.attacks.base import CountedScore
from sec4sr_pl.attacks.rows import Rows
from sec4sr_pl.attacks.written import as_written, lasting

STEP = 1 / 32_768
EPSILON, SIZE, ROWS = 65.5 * STEP, 320, 24
LEVEL = 3_000 * STEP


def rise(waveforms: Tensor, _: Tensor | None = None) -> Tensor:
    """Two speakers: the second wins where the mean of an utterance is a quarter of a 16-bit step above a level."""
    mean = (waveforms.double() - LEVEL).mean(1) / STEP - 0.25
    return torch.stack([-mean, mean], 1)


def utterances() -> Tensor:
    """On the 16-bit grid, each a different distance below the border, within half of the ball."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(-400, 400, (ROWS, SIZE), generator=generator).float()
    noise = (noise - noise.mean(1, keepdim=True)).round() + LEVEL / STEP
    return (noise - torch.linspace(2, 33, ROWS).unsqueeze(1).round()) * STEP


def test_a_success_that_rounding_undoes_does_not_last() -> None:
    clean = torch.full((4, SIZE), LEVEL)
    clean[3] += 0.3 * STEP  # not on the grid: the file keeps every bit
    change = torch.tensor([1.2, 0.4, -3.0, 0.4]).unsqueeze(1) * STEP
    counted = CountedScore(rise, clean, masked=True)
    rows = Rows.of(counted, torch.zeros(4, dtype=torch.int64), torch.full((4,), SIZE), None, clean=clean)
    achieved = torch.tensor([True, True, False, True])
    assert rise(clean + change).argmax(1).tolist() == [1, 1, 0, 1]
    found = lasting(achieved, clean + change, rows, EPSILON, Objective(), draws=2)
    assert found.tolist() == [True, False, False, True]
    assert counted.queries.tolist() == [2, 2, 0, 0]
    assert achieved.tolist() == [True, True, False, True]  # what it was asked about stays


@pytest.mark.parametrize(
    ("attack", "queries"),
    [
        (APGD(EPSILON, steps=60, restarts=0), 61),
        (Square(EPSILON, steps=600), 601),
        (FAKEBOB(EPSILON, steps=400, step_size=0.2 * STEP, samples=10, sigma=STEP), 400 * 11 + 1),
        (SirenAttack(EPSILON, particles=40, epochs=1, steps=9), 10 * 40),
    ],
    ids=["APGD", "Square", "FAKEBOB", "Siren"],
)
def test_what_stops_early_succeeds_as_a_file_too(attack: Attack, queries: int) -> None:
    waveforms, labels = utterances(), torch.zeros(ROWS, dtype=torch.int64)
    assert rise(waveforms).argmax(1).eq(0).all()
    result = attack(rise, waveforms, labels, generator=torch.Generator().manual_seed(1))
    stopped = result.queries < queries
    assert stopped.float().mean() > 0.3
    written = as_written(result.waveforms, waveforms, EPSILON)
    assert rise(written).argmax(1)[stopped].eq(1).all()


@pytest.mark.parametrize("draws", [1, 3])
def test_looking_at_the_files_of_successes_stays_within_the_cap(draws: int) -> None:
    def between(waveforms: Tensor, _: Tensor | None) -> Tensor:  # a success off the 16-bit grid alone
        off = ((waveforms.double() / STEP) % 1.0 != 0.0).any(1).double()
        return torch.stack([1.0 - off, off], 1)

    attack = FAKEBOB(EPSILON, steps=100, samples=10, draws=draws, queries=200)
    labels = torch.zeros(ROWS, dtype=torch.int64)
    result = attack(between, utterances(), labels, generator=torch.Generator().manual_seed(0), measure=False)
    assert 150 < int(result.queries.max()) <= 200
