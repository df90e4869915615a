"""The simulated room: each part against what it is defined by; and examples that survive it."""

from pathlib import Path

import pytest
import torch
from test_strong_attacks import seeded
from torch import Tensor

from sec4sr_pl.attacks import PGD, Channel, Objective, OverTheAirPGD
from sec4sr_pl.attacks.channel import LEAD
from sec4sr_pl.checkpoint import load_recognizer
from sec4sr_pl.data import Spk251
from sec4sr_pl.data.base import collate
from sec4sr_pl.types import SAMPLE_RATE, valid_mask

NATURAL = Path(__file__).parent.parent / "checkpoints" / "audionet_mini_natural.ckpt"
CLEAR = {"reverberation": 0.001, "direct": 80.0, "low": 0.1, "high": 8_000.0, "gain": 0.0, "snr": 120.0}


def draws(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).reshape(1, 4, 1)


@pytest.mark.parametrize(("draw", "seconds"), [(1.0, 0.5), (0.5, 0.275)])
def test_the_tail_decays_by_60_db_in_the_time_of_reverberation(draw: float, seconds: float) -> None:
    channel = Channel(reverberation=0.5, direct=-60.0, low=0.1, high=8_000.0)
    response = channel.response(draws(draw, 0.0, 0.0, 1.0), seeded())[0, LEAD + 1 :]
    left = response.square().flip(0).cumsum(0).flip(0)  # Schroeder's integral
    level = 10.0 * torch.log10(left / left[0])
    first, last = (int((level < bound).nonzero()[0]) for bound in (-5.0, -35.0))
    assert (last - first) / SAMPLE_RATE * 2.0 == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize(("draw", "ratio"), [(0.0, -3.0), (1.0, 7.0)])
def test_the_direct_sound_stands_out_by_its_ratio(draw: float, ratio: float) -> None:
    response = Channel(direct=-3.0, low=0.1, high=8_000.0).response(draws(1.0, draw, 0.0, 1.0), seeded())
    energy = response.square().sum()
    direct = response[:, LEAD - 20 : LEAD + 20].square().sum()  # the band limit spreads it a little
    assert float(energy) == pytest.approx(1.0, abs=0.15)  # and takes some of it
    assert float(10.0 * torch.log10(direct / (energy - direct))) == pytest.approx(ratio, abs=0.7)


@pytest.mark.parametrize(("low", "high", "edges"), [(1.0, 0.0, (200.0, 5_000.0)), (0.5, 0.5, (110.0, 6_500.0))])
def test_the_band_ends_at_half_power_and_has_no_delay(low: float, high: float, edges: tuple[float, float]) -> None:
    channel = Channel(reverberation=0.1, direct=200.0, low=200.0, high=5_000.0)
    response = channel.response(draws(0.0, 0.0, low, high), seeded())[0]
    assert int(response.argmax()) == LEAD
    power = torch.fft.rfft(response, SAMPLE_RATE).abs().square()  # a bin a hertz
    for edge in edges:
        assert float(power[round(edge)] / power[1_000]) == pytest.approx(0.5, rel=0.01)
    assert power[20] < 1e-4 * power[1_000]


def test_a_clear_channel_changes_next_to_nothing() -> None:
    channel = Channel(**CLEAR)
    time = torch.arange(3_000.0, dtype=torch.float64)
    wave = (torch.hann_window(3_000, dtype=torch.float64) * torch.sin(0.3 * time)).unsqueeze(0)
    heard = channel.draw(wave, torch.tensor([3_000]), seeded())(wave)
    assert float((heard - wave).norm() / wave.norm()) < 0.01


def test_gain_and_noise_keep_their_budgets_and_differ_between_utterances() -> None:
    channel = Channel(**{**CLEAR, "gain": 6.0, "snr": 10.0})
    wave = torch.sin(0.3 * torch.arange(4_000.0, dtype=torch.float64)).repeat(200, 1)
    lengths = torch.full((200,), 4_000)
    heard = channel.draw(wave, lengths, seeded())(wave)
    gain = (heard * wave).sum(1) / wave.square().sum(1)
    noise = heard - gain.unsqueeze(1) * wave
    snr = 10.0 * torch.log10((gain.unsqueeze(1) * wave).square().sum(1) / noise.square().sum(1))
    decibels = 20.0 * torch.log10(gain)
    assert -6.2 <= decibels.min() < -5.0 and 5.0 < decibels.max() <= 6.2
    assert 9.5 <= snr.min() < 11.5 and 28.5 < snr.max() <= 30.5


def test_a_room_depends_neither_on_batch_mates_nor_on_padding() -> None:
    channel, lengths = Channel(), torch.tensor([3_000, 1_777, 400])
    waveforms = torch.randn(3, 3_000, generator=seeded(), dtype=torch.float64)
    waveforms[~valid_mask(lengths, 3_000)] = 0.0
    together = channel.draw(waveforms, lengths, [seeded(row) for row in range(3)])(waveforms)
    for row, length in enumerate(lengths.tolist()):
        short = waveforms[row : row + 1, :length]
        alone = channel.draw(short, lengths[row : row + 1], [seeded(row)])(short)
        torch.testing.assert_close(alone[0], together[row, :length], rtol=0, atol=1e-9)


def test_a_room_has_the_gradient_of_what_it_does() -> None:
    """The noise has the level of the speech that is heard, and no gradient: without it, the room is linear."""
    channel = Channel(reverberation=0.01, snr=300.0)
    waveforms = torch.randn(2, 40, generator=seeded(), dtype=torch.float64)
    room = channel.draw(waveforms, torch.tensor([40, 25]), seeded())
    assert torch.autograd.gradcheck(room, waveforms.requires_grad_(True))


def test_success_is_counted_over_fresh_rooms() -> None:
    """The gain decides: what is loud enough in half of the rooms achieves the goal in half of them."""
    channel = Channel(**{**CLEAR, "gain": 6.0})
    wave = torch.sin(0.3 * torch.arange(1_000.0)).repeat(3, 1) * torch.tensor([[0.3], [1.0], [3.0]])
    lengths, labels = torch.full((3,), 1_000), torch.zeros(3, dtype=torch.int64)
    rate = channel.success_rate(
        lambda w, _: w.square().mean(1, keepdim=True), wave, labels, lengths, Objective(0.5, True), 400, seeded()
    )
    assert rate.tolist() == pytest.approx([0.0, 0.5, 1.0], abs=0.08)


def test_an_example_for_rooms_survives_fresh_rooms_better(data_root: Path) -> None:
    recognizer = load_recognizer(NATURAL)
    data = Spk251(root=data_root)
    data.connect(recognizer.scorer.speakers)
    dataset = data.dataset("test")
    batch = collate([dataset[index] for index in range(6)])
    waveforms, lengths = batch.waveforms[:, :16_000].contiguous(), batch.lengths.clamp_max(16_000)
    targets, objective, channel = (batch.speakers + 7) % 251, Objective(targeted=True), Channel()
    rates = []
    for attack in (PGD(0.01, 0.002, 15), OverTheAirPGD(0.01, 0.002, 15, draws=2, channel=channel)):
        found = attack(recognizer, waveforms, targets, lengths, objective, seeded(1)).waveforms
        rates.append(float(channel.success_rate(recognizer, found, targets, lengths, objective, 10, seeded(5)).mean()))
    assert rates[1] > rates[0] + 0.1
