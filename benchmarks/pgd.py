"""PGD-10 on 16 utterances of 5 s: this package against foolbox, ART and torchattacks on a model with torch.stft.

The same attack: no random start, the same steps. Each measurement is a process of its own, in turn, under glibc's
default allocator and under a tuned one. This package tunes the default by itself (`keep_large_blocks`); the others are
run as they come.
"""

from collections.abc import Callable

import torch
from naive import NaiveAudioNet
from setting import ARGUMENTS, rounds, sized
from torch import Tensor, nn
from torch.nn import functional
from turns import in_turn, median_seconds

from sec4sr_pl.allocator import keep_large_blocks
from sec4sr_pl.attacks import PGD
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet

SPEAKERS = 251
BATCH, SECONDS = sized((16, 5.0), (2, 0.5))
Attacker = Callable[[], Tensor]


class FromUnitRange(nn.Module):
    """A model of audio for torchattacks, which knows images in [0, 1] only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 1, 1, time) in [0, 1] -> scores."""
        return self.model(2.0 * images[:, 0, 0] - 1.0)  # type: ignore[no-any-return]


def ours(recognizer: Recognizer, waveforms: Tensor, labels: Tensor) -> Attacker:
    """This package."""
    keep_large_blocks()
    return lambda: PGD()(recognizer, waveforms, labels).waveforms


def by_foolbox(recognizer: Recognizer, waveforms: Tensor, labels: Tensor) -> Attacker:
    """Foolbox's LinfPGD."""
    import foolbox

    model = foolbox.PyTorchModel(NaiveAudioNet(recognizer).eval(), bounds=(-1, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(abs_stepsize=0.0004, steps=10, random_start=False)
    return lambda: attack.run(model, waveforms, labels, epsilon=0.002)  # type: ignore[no-any-return]


def by_art(recognizer: Recognizer, waveforms: Tensor, labels: Tensor) -> Attacker:
    """The Adversarial Robustness Toolbox's PGD."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    model, loss, shape = NaiveAudioNet(recognizer).eval(), nn.CrossEntropyLoss(), waveforms.shape[1:]
    classifier = PyTorchClassifier(model, loss, shape, nb_classes=SPEAKERS, clip_values=(-1.0, 1.0), device_type="cpu")
    attack = ProjectedGradientDescentPyTorch(
        classifier, eps=0.002, eps_step=0.0004, max_iter=10, batch_size=BATCH, verbose=False
    )
    return lambda: torch.from_numpy(attack.generate(waveforms.numpy(), labels.numpy()))


def by_torchattacks(recognizer: Recognizer, waveforms: Tensor, labels: Tensor) -> Attacker:
    """Torchattacks' PGD."""
    import torchattacks

    model = FromUnitRange(NaiveAudioNet(recognizer)).eval()
    attack = torchattacks.PGD(model, eps=0.001, alpha=0.0002, steps=10, random_start=False)
    images = (waveforms[:, None, None] + 1.0) / 2.0
    return lambda: 2.0 * attack(images, labels)[:, 0, 0] - 1.0


WAYS = {"sec4sr_pl": ours, "foolbox": by_foolbox, "ART": by_art, "torchattacks": by_torchattacks}


def worker(way: str, runs: int) -> None:
    """Print the median seconds of a run, and the loss that it reached."""
    torch.manual_seed(0)
    recognizer = Recognizer(LogMel(), AudioNet(), ClosedSet(32, SPEAKERS)).eval()
    waveforms = 0.05 * torch.randn(BATCH, round(16_000 * SECONDS))
    labels = recognizer(waveforms).argmax(1)
    attack = WAYS[way](recognizer, waveforms, labels)
    seconds, adversarial = median_seconds(attack, runs), attack()
    with torch.no_grad():
        loss = functional.cross_entropy(recognizer(adversarial), labels).item()
    print(seconds, f"loss {loss:.4f}")


def main(turns: int = rounds(5), runs: int = sized(5, 1)) -> None:
    """Print medians over rounds of processes, the ratios to ours under the same allocator, and the losses reached."""
    print(f"PGD-10, {BATCH} x {SECONDS} s, {torch.get_num_threads()} threads, {turns} processes a row in turn")
    in_turn(__file__, WAYS, turns, runs, reference="sec4sr_pl")


if __name__ == "__main__":
    worker(ARGUMENTS[0], int(ARGUMENTS[1])) if ARGUMENTS else main()
