"""Audio files: the only code that knows containers, sample rates and 16-bit integers."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from torchaudio.functional import resample as resample_waveform

from sec4sr_pl.files import whole
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


class Member(NamedTuple):
    """A file inside an archive that is not compressed; it opens as a path does."""

    archive: Path
    name: str
    offset: int
    """First byte in the archive."""
    size: int
    """Bytes."""

    def __str__(self) -> str:
        return f"{self.name} in {self.archive}"

    def exists(self) -> bool:
        """Whether its archive does."""
        return self.archive.exists()

    def open(self, mode: str = "rb") -> io.BytesIO:
        """The file, in memory, to be read.

        Raises:
            OSError: an archive that is missing or too short.
        """
        data = os.pread(_archive(self.archive).fileno(), self.size, self.offset)
        if len(data) < self.size:
            raise OSError(f"{self.archive} ends {self.size - len(data)} bytes too early: it is truncated")
        return io.BytesIO(data)


@lru_cache(maxsize=256)
def _archive(path: Path) -> BinaryIO:
    """An archive that stays open: reading a member asks the file system for nothing but its bytes."""
    return path.open("rb", buffering=0)


def info(path: Path | Member) -> AudioInfo:
    """Read the header of an audio file.

    Raises:
        AudioError: a file that is missing, empty or not audio.
    """
    with _opened(path) as file:
        return _header(file, path)


@contextmanager
def _opened(path: Path | Member) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        reason = f"can't be read ({error})" if path.exists() else "does not exist"
        raise AudioError(f"{path} {reason}: expected a wav or flac file; replace or remove it") from error
    with file:
        yield file


def _header(file: BinaryIO, path: Path | Member) -> AudioInfo:
    """The header of an open file, which is left at its beginning."""
    try:
        header = soundfile.info(file)
    except soundfile.LibsndfileError as error:
        reason = f"can't be read ({error})" if file.seek(0, os.SEEK_END) else "is empty"
        raise AudioError(f"{path} {reason}: expected a wav or flac file; replace or remove it") from error
    if header.frames < 1:
        raise AudioError(f"{path} holds no samples: replace or remove it")
    if header.frames >= 1 << 62:  # libsndfile's word for a flac stream that was never told its length
        raise AudioError(f"{path} does not say how many samples it holds, expected their number: encode it again")
    file.seek(0)
    return AudioInfo(header.frames, header.samplerate, header.channels)


def read(path: Path | Member, start: int = 0, frames: int | None = None, resample: bool = False) -> Tensor:
    """Read a stretch of a mono file without decoding the rest.

    Args:
        path: wav or flac, a file or one inside an archive.
        start: first sample, at 16 kHz.
        frames: samples to read, at 16 kHz; None: to the end.
        resample: convert another sample rate (then the whole file is decoded) instead of refusing it.

    Returns:
        (time,) float32 in [-1, 1].

    Raises:
        AudioError: another sample rate, more than one channel, an unreadable or truncated file, fewer samples than
            asked for, NaN, or values outside [-1, 1].
        ValueError: a negative start or number of frames.
    """
    if start < 0 or (frames is not None and frames < 0):
        raise ValueError(f"Expected start and frames of at least 0, got {start} and {frames}")
    with _opened(path) as file:
        header = _header(file, path)
        if header.channels != 1:
            raise AudioError(f"{path} has {header.channels} channels, expected 1: mix it down to mono")
        same_rate = header.rate == SAMPLE_RATE
        if not same_rate and not resample:
            raise AudioError(
                f"{path} has {header.rate} samples a second, expected {SAMPLE_RATE}: convert it, or ask for "
                "resample=True"
            )
        if missing := _missing_bytes(file):
            raise AudioError(f"{path} is truncated: its header announces {missing} bytes more than it has; replace it")
        total = samples_at_16_khz(header.frames, header.rate)
        end = max(start, total) if frames is None else start + frames
        if end > total:
            raise AudioError(
                f"{path} is too short: expected samples {start} to {end} at 16 kHz, it has {total}; ask for fewer"
            )
        wanted = end - start if same_rate else header.frames
        try:
            samples, _ = soundfile.read(file, wanted, start if same_rate else 0, dtype="float32")
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise AudioError(f"{path} can't be decoded ({error}): it is damaged or truncated, replace it") from error
    if len(samples) != wanted:
        raise AudioError(f"{path} is truncated: expected {wanted} samples, {len(samples)} could be read; replace it")
    waveform = torch.from_numpy(samples)
    if not bool(torch.isfinite(waveform).all()):
        raise AudioError(f"{path} contains NaN or infinite samples: replace it")
    if waveform.numel() and waveform.abs().max() > 1.0:
        raise AudioError(f"{path} has samples up to {waveform.abs().max():.4g}, expected [-1, 1]: scale it down")
    if not same_rate:
        waveform = resample_waveform(waveform, header.rate, SAMPLE_RATE).clamp(-1.0, 1.0)
        waveform = pad(waveform, (0, total - len(waveform)))[start:end]  # torchaudio counts in float32: one off at 60 s
    return waveform


def decode(data: bytes) -> NDArray[np.int16]:
    """(time,) samples of a 16-bit mono file at 16 kHz, in memory, as they are stored.

    Raises:
        AudioError: no audio, damaged, or in another form.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            form = (file.samplerate, file.channels, file.subtype)
            samples: NDArray[np.int16] = file.read(dtype="int16")
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AudioError(f"Expected a whole wav or flac file, it can't be decoded ({error})") from error
    if form != (SAMPLE_RATE, 1, "PCM_16"):
        raise AudioError(f"Expected {SAMPLE_RATE} samples a second, 1 channel and PCM_16, got {form}")
    return samples


def encode(samples: NDArray[np.int16]) -> bytes:
    """A 16 kHz flac file of (time,) samples, in memory; `decode` gives them back."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, subtype="PCM_16", format="FLAC")
    return file.getvalue()


def samples_at_16_khz(frames: int, rate: int) -> int:
    """Samples at 16 kHz of a file of so many samples at another rate."""
    return -(-frames * SAMPLE_RATE // rate)


def _missing_bytes(file: BinaryIO) -> int:
    """By how much the data chunk of a wav file announces more than the file has (libsndfile does not mind).

    The file is open, and is left at its beginning.
    """
    end, missing = file.seek(0, os.SEEK_END), 0
    file.seek(0)
    if file.read(4) == b"RIFF":
        file.seek(12)
        while len(chunk := file.read(8)) == 8:
            announced = int.from_bytes(chunk[4:], "little")
            if chunk[:4] == b"data":
                streamed = announced == 0xFFFFFFFF  # written to a pipe, its length never filled in
                missing = 0 if streamed else max(0, file.tell() + announced - end)
                break
            file.seek(announced + announced % 2, os.SEEK_CUR)
    file.seek(0)
    return missing


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
    with whole(path, shared=True) as partial:
        soundfile.write(str(partial), samples, SAMPLE_RATE, subtype=subtype, format="WAV")
