"""Audio of any kind as 16-bit mono at 16 kHz: what libsndfile does not read, ffmpeg decodes."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

from sec4sr_pl import audio, system
from sec4sr_pl.audio import AudioError
from sec4sr_pl.data.tree import OTHERS
from sec4sr_pl.types import SAMPLE_RATE

EXTENSIONS = (*audio.EXTENSIONS, *OTHERS)
"""Of files that are taken for audio."""
CONTAINERS = "aac,ac3,amr,amrnb,amrwb,ape,asf,caf,eac3,flac,matroska,mov,mp3,mpeg,nistsphere,ogg,tta,voc,w64,wav,wv"
"""What ffmpeg may take a file for: none of these is a list of other files."""
SECONDS = 600
"""In which ffmpeg decodes a file, or never."""
BLOCK = 1 << 20
"""Samples that are decoded at once."""


def read(path: Path, mix: bool = False) -> NDArray[np.int16]:
    """The samples of a file, (time,) at 16 kHz.

    Args:
        path: of a file that libsndfile or ffmpeg reads.
        mix: take the mean of several channels instead of refusing them.

    Raises:
        AudioError: a file that neither reads, that is truncated, or holds no samples, several channels, NaN, or
            floating-point values outside [-1, 1].
    """
    with audio.opened(path) as file:
        try:
            return _read(file, path, mix)
        except soundfile.SoundFileError as error:
            reason = str(getattr(error, "error_string", error)).strip()
            size = file.seek(0, os.SEEK_END)
    if not size:
        raise AudioError(f"{path} is empty: replace or remove it")
    with _decoded(path, reason) as decoded, decoded.open("rb", buffering=0) as file:
        return _read(file, path, mix)


def _read(file: BinaryIO, path: Path, mix: bool) -> NDArray[np.int16]:
    """As `read`, of an open file that libsndfile reads."""
    if missing := max(audio.missing_bytes(file), _missing_bytes(file)):
        raise AudioError(f"{path} is truncated: its header announces {missing} bytes more than it has; replace it")
    file.seek(0)
    with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
        audio.check_rate(path, sound.samplerate)
        if sound.channels > 1 and not mix:
            raise AudioError(f"{path} has {sound.channels} channels, expected 1: mix them with --mix true")
        blocks = []
        while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
            blocks.append(block.mean(1))
        rate, frames, subtype = sound.samplerate, sound.frames, sound.subtype
    if not blocks:
        raise AudioError(f"{path} holds no samples: replace or remove it")
    waveform = torch.from_numpy(np.concatenate(blocks))
    if len(waveform) < frames < 1 << 62:  # libsndfile's word for a stream that was never told its length
        raise AudioError(f"{path} is truncated: expected {frames} samples, {len(waveform)} could be read; replace it")
    if not bool(torch.isfinite(waveform).all()):
        raise AudioError(f"{path} contains NaN or infinite samples: replace it")
    if subtype in ("FLOAT", "DOUBLE") and waveform.abs().max() > 1.0:
        raise AudioError(f"{path} has samples up to {waveform.abs().max():.4g}, expected [-1, 1]: scale it down")
    if rate != SAMPLE_RATE:
        waveform = audio.at_16_khz(waveform.clamp(-1.0, 1.0), rate)
    scaled = (waveform * audio.FULL_SCALE).round().clamp(-audio.FULL_SCALE, audio.FULL_SCALE - 1)
    return scaled.to(torch.int16).numpy()


def _missing_bytes(file: BinaryIO) -> int:
    """By how much the header of another file than wav announces more than it has; libsndfile takes what is there."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    return max(0, _announced(file.read(1024)) - end)


def _announced(start: bytes) -> int:
    """Bytes of the whole file, as the beginning of one says; 0 where it does not."""
    match start[:4]:
        case b"FORM" | b"RIFX":
            return 8 + int.from_bytes(start[4:8], "big")
        case b"riff":
            return int.from_bytes(start[16:24], "little")
        case b".snd":
            size = int.from_bytes(start[8:12], "big")
            streamed = size == 0xFFFFFFFF  # written to a pipe, its length never filled in
            return 0 if streamed else int.from_bytes(start[4:8], "big") + size
        case b"NIST":
            fields = {name: int(value) for name, value in re.findall(rb"(\w+) -i (\d+)", start)}
            sizes = [fields.get(name, 0) for name in (b"sample_count", b"sample_n_bytes", b"channel_count")]
            header = re.match(rb"NIST_1A\s+(\d+)\s", start)
            return (int(header[1]) if header else 0) + sizes[0] * sizes[1] * sizes[2]
    return 0


@contextmanager
def _decoded(path: Path, reason: str) -> Iterator[Path]:
    """What ffmpeg makes of a file, for the block, in a form that libsndfile reads.

    Raises:
        AudioError: no ffmpeg, or one that can't decode it.
    """
    program = find_ffmpeg()
    if program is None:
        raise AudioError(
            f"{path} can't be read by libsndfile ({reason}), and there is no ffmpeg: pip install imageio-ffmpeg, or "
            "apt install ffmpeg"
        )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "decoded.w64"
        read_only = ["-protocol_whitelist", "file", "-format_whitelist", CONTAINERS]
        source = ["-i", f"file:{path.absolute()}", "-map", "a:0", "-c:a", "pcm_s16le"]
        command = [program, "-nostdin", "-v", "error", "-xerror", *read_only, *source, "-f", "w64", f"file:{target}"]
        try:
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=True)
        except subprocess.CalledProcessError as error:
            lines = error.stderr.decode(errors="replace").split("\n")
            said = next((line.strip() for line in lines if line.strip()), f"status {error.returncode}")
            raise AudioError(f"{path} can't be read by libsndfile ({reason}) nor by ffmpeg ({said})") from error
        except subprocess.TimeoutExpired as error:
            raise AudioError(f"{path} was not decoded by ffmpeg within {SECONDS} s") from error
        yield target


def find_ffmpeg() -> str | None:
    """The command ffmpeg, of the system or of the package imageio-ffmpeg."""
    if found := system.command("ffmpeg"):
        return found
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError):
        return None
