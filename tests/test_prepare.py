"""`prepare` makes 16 kHz mono flac of any tree of audio, tells what it could not, and goes on after a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from sec4sr_pl import audio, system
from sec4sr_pl.data import SpeakerData, foreign
from sec4sr_pl.data.manifest import DataError
from sec4sr_pl.data.prepare import main, prepare
from sec4sr_pl.types import SAMPLE_RATE

LOSSLESS = {"wav": "WAV", "flac": "FLAC", "aiff": "AIFF", "au": "AU", "w64": "W64", "caf": "CAF", "sph": "NIST"}
LOSSY = {"mp3": ("MP3", "MPEG_LAYER_III"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS")}


def voice(seconds: float = 0.5, rate: int = SAMPLE_RATE) -> NDArray[np.float64]:
    """A voice on the 16-bit grid."""
    time = np.arange(int(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * 150 * harmonic * time) / harmonic for harmonic in range(1, 9))
    return np.rint(0.2 * wave * audio.FULL_SCALE) / audio.FULL_SCALE


def write(path: Path, samples: NDArray[np.float64] | None = None, rate: int = SAMPLE_RATE, **form: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, voice() if samples is None else samples, rate, **form)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "output"


def files(folder: Path) -> dict[str, bytes]:
    """All of them, hidden ones too."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("extension", LOSSLESS)
def test_lossless_files_keep_their_samples_folders_and_names(extension: str, source: Path, output: Path) -> None:
    write(source / "train" / "a b" / f"-x.1.{extension.upper()}", format=LOSSLESS[extension], subtype="PCM_16")
    prepare(source, output, workers=0)
    assert list(files(output)) == ["train/a b/-x.1.flac"]
    assert np.array_equal(audio.decode(files(output)["train/a b/-x.1.flac"]), voice() * audio.FULL_SCALE)


@pytest.mark.parametrize("extension", LOSSY)
def test_lossy_files_keep_their_sound(extension: str, source: Path, output: Path) -> None:
    container, subtype = LOSSY[extension]
    write(source / "s" / f"x.{extension}", voice(1.0), format=container, subtype=subtype)
    prepare(source, output, workers=0)
    heard = audio.read(output / "s" / "x.flac").double().numpy()[4_000:12_000]
    assert np.corrcoef(heard, voice(1.0)[4_000:12_000])[0, 1] > 0.98


def test_another_rate_is_resampled_as_reading_does(source: Path, output: Path) -> None:
    path = write(source / "s" / "x.wav", voice(rate=44_100), 44_100)
    prepare(source, output, workers=0)
    asked = audio.read(path, resample=True)
    torch.testing.assert_close(audio.read(output / "s" / "x.flac"), asked, rtol=0.0, atol=0.5 / audio.FULL_SCALE + 1e-7)


def test_two_processes_leave_the_bytes_of_none_and_say_how_many_of_what(
    source: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ann/1.wav", "ann/2.mp3", "bob/3.ogg"):
        write(source / name)
    for name in ("read.txt", "ann/1.txt", "ann/LICENSE", ".hidden.wav"):
        (source / name).write_text("")
    main([str(source), str(output), "--workers=2"])
    said = f"{output}: 3 files converted, 0 were there, 3 are no audio (2 .txt, 1 without an extension)\n"
    assert capsys.readouterr().out == said
    prepare(source, again := output.with_name("again"), workers=0)
    assert files(again) == files(output) and len(files(again)) == 3
    assert len(SpeakerData(output.parent).scan(output.name)) == 3


def test_what_is_whole_and_newer_is_kept_and_the_rest_made_again(
    source: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("kept", "cut", "changed", "missing"):
        write(source / f"{name}.wav")
    prepare(source, output, workers=0)
    made = files(output)
    later = (output / "kept.flac").stat().st_mtime + 9
    os.utime(source / "changed.wav", (later, later))
    (output / "cut.flac").write_bytes(made["cut.flac"][:-900])
    (output / "missing.flac").unlink()
    before = {name: (output / name).stat().st_mtime_ns for name in ("kept.flac", "changed.flac")}
    capsys.readouterr()
    prepare(source, output, workers=0)
    assert "3 files converted, 1 were there" in capsys.readouterr().out
    assert files(output) == made
    assert (output / "kept.flac").stat().st_mtime_ns == before["kept.flac"]
    assert (output / "changed.flac").stat().st_mtime_ns > before["changed.flac"]


def test_what_can_not_be_converted_is_named_and_the_others_are_done(
    source: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(source / "good.wav")
    write(source / "stereo.wav", np.stack([voice(), voice()], 1))
    write(source / "nan.wav", np.full(99, np.nan), subtype="FLOAT")
    write(source / "loud.wav", np.full(99, 3.0), subtype="FLOAT")
    (source / "empty.wav").touch()
    (source / "text.m4a").write_text("#EXTM3U\nfile:///etc/passwd\n")
    (source / "nothing.wav").symlink_to("none")
    os.mkfifo(source / "pipe.wav")
    for extension in ("wav", "aiff", "au", "w64", "sph"):
        whole = write(source / f"cut-{extension}.{extension}", format=LOSSLESS[extension], subtype="PCM_16")
        whole.write_bytes(whole.read_bytes()[:-999])
    with pytest.raises(SystemExit) as stop:
        main([str(source), str(output), "--workers=0"])
    assert stop.value.code == 1 and list(files(output)) == ["good.flac"]
    told = capsys.readouterr().err
    for name, why in {
        "stereo.wav": "has 2 channels, expected 1: mix them with --mix true",
        "nan.wav": "contains NaN",
        "loud.wav": "has samples up to 3, expected [-1, 1]",
        "empty.wav": "is empty",
        "text.m4a": "can't be read by libsndfile (Format not recognised",
        "nothing.wav": "is a link to nothing",
        "pipe.wav": "can't be read (it is a pipe",
        **{f"cut-{extension}.{extension}": "is truncated" for extension in ("wav", "aiff", "au", "w64", "sph")},
    }.items():
        assert sum(line.startswith(f"{source / name} {why}") for line in told.splitlines()) == 1, (name, told)
    assert told.splitlines()[-1].endswith("12 of 13 files could not be converted; the same command tries these again")


def test_channels_are_mixed_on_request(source: Path, output: Path) -> None:
    write(source / "x.wav", np.stack([voice(), np.zeros_like(voice())], 1))
    prepare(source, output, mix=True, workers=0)
    expected = torch.from_numpy(voice()).float() / 2
    torch.testing.assert_close(audio.read(output / "x.flac"), expected, rtol=0.0, atol=0.5 / audio.FULL_SCALE)


def test_a_damaged_sphere_header_is_told_and_the_others_are_converted(source: Path, output: Path) -> None:
    (source / "damaged.sph").write_bytes(b"NIST_1A\n   10x4\n" + bytes(2_000))
    write(source / "good.wav")
    with pytest.raises(DataError, match="1 of 2 files could not be converted"):
        prepare(source, output, workers=0)
    assert list(files(output)) == ["good.flac"]


def test_processors_that_a_process_may_not_use_do_not_count() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert system.cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_two_files_that_would_become_one_are_refused_before_any_is_written(source: Path, output: Path) -> None:
    write(source / "a.wav")
    write(source / "s" / "b.mp3")
    write(source / "s" / "b.ogg")
    with pytest.raises(DataError, match=r"b\.mp3 and .*b\.ogg would both become .*b\.flac: rename or remove one"):
        prepare(source, output, workers=0)
    assert not output.exists()


def test_links_are_followed_once_around_and_never_written_through(source: Path, output: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "linked.wav")
    (source / "speaker").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(source)
    (source / "one.wav").symlink_to(tmp_path / "elsewhere" / "linked.wav")
    prepare(source, output, workers=0)
    assert sorted(files(output)) == ["one.flac", "speaker/linked.flac"]
    shutil.rmtree(output / "speaker")
    (tmp_path / "outside").mkdir()
    (output / "speaker").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"speaker leads out of .*output: remove the link"):
        prepare(source, output, workers=0)
    assert not list((tmp_path / "outside").iterdir())


def test_a_link_in_the_place_of_a_file_is_not_written_through(source: Path, output: Path, tmp_path: Path) -> None:
    write(source / "x.wav")
    output.mkdir()
    (tmp_path / "precious").write_text("as it was")
    (output / "x.flac").symlink_to(tmp_path / "precious")
    with pytest.raises(DataError, match="1 of 1 files could not be converted"):
        prepare(source, output, workers=0)
    assert (tmp_path / "precious").read_text() == "as it was"


@pytest.mark.parametrize(
    ("source", "output", "told"),
    [
        ("here", "here/flac", "none is inside the other"),
        ("here", "here", "none is inside the other"),
        ("here/sub", "here", "none is inside the other"),
        ("none", "flac", "There is no folder none"),
        ("here", "flac", r"here holds no audio, 1 are no audio \(1 .txt\)"),
    ],
)
def test_folders_that_can_not_be_used_are_refused(
    source: str, output: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here/sub").mkdir(parents=True)
    Path("here/read.txt").write_text("")
    with pytest.raises(DataError, match=told):
        prepare(Path(source), Path(output))


def test_without_ffmpeg_the_error_names_what_to_install(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(output))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    (source / "x.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    with pytest.raises(DataError, match="1 of 1 files"):
        prepare(source, output, workers=0)
    assert "there is no ffmpeg: pip install imageio-ffmpeg, or apt install ffmpeg" in capsys.readouterr().err


@pytest.mark.parametrize("extension", ["m4a", "aac", "wma", "mka"])
def test_ffmpeg_decodes_what_libsndfile_does_not(extension: str, source: Path, output: Path) -> None:
    program = foreign.find_ffmpeg()
    if program is None:
        pytest.skip("needs ffmpeg, e.g. of imageio-ffmpeg")
    wave = write(source.parent / "x.wav", voice(1.0, 44_100), 44_100)
    (source / "-s").mkdir()
    target = source / "-s" / f"concat:x|y.{extension}"
    subprocess.run([program, "-v", "error", "-i", wave, f"file:{target}"], check=True, stdin=subprocess.DEVNULL)
    prepare(source, output, workers=1)
    heard = audio.read(output / "-s" / "concat:x|y.flac").double().numpy()
    assert abs(len(heard) - SAMPLE_RATE) < 4_000
    spectrum = np.abs(np.fft.rfft(heard[4_000:12_000]))
    assert spectrum.argmax() == 75  # of bins of 2 Hz


def test_an_ffmpeg_that_never_ends_is_stopped(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_script(output.parent / "bin" / "ffmpeg", "exec /bin/sleep 60")
    monkeypatch.setenv("PATH", str(output.parent / "bin"))
    monkeypatch.delenv("SEC4SR_BARE", raising=False)
    monkeypatch.setattr(foreign, "SECONDS", 0.1)
    (source / "x.m4a").write_bytes(b"\0\0\0\x20ftypM4A ")
    with pytest.raises(DataError, match="1 of 1 files"):
        prepare(source, output, workers=0)
    assert "x.m4a was not decoded by ffmpeg within 0.1 s" in capsys.readouterr().err


def write_script(path: Path, line: str) -> None:
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_killed_command_goes_on(number: int, status: int, source: Path, output: Path) -> None:
    for index in range(100):
        write(source / "s" / f"{index}.wav")
    command = [sys.executable, "-m", "sec4sr_pl.data.prepare", source, output, "--workers=2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(list(output.glob("s/*.flac"))) < 9:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    told = process.communicate()[1].splitlines()
    assert process.returncode == status
    if status > 0:
        assert told[-1] == "python -m sec4sr_pl.data.prepare: interrupted; the same command goes on with what is there"
        assert not list(output.rglob(".*"))
    made = {path.name: path.stat().st_mtime_ns for path in output.glob("s/*.flac")}
    assert len(made) < 100
    prepare(source, output, workers=0)
    prepare(source, whole := output.with_name("whole"), workers=0)
    assert {name: content for name, content in files(output).items() if ".partial" not in name} == files(whole)
    assert {name: (output / "s" / name).stat().st_mtime_ns for name in made} == made
