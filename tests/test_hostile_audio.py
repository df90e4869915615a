"""Audio files that are no audio, not whole, or no files: one AudioError that names them, in little memory."""

import io
import os
import resource
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sec4sr_pl import audio
from sec4sr_pl.audio import AudioError


def content(container: str) -> bytes:
    """A second of 16-bit noise."""
    samples = (3_000 * np.random.default_rng(0).standard_normal(16_000)).astype(np.int16)
    file = io.BytesIO()
    endian, form = ("BIG", "WAV") if container == "RIFX" else (None, container)
    soundfile.write(file, samples, 16_000, "PCM_16", endian, form)
    return file.getvalue()


OTHERS = {"RIFX": "RIFX", "W64": "W64", "AU": "AU", "AIFF": "AIFF", "NIST": "NIST SPHERE", "CAF": "CAF"}
"""Containers that libsndfile reads whole or not, and how they are called."""


@pytest.mark.parametrize("keep", [1.0, 0.6])
@pytest.mark.parametrize("container", OTHERS)
def test_another_container_called_wav_is_refused_whole_or_cut(container: str, keep: float, tmp_path: Path) -> None:
    path, whole = tmp_path / "a.wav", content(container)
    path.write_bytes(whole[: int(keep * len(whole))])
    for look in (audio.info, audio.read):
        with pytest.raises(AudioError, match=rf"a\.wav holds {OTHERS[container]}: .*sec4sr_pl\.data\.prepare"):
            look(path)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64"])
def test_a_cut_wav_is_refused_from_its_header_alone(container: str, name: str, tmp_path: Path) -> None:
    path, whole = tmp_path / name, content(container)
    path.write_bytes(whole)
    assert audio.info(path) == (16_000, 16_000, 1) and len(audio.read(path)) == 16_000
    path.write_bytes(whole[:-2])
    for look in (audio.info, audio.read):
        with pytest.raises(AudioError, match="is truncated: its header announces 2 bytes more than it has"):
            look(path)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    """A socket, by a short name: the address of one has at most 107 bytes."""
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (pipe, "it is a pipe, a socket or a device"),
        (listening, "it is a pipe, a socket or a device"),
        (lambda path: path.symlink_to("/dev/zero"), "it is a pipe, a socket or a device"),
        (Path.mkdir, "it is a folder"),
        (lambda path: path.symlink_to("nowhere.wav"), "is a link to nothing"),
        (lambda path: path.symlink_to(path), "is a link to nothing"),
    ],
    ids=["pipe", "socket", "device", "folder", "broken", "loop"],
)
def test_what_is_no_regular_file_is_refused_without_waiting(
    make: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    make(tmp_path / "a.wav")
    for look in (audio.info, audio.read):
        with pytest.raises(AudioError, match=rf"a\.wav .*{said}"):
            look(tmp_path / "a.wav")


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Two gigabytes more than what is taken already."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + (2 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def flac(announced: int) -> bytes:
    """A second whose header announces another number of samples."""
    made = bytearray(content("FLAC"))
    made[21:26] = (made[21] & 0xF0 | announced >> 32).to_bytes(1, "big") + (announced & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(made)


def wav(rate: int) -> bytes:
    """A kilobyte of silence at a rate."""
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, 0, 1, 8)
    return b"RIFF" + struct.pack("<I", 1_036) + b"WAVEfmt " + form + b"data" + struct.pack("<I", 1_000) + bytes(1_000)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (flac(2**36 - 1), "truncated"),
        (wav(1), "has 1 samples a second, a rate of no recording"),
        (wav(15_999), "has 15999 samples a second, a rate of no recording"),
        (wav(2**31 - 1), "has 2147483647 samples a second, a rate of no recording"),
        (wav(0), "can't be read"),
    ],
    ids=["frames", "slow", "odd", "fast", "zero"],
)
def test_a_header_that_announces_much_takes_no_memory(
    made: bytes, said: str, tmp_path: Path, little_memory: None
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(made)
    with pytest.raises(AudioError, match=said) as caught:
        audio.read(path, resample=True)
    assert "object at 0x" not in str(caught.value)


def test_a_long_file_is_read_in_pieces_as_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(content("FLAC"))
    whole = audio.read(path)
    monkeypatch.setattr(audio, "PIECE", 3_000)
    assert whole.equal(audio.read(path)) and whole[100:9_100].equal(audio.read(path, 100, 9_000))


@pytest.mark.parametrize("container", ["WAV", "FLAC", "RF64"])
def test_whatever_the_bytes_are_there_is_a_waveform_or_an_audio_error(container: str, tmp_path: Path) -> None:
    whole, generator, path, told = content(container), np.random.default_rng(0), tmp_path / "a.wav", []
    for _ in range(200):
        damaged = bytearray(whole)
        for place in generator.integers(4, 120, generator.integers(1, 5)):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            audio.info(path)
            assert audio.read(path, resample=True).abs().max() <= 1.0
        except AudioError as error:
            told.append(str(error))
    assert len(told) > 50 and all(str(path) in line and "\n" not in line for line in told)
