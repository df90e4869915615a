"""How well the gradients that stand for a codec's tell how the loss changes through it.

Over 200 random band-limited directions u: the correlation of <gradient, u> with the central difference of the loss of
the shipped adversarially trained AudioNet, for 24 test utterances of 2 s; and how far `gain` is ahead of `identity`.
Needs SEC4SR_DATA.
"""

from pathlib import Path

import torch
from setting import beginnings, made, sized
from torch import Tensor
from torch.nn import functional

from sec4sr_pl import audio
from sec4sr_pl.checkpoint import load_recognizer
from sec4sr_pl.defenses import AMR, AACConstant, AACVariable, MP3Constant, MP3Variable, Opus, Speex
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.types import SAMPLE_RATE

UTTERANCES, TIME, DIRECTIONS = sized((24, 2 * SAMPLE_RATE, 200), (2, SAMPLE_RATE, 3))
SIZE = 0.002
"""Root mean square of a direction: that of the largest change in the usual ball."""


def speech() -> Tensor:
    """(24, time) beginnings of test utterances."""
    return torch.stack([audio.read(path, 0, TIME) for path in beginnings(UTTERANCES, TIME)])


def directions(like: Tensor, generator: torch.Generator) -> Tensor:
    """Noise in a random band of 500 to 3000 Hz, (batch, time)."""
    low, width = torch.rand(2, len(like), 1, generator=generator)
    low, width = 3_000 * low, 500 + 2_500 * width
    frequencies = torch.fft.rfftfreq(like.shape[1], 1 / SAMPLE_RATE)
    noise = torch.fft.rfft(torch.randn(like.shape, generator=generator))
    band = torch.fft.irfft(noise * ((frequencies >= low) & (frequencies < low + width)), like.shape[1])
    return SIZE * band / band.square().mean(1, keepdim=True).sqrt()


def losses(recognizer: Recognizer, waveforms: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, (batch,)."""
    return functional.cross_entropy(recognizer(waveforms.clamp(-1.0, 1.0)), labels, reduction="none")


def main() -> None:
    """Print a line for each codec."""
    plain = load_recognizer(Path("checkpoints/audionet_mini_adversarial.ckpt")).requires_grad_(False)
    waveforms = speech()
    labels = plain(waveforms).argmax(1)
    print(
        f"correlation with the central difference over {DIRECTIONS} directions, mean and standard error of utterances"
    )
    for make in (Opus, MP3Constant, MP3Variable, AACConstant, AACVariable, Speex, AMR):
        if (codec := made(make)) is None:
            continue
        recognizer = plain.with_defenses([codec])
        slopes = {}
        for name in codec.gradients:
            x = waveforms.clone().requires_grad_(True)
            slopes[name] = torch.autograd.grad(losses(recognizer.with_gradient(name), x, labels).sum(), x)[0]
        generator, changes = torch.Generator().manual_seed(0), []
        told: dict[str, list[Tensor]] = {name: [] for name in slopes}
        for _ in range(DIRECTIONS):
            u = directions(waveforms, generator)
            changes.append((losses(recognizer, waveforms + u, labels) - losses(recognizer, waveforms - u, labels)) / 2)
            for name, slope in slopes.items():
                told[name].append((slope * u).sum(1))
        found = {name: correlations(torch.stack(values), torch.stack(changes)) for name, values in told.items()}
        shown = [f"{name} {mean_and_error(values)}" for name, values in found.items()]
        ahead = mean_and_error(found["gain"] - found["identity"])
        print(f"  {make.__name__:12} {', '.join(shown)}, gain ahead by {ahead}", flush=True)


def correlations(told: Tensor, changes: Tensor) -> Tensor:
    """Of (directions, utterances) each, over the directions: (utterances,)."""
    pairs = zip(told.T, changes.T, strict=True)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])


def mean_and_error(values: Tensor) -> str:
    """The mean and its standard error."""
    return f"{float(values.mean()):6.3f} +- {float(values.std()) / len(values) ** 0.5:.3f}"


if __name__ == "__main__":
    main()
