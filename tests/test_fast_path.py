"""What makes attacks fast does not change them: shipped weights, real speech, the plain model of the benchmarks."""

from pathlib import Path

import pytest
import torch
from naive import NaiveAudioNet
from torch import Tensor, nn
from torch.nn import functional

from sec4sr_pl import audio
from sec4sr_pl.attacks import PGD
from sec4sr_pl.checkpoint import load_recognizer
from sec4sr_pl.recognizer import Recognizer

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
NAMES = ("audionet_mini_natural", "audionet_mini_adversarial")


@pytest.fixture(scope="module")
def waveforms(data_root: Path) -> Tensor:
    """The test utterances, two seconds each."""
    return torch.stack([audio.read(path) for path in sorted((data_root / "Spk251_test").glob("*/*"))])


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def recognizer(name: str) -> Recognizer:
    return load_recognizer(CHECKPOINTS / f"{name}.ckpt")


def attacked(model: nn.Module, waveforms: Tensor, labels: Tensor) -> Tensor:
    """PGD-10 through `model` as it is, which is handed over as a function and so is not made faster."""
    model = model.eval().requires_grad_(False)
    return PGD()(lambda x, lengths: model(x), waveforms, labels).waveforms


def test_scores_and_gradients_are_those_of_the_plain_model(recognizer: Recognizer, waveforms: Tensor) -> None:
    plain = NaiveAudioNet(recognizer).eval()
    fast = recognizer.requires_grad_(False).fused()
    labels = plain(waveforms).argmax(1)
    losses, gradients = [], []
    for model in (plain, fast):
        x = waveforms.clone().requires_grad_(True)
        loss = functional.cross_entropy(model(x), labels, reduction="none")
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss.sum(), x)[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=1e-5)
    assert functional.cosine_similarity(*gradients, dim=1).min() >= 0.99999


@pytest.mark.parametrize(
    "precision",
    [
        pytest.param(torch.float32, id="single"),
        pytest.param(torch.float64, id="double", marks=pytest.mark.slow),
    ],
)
def test_pgd_reaches_the_loss_of_the_plain_model(
    recognizer: Recognizer, name: str, precision: torch.dtype, waveforms: Tensor
) -> None:
    """In single precision rounding decides some of the ten signs, and the natural network's loss is steep."""
    recognizer, waveforms = recognizer.to(precision), waveforms.to(precision)
    plain = NaiveAudioNet(recognizer).to(precision).eval()
    labels = plain(waveforms).argmax(1)
    found = PGD()(recognizer, waveforms, labels).waveforms, attacked(plain, waveforms, labels)
    with torch.no_grad():
        fast, slow = (functional.cross_entropy(plain(x), labels).item() for x in found)
    steep = name == "audionet_mini_natural" and precision == torch.float32
    assert fast == pytest.approx(slow, rel=1e-2 if steep else 1e-4)
