"""The masking threshold against its formulas and a plain transcription, and changes that stay below it."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_strong_attacks import seeded
from torch import Tensor

from sec4sr_pl.attacks import PGD, Objective, PsychoacousticPGD
from sec4sr_pl.attacks.masking import HOP, LOUDEST, WINDOW, bark, hearing_threshold, masking, spectrum
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.types import SAMPLE_RATE, valid_mask

MakeRecognizer = Callable[..., Recognizer]
Speech = tuple[Tensor, Tensor]
FREQUENCY = np.arange(WINDOW // 2 + 1) * SAMPLE_RATE / WINDOW


def rates() -> NDArray[np.float64]:
    return 13 * np.arctan(0.00076 * FREQUENCY) + 3.5 * np.arctan((FREQUENCY / 7500) ** 2)  # type: ignore[no-any-return]


def quiet() -> NDArray[np.float64]:
    khz = np.maximum(FREQUENCY, 20) / 1000
    return 3.64 * khz**-0.8 - 6.5 * np.exp(-0.6 * (khz - 3.3) ** 2) + 1e-3 * khz**4  # type: ignore[no-any-return]


def test_rates_and_the_threshold_of_hearing_are_those_of_tables() -> None:
    """Zwicker's critical bands end at 1, 8.5, 15 and 21 Bark; hearing is best near 3.3 kHz."""
    edges = torch.tensor([100.0, 1_000.0, 2_700.0, 7_700.0])
    torch.testing.assert_close(bark(edges), torch.tensor([1.0, 8.5, 15.0, 21.0]), rtol=0, atol=0.25)
    f = torch.linspace(20, 8_000, 2_000)
    assert float(f[hearing_threshold(f).argmin()]) == pytest.approx(3_300, rel=0.05)
    assert float(hearing_threshold(torch.tensor([1_000.0]))) == pytest.approx(3.4, abs=0.1)


def test_a_tone_masks_as_the_formula_says() -> None:
    tone, time = 128, torch.arange(3 * WINDOW, dtype=torch.float64)  # 1 kHz, in the middle of a bin
    wave = 0.5 * torch.sin(2 * math.pi * tone * time / WINDOW).unsqueeze(0)
    masked = masking(wave, torch.tensor([wave.shape[1]]))
    inner = masked.threshold[0, 6]  # a frame that the tone fills
    level = LOUDEST + 10 * math.log10(1.5)  # a Hann window gives the neighbors a quarter each
    distance = rates() - rates()[tone]
    slope = np.where(distance < 0, 27.0, -27.0 + 0.37 * (level - 40.0))
    spread = level - 6.025 - 0.275 * rates()[tone] + slope * distance
    expected = 10 * np.log10(10 ** (spread / 10) + 10 ** (quiet() / 10))
    np.testing.assert_allclose(inner.numpy(), expected, atol=1e-3)
    assert int(inner.argmax()) == tone
    assert float(inner[tone] - inner[tone - 40]) > float(inner[tone] - inner[tone + 40]) > 0  # masking spreads upwards


def by_frames(wave: NDArray[np.float64]) -> NDArray[np.float64]:
    """The threshold of one utterance, frame by frame and masker by masker."""
    padded = np.pad(wave, (WINDOW - HOP, WINDOW - HOP + -len(wave) % HOP))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    starts = range(0, len(padded) - WINDOW + 1, HOP)
    powers = [np.abs(np.fft.rfft(padded[s : s + WINDOW] * hann)) ** 2 for s in starts]
    offset = LOUDEST - 10 * np.log10(np.max(powers))
    rate, hearing, thresholds = rates(), quiet(), []
    for power in powers:
        candidates = []
        for k in range(len(power)):
            below = power[k - 1] if k else 0.0
            above = power[k + 1] if k + 1 < len(power) else 0.0
            if power[k] > below and power[k] >= above and 10 * np.log10(power[k]) + offset > hearing[k]:
                candidates.append((10 * np.log10(below + power[k] + above) + offset, k))
        total, chosen = 10 ** (hearing / 10), []
        for level, k in sorted(candidates, reverse=True):
            if any(abs(rate[k] - rate[other]) < 0.5 for other in chosen):
                continue
            chosen.append(k)
            for j in range(len(power)):
                away = rate[j] - rate[k]
                slope = 27 if away < 0 else -27 + 0.37 * max(level - 40, 0)
                total[j] += 10 ** ((level - 6.025 - 0.275 * rate[k] + slope * away) / 10)
        thresholds.append(10 * np.log10(total))
    return np.array(thresholds)


def test_the_threshold_of_speech_equals_a_plain_transcription(speech: Speech) -> None:
    wave = speech[0][3, :6_000].double()
    found = masking(wave.unsqueeze(0), torch.tensor([6_000])).threshold[0].numpy()
    np.testing.assert_allclose(found, by_frames(wave.numpy()), atol=1e-6)


def test_the_threshold_is_never_below_hearing_and_silence_masks_nothing(speech: Speech) -> None:
    waveforms = torch.cat([speech[0][:2, :9_000], torch.zeros(1, 9_000)])
    masked = masking(waveforms, torch.tensor([9_000, 9_000, 9_000]))
    assert (masked.threshold >= torch.from_numpy(quiet()).float() - 1e-3).all()
    assert masked.threshold.isfinite().all() and masked.offset.isfinite().all()
    np.testing.assert_allclose(masked.threshold[2].numpy(), np.broadcast_to(quiet(), (21, 1025)), atol=1e-3)


def test_excess_is_the_mean_of_what_stands_out_and_zero_below() -> None:
    wave = 0.5 * torch.sin(2 * math.pi * 128 * torch.arange(8_192.0, dtype=torch.float64) / WINDOW).unsqueeze(0)
    masked = masking(wave, torch.tensor([8_192]))
    change = 0.01 * torch.randn(1, 8_192, generator=seeded(), dtype=torch.float64)
    above = 10 * torch.log10(spectrum(change)) + masked.offset - masked.threshold
    torch.testing.assert_close(masked.excess(change), above.clamp_min(0.0).mean((1, 2)))
    assert float(masked.excess(change)) > 1.0
    assert float(masked.excess(1e-3 * wave)) == 0.0  # 60 dB below the tone, and masked by it


def test_threshold_and_excess_do_not_depend_on_padding_or_batch_mates(speech: Speech) -> None:
    lengths = torch.tensor([12_000, 7_111, 3_000])
    waveforms = speech[0][:3, 4_000:16_000].double().masked_fill(~valid_mask(lengths, 12_000), 0.0)
    change = 0.01 * torch.randn(3, 12_000, generator=seeded(), dtype=torch.float64)
    change = change.masked_fill(~valid_mask(lengths, 12_000), 0.0)
    together = masking(waveforms, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = masking(waveforms[row : row + 1, :length], lengths[row : row + 1])
        frames = alone.threshold.shape[1]
        assert int(together.heard[row].sum()) == frames == int(alone.heard.sum())
        torch.testing.assert_close(alone.threshold[0], together.threshold[row, :frames])
        excess = alone.excess(change[row : row + 1, :length])
        torch.testing.assert_close(excess[0], together.excess(change)[row])


@pytest.mark.parametrize("targeted", [False, True], ids=["untargeted", "targeted"])
def test_a_hidden_change_succeeds_as_often_and_is_heard_far_less(
    targeted: bool, speech: Speech, make_recognizer: MakeRecognizer
) -> None:
    recognizer = make_recognizer()
    waveforms, lengths = speech[0][::3, :12_000], speech[1][::3].clamp_max(12_000)
    labels = recognizer(waveforms, lengths).argmax(1)
    labels = (labels + 1) % 10 if targeted else labels
    objective = Objective(targeted=targeted)
    plain = PGD()(recognizer, waveforms, labels, lengths, objective)
    hidden = PsychoacousticPGD(masking_steps=40)(recognizer, waveforms, labels, lengths, objective)
    assert torch.equal(plain.achieved, hidden.achieved)
    assert plain.achieved.any()
    masked, rows = masking(waveforms, lengths), plain.achieved
    heard = [masked.excess(result.waveforms - waveforms)[rows] for result in (plain, hidden)]
    assert (heard[1] < 0.5 * heard[0]).all()
    assert (hidden.waveforms - waveforms).abs().max() <= 0.002 + 6e-8
