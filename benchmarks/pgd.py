"""PGD-10 on 16 utterances of 5 s: this package against foolbox, ART and torchattacks on a model with torch.stft.

All in turn in one process; the ratio of medians is the figure. The same attack: no random start, the same steps.
"""

import statistics
import time
from collections.abc import Callable

import foolbox
import torch
import torchattacks
from art.attacks.evasion import ProjectedGradientDescentPyTorch
from art.estimators.classification import PyTorchClassifier
from naive import NaiveAudioNet
from torch import Tensor, nn

from sec4sr_pl.allocator import keep_large_blocks
from sec4sr_pl.attacks import PGD
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet


class FromUnitRange(nn.Module):
    """A model of audio for torchattacks, which knows images in [0, 1] only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 1, 1, time) in [0, 1] -> scores."""
        return self.model(2.0 * images[:, 0, 0] - 1.0)  # type: ignore[no-any-return]


def main(rounds: int = 7, batch: int = 16, seconds: float = 5.0) -> None:
    """Print medians, ratios and the losses that each attack reached."""
    keep_large_blocks()  # for all of them
    torch.manual_seed(0)
    recognizer = Recognizer(LogMel(), AudioNet(), ClosedSet(32, 251)).eval()
    model = NaiveAudioNet(recognizer).eval()
    waveforms = 0.05 * torch.randn(batch, round(16_000 * seconds))
    labels = recognizer(waveforms).argmax(1)
    bounded = foolbox.PyTorchModel(model, bounds=(-1, 1), device="cpu")
    by_foolbox = foolbox.attacks.LinfPGD(abs_stepsize=0.0004, steps=10, random_start=False)
    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), waveforms.shape[1:], nb_classes=251, clip_values=(-1.0, 1.0), device_type="cpu"
    )
    by_art = ProjectedGradientDescentPyTorch(
        classifier, eps=0.002, eps_step=0.0004, max_iter=10, batch_size=batch, verbose=False
    )
    by_torchattacks = torchattacks.PGD(FromUnitRange(model), eps=0.001, alpha=0.0002, steps=10, random_start=False)
    images = (waveforms[:, None, None] + 1.0) / 2.0
    ways: dict[str, Callable[[], Tensor]] = {
        "sec4sr_pl": lambda: PGD()(recognizer, waveforms, labels).waveforms,
        "foolbox": lambda: by_foolbox.run(bounded, waveforms, labels, epsilon=0.002),
        "ART": lambda: torch.from_numpy(by_art.generate(waveforms.numpy(), labels.numpy())),
        "torchattacks": lambda: 2.0 * by_torchattacks(images, labels)[:, 0, 0] - 1.0,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    losses = {}
    for turn in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            start = time.perf_counter()
            adversarial = way()
            if turn:
                times[name].append(time.perf_counter() - start)
            with torch.no_grad():
                losses[name] = nn.functional.cross_entropy(recognizer(adversarial), labels).item()
    own = statistics.median(times["sec4sr_pl"])
    print(f"PGD-10, {batch} x {seconds} s, {torch.get_num_threads()} threads, {rounds} rounds in turn")
    for name, values in times.items():
        median = statistics.median(values)
        span = f"from {min(values):.2f} to {max(values):.2f}"
        print(f"  {name:12} {median:5.2f} s ({span}), {median / own:4.2f} times ours, loss {losses[name]:.4f}")


if __name__ == "__main__":
    main()
