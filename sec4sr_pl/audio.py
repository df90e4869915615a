"""Audio files: the only code that knows containers, sample rates and 16-bit integers."""

import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from scipy.io import wavfile  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor
from torch.nn.functional import pad
from torchaudio.functional import resample as resample_waveform

from sec4sr_pl.files import SPEECH, whole
from sec4sr_pl.types import SAMPLE_RATE

EXTENSIONS = SPEECH
CONVERT = "python -m sec4sr_pl.data.prepare"
"""The command that makes 16 kHz mono flac of other files."""
CONTAINERS = {
    b"NIST": "NIST SPHERE",
    b"FORM": "AIFF",
    b".snd": "AU",
    b"riff": "W64",
    b"RIFX": "RIFX",
    b"OggS": "Ogg",
    b"caff": "CAF",
    b"ID3\x03": "MP3",
    b"ID3\x04": "MP3",
}
"""The first bytes of files that are often called .wav, and what they are: whether one was cut, nobody can tell."""
PIECE = 1 << 24
"""Samples that are decoded at once: a header that announces more than there are takes no memory for them."""
RATES = range(1_000, 1_000_001)
"""Samples a second of recordings."""
KERNEL = 1 << 24
"""Taps of the largest filter that resamples, about; 44,100 Hz needs 160 · 441."""
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
        archive = _archive(self.archive).fileno()
        if (missing := self.offset + self.size - os.fstat(archive).st_size) > 0:
            raise OSError(f"{self.archive} ends {missing} bytes too early: it is truncated")
        return io.BytesIO(os.pread(archive, self.size, self.offset))


@lru_cache(maxsize=256)
def _archive(path: Path) -> BinaryIO:
    """An archive that stays open: reading a member asks the file system for nothing but its bytes."""
    return path.open("rb", buffering=0)


def info(path: str | Path | Member) -> AudioInfo:
    """Read the header of an audio file.

    Raises:
        AudioError: a file that is missing, no regular file, empty, truncated, or neither wav (RIFF, RF64) nor flac.
    """
    path = Path(path) if isinstance(path, str) else path
    with opened(path) as file:
        return _header(file, path)


@contextmanager
def opened(path: Path | Member) -> Iterator[BinaryIO]:
    """A file to read, closed at the end of the block.

    Raises:
        AudioError: it is missing, no regular file, or not to be read.
    """
    try:
        file = path.open("rb") if isinstance(path, Member) else _open(path)
    except OSError as error:
        reason = f"can't be read ({error.strerror or error})"
        if not path.exists():
            reason = "is a link to nothing" if isinstance(path, Path) and path.is_symlink() else "does not exist"
        raise AudioError(f"{path} {reason}: expected a wav or flac file; replace or remove it") from error
    with file:
        yield file


def _open(path: Path) -> BinaryIO:
    """A regular file: a pipe would be waited for, and a device may be anything."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError("it is a folder" if stat.S_ISDIR(mode) else "it is a pipe, a socket or a device")
    return open(path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def _source(file: BinaryIO) -> BinaryIO | int:
    """An open file from its beginning, as libsndfile takes it: by its descriptor, if it has one, which is faster."""
    file.seek(0)
    return file if isinstance(file, io.BytesIO) else file.fileno()


def _beginning(file: BinaryIO) -> bytes:
    """The first 12 bytes, or of a flac stream behind an ID3 tag, which some programs write, the first of that."""
    start = file.read(12)
    if start[:3] == b"ID3" and len(start) == 12:
        file.seek(10 + (start[6] << 21 | start[7] << 14 | start[8] << 7 | start[9]))
        if (behind := file.read(4)) == b"fLaC":
            return behind
    return start


def _header(file: BinaryIO, path: Path | Member) -> AudioInfo:
    """The header of an open file."""
    start = _beginning(file)
    if not start:
        raise AudioError(f"{path} is empty: expected a wav or flac file; replace or remove it")
    if start[:4] != b"fLaC" and not (start[:4] in (b"RIFF", b"RF64") and start[8:] == b"WAVE"):
        kind = CONTAINERS.get(start[:4])
        reason = f"can't be read (its first bytes are {start[:4]!r})" if kind is None else f"holds {kind}"
        raise AudioError(f"{path} {reason}: expected a wav or flac file; convert it ({CONVERT}), or remove it")
    try:
        with soundfile.SoundFile(_source(file), closefd=False) as header:
            frames, rate, channels = header.frames, header.samplerate, header.channels
    except soundfile.SoundFileError as error:
        raise AudioError(
            f"{path} can't be read ({_reason(error)}): expected a wav or flac file; replace or remove it"
        ) from error
    if frames < 1:
        raise AudioError(f"{path} holds no samples: replace or remove it")
    if frames >= 1 << 62:  # libsndfile's word for a flac stream that was never told its length
        raise AudioError(f"{path} does not say how many samples it holds, expected their number: encode it again")
    check_rate(path, rate)
    if missing := missing_bytes(file):
        raise AudioError(f"{path} is truncated: its header announces {missing} bytes more than it has; replace it")
    return AudioInfo(frames, rate, channels)


def check_rate(path: Path | Member, rate: int) -> None:
    """Refuse what can't be resampled in a bounded memory.

    Raises:
        AudioError: samples a second that no recording has.
    """
    common = math.gcd(rate, SAMPLE_RATE)
    if rate not in RATES or rate // common * (SAMPLE_RATE // common) > KERNEL:
        raise AudioError(f"{path} has {rate} samples a second, a rate of no recording: replace it")


def _reason(error: Exception) -> str:
    """What libsndfile says, without the object that Python opened."""
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def read(path: str | Path | Member, start: int = 0, frames: int | None = None, resample: bool = False) -> Tensor:
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
    path = Path(path) if isinstance(path, str) else path
    with opened(path) as file:
        header = _header(file, path)
        if header.channels != 1:
            raise AudioError(f"{path} has {header.channels} channels, expected 1: mix it down to mono")
        same_rate = header.rate == SAMPLE_RATE
        if not same_rate and not resample:
            raise AudioError(
                f"{path} has {header.rate} samples a second, expected {SAMPLE_RATE}: convert it, or ask for "
                "resample=True"
            )
        total = samples_at_16_khz(header.frames, header.rate)
        end = max(start, total) if frames is None else start + frames
        if end > total:
            raise AudioError(
                f"{path} is too short: expected samples {start} to {end} at 16 kHz, it has {total}; ask for fewer"
            )
        wanted = end - start if same_rate else header.frames
        try:
            samples = _decode(file, start if same_rate else 0, wanted)
        except soundfile.SoundFileError as error:
            raise AudioError(
                f"{path} can't be decoded ({_reason(error)}): it is damaged or truncated, replace it"
            ) from error
    if len(samples) != wanted:
        raise AudioError(f"{path} is truncated: expected {wanted} samples, {len(samples)} could be read; replace it")
    waveform = torch.from_numpy(samples)
    if not bool(torch.isfinite(waveform).all()):
        raise AudioError(f"{path} contains NaN or infinite samples: replace it")
    if waveform.numel() and waveform.abs().max() > 1.0:
        raise AudioError(f"{path} has samples up to {waveform.abs().max():.4g}, expected [-1, 1]: scale it down")
    return waveform if same_rate else at_16_khz(waveform, header.rate)[start:end]


def at_16_khz(waveform: Tensor, rate: int) -> Tensor:
    """A waveform of another rate, (time,) in [-1, 1], at 16 kHz: `samples_at_16_khz` of them."""
    resampled: Tensor = resample_waveform(waveform, rate, SAMPLE_RATE).clamp(-1.0, 1.0)
    total = samples_at_16_khz(len(waveform), rate)
    return pad(resampled, (0, total - len(resampled)))  # torchaudio counts in float32: one off at 60 s


def _decode(file: BinaryIO, start: int, frames: int) -> NDArray[np.float32]:
    """(time,) samples of an open file; fewer where it ends before."""
    pieces = []
    for begin in range(start, start + max(frames, 1), PIECE):
        wanted = min(start + frames - begin, PIECE)
        pieces.append(soundfile.read(_source(file), wanted, begin, dtype="float32", closefd=False)[0])
        if len(pieces[-1]) < wanted:
            break
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def decode(data: bytes) -> NDArray[np.int16]:
    """(time,) samples of a 16-bit mono file at 16 kHz, in memory, as they are stored.

    Raises:
        AudioError: no audio, damaged, or in another form.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            form = (file.samplerate, file.channels, file.subtype)
            samples: NDArray[np.int16] = file.read(dtype="int16")
    except soundfile.SoundFileError as error:
        raise AudioError(f"Expected a whole wav or flac file, it can't be decoded ({_reason(error)})") from error
    if form != (SAMPLE_RATE, 1, "PCM_16"):
        raise AudioError(f"Expected {SAMPLE_RATE} samples a second, 1 channel and PCM_16, got {form}")
    return samples


def encode(samples: NDArray[np.generic], container: Literal["FLAC", "WAV"] = "FLAC") -> bytes:
    """A 16 kHz file of (time,) samples, in memory; `decode` gives 16-bit ones back.

    It is written by Python, whose errors (a full disk) are OSErrors that name the file. A wav file has the type of the
    samples; libsndfile would write the time into one of float32.
    """
    file = io.BytesIO()
    if container == "WAV":
        wavfile.write(file, SAMPLE_RATE, samples)
    else:
        soundfile.write(file, samples, SAMPLE_RATE, subtype="PCM_16", format=container)
    return file.getvalue()


def samples_at_16_khz(frames: int, rate: int) -> int:
    """Samples at 16 kHz of a file of so many samples at another rate."""
    return -(-frames * SAMPLE_RATE // rate)


def missing_bytes(file: BinaryIO) -> int:
    """By how much the data chunk of a wav file announces more than the file has (libsndfile does not mind)."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(4) not in (b"RIFF", b"RF64"):
        return 0
    file.seek(12)
    large = 0
    while len(chunk := file.read(8)) == 8:
        announced = int.from_bytes(chunk[4:], "little")
        if chunk[:4] == b"ds64":  # of RF64: the sizes that 32 bits can't hold
            large = int.from_bytes(file.read(16)[8:], "little")
            file.seek(-16, os.SEEK_CUR)
        if chunk[:4] == b"data":
            if announced == 0xFFFFFFFF:  # in RF64 it is above; else written to a pipe, its length never filled in
                announced = large
            return max(0, file.tell() + announced - end)
        file.seek(announced + announced % 2, os.SEEK_CUR)
    return 0


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


def write_adversarial(path: str | Path, adversarial: Tensor, original: Tensor, epsilon: float) -> None:
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
        samples = (round_inside_ball(adversarial, original, epsilon).double() * FULL_SCALE).to(torch.int16)
    else:
        samples = adversarial.float()
    with whole(path) as partial:
        partial.write_bytes(encode(samples.cpu().numpy(), "WAV"))
