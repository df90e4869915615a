"""AudioNet's pre-filter as a convolution between bands, against the same by torch's convolution of one channel."""

import statistics
import time

import torch
from setting import rounds

from sec4sr_pl.backbones.audionet import Prefilter


def main(turns: int = rounds(15)) -> None:
    """Print medians of forward and backward (of the input) in milliseconds, and their ratio, in turn in one process."""
    torch.manual_seed(0)
    ours = Prefilter(32).requires_grad_(False)
    theirs = torch.nn.Conv2d(1, 1, 5, padding=2).requires_grad_(False)
    theirs.load_state_dict(ours.state_dict())
    for batch, frames in ((16, 200), (16, 500), (64, 200)):
        x = torch.randn(batch, 32, frames, requires_grad=True)
        ways = {"between bands": lambda x=x: ours(x), "one channel": lambda x=x: theirs(x.unsqueeze(1)).squeeze(1)}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(turns + 1):
            for name, convolve in ways.items():
                start = time.perf_counter()
                torch.autograd.grad(convolve().sum(), x)
                times[name].append(1e3 * (time.perf_counter() - start))
        medians = {name: statistics.median(values[1:]) for name, values in times.items()}
        error = (ours(x) - theirs(x.unsqueeze(1)).squeeze(1)).abs().max().item()
        text = ", ".join(f"{name} {median:.2f} ms" for name, median in medians.items())
        ratio = medians["one channel"] / medians["between bands"]
        print(f"{batch} x {frames} frames: {text}, ratio {ratio:.1f}, error {error:.0e}")


if __name__ == "__main__":
    main()
