"""Audio files: what is read is what is there, what can't be used is refused, what is written lies in the ball."""

import os
import resource
import struct
from collections.abc import Callable
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly

from sec4sr_pl import audio
from sec4sr_pl.audio import AudioError

FORMATS = pytest.mark.parametrize("extension", ["wav", "flac"])
EPSILON = 0.002


def integers(samples: int = 16_000, seed: int = 0, scale: float = 0.1) -> NDArray[np.int16]:
    """16-bit noise."""
    noise = np.random.default_rng(seed).normal(0.0, scale * audio.FULL_SCALE, samples)
    return np.clip(np.rint(noise), -32_768, 32_767).astype(np.int16)


def write(path: Path, samples: NDArray[Any] | None = None, rate: int = 16_000, **kwargs: Any) -> Path:
    soundfile.write(str(path), integers() if samples is None else samples, rate, **kwargs)
    return path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# Reading


@FORMATS
def test_read_equals_soundfile_and_the_integers_that_were_written(tmp_path: Path, extension: str) -> None:
    samples = integers()
    samples[:2] = -32_768, 32_767
    path = write(tmp_path / f"a.{extension}", samples)
    waveform = audio.read(path)
    assert waveform.dtype == torch.float32 and waveform.shape == (16_000,)
    assert np.array_equal(waveform.numpy(), soundfile.read(str(path), dtype="float32")[0])
    assert np.array_equal(waveform.numpy() * 32_768, samples)


def test_read_keeps_float_samples_bit_for_bit(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-1.0, 1.0, 1_000).astype(np.float32)
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    assert np.array_equal(audio.read(path).numpy(), samples)


@FORMATS
@pytest.mark.parametrize(("start", "frames"), [(0, 1), (0, 16_000), (1, 4_096), (9_999, 1_601), (15_999, 1), (70, 0)])
def test_a_crop_is_exactly_those_samples(tmp_path: Path, extension: str, start: int, frames: int) -> None:
    samples = integers()
    crop = audio.read(write(tmp_path / f"a.{extension}", samples), start, frames)
    assert np.array_equal(crop.numpy() * 32_768, samples[start : start + frames])


@FORMATS
def test_without_a_number_of_frames_a_crop_goes_to_the_end(tmp_path: Path, extension: str) -> None:
    samples = integers()
    crop = audio.read(write(tmp_path / f"a.{extension}", samples), 12_345)
    assert np.array_equal(crop.numpy() * 32_768, samples[12_345:])


@FORMATS
def test_a_tenth_of_a_second_of_ten_minutes_is_read_without_the_rest(
    tmp_path: Path, extension: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = integers(600 * 16_000, scale=0.01)
    path = write(tmp_path / f"long.{extension}", samples)
    decoded: list[int] = []
    whole_read = soundfile.read

    def counting_read(*args: Any, **kwargs: Any) -> Any:
        result = whole_read(*args, **kwargs)
        decoded.append(len(result[0]))
        return result

    monkeypatch.setattr(soundfile, "read", counting_read)
    before = bytes_read()
    crop = audio.read(path, 7_654_321, 1_600)
    after = bytes_read()
    assert np.array_equal(crop.numpy() * 32_768, samples[7_654_321 : 7_654_321 + 1_600])
    assert decoded == [1_600]
    if before is not None and after is not None:  # the decoder's own reading, too: a search, not a pass
        assert after - before < path.stat().st_size / 50


def bytes_read() -> int | None:
    """Bytes that this process has read from files and pipes so far, where the system tells (Linux)."""
    try:
        return int(Path("/proc/self/io").read_text().split()[1])
    except OSError:
        return None


def test_a_length_that_was_never_filled_in_is_no_truncation(tmp_path: Path) -> None:
    path = write(tmp_path / "piped.wav")
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4  # as ffmpeg writes to a pipe
    path.write_bytes(content)
    assert np.array_equal(audio.read(path).numpy() * 32_768, integers())


def with_comment(path: Path, text: bytes) -> Path:
    """Put a LIST chunk between the header and the data of a plain wav file."""
    content = path.read_bytes()
    payload = b"INFOICMT" + struct.pack("<I", len(text)) + text
    even = payload + bytes(len(payload) % 2)
    content = content[:36] + b"LIST" + struct.pack("<I", len(payload)) + even + content[36:]
    path.write_bytes(content[:4] + struct.pack("<I", len(content) - 8) + content[8:])
    return path


def test_the_word_data_in_a_comment_is_no_data_chunk(tmp_path: Path) -> None:
    path = with_comment(write(tmp_path / "a.wav"), b"database")
    assert np.array_equal(audio.read(path).numpy() * 32_768, integers())


def test_flac_behind_an_id3_tag_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac")
    path.write_bytes(b"ID3\3\0\0\0\0\1\2" + bytes(130) + path.read_bytes())
    assert audio.info(path) == (16_000, 16_000, 1)
    assert np.array_equal(audio.read(path, 9_000, 100).numpy() * audio.FULL_SCALE, integers()[9_000:9_100])
    for other in (b"ID3", b"ID3\3\0\0\0\0\1\2" + bytes(130) + b"\xff\xfb\x90\0"):
        path.write_bytes(other)
        with pytest.raises(AudioError):
            audio.info(path)


# Resampling


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_another_sample_rate_is_resampled_only_if_asked(tmp_path: Path, rate: int) -> None:
    time = np.arange(2 * rate) / rate
    tones = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 1_500 * time + 1.0)
    path = write(tmp_path / "a.wav", tones, rate, subtype="FLOAT")
    with pytest.raises(AudioError, match=rf"has {rate} samples a second, expected 16000.*resample=True"):
        audio.read(path)
    waveform = audio.read(path, resample=True).numpy()
    assert waveform.shape == (32_000,)
    time = np.arange(32_000) / 16_000
    exact = 0.3 * np.sin(2 * np.pi * 440 * time) + 0.2 * np.sin(2 * np.pi * 1_500 * time + 1.0)
    inner = slice(500, -500)
    assert np.abs(waveform - exact)[inner].max() < 2e-3
    divisor = gcd(rate, 16_000)
    reference = resample_poly(tones, 16_000 // divisor, rate // divisor)
    assert np.abs(waveform - reference)[inner].max() < 2e-3


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_a_resampled_crop_is_that_stretch_of_the_resampled_whole(tmp_path: Path, rate: int) -> None:
    path = write(tmp_path / "a.wav", integers(rate), rate)
    whole = audio.read(path, resample=True)
    assert torch.equal(audio.read(path, 3_000, 500, resample=True), whole[3_000:3_500])
    assert torch.equal(audio.read(path, 3_000, resample=True), whole[3_000:])


def test_a_resampled_file_has_as_many_samples_as_announced_at_any_length(tmp_path: Path) -> None:
    frames = next(n for n in range(60 * 44_100, 61 * 44_100) if 160 * n % 441 == 1)  # torchaudio returns one fewer
    path = write(tmp_path / "a.wav", integers(frames, scale=0.01), 44_100)
    expected = -(-frames * 16_000 // 44_100)
    assert audio.samples_at_16_khz(frames, 44_100) == expected
    assert len(audio.read(path, resample=True)) == expected


def test_the_same_sample_rate_is_not_touched_when_resampling_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav")
    assert torch.equal(audio.read(path, resample=True), audio.read(path))


# What can't be used


def stereo(path: Path) -> Path:
    return write(path, np.stack([integers(), integers()], axis=1))


def off_by(value: float) -> Callable[[Path], Path]:
    """A file with one bad sample."""

    def make(path: Path) -> Path:
        samples = (integers() / 32_768).astype(np.float32)
        samples[777] = value
        return write(path, samples, subtype="FLOAT")

    return make


def cut(keep: float, source: str) -> Callable[[Path], Path]:
    """The beginning of a good file."""

    def make(path: Path) -> Path:
        content = write(path.with_name(f"whole.{source}")).read_bytes()
        path.write_bytes(content[: int(keep * len(content))])
        return path

    return make


def truncated_behind_a_long_comment(path: Path) -> Path:
    content = with_comment(write(path), b"x" * 8_001).read_bytes()
    path.write_bytes(content[:-5_000])
    return path


def empty(path: Path) -> Path:
    path.touch()
    return path


def text(path: Path) -> Path:
    path.write_text("<html>404 Not Found</html>\n" * 50)
    return path


def no_samples(path: Path) -> Path:
    return write(path, integers(0))


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def unknown_length(path: Path) -> Path:
    """A flac stream whose header says 0 samples: unknown."""
    content = bytearray(write(path).read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.wav", stereo, "has 2 channels, expected 1"),
        ("a.flac", stereo, "has 2 channels, expected 1"),
        ("a.wav", off_by(np.nan), "NaN or infinite"),
        ("a.wav", off_by(np.inf), "NaN or infinite"),
        ("a.wav", off_by(2.5), r"samples up to 2\.5, expected \[-1, 1\]"),
        ("a.wav", off_by(-1.001), r"samples up to 1\.001, expected \[-1, 1\]"),
        ("a.wav", empty, "is empty: expected a wav or flac file"),
        ("a.flac", empty, "is empty: expected a wav or flac file"),
        ("a.wav", no_samples, "holds no samples"),
        ("a.wav", cut(0.5, "wav"), "truncated: its header announces 16022 bytes more than it has"),
        ("a.WAV", cut(0.9999, "wav"), "truncated: its header announces 4 bytes more than it has"),
        ("a.wav", truncated_behind_a_long_comment, "truncated: its header announces 5000 bytes more than it has"),
        ("a.flac", cut(0.5, "flac"), "truncated"),
        ("a.flac", cut(0.9999, "flac"), "truncated"),
        ("a.flac", cut(0.002, "flac"), "truncated|can't be read"),
        ("a.wav", text, "can't be read .*expected a wav or flac file"),
        ("a.flac", text, "can't be read .*expected a wav or flac file"),
        ("a.flac", unknown_length, "does not say how many samples"),
        ("a.wav", lambda path: path, "does not exist: expected a wav or flac file"),
        ("a.wav", folder, "can't be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name_and_reason(
    tmp_path: Path, name: str, make: Callable[[Path], Path], message: str
) -> None:
    path = make(tmp_path / name)
    with pytest.raises(AudioError, match=message) as caught:
        audio.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_decoder_that_stops_early_without_an_error_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_read = soundfile.read
    monkeypatch.setattr(soundfile, "read", lambda *args, **kwargs: (whole_read(*args, **kwargs)[0][:-1], 16_000))
    with pytest.raises(AudioError, match="truncated: expected 100 samples, 99 could be read"):
        audio.read(write(tmp_path / "a.flac"), 50, 100)


def test_a_crop_of_what_is_left_of_a_truncated_wav_is_refused_too(tmp_path: Path) -> None:
    path = cut(0.5, "wav")(tmp_path / "a.wav")
    with pytest.raises(AudioError, match="truncated"):
        audio.read(path, 0, 100)


def test_a_crop_of_what_is_gone_from_a_truncated_flac_is_refused(tmp_path: Path) -> None:
    path = cut(0.5, "flac")(tmp_path / "a.flac")
    with pytest.raises(AudioError, match="truncated"):
        audio.read(path, 12_000, 100)


@pytest.mark.parametrize("rate", [16_000, 8_000])
@pytest.mark.parametrize(("start", "frames"), [(15_990, 11), (16_001, None), (20_000, 100), (0, 16_001)])
def test_a_crop_past_the_end_is_refused(tmp_path: Path, rate: int, start: int, frames: int | None) -> None:
    path = write(tmp_path / "a.wav", integers(rate), rate)
    with pytest.raises(AudioError, match=f"too short: expected samples {start} to .*it has 16000"):
        audio.read(path, start, frames, resample=True)


@pytest.mark.parametrize(("start", "frames"), [(-100, 50), (-1, None), (0, -1)])
def test_negative_positions_are_refused(tmp_path: Path, start: int, frames: int | None) -> None:
    with pytest.raises(ValueError, match="Expected start and frames of at least 0"):
        audio.read(write(tmp_path / "a.wav"), start, frames)


def test_samples_beyond_full_scale_are_refused_before_resampling_hides_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", (integers(8_000) * 1.0).astype(np.float32), 8_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"expected \[-1, 1\]"):
        audio.read(path, resample=True)


@FORMATS
def test_info_is_what_the_header_says(tmp_path: Path, extension: str) -> None:
    assert audio.info(write(tmp_path / f"a.{extension}", integers(321), 44_100)) == (321, 44_100, 1)


# The ball


def test_0002_of_full_scale_is_65_steps() -> None:
    original = torch.zeros(4)
    adversarial = torch.tensor([EPSILON, -EPSILON, 65.4 / 32_768, 3.4 / 32_768])
    steps = audio.round_inside_ball(adversarial, original, EPSILON) * 32_768
    assert steps.tolist() == [65.0, -65.0, 65.0, 3.0]


def test_a_ball_of_whole_steps_keeps_its_last_step() -> None:
    for steps in range(1, 200):
        epsilon = steps / 32_768
        rounded = audio.round_inside_ball(torch.tensor([epsilon]), torch.zeros(1), epsilon)
        assert rounded.item() * 32_768 == steps


def test_full_scale_is_32767_and_never_wraps() -> None:
    rounded = audio.round_inside_ball(torch.tensor([1.0, -1.0]), torch.tensor([1.0, -1.0]), EPSILON)
    assert (rounded * 32_768).tolist() == [32_767.0, -32_768.0]


@pytest.mark.parametrize("epsilon", [0.0, 0.0005, EPSILON, 0.01, 0.3, np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_gives_the_nearest_16_bit_value_of_the_ball(epsilon: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    original = torch.randint(-32_768, 32_768, (20_000,), generator=generator, dtype=torch.int64)
    original[:4] = torch.tensor([-32_768, 32_767, -32_768, 32_767])
    width = 2.0 if np.isinf(epsilon) else epsilon
    noise = (2.0 * torch.rand(20_000, generator=generator, dtype=torch.float64) - 1.0) * 1.2 * width
    adversarial = (original / 32_768 + noise).clamp(-1.0, 1.0).to(dtype)
    rounded = audio.round_inside_ball(adversarial, (original / 32_768).to(dtype), epsilon)
    assert rounded.dtype == dtype
    steps = (rounded.double() * 32_768).numpy()
    assert np.array_equal(steps, np.rint(steps))
    # by hand: integers of the ball and of the format, nearest to the wish
    reach = 65_536 if np.isinf(epsilon) else int(epsilon * 32_768)
    low = np.maximum(original.numpy() - reach, -32_768)
    high = np.minimum(original.numpy() + reach, 32_767)
    wish = adversarial.double().numpy() * 32_768
    assert (steps >= low).all() and (steps <= high).all()
    for neighbor in (np.clip(np.floor(wish), low, high), np.clip(np.ceil(wish), low, high)):
        assert (np.abs(steps - wish) <= np.abs(neighbor - wish)).all()


def test_on_grid_knows_16_bit_values() -> None:
    assert audio.on_grid(torch.tensor([-32_768, -1, 0, 32_767]) / 32_768)
    assert not audio.on_grid(torch.tensor([0.0, 0.5 / 32_768]))
    assert not audio.on_grid(torch.tensor([1.0]))  # 32,768 is no 16-bit value


# Writing


def test_a_16_bit_original_gives_a_16_bit_file_that_reads_back_inside_the_ball(tmp_path: Path) -> None:
    original = torch.from_numpy(integers(scale=0.4)).float() / 32_768
    noise = 2.0 * torch.rand(16_000, generator=torch.Generator().manual_seed(1)) - 1.0
    adversarial = (original + EPSILON * noise.sign()).clamp(-1.0, 1.0)
    path = tmp_path / "made" / "on the way" / "a.wav"
    audio.write_adversarial(path, adversarial, original, EPSILON)
    header = soundfile.info(str(path))
    assert (header.format, header.subtype, header.samplerate, header.channels) == ("WAV", "PCM_16", 16_000, 1)
    again = audio.read(path)
    assert (again - original).abs().max() == 65 / 32_768
    assert torch.equal(again, audio.round_inside_ball(adversarial, original, EPSILON))
    assert names(path.parent) == ["a.wav"]


def test_full_scale_is_written_without_a_click(tmp_path: Path) -> None:
    original = torch.tensor([32_767, -32_768] * 100) / 32_768
    audio.write_adversarial(tmp_path / "a.wav", original.sign(), original, EPSILON)
    assert torch.equal(audio.read(tmp_path / "a.wav"), original)


def test_an_original_off_the_grid_gives_a_float_file_bit_for_bit(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    original = 2.0 * torch.rand(5_000, generator=generator) - 1.0
    adversarial = (original + EPSILON * (2.0 * torch.rand(5_000, generator=generator) - 1.0)).clamp(-1.0, 1.0)
    audio.write_adversarial(tmp_path / "a.wav", adversarial, original, EPSILON)
    assert soundfile.info(str(tmp_path / "a.wav")).subtype == "FLOAT"
    assert torch.equal(audio.read(tmp_path / "a.wav"), adversarial)


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_write_leaves_no_half_file_and_the_old_one_whole(
    tmp_path: Path, existing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = torch.from_numpy(integers()).float() / 32_768
    path = tmp_path / "a.wav"
    if existing:
        audio.write_adversarial(path, original, original, EPSILON)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}

    def failing_write(file: Path, content: bytes) -> None:
        with file.open("wb") as half:
            half.write(content[: len(content) // 2])
        assert {n: (tmp_path / n).read_bytes() for n in before} == before
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", failing_write)
    with pytest.raises(KeyboardInterrupt):
        audio.write_adversarial(path, original + 0.001, original, EPSILON)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before


def test_a_float32_file_does_not_tell_when_it_was_written(tmp_path: Path) -> None:
    sounds = torch.linspace(-0.5, 0.5, 16_000)
    written = []
    for name in ("a.wav", "b.wav"):
        audio.write_adversarial(tmp_path / name, sounds, sounds, EPSILON)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1] and b"PEAK" not in written[0]  # libsndfile's chunk, which holds the second


def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing(tmp_path: Path) -> None:
    original = torch.from_numpy(integers(200_000)).float() / 32_768
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # as if the disk were full there
    try:
        with pytest.raises(OSError, match=f"'{tmp_path}/a.wav'"):
            audio.write_adversarial(tmp_path / "a.wav", original, original, EPSILON)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == []
