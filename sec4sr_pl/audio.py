"""Audio files: the only code that knows containers, sample rates and 16-bit integers."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchaudio.functional import resample as resample_waveform

from sec4sr_pl.types import SAMPLE_RATE

EXTENSIONS = (".wav", ".flac")
FULL_SCALE = 32_768
"""16-bit steps from 0 to full scale."""


class AudioError(ValueError):
    """An audio file that can't be used, with what was expected, what came, and what to do."""


class AudioInfo(NamedTuple):
    """What a file's header says."""

    frames: int
    rate: int
    channels: int


def info(path: Path) -> AudioInfo:
    """Read the header of an audio file.

    Raises:
        AudioError: a file that is missing, empty or not audio.
    """
    try:
        header = soundfile.info(str(path))
    except (soundfile.LibsndfileError, OSError) as error:
        reason = "is empty" if path.is_file() and path.stat().st_size == 0 else f"can't be read ({error})"
        raise AudioError(f"{path} {reason}: expected a wav or flac file; replace or remove it") from error
    if header.frames < 1:
        raise AudioError(f"{path} holds no samples: replace or remove it")
    return AudioInfo(header.frames, header.samplerate, header.channels)


def read(path: Path, start: int = 0, frames: int | None = None, resample: bool = False) -> Tensor:
    """Read a stretch of a mono file without decoding the rest.

    Args:
        path: wav or flac.
        start: first sample, at 16 kHz.
        frames: samples to read, at 16 kHz; None: to the end.
        resample: convert another sample rate (then the whole file is decoded) instead of refusing it.

    Returns:
        (time,) float32 in [-1, 1].

    Raises:
        AudioError: another sample rate, more than one channel, an unreadable or truncated file, fewer samples than
            asked for, NaN, or values outside [-1, 1].
    """
    header = info(path)
    if header.channels != 1:
        raise AudioError(f"{path} has {header.channels} channels, expected 1: mix it down to mono")
    same_rate = header.rate == SAMPLE_RATE
    if not same_rate and not resample:
        raise AudioError(
            f"{path} has {header.rate} samples a second, expected {SAMPLE_RATE}: convert it, or ask for resample=True"
        )
    available = header.frames - start
    wanted = (available if frames is None else frames) if same_rate else header.frames
    try:
        samples, _ = soundfile.read(str(path), wanted, start if same_rate else 0, dtype="float32")
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(f"{path} can't be decoded ({error}): it is damaged or truncated, replace it") from error
    if len(samples) != wanted or _truncated_wav(path, header):
        raise AudioError(
            f"{path} is truncated or too short: expected {wanted} samples from {start}, its header announces "
            f"{header.frames} and {len(samples)} could be read; replace it"
        )
    waveform = torch.from_numpy(samples)
    if not bool(torch.isfinite(waveform).all()):
        raise AudioError(f"{path} contains NaN or infinite samples: replace it")
    if not same_rate:
        waveform = resample_waveform(waveform, header.rate, SAMPLE_RATE).clamp(-1.0, 1.0)
        end = len(waveform) if frames is None else start + frames
        if end > len(waveform):
            raise AudioError(f"{path} is too short: expected {end} samples at 16 kHz, it has {len(waveform)}")
        waveform = waveform[start:end]
    if waveform.numel() and waveform.abs().max() > 1.0:
        raise AudioError(f"{path} has samples up to {waveform.abs().max():.4g}, expected [-1, 1]: scale it down")
    return waveform


def _truncated_wav(path: Path, header: AudioInfo) -> bool:
    """Whether the data chunk of a PCM wav file announces more bytes than the file has (libsndfile does not mind)."""
    if path.suffix.lower() != ".wav":
        return False
    with path.open("rb") as file:
        head = file.read(4096)
    position = head.find(b"data", 12)
    if head[:4] != b"RIFF" or position < 0:
        return False
    announced = int.from_bytes(head[position + 4 : position + 8], "little")
    return announced != 0xFFFFFFFF and position + 8 + announced > path.stat().st_size


def on_grid(waveform: Tensor) -> bool:
    """Whether every sample is a 16-bit value."""
    scaled = waveform * FULL_SCALE
    return bool((scaled == scaled.round()).all() and (scaled <= FULL_SCALE - 1).all())


def round_inside_ball(adversarial: Tensor, original: Tensor, epsilon: float) -> Tensor:
    """The nearest 16-bit value of each sample among those at most epsilon from the original.

    Args:
        adversarial: (time,) in [-1, 1].
        original: (time,) on the 16-bit grid.
        epsilon: fraction of full scale; 0.002 is 65.5 steps, so 65. Inf: no ball.

    Returns:
        (time,) on the 16-bit grid.
    """
    center = (original.double() * FULL_SCALE).round()
    rounded = (adversarial.double() * FULL_SCALE).round()
    if np.isfinite(epsilon):
        steps = np.floor(epsilon * FULL_SCALE + 1e-9)
        rounded = torch.clamp(rounded, center - steps, center + steps)
    return (rounded.clamp(-FULL_SCALE, FULL_SCALE - 1) / FULL_SCALE).to(adversarial.dtype)


def write_adversarial(path: Path, adversarial: Tensor, original: Tensor, epsilon: float) -> None:
    """Write an adversarial waveform so that the file still lies in the ball.

    An original on the 16-bit grid gives a 16-bit file, rounded inside the ball; any other a float32 file. The file
    appears under its name only when it is whole.

    Args:
        path: of the wav file.
        adversarial: (time,) in [-1, 1].
        original: (time,), what epsilon is measured from.
        epsilon: fraction of full scale, or inf.
    """
    if on_grid(original):
        samples: NDArray[np.generic] = (
            (round_inside_ball(adversarial, original, epsilon).double() * FULL_SCALE).to(torch.int16).cpu().numpy()
        )
        subtype = "PCM_16"
    else:
        samples, subtype = adversarial.float().cpu().numpy(), "FLOAT"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        soundfile.write(str(temporary), samples, SAMPLE_RATE, subtype=subtype, format="WAV")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
