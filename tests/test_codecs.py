"""Codecs against the ffmpeg command, their delays, settings and errors."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import halved
from numpy.typing import NDArray
from scipy.signal import butter, correlate, firwin, sosfiltfilt
from torch import Tensor
from torch.nn.functional import pad

from sec4sr_pl import system
from sec4sr_pl.defenses import (
    AMR,
    AACConstant,
    AACVariable,
    Defense,
    MP3Constant,
    MP3Variable,
    Opus,
    Speex,
    speech_codecs,
)
from sec4sr_pl.defenses.codec import Codec, Gradient, Samples
from sec4sr_pl.defenses.codecs import read_file
from sec4sr_pl.types import SAMPLE_RATE, valid_mask

av = pytest.importorskip("av", reason="Codecs need PyAV")
imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="they are compared with the ffmpeg command")
Speech = tuple[Tensor, Tensor]
CODECS: list[Callable[[], Codec]] = [Opus, MP3Constant, MP3Variable, AACConstant, AACVariable, Speex, AMR]


@pytest.fixture
def speech(speech: Speech) -> Speech:
    """Half of it: defenses cost as long as their input."""
    return halved(*speech)


@pytest.fixture(params=CODECS, ids=lambda make: make.__name__)
def codec(request: pytest.FixtureRequest) -> Codec:
    try:
        return request.param()  # type: ignore[no-any-return]
    except ImportError as error:
        pytest.skip(str(error))


def read(path: Path) -> Samples:
    samples: Samples = soundfile.read(path, dtype="int16")[0]
    return samples


def narrowband() -> Codec:
    """AMR on the telephone."""
    return AMR(12_200)


def integers(speech: Speech) -> list[Samples]:
    return [
        (row[:length] * 32_768).to(torch.int16).numpy()
        for row, length in zip(speech[0], speech[1].tolist(), strict=True)
    ]


def decibels(signal: Samples, other: Samples) -> float:
    """Power of the signal over that of the difference."""
    difference = signal.astype(float) - other
    return float(10.0 * np.log10((signal.astype(float) ** 2).sum() / max(1e-9, (difference**2).sum())))


def test_a_batch_is_what_each_utterance_gives_alone(codec: Codec, speech: Speech) -> None:
    together, lengths = codec(*speech)
    assert torch.equal(lengths, speech[1])
    for own, row in zip(together, integers(speech), strict=True):
        alone = codec.coded(row)
        assert len(alone) == len(row) and np.array_equal(own[: len(row)].numpy() * 32_768, alone)


def test_the_delay_of_speech_is_that_of_the_probe(codec: Codec, speech: Speech) -> None:
    band = butter(4, (500, 3_000), "bandpass", output="sos", fs=SAMPLE_RATE)  # codecs turn the phase of the lows
    for row in integers(speech)[:4]:
        padded = np.pad(row, (0, 8_192)).astype(np.int16)
        original, decoded = (sosfiltfilt(band, x) for x in (row, codec.round_trip(padded)))
        match = correlate(decoded, original, method="fft")[len(row) - 1 - 2_000 :][:6_001]
        assert int(match.argmax()) - 2_000 == codec.delay


def test_what_comes_back_is_in_time_and_like_what_came(codec: Codec, speech: Speech) -> None:
    for row, least in zip(integers(speech), [0.3] * 8, strict=True):
        decoded = codec.coded(row).astype(float)
        fitted = (decoded @ row) / np.linalg.norm(decoded) / np.linalg.norm(row.astype(float))
        assert fitted > least, fitted
        assert decoded[-len(row) // 10 :].any()  # the end is there too


@pytest.mark.parametrize("level", [0, 32_767, -32_768])
@pytest.mark.parametrize("size", [1, 160, 16_000])
def test_any_level_and_any_length_pass(codec: Codec, level: int, size: int) -> None:
    out = codec.coded(np.full(size, level, np.int16))
    assert out.shape == (size,) and out.dtype == np.int16
    assert level or np.abs(out.astype(int)).max() <= 16


def test_what_is_no_number_stays_none(codec: Codec) -> None:
    signal = torch.zeros(2, 1_000)
    signal[0, 500] = torch.nan
    out, _ = codec(signal)
    assert out[0].isnan().any() and out[1].isfinite().all()


def test_samples_between_the_16_bit_steps_are_rounded_and_loud_ones_clipped(codec: Codec) -> None:
    exact = torch.tensor([[0.5, -1.0, 1.0, 0.25]]).repeat(1, 500)
    assert torch.equal(codec(exact + 0.4 / 32_768)[0], codec(exact)[0])


COMMANDS: dict[Callable[[], Codec], tuple[list[str], str, list[str]]] = {
    Opus: (["-c:a", "libopus", "-b:a", "8000"], "ogg", []),
    MP3Constant: (["-c:a", "libmp3lame", "-b:a", "24000"], "mp3", []),
    MP3Variable: (["-c:a", "libmp3lame", "-q:a", "4"], "mp3", []),
    AACConstant: (["-c:a", "aac", "-b:a", "15000"], "adts", []),
    AACVariable: (["-c:a", "aac", "-q:a", "0.3"], "adts", []),
    Speex: (["-c:a", "libspeex", "-b:a", "11000"], "ogg", ["-c:a", "libspeex"]),  # FFmpeg's own decoder has no filter
    narrowband: (["-c:a", "libopencore_amrnb", "-b:a", "12200", "-ar", "8000"], "amr", []),
    AMR: (["-c:a", "libvo_amrwbenc", "-b:a", "6600"], "amr", []),
}
FFMPEGS = [path for path in (system.command("ffmpeg"), imageio_ffmpeg.get_ffmpeg_exe()) if path]
WHEEL = {Opus: "libopus", MP3Constant: "libmp3lame"}
"""Libraries in PyAV's wheel whose versions encode differently."""


class Command:
    """Runs an ffmpeg, one with shared libraries on those of PyAV's wheel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in WHEEL.values():
            for library in Path(av.__file__).parent.with_name("av.libs").glob(f"{name}-*"):
                (folder / f"{name}.so.0").symlink_to(library)

    def __call__(self, ffmpeg: str, *arguments: str | Path, **variables: str) -> str:
        return subprocess.run(
            [ffmpeg, "-loglevel", "error", "-y", *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"LD_LIBRARY_PATH": str(self.folder)} | variables,
        ).stdout

    def has(self, ffmpeg: str, encoder: str) -> bool:
        return f" {encoder} " in self(ffmpeg, "-encoders")

    def has_the_version(self, ffmpeg: str, make: Callable[[], Codec]) -> bool:
        """Whether its encoder is the very one of PyAV, where that matters."""
        if make in WHEEL:  # the loader lists what it loads and starts nothing; a static ffmpeg shows its version
            return f"{self.folder}/{WHEEL[make]}" in self(ffmpeg, "-version", LD_TRACE_LOADED_OBJECTS="1")
        if make is AACConstant:
            found = re.search(r"libavcodec +(\d+)\. *(\d+)\. *(\d+)", self(ffmpeg, "-version"))
            return found is not None and av.library_versions["libavcodec"] == tuple(map(int, found.groups()))
        return True


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


@pytest.fixture(params=COMMANDS, ids=lambda make: make.__name__)
def make(request: pytest.FixtureRequest) -> Callable[[], Codec]:
    """Makes a codec that an ffmpeg command has too."""
    try:
        request.param()
    except ImportError as error:
        pytest.skip(str(error))
    return request.param  # type: ignore[no-any-return]


def test_the_ffmpeg_command_gives_the_same(
    make: Callable[[], Codec], command: Command, recorded_once: Speech, tmp_path: Path
) -> None:
    options, container, decoder = COMMANDS[make]
    able = [path for path in FFMPEGS if command.has(path, options[1]) and command.has_the_version(path, make)]
    if not able:
        pytest.skip(f"needs an ffmpeg with the {options[1]} of PyAV")
    codec, (source, coded, decoded) = make(), (tmp_path / name for name in ("in.wav", f"coded.{container}", "out.wav"))
    for row in integers(recorded_once)[:4]:
        soundfile.write(source, np.pad(row, (0, max(0, codec.delay))), SAMPLE_RATE, subtype="PCM_16")
        ours, best = codec.coded(row), []
        for ffmpeg in able:
            command(ffmpeg, "-i", source, *options, "-f", container, coded)
            command(ffmpeg, *decoder, "-i", coded, "-ar", "16000", decoded)
            theirs = read(decoded)[max(0, codec.delay) :]
            size = min(len(theirs), len(row))
            assert size >= len(row) - 640
            best.append(decibels(ours[:size], theirs[:size]))
        assert max(best) >= 40.0  # also AAC of constant quality has changed, but not in every version


def test_a_file_of_the_ffmpeg_command_decodes_to_the_same(
    make: Callable[[], Codec], command: Command, speech: Speech, tmp_path: Path
) -> None:
    options, container, decoder = COMMANDS[make]
    able = [path for path in FFMPEGS if command.has(path, options[1])]
    if make is Speex or not able:
        pytest.skip("needs no file" if make is Speex else f"needs an ffmpeg with {options[1]}")
    source, coded, decoded = (tmp_path / name for name in ("in.wav", f"coded.{container}", "out.wav"))
    for row in integers(speech)[:4]:
        soundfile.write(source, row, SAMPLE_RATE, subtype="PCM_16")
        for ffmpeg in able:
            command(ffmpeg, "-i", source, *options, "-f", container, coded)
            command(ffmpeg, *decoder, "-i", coded, "-ar", "16000", decoded)
            ours, theirs = read_file(io.BytesIO(coded.read_bytes()), container), read(decoded)
            size = min(len(ours), len(theirs))
            assert size >= len(row) - 640 and decibels(ours[:size], theirs[:size]) >= 40.0


@pytest.mark.parametrize("bit_rate", [*AMR.WIDEBAND, *AMR.NARROWBAND])
def test_every_mode_of_amr_works_and_more_bits_are_closer_within_a_band(bit_rate: int, speech: Speech) -> None:
    try:
        codec = AMR(bit_rate)
    except ImportError as error:
        pytest.skip(str(error))
    row = integers(speech)[0]
    decoded = codec.coded(row)
    lost = np.fft.rfft(decoded.astype(float))[len(row) * 4_200 // SAMPLE_RATE :]
    kept = np.fft.rfft(row.astype(float))[len(row) * 4_200 // SAMPLE_RATE :]
    narrow = np.square(np.abs(lost)).sum() < 0.05 * np.square(np.abs(kept)).sum()
    assert narrow == (bit_rate in AMR.NARROWBAND)


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (lambda: Opus(6_000), lambda: Opus(64_000)),
        (lambda: MP3Constant(8_000), lambda: MP3Constant(64_000)),
        (lambda: MP3Variable(9), lambda: MP3Variable(0)),
        (lambda: AACConstant(8_000), lambda: AACConstant(64_000)),
        (lambda: AACVariable(0.1), lambda: AACVariable(2.0)),
        (lambda: Speex(6_000), lambda: Speex(42_200)),
        (lambda: AMR(6_600), lambda: AMR(23_850)),
    ],
)
def test_settings_reach_the_encoder(worse: Callable[[], Codec], better: Callable[[], Codec], speech: Speech) -> None:
    try:
        pair = worse(), better()
    except ImportError as error:
        pytest.skip(str(error))
    row = integers(speech)[0]
    low, high = (decibels(row, codec.coded(row)) for codec in pair)
    assert high > low + 1.0


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Opus(5_999), "bit_rate from 6000 to 256000, got 5999"),
        (lambda: MP3Constant(20_000), "8000, 16000, 24000, .*, 160000, got 20000"),
        (lambda: MP3Variable(10), "quality from 0 to 9, got 10"),
        (lambda: AACConstant(100_000), "bit_rate from 8000 to 96000, got 100000"),
        (lambda: AACVariable(0.0), "quality from 0.01 to 2, got 0.0"),
        (lambda: Speex(3_000), "bit_rate from 4000 to 44000, got 3000"),
        (lambda: AMR(6_601), "6600, 8850, .*, 12200, got 6601"),
    ],
)
def test_settings_that_a_codec_does_not_have_are_refused(make: Callable[[], Defense], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize("make", [Opus, MP3Constant, MP3Variable, AACConstant, AACVariable])
def test_without_pyav_the_error_names_the_package(make: Callable[[], Codec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'sec4sr_pl\[codecs\]'"):
        make()


@pytest.mark.parametrize(
    ("make", "library", "told"),
    [
        (Speex, speech_codecs.libspeex, "libspeex is not installed: apt-get install libspeex1, or brew install speex"),
        (AMR, speech_codecs.libvo_amrwbenc, "libvo-amrwbenc is not installed: apt-get install libvo-amrwbenc0"),
    ],
)
def test_without_its_library_the_error_names_the_package(
    make: Callable[[], Codec], library: Callable[[], object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library.cache_clear()  # type: ignore[attr-defined]
    monkeypatch.setenv("SEC4SR_BARE", "1")
    with pytest.raises(ImportError, match=told):
        make()
    library.cache_clear()  # type: ignore[attr-defined]


# The gradient that stands for the missing one


class Filter(Codec):
    """A filter without phase, as if it were a codec."""

    def __init__(self, taps: NDArray[np.float64], gradient: Gradient = "gain") -> None:
        self.taps = taps
        super().__init__(gradient)

    def round_trip(self, samples: Samples) -> Samples:
        filtered: NDArray[np.float64] = np.convolve(samples, self.taps, "same")
        return np.rint(filtered).astype(np.int16)


def slope(codec: Codec, signal: Tensor, lengths: Tensor, weights: Tensor) -> Tensor:
    leaf = signal.clone().requires_grad_(True)
    output, _ = codec(leaf, lengths)
    return torch.autograd.grad((output * weights).sum(), leaf)[0]


@pytest.mark.parametrize("gain", [0.25, 0.5, 1.0])
def test_the_gain_of_a_codec_that_scales_is_its_scale(gain: float, speech: Speech) -> None:
    signal, lengths = speech
    found = slope(Filter(np.array([gain])), signal, lengths, signal)  # along the signal, where gains are well known
    ratio = (found * signal).sum(1) / signal.square().sum(1)
    torch.testing.assert_close(ratio, torch.full_like(ratio, gain), rtol=1e-2, atol=0.0)
    assert found[~valid_mask(lengths, signal.shape[1])].count_nonzero() == 0


def test_the_gain_of_a_low_pass_lets_the_lows_through(speech: Speech) -> None:
    codec, (signal, lengths) = Filter(firwin(129, 2_000, fs=SAMPLE_RATE)), speech
    noisy = (signal + 0.01 * torch.randn(signal.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    time = torch.arange(signal.shape[1]) / SAMPLE_RATE
    for frequency, expected in ((1_000, 1.0), (5_000, 0.0)):
        tone = torch.sin(2 * torch.pi * frequency * time).expand_as(signal)
        inside = slice(1_000, int(lengths.min()) - 1_000)
        found = slope(codec, noisy, lengths, tone)[:, inside]
        ratio = (found * tone[:, inside]).sum(1) / tone[:, inside].square().sum(1)
        assert (ratio - expected).abs().max() < 0.05


def test_the_gain_of_an_utterance_depends_on_it_alone(speech: Speech) -> None:
    signal, lengths = (pad(speech[0], (0, 777)), speech[1])
    codec, weights = Filter(np.array([0.3, 0.5, 0.2])), torch.rand(signal.shape, generator=torch.Generator())
    together = slope(codec, signal, lengths, weights)
    for row, length in enumerate(lengths.tolist()):
        alone = slope(codec, signal[row : row + 1, :length], lengths[row : row + 1], weights[row : row + 1, :length])
        torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-4, atol=1e-5)


def test_silence_has_a_gain_of_zero(codec: Codec) -> None:
    codec.gradient = "gain"
    silent = torch.zeros(2, 4_000)
    assert torch.equal(slope(codec, silent, torch.tensor([4_000, 3_000]), torch.ones(2, 4_000)), silent)


def test_a_gradient_that_no_codec_has_is_refused() -> None:
    with pytest.raises(ValueError, match="gradient to be 'identity' or 'gain', got 'magic'"):
        Filter(np.ones(1), "magic")  # type: ignore[arg-type]
