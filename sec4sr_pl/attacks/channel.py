"""From a loudspeaker to a microphone: a simulated room, and the attack that survives it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional

from sec4sr_pl.attacks.base import Generators, Score
from sec4sr_pl.attacks.gradient import PGD, Loss
from sec4sr_pl.attacks.l2 import unit_energy
from sec4sr_pl.attacks.objective import Objective
from sec4sr_pl.attacks.source import normal, uniform
from sec4sr_pl.attacks.transformed import Transformed
from sec4sr_pl.types import SAMPLE_RATE, full_lengths, mask_padding

LEAD = SAMPLE_RATE // 20
"""Samples before the direct sound, into which a band limit without delay may ring."""


@dataclass(frozen=True)
class Channel(Transformed):
    """A random room between loudspeaker and microphone: reverberation, band limits, gain and noise.

    The impulse response is the direct sound followed by exponentially decaying normal noise, together of unit energy;
    band limits are Butterworth magnitudes of order 4 without delay. All is drawn anew for each utterance and call.

    Args:
        reverberation: longest time in which the tail decays by 60 dB, in seconds; drawn from a tenth of it up.
        direct: least ratio of direct to reverberant energy, in dB; drawn up to 10 dB above.
        low: highest lower band limit, in Hz; drawn from a tenth of it up.
        high: least upper band limit, in Hz; drawn up to 8 kHz.
        gain: largest change of the level either way, in dB.
        snr: least ratio of speech to white noise, in dB; drawn up to 20 dB above.
        source: of the gradients, None: back-propagation.

    Raises:
        ValueError: a parameter outside its range.

    Source: Athalye et al., "Synthesizing robust adversarial examples", 2018 (expectation over transformations); Qin et
    al., "Imperceptible, robust, and targeted adversarial examples for automatic speech recognition", 2019, section 5
    (rooms); the tail is that of Polack, "La transmission de l'energie sonore dans les salles", 1988.
    """

    reverberation: float = 0.4
    direct: float = 0.0
    low: float = 150.0
    high: float = 5_000.0
    gain: float = 6.0
    snr: float = 20.0

    def __post_init__(self) -> None:
        nyquist = SAMPLE_RATE / 2
        if not (0.0 < self.reverberation <= 10.0 and 0.0 < self.low < self.high <= nyquist):
            raise ValueError(
                f"Expected reverberation in (0, 10] s and 0 < low < high <= {nyquist:g} Hz, "
                f"got {self.reverberation}, {self.low} and {self.high}"
            )
        if not 0.0 <= self.gain < math.inf:
            raise ValueError(f"Expected a finite gain >= 0 dB, got {self.gain}")
        if not (math.isfinite(self.direct) and math.isfinite(self.snr)):
            raise ValueError(f"Expected finite ratios in dB, got direct {self.direct} and snr {self.snr}")

    def draw(self, like: Tensor, lengths: Tensor, generators: Generators) -> Callable[[Tensor], Tensor]:
        """One room, gain and noise for each row."""
        draws = uniform(like.new_empty(len(like), 6), generators).unsqueeze(2)
        response = self.response(draws[:, :4], generators)
        gain = 10.0 ** (self.gain * (2.0 * draws[:, 4] - 1.0) / 20.0)
        noise = 10.0 ** (-(self.snr + 20.0 * draws[:, 5]) / 20.0) * normal(1, like, lengths, generators)[0]
        time = like.shape[1]
        size = next_fast_len(time + response.shape[1], real=True)
        spectrum = torch.fft.rfft(response, size)

        def through(waveforms: Tensor) -> Tensor:
            convolved = torch.fft.irfft(torch.fft.rfft(waveforms, size) * spectrum, size)
            heard = mask_padding(convolved[:, LEAD : LEAD + time], lengths)
            level = (heard.detach().square().sum(1) / lengths).sqrt().unsqueeze(1)
            return gain * (heard + level * noise)

        return through

    def response(self, draws: Tensor, generators: Generators) -> Tensor:
        """Impulse responses, (batch, samples), the direct sound at `LEAD`.

        Args:
            draws: (batch, 4, 1) in [0, 1): reverberation, direct sound, lower and upper band limit.
            generators: of the tails.
        """
        reverberation, direct, low, high = draws.unbind(1)
        tail = draws.new_zeros(len(draws), round(self.reverberation * SAMPLE_RATE))
        tail = normal(1, tail, full_lengths(tail), generators)[0]
        delay = torch.arange(1, tail.shape[1] + 1, dtype=draws.dtype, device=draws.device) / SAMPLE_RATE
        tail = tail * 10.0 ** (-3.0 * delay / (self.reverberation * (0.1 + 0.9 * reverberation)))
        tail = unit_energy(tail) * 10.0 ** (-(self.direct + 10.0 * direct) / 20.0)
        sound = unit_energy(torch.cat([torch.ones_like(tail[:, :1]), tail], 1))
        impulse = functional.pad(sound, (LEAD, 0))
        size = next_fast_len(impulse.shape[1] + LEAD, real=True)
        frequency = torch.fft.rfftfreq(size, 1.0 / SAMPLE_RATE, dtype=draws.dtype, device=draws.device)
        lower = self.low * (0.1 + 0.9 * low) / frequency
        upper = frequency / (self.high + (SAMPLE_RATE / 2 - self.high) * high)
        band = ((1.0 + lower**8) * (1.0 + upper**8)).rsqrt()
        response: Tensor = torch.fft.irfft(torch.fft.rfft(impulse, size) * band, size)
        return response

    @torch.no_grad()
    def success_rate(
        self,
        score: Score,
        waveforms: Tensor,
        labels: Tensor,
        lengths: Tensor,
        objective: Objective,
        draws: int = 20,
        generators: Generators = None,
    ) -> Tensor:
        """In which part of `draws` fresh rooms each utterance achieves the objective, (batch,)."""
        heard = [mask_padding(self.draw(waveforms, lengths, generators)(waveforms), lengths) for _ in range(draws)]
        return torch.stack([objective.achieved(score(one, lengths), labels) for one in heard]).double().mean(0)


class OverTheAirPGD(PGD):
    """PGD on the mean loss over random rooms (EOT), norm L-infinity, so that it works when played through the air.

    The result is what the loudspeaker plays. Its success is measured without a room, as that of every attack;
    `Channel.success_rate` tells in how many fresh rooms it holds.

    Args:
        epsilon: radius of the ball, as a fraction of full scale.
        step_size: of one step.
        steps: how many.
        restarts: as in `PGD`.
        draws: rooms averaged at each step.
        loss: as in `PGD`.
        channel: the rooms, and the source behind them; None: `Channel()`.

    Raises:
        ValueError: a parameter outside its range.

    Source: Athalye et al., "Synthesizing robust adversarial examples", 2018; Qin et al., 2019 (see `Channel`).
    """

    knowledge, randomized = "gradient", "`draws`, of rooms too"

    def __init__(
        self,
        epsilon: float = 0.01,
        step_size: float = 0.001,
        steps: int = 30,
        restarts: int = 0,
        draws: int = 5,
        loss: Loss | None = None,
        channel: Channel | None = None,
    ) -> None:
        if channel is not None and not isinstance(channel, Channel):
            raise ValueError(f"Expected a Channel or None, got {channel!r}")
        self.channel = Channel() if channel is None else channel
        super().__init__(epsilon, step_size, steps, restarts, draws, loss, source=self.channel)
