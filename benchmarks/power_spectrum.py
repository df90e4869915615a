"""Forward and backward of the log-mel front end: the analytic gradient against autograd through torch.stft.

Both run in turn in one process, so that a busy machine slows both; the ratio of medians is the figure.
"""

import statistics
import time
from collections.abc import Callable

import torch
from setting import rounds, sized
from torch import Tensor

from sec4sr_pl.features import LogMel


def through_stft(front_end: LogMel, waveforms: Tensor) -> Tensor:
    """The same log-mel frames by torch.stft and autograd."""
    stage = front_end.stages["raw"]
    emphasized = waveforms[:, 1:] - stage.pre_emphasis * waveforms[:, :-1]
    spectrum = torch.stft(
        emphasized, stage.n_fft, stage.hop, stage.window.numel(), stage.window, center=True, return_complex=True
    )
    power = spectrum.real.square() + spectrum.imag.square()
    return 10.0 * (power.transpose(1, 2) @ stage.filters).clamp_min(1e-16).log10()


def gradient(frames: Callable[[Tensor], Tensor], waveforms: Tensor) -> Tensor:
    """d(sum of frames)/d(waveforms)."""
    x = waveforms.clone().requires_grad_(True)
    return torch.autograd.grad(frames(x).sum(), x)[0]


def main(turns: int = rounds(15), batch: int = sized(16, 2), seconds: float = sized(5.0, 0.5)) -> None:
    """Print medians in milliseconds, their ratio, and how far the gradients are apart."""
    torch.manual_seed(0)
    waveforms = torch.randn(batch, round(16_000 * seconds)) * 0.05
    front_end = LogMel()
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "analytic": lambda x: front_end(x)[0],
        "torch.stft": lambda x: through_stft(front_end, x),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    gradients = {name: gradient(frames, waveforms) for name, frames in ways.items()}
    for _ in range(turns):
        for name, frames in ways.items():
            start = time.perf_counter()
            gradient(frames, waveforms)
            times[name].append(1e3 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    error = (gradients["analytic"] - gradients["torch.stft"]).norm() / gradients["torch.stft"].norm()
    print(f"batch {batch} x {seconds} s, {torch.get_num_threads()} threads, {turns} rounds in turn")
    for name, median in medians.items():
        print(f"  {name:10} {median:7.1f} ms (from {min(times[name]):.1f} to {max(times[name]):.1f})")
    print(f"  ratio {medians['torch.stft'] / medians['analytic']:.2f}, relative difference of gradients {error:.1e}")


if __name__ == "__main__":
    main()
