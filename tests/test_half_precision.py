"""Mixed precision: attacks are as strong, heads compute in single precision, gradients neither underflow nor break."""

from pathlib import Path

import pytest
import torch
from speechbrain.utils import quirks
from torch import Tensor, nn
from torch.nn import functional

from sec4sr_pl.attacks import PGD, PsychoacousticPGD
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.checkpoint import load_recognizer
from sec4sr_pl.features import Fbank, FrontEnd, LogMel, Mel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.training.objectives import AWP

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
Speech = tuple[Tensor, Tensor]
HALVES = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def shortest(speech: Speech) -> Speech:
    """Two utterances, for a CPU is slow in float16."""
    lengths = speech[1][-2:]
    return speech[0][-2:, : int(lengths.max())], lengths


@pytest.mark.parametrize("name", ["natural", "adversarial"])
def test_pgd_in_float16_reaches_the_loss_of_float32(name: str, speech: Speech) -> None:
    recognizer = load_recognizer(CHECKPOINTS / f"audionet_mini_{name}.ckpt")
    labels = recognizer(*speech).argmax(1)
    losses = []
    for half in (False, True):
        with torch.autocast("cpu", torch.float16, enabled=half):
            found = PGD()(recognizer, speech[0], labels, speech[1]).waveforms
        losses.append(functional.cross_entropy(recognizer(found, speech[1]), labels))
    assert losses[1] >= 0.99 * losses[0]


@HALVES
@pytest.mark.parametrize("features", [LogMel, Fbank, Mel])
def test_gradients_through_a_front_end_are_finite(features: type[FrontEnd], half: torch.dtype, speech: Speech) -> None:
    """Seen while an attack runs: the loss is scaled, and backward is outside of autocast."""
    front = features()
    recognizer = Recognizer(front, AudioNet(int(front.frame_size)), ClosedSet(32, 10)).eval()
    labels = torch.zeros(len(speech[0]), dtype=torch.int64)
    with torch.autocast("cpu", half), pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", pytest.fail)  # an attack warns of gradients that are not finite
        PGD(steps=2)(recognizer, speech[0], labels, speech[1])


def test_the_psychoacoustic_loss_is_the_same_under_autocast(speech: Speech) -> None:
    recognizer = load_recognizer(CHECKPOINTS / "audionet_mini_natural.ckpt")
    waveforms, lengths = shortest(speech)
    labels = recognizer(waveforms, lengths).argmax(1)
    with torch.autocast("cpu", torch.float16):
        result = PsychoacousticPGD(steps=4)(recognizer, waveforms, labels, lengths)
    assert result.waveforms.isfinite().all()


@HALVES
def test_a_head_scores_in_its_own_precision(half: torch.dtype) -> None:
    head, embeddings = ClosedSet(32, 10), torch.randn(4, 32)
    with torch.autocast("cpu", half):
        scores = head(embeddings)
        again = head(embeddings.to(half))
    assert scores.dtype == again.dtype == torch.float32
    assert torch.equal(scores, head(embeddings))
    torch.testing.assert_close(again, head(embeddings.to(half).float()))


def test_weights_ascend_in_float16_as_in_float32(speech: Speech) -> None:
    """Those of convolutions; a bias before a batch norm has no gradient but rounding."""
    recognizer = load_recognizer(CHECKPOINTS / "audionet_mini_natural.ckpt").train()
    weights = {name: weight for name, weight in recognizer.named_parameters() if weight.dim() > 2}
    directions = []
    for half in (False, True):
        recognizer.seed(0)  # its front end masks at random
        with torch.autocast("cpu", torch.float16, enabled=half):
            moved = AWP(PGD(steps=1)).worst_weights(recognizer, shortest(speech)[0], torch.arange(2))
        directions.append([(moved[name] - weight).flatten() for name, weight in weights.items()])
    assert all(functional.cosine_similarity(*pair, dim=0) > 0.99 for pair in zip(*directions, strict=True))


# What else was wrong on accelerators


def test_no_import_turns_on_products_of_19_bits() -> None:
    """SpeechBrain's does, for all of the process."""
    assert "allow_tf32" in quirks.excluded_quirks
    assert "allow_tf32" not in quirks.applied_quirks


def test_a_fused_network_is_in_eval_mode_in_all_its_parts() -> None:
    """A part in train mode picks valid frames out, which waits for an accelerator at each block."""
    assert not any(module.training for module in AudioNet().eval().fused().modules())


@pytest.mark.parametrize("decay", [0.9, 0.96, 0.999])
def test_an_average_of_weights_rounds_nothing(decay: float) -> None:
    network = AudioNet()
    integers = [name for name, buffer in network.named_buffers() if not buffer.is_floating_point()]
    assert {name.rpartition(".")[2] for name in integers} == {"num_batches_tracked"}
    averaged = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay), use_buffers=True
    )
    frames, before = torch.randn(2, 40, 32), network.eval()(torch.ones(1, 40, 32))
    for _ in range(3):
        averaged.update_parameters(network)
    torch.testing.assert_close(averaged.module.eval()(torch.ones(1, 40, 32)), before)
    assert averaged.module(frames).isfinite().all() and isinstance(averaged, nn.Module)
