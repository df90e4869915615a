"""The memory of a score function is counted as an allocator would."""

import weakref

import pytest
import torch
from torch import Tensor, nn

from sec4sr_pl.attacks.base import CountedScore
from sec4sr_pl.attacks.memory import PeakMemory


def grow_and_shrink(x: Tensor) -> Tensor:
    copies = x[:, None].repeat(1, 100, 1)  # 100 times
    raised = copies + 1.0  # and again, beside it
    del copies
    flat = raised.view(-1)  # takes nothing, and holds what it is a view of
    del raised
    return flat * 2.0


def test_what_is_gone_is_not_counted_and_views_are_not_counted_twice() -> None:
    x = torch.zeros(1, 100)
    with torch.no_grad(), PeakMemory() as memory:
        result = grow_and_shrink(x)
        x.view(-1).t().add_(1.0)  # nor what was there before
    assert memory.peak == 2 * 100 * x.nbytes
    assert memory.now == result.nbytes


@pytest.mark.parametrize("channels", [8, 64])
def test_it_grows_with_the_model(channels: int) -> None:
    model = nn.Sequential(nn.Conv1d(1, channels, 1), nn.Conv1d(channels, channels, 1))
    x = torch.zeros(2, 1, 1000)
    with torch.no_grad(), PeakMemory() as memory:
        model(x)
    assert memory.peak == 2 * channels * x.nbytes


def test_it_grows_with_the_batch_on_an_accelerator_only() -> None:
    x = torch.zeros(2, 100)
    counted = CountedScore(lambda waveforms, lengths: waveforms[:, :2] * 1.0, x, True)
    with torch.no_grad():
        counted(x, torch.tensor([100, 100]))
    assert counted.cost.bytes_per_sample is None


def test_weights_that_outlive_it_are_not_watched_any_more() -> None:
    network, before = nn.Linear(4, 4), len(weakref.finalize._registry)  # type: ignore[attr-defined]
    for _ in range(3):
        with PeakMemory():
            network(torch.randn(2, 4))
    assert len(weakref.finalize._registry) <= before  # type: ignore[attr-defined]
