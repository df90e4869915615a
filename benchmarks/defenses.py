"""Defenses against the plain ways to compute the same, forward and backward, on noise, and on real frames.

Both run in turn in one process, so that a busy machine slows both; the ratio of medians is the figure.
"""

import itertools
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from itertools import pairwise

import imageio_ffmpeg
import kmeans_pytorch
import numpy as np
import soundfile
import torch
from scipy.signal import butter
from setting import made, real_speech, rounds, sized
from torch import Tensor
from torch.nn.functional import conv1d, pad
from torchaudio.functional import lfilter
from tqdm import tqdm

from sec4sr_pl import audio, system
from sec4sr_pl.defenses import (
    AMR,
    AACConstant,
    AACVariable,
    AverageSmoothing,
    BandPass,
    FeCo,
    LowPass,
    MedianSmoothing,
    MP3Constant,
    MP3Variable,
    Opus,
    Speex,
    WarpedFeCo,
)
from sec4sr_pl.defenses.filters import Butterworth
from sec4sr_pl.features import LogMel
from sec4sr_pl.types import SAMPLE_RATE

Way = Callable[[Tensor], Tensor]
STARTS = sized(5, 1)
"""Random ones of k-means, whose inertia is compared."""


def unfolded_median(waveforms: Tensor, size: int) -> Tensor:
    """Medians of windows that are laid out in memory."""
    return pad(waveforms, (size // 2, size // 2)).unfold(1, size, 1).median(2).values


def convolved_mean(waveforms: Tensor, size: int) -> Tensor:
    """Means of windows by a convolution."""
    return conv1d(waveforms.unsqueeze(1), torch.full((1, 1, size), 1 / size), padding=size // 2).squeeze(1)


def recursive(waveforms: Tensor, defense: Butterworth) -> Tensor:
    """The filter section by section, by torchaudio: in direct form its own recursion diverges."""
    corners = defense.corners[0] if len(defense.corners) == 1 else defense.corners
    kind = "lowpass" if len(defense.corners) == 1 else "bandpass"
    for section in torch.from_numpy(butter(defense.order, corners, kind, output="sos", fs=SAMPLE_RATE)).float():
        waveforms = lfilter(waveforms, section[3:], section[:3], clamp=False)
    return waveforms.clamp(-1.0, 1.0)


class Meter(tqdm):  # type: ignore[type-arg]
    """Ends a run of kmeans-pytorch in which a cluster got empty, which itself would never end."""

    def set_postfix(self, *_: object, center_shift: str, **__: object) -> None:
        """Look at what is shown."""
        if center_shift == "nan":
            raise ArithmeticError("A cluster is empty")


def packaged_kmeans(frames: Tensor, ratio: float, seed: int) -> Tensor:
    """K-means of one utterance after the other by kmeans-pytorch, whose loop SEC4SR runs, and the members' means.

    Raises:
        ArithmeticError: a cluster gets empty.
    """
    np.random.seed(seed)  # of its starts
    kmeans_pytorch.tqdm = Meter
    outputs = []
    for own in frames:
        count = int(len(own) * ratio + 1e-9)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            clusters, _ = kmeans_pytorch.kmeans(own.detach(), count)
        outputs.append(torch.stack([own[clusters == index].mean(0) for index in range(count)]))
    return torch.stack(outputs)


def inertia(frames: Tensor, centers: Tensor) -> float:
    """Mean squared distance of frames from the nearest center."""
    return torch.cdist(frames, centers).amin(2).square().mean().item()


def ffmpegs(encoder: str) -> Iterator[str]:
    """The system's command and the static one of the imageio-ffmpeg wheel, as far as they have the encoder."""
    for path in filter(None, (system.command("ffmpeg"), imageio_ffmpeg.get_ffmpeg_exe())):
        shown = subprocess.run([path, "-hide_banner", "-encoders"], capture_output=True, text=True, check=True).stdout
        if f" {encoder} " in shown:
            yield path


def by_ffmpeg(waveforms: Tensor, ffmpeg: str, options: Sequence[str], container: str, delay: int) -> Tensor:
    """Each utterance written, encoded by one process, decoded by another, and read."""
    out = []
    with tempfile.TemporaryDirectory() as scratch:
        source, coded, decoded = (f"{scratch}/{name}" for name in ("in.wav", f"coded.{container}", "out.wav"))
        for row in waveforms.detach().numpy():
            soundfile.write(source, np.pad(row, (0, delay)), SAMPLE_RATE, subtype="PCM_16")
            quiet = [ffmpeg, "-loglevel", "error", "-y"]
            subprocess.run([*quiet, "-i", source, *options, "-f", container, coded], check=True)
            subprocess.run([*quiet, "-i", coded, "-ar", "16000", decoded], check=True)
            read = soundfile.read(decoded, dtype="float32")[0][delay:][: len(row)]
            out.append(torch.from_numpy(np.pad(read, (0, len(row) - len(read)))))
    return torch.stack(out) + 0.0 * waveforms  # with a gradient, as the others


def looped_warp(frames: Tensor, defense: WarpedFeCo) -> Tensor:
    """Warped k-means of one utterance after the other, in NumPy, frame by frame."""
    outputs = []
    for own in frames:
        x, count = own.detach().double().numpy(), defense.count(len(own))
        path = np.concatenate([[0.0], np.sqrt((np.diff(x, axis=0) ** 2).sum(1)).cumsum()])
        edges, frame = [], 0
        for segment in range(count):
            while frame < len(path) and path[frame] < segment * path[-1] / count:
                frame += 1
            edges.append(frame)
            frame += 1
        edges = [min(edge, len(x) - count + segment) for segment, edge in enumerate(edges)] + [len(x)]
        means = [x[a:b].mean(0) for a, b in pairwise(edges)]
        moved, sweeps = True, 0
        while moved and sweeps < defense.sweeps:
            moved, sweeps = False, sweeps + 1
            for i in range(count):
                for side in (1, -1):
                    other, border = i - side, i if side == 1 else i + 1
                    if not 0 <= other < count:
                        continue
                    for _ in range((edges[i + 1] - edges[i]) // 2):
                        frame = edges[border] if side == 1 else edges[border] - 1
                        n, m = edges[i + 1] - edges[i], edges[other + 1] - edges[other]
                        far, near = ((x[frame] - means[i]) ** 2).sum(), ((x[frame] - means[other]) ** 2).sum()
                        if near * m / (m + 1) >= far * n / (n - 1):
                            break
                        means[i] = means[i] - (x[frame] - means[i]) / (n - 1)
                        means[other] = means[other] + (x[frame] - means[other]) / (m + 1)
                        edges[border] += side
                        moved = True
        outputs.append(torch.stack([own[a:b].mean(0) for a, b in pairwise(edges)]))
    return torch.stack(outputs)


def gradient(way: Way, signal: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and d(its weighted sum)/d(signal)."""
    leaf = signal.clone().requires_grad_(True)
    output = way(leaf)
    weights = torch.linspace(0.5, 1.5, output.shape[1]).reshape(-1, *[1] * (output.ndim - 2))
    return output.detach(), torch.autograd.grad((output * weights).sum(), leaf)[0]


def compare(name: str, signal: Tensor, ours: Way, theirs: Way, rounds: int, same: bool = True) -> None:
    """Print the medians, their ratio, and, where they should be the same, how far outputs and gradients are apart."""
    (first, first_slope), (second, second_slope) = gradient(ours, signal), gradient(theirs, signal)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for way, spent in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            gradient(way, signal)
            spent.append(1e3 * (time.perf_counter() - start))
    own, other = map(statistics.median, times)
    apart = [float((a - b).norm() / b.norm()) for a, b in ((first, second), (first_slope, second_slope))]
    told = f"  differ {apart[0]:.0e}, {apart[1]:.0e}" if same else ""
    print(f"  {name:50} {own:8.1f} ms {other:9.1f} ms  ratio {other / own:7.2f}{told}", flush=True)


def speech_frames(batch: int, seconds: float) -> Tensor:
    """Log-mel frames of training utterances, one after the other, cut into pieces: (batch, frames, 32)."""
    files = sorted((real_speech() / "Spk251_train").glob("*/*"))
    samples = batch * round(SAMPLE_RATE * seconds)
    waveform = torch.cat([audio.read(path) for path in files[:: max(1, len(files) // 40)]])
    return LogMel()(waveform.repeat(1 + samples // len(waveform))[:samples].reshape(batch, -1))[0]


def main(turns: int = rounds(11), batch: int = sized(16, 2), seconds: float = sized(5.0, 0.5)) -> None:
    """Print a line for each defense."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.rand(batch, round(10 * seconds), generator=generator).repeat_interleave(SAMPLE_RATE // 10, 1)
    waveforms = 0.2 * steps * torch.randn(steps.shape, generator=generator).clamp(-3, 3)
    frames = speech_frames(batch, seconds)
    mean, median, low, band = AverageSmoothing(), MedianSmoothing(), LowPass(), BandPass()
    warped = WarpedFeCo()
    print(f"batch {batch} x {seconds} s, {torch.get_num_threads()} threads, {turns} rounds in turn, forward + backward")
    compare(
        "median of 7 / unfold and median", waveforms, lambda x: median(x)[0], lambda x: unfolded_median(x, 7), turns
    )
    compare("mean of 17 / conv1d", waveforms, lambda x: mean(x)[0], lambda x: convolved_mean(x, 17), turns)
    for defense in (low, band):
        name = f"{type(defense).__name__}, order {defense.order} / lfilter by sections"
        compare(name, waveforms, lambda x, d=defense: d(x)[0], lambda x, d=defense: recursive(x, d), turns)  # type: ignore[misc]
    few = max(1, turns // 2)
    for ratio in (0.2, 0.5):
        feco = FeCo(ratio)
        name = f"k-means, ratio {ratio} / kmeans-pytorch"
        seeds, found = itertools.count(), dict[int, tuple[float, float]]()
        while len(found) < STARTS:
            feco.seed(seed := next(seeds))
            with suppress(ArithmeticError):
                other = inertia(frames, packaged_kmeans(frames, ratio, seed))
                found[seed] = inertia(frames, feco(frames)[0]), other
        theirs = partial(packaged_kmeans, ratio=ratio, seed=min(found))
        compare(name, frames, lambda x, d=feco: d(x)[0], theirs, few, False)  # type: ignore[misc]
        own, other = map(statistics.mean, zip(*found.values(), strict=True))
        print(f"    mean inertia of {STARTS} random starts {own:.4f} and {other:.4f}: {own / other:.4f}")
    compare("warped k-means / plain Python", frames, lambda x: warped(x)[0], lambda x: looped_warp(x, warped), few)
    for make, options, container in (
        (Opus, ["-c:a", "libopus", "-b:a", "8000"], "ogg"),
        (MP3Constant, ["-c:a", "libmp3lame", "-b:a", "24000"], "mp3"),
        (MP3Variable, ["-c:a", "libmp3lame", "-q:a", "4"], "mp3"),
        (AACConstant, ["-c:a", "aac", "-b:a", "15000"], "adts"),
        (AACVariable, ["-c:a", "aac", "-q:a", "0.3"], "adts"),
        (AMR, ["-c:a", "libvo_amrwbenc", "-b:a", "6600"], "amr"),
        (partial(AMR, 12_200), ["-c:a", "libopencore_amrnb", "-ar", "8000", "-b:a", "12200"], "amr"),
        (Speex, ["-c:a", "libspeex", "-b:a", "11000"], "ogg"),
    ):
        if (codec := made(make)) is None:
            continue
        for ffmpeg in ffmpegs(options[1]):
            name = f"{type(codec).__name__} / two processes of {ffmpeg.rpartition('/')[2][:20]}"
            theirs = partial(by_ffmpeg, ffmpeg=ffmpeg, options=options, container=container, delay=max(0, codec.delay))
            compare(name, waveforms, lambda x, d=codec: d(x)[0], theirs, few, False)  # type: ignore[misc]


if __name__ == "__main__":
    main()
