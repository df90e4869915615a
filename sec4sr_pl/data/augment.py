"""Augmentations of training crops, for any recognizer."""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchaudio.functional import fftconvolve, resample

from sec4sr_pl import audio
from sec4sr_pl.attacks import Channel
from sec4sr_pl.data.manifest import Utterance, find_root, find_sounds
from sec4sr_pl.data.problems import Problems
from sec4sr_pl.types import SAMPLE_RATE, full_lengths


class RandomEqualizer(nn.Module):
    """Another microphone and room: a smooth random frequency response, and a random level.

    Args:
        response: standard deviation of the response at each knot, dB.
        level: standard deviation of the level, dB.
        knots: points equally spaced on the mel scale between which the response in dB is linear.

    Raises:
        ValueError: a negative deviation or fewer than two knots.
    """

    def __init__(self, response: float = 2.0, level: float = 2.0, knots: int = 5) -> None:
        super().__init__()
        if not (0 <= response < math.inf and 0 <= level < math.inf and knots >= 2):
            raise ValueError(f"Expected response and level >= 0 and knots >= 2, got {response}, {level}, {knots}")
        self.response, self.level, self.knots = response, level, knots

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, time) -> (batch, time), scaled down where it would clip."""
        batch, time = waveforms.shape
        frequency = torch.linspace(0.0, SAMPLE_RATE / 2, time // 2 + 1, device=waveforms.device)
        mel = torch.log1p(frequency / 700.0)
        position = mel / mel[-1] * (self.knots - 1)
        left = position.long().clamp_max(self.knots - 2)
        decibels = self.response * torch.randn(batch, self.knots, device=waveforms.device)
        decibels = torch.lerp(decibels[:, left], decibels[:, left + 1], position - left)
        decibels = decibels + self.level * torch.randn(batch, 1, device=waveforms.device)
        filtered: Tensor = torch.fft.irfft(torch.fft.rfft(waveforms) * 10.0 ** (decibels / 20.0), time)
        filtered /= filtered.abs().amax(1, keepdim=True).clamp_min(1.0)
        return filtered


class RandomSpeed(nn.Module):
    """Faster or slower, with pitch: each row's speed is drawn from a few; where it falls short, it begins anew.

    A crop keeps its speaker's label at every speed; recipes that take a changed speed for another speaker are others.

    Args:
        speeds: factors, in percent.

    Raises:
        ValueError: no speed, or one outside 50 to 200 %.

    Source: Ko et al., "Audio augmentation for speech recognition", 2015.
    """

    def __init__(self, speeds: Sequence[int] = (95, 100, 105)) -> None:
        super().__init__()
        if not speeds or not all(50 <= speed <= 200 for speed in speeds):
            raise ValueError(f"Expected speeds from 50 to 200 %, got {list(speeds)}")
        self.speeds = tuple(speeds)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, time) -> (batch, time)."""
        drawn = torch.randint(len(self.speeds), (len(waveforms),)).tolist()
        return torch.stack([self.at(row, self.speeds[index]) for row, index in zip(waveforms, drawn, strict=True)])

    def at(self, waveform: Tensor, speed: int) -> Tensor:
        """(time,) at a speed in percent, cut or repeated to the same length."""
        time = len(waveform)
        changed: Tensor = resample(waveform, speed, 100)
        return changed.repeat(-(-time // len(changed)))[:time]


class RandomRoom(nn.Module):
    """Heard in a simulated room: reverberation, band limits, gain and noise.

    Args:
        probability: of each row to be heard so.
        channel: the rooms; None: `Channel()`.

    Raises:
        ValueError: a probability outside [0, 1].
    """

    def __init__(self, probability: float = 0.5, channel: Channel | None = None) -> None:
        super().__init__()
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"Expected a probability in [0, 1], got {probability}")
        self.probability, self.channel = probability, Channel() if channel is None else channel

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, time) -> (batch, time), scaled down where it would clip."""
        chosen = torch.rand(len(waveforms), 1, device=waveforms.device) < self.probability
        heard = self.channel.draw(waveforms, full_lengths(waveforms), None)(waveforms)
        heard = heard / heard.abs().amax(1, keepdim=True).clamp_min(1.0)
        return torch.where(chosen, heard, waveforms)


class OneOf(nn.Module):
    """One augmentation, drawn among several for each crop, or none.

    Args:
        augmentations: each as likely.
        chance: that there is one.

    Raises:
        ValueError: no augmentation, or a chance outside [0, 1].
    """

    def __init__(self, augmentations: Sequence[nn.Module], chance: float = 0.8) -> None:
        super().__init__()
        if not augmentations or not 0.0 <= chance <= 1.0:
            raise ValueError(f"Expected augmentations and a chance in [0, 1], got {len(augmentations)} and {chance}")
        self.augmentations, self.chance = nn.ModuleList(augmentations), chance

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, time) -> (batch, time)."""
        if float(torch.rand(())) >= self.chance:
            return waveforms
        changed: Tensor = self.augmentations[_below(len(self.augmentations))](waveforms)
        return changed


class FromFolder(nn.Module, ABC):
    """An augmentation by the audio files of a folder; subclasses write `change`.

    Args:
        folder: of mono files at any depth, 16 kHz unless the data module resamples; a relative path begins at its root.
        optional: where there is no such folder, crops stay as they are, with a warning, instead of an error.
    """

    def __init__(self, folder: Path, optional: bool = False) -> None:
        super().__init__()
        self.folder, self.optional = folder, optional
        self.sounds: list[Utterance] | None = None
        self.resample = False

    def locate(self, root: Path, resample: bool = False, problems: Problems | None = None) -> None:
        """Find the files, sorted, and look at their headers; a data module calls it before training.

        Args:
            root: where a relative folder begins.
            resample: accept other sample rates than 16 kHz.
            problems: are told of what can't be used; None: it is raised.

        Raises:
            DataError: without `problems`, a folder that is missing and not optional, that holds no files, or files
                that can't be used.
        """
        place, told = root / self.folder, Problems()
        self.resample, self.sounds = resample, []
        if self.optional and not place.exists():
            warnings.warn(f"There is no folder {place}: no {type(self).__name__} of it is added to crops", stacklevel=2)
        else:
            self.sounds = find_sounds(place, resample, told)
        told.pass_to(problems)

    def forward(self, waveforms: Tensor) -> Tensor:
        """(batch, time) -> (batch, time), scaled down where it would clip."""
        if self.sounds is None:
            self.locate(find_root(None))
        return torch.stack([self.change(waveform) for waveform in waveforms]) if self.sounds else waveforms

    def draw(self, samples: int | None = None) -> Tensor:
        """A stretch, drawn, of a drawn file, or all of it where it is shorter, (time,); None: all of it."""
        sounds = self.sounds or []
        sound = sounds[_below(len(sounds))]
        if samples is None:
            return audio.read(sound.path, resample=self.resample)
        frames = min(samples, sound.frames)
        return audio.read(sound.path, _below(sound.frames - frames + 1), frames, self.resample)

    @abstractmethod
    def change(self, waveform: Tensor) -> Tensor:
        """Augment a (time,) waveform."""


class Noise(FromFolder):
    """Sounds of a folder under each crop: one of MUSAN's noises, a piece of its music, or several of its voices.

    Args:
        folder: as in `FromFolder`.
        low: least signal-to-noise ratio, dB.
        high: greatest, dB; drawn uniformly.
        fewest: sounds at once, at least.
        most: sounds at once, at most, all of one level.
        optional: as in `FromFolder`.

    Raises:
        ValueError: an empty range.

    Source: Snyder, Chen and Povey, "MUSAN: a music, speech, and noise corpus", 2015; Snyder et al., "X-vectors: robust
    DNN embeddings for speaker recognition", 2018 (noise 0 to 15 dB, music 5 to 15 dB, 3 to 7 voices 13 to 20 dB).
    """

    def __init__(
        self,
        folder: Path,
        low: float = 0.0,
        high: float = 15.0,
        fewest: int = 1,
        most: int = 1,
        optional: bool = False,
    ) -> None:
        super().__init__(folder, optional)
        if not (-math.inf < low <= high < math.inf and 1 <= fewest <= most):
            raise ValueError(f"Expected low <= high and 1 <= fewest <= most, got {low}, {high}, {fewest} and {most}")
        self.low, self.high, self.fewest, self.most = low, high, fewest, most

    def change(self, waveform: Tensor) -> Tensor:
        """A (time,) waveform with noise."""
        count = self.fewest + _below(self.most - self.fewest + 1)
        sounds = [self.sound(len(waveform)) for _ in range(count)]
        noise = torch.stack([sound / _level(sound) for sound in sounds]).sum(0)
        decibels = self.low + (self.high - self.low) * float(torch.rand(()))
        return _unclipped(waveform + noise * (_level(waveform) / _level(noise) * 10.0 ** (-decibels / 20.0)))

    def sound(self, samples: int) -> Tensor:
        """A stretch of one of the files, repeated where it is shorter."""
        stretch = self.draw(samples)
        return stretch.repeat(-(-samples // len(stretch)))[:samples]


class Room(FromFolder):
    """The crop in a room: convolved with one of the impulse responses of a folder, e.g. RIRS_NOISES/simulated_rirs.

    The direct sound, where the response is loudest, stays where it was, and the crop's level as it was.

    Source: Ko et al., "A study on data augmentation of reverberant speech for robust speech recognition", 2017.
    """

    def change(self, waveform: Tensor) -> Tensor:
        """A (time,) waveform in a room."""
        response = self.draw()
        direct = int(response.abs().argmax())
        heard: Tensor = fftconvolve(waveform, response)[direct : direct + len(waveform)]
        return _unclipped(heard * (_level(waveform) / _level(heard)))


def _below(limit: int) -> int:
    """A draw from 0, 1, ... below a limit."""
    return int(torch.randint(limit, ()))


def _level(waveform: Tensor) -> Tensor:
    """Root mean square, never 0."""
    return waveform.square().mean().sqrt().clamp_min(1e-6)


def _unclipped(waveform: Tensor) -> Tensor:
    return waveform / waveform.abs().max().clamp_min(1.0)
