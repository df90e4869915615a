"""XVector against torch's own pooling, and its checkpoints."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sec4sr_pl.backbones import XVector
from sec4sr_pl.backbones.xvector import pool
from sec4sr_pl.features import MFCC


def plain_xvector(model: XVector, frames: Tensor) -> Tensor:
    """(frames, inputs) of one utterance -> (512,), in eval mode."""
    state, signal = model.state_dict(), frames.T[None]
    for index, dilation in enumerate((1, 2, 3, 1, 1), start=1):
        weight, bias = state[f"tdnn{index}.weight"], state[f"tdnn{index}.bias"]
        signal = nn.functional.conv1d(signal, weight, bias, dilation=dilation).clamp_min(0)
        mean, variance = state[f"bn_tdnn{index}.running_mean"], state[f"bn_tdnn{index}.running_var"]
        signal = (signal - mean[:, None]) / (variance[:, None] + 1e-5).sqrt()
    pooled = torch.cat([signal[0].mean(1), signal[0].std(1, unbiased=True)])
    return state["fc1.weight"] @ pooled + state["fc1.bias"]


@pytest.fixture
def model() -> XVector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = XVector()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.uniform_(0, 1)
                module.running_var.uniform_(0.5, 2)
    return network.eval()


def test_xvectors_are_those_of_plain_layers(model: XVector, speech: tuple[Tensor, Tensor]) -> None:
    frames, lengths = MFCC(30, deltas=0)(*speech)
    vectors = model(frames, lengths)
    for vector, row, length in zip(vectors, frames, lengths, strict=True):
        assert_close(vector, plain_xvector(model, row[:length]), rtol=1e-4, atol=1e-4)


def test_a_smaller_network_is_made_of_the_same_layers() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = XVector(20, channels=24, pooled=40, embedding_size=12).eval()
    frames = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    (vector,) = network(frames[None])
    assert vector.shape == (network.embedding_size,) == (12,)
    assert_close(vector, plain_xvector(network, frames), rtol=1e-4, atol=1e-4)


def test_two_pooled_frames_are_the_fewest_that_have_a_deviation(model: XVector) -> None:
    frames = torch.randn(1, XVector.minimum_frames, 30, generator=torch.Generator().manual_seed(0))
    assert_close(model(frames)[0], plain_xvector(model, frames[0]), rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError):
        model(frames[:, :-2])  # nothing would be left


def test_a_channel_that_never_fires_has_a_gradient() -> None:
    signal = torch.zeros(1, 6, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(pool(signal, torch.tensor([5])).sum(), signal)
    assert slope.isfinite().all() and slope[0, 5].count_nonzero() == 0 and slope[0, 0].count_nonzero() == 2


def test_training_counts_valid_frames_alone(speech: tuple[Tensor, Tensor]) -> None:
    frames, lengths = MFCC(30, deltas=0)(*speech)
    noise = torch.where(torch.arange(frames.shape[1])[:, None] < lengths[:, None, None], frames, torch.full((), 1e3))
    statistics = []
    for padded in (frames, noise):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = XVector().train()
        network(padded, lengths)
        statistics.append(network.bn_tdnn1.running_var.clone())
    assert torch.equal(*statistics)


def test_weights_come_from_a_state_dict_without_code(model: XVector, tmp_path: Path) -> None:
    behind = {"fc2.weight": torch.zeros(512, 512), "bn_fc1.running_mean": torch.zeros(512), "fc3.bias": torch.zeros(9)}
    torch.save({**model.state_dict(), **behind}, tmp_path / "x.pt")
    again = XVector.pretrained(tmp_path / "x.pt").eval()
    frames = torch.randn(2, 50, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(frames), model(frames))
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"weights of .*other\.pt are not those of XVector: KeyError: 'tdnn1\.weight'"):
        XVector.pretrained(tmp_path / "other.pt")
    torch.save({"tdnn1.weight": torch.zeros(512, 30, 5)}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match=r"(?s)not those of XVector: .*Missing"):
        XVector.pretrained(tmp_path / "part.pt")
