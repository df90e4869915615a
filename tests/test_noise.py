"""Uniform noise, the control of attacks."""

import pytest
import torch
from torch import Tensor

from sec4sr_pl.attacks import UniformNoise


def nothing(waveforms: Tensor, _: Tensor | None) -> Tensor:
    return torch.zeros(len(waveforms), 2)


def test_noise_is_uniform_in_the_ball_and_asks_nothing_but_the_last_measurement() -> None:
    result = UniformNoise(0.01)(nothing, torch.zeros(4, 50_000), torch.zeros(4, dtype=torch.int64))
    share, _ = result.waveforms.sort(dim=1)
    expected = torch.linspace(-0.01, 0.01, 50_000).expand(4, -1)
    assert (share - expected).abs().max() < 0.02 * 0.01  # Kolmogorov and Smirnov: 1.95 / sqrt(n) is 0.1 %
    assert result.queries.tolist() == [1] * 4
    rows = result.waveforms[:, None] - result.waveforms[None]
    assert (rows.abs().amax(2) > 0.01).sum() == 4 * 3  # each row has noise of its own


def test_the_noise_of_a_row_depends_on_its_generator_alone() -> None:
    waveforms, labels = torch.zeros(3, 900), torch.zeros(3, dtype=torch.int64)
    generators = [torch.Generator().manual_seed(row) for row in range(3)]
    together = UniformNoise()(nothing, waveforms, labels, generator=generators).waveforms
    alone = UniformNoise()(nothing, waveforms[:1, :500], labels[:1], generator=[torch.Generator().manual_seed(1)])
    assert torch.equal(alone.waveforms[0], together[1, :500])
    one = [torch.Generator().manual_seed(7) for _ in range(2)]
    whole = UniformNoise()(nothing, waveforms, labels, generator=one[0]).waveforms
    cut = UniformNoise()(nothing, waveforms[:, :500], labels, generator=one[1]).waveforms
    assert torch.equal(cut, whole[:, :500])


def test_names_tell_balls_apart_and_a_ball_out_of_range_is_refused() -> None:
    assert [UniformNoise().name, UniformNoise(0.01).name] == ["UniformNoise", "UniformNoise-eps0.01"]
    for epsilon in (-0.1, 2.1, float("nan")):
        with pytest.raises(ValueError, match="Expected epsilon in"):
            UniformNoise(epsilon)
