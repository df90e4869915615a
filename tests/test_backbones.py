"""Backbones: what holds for each of them, in a table, and AudioNet against a plain re-implementation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from conftest import MakeRecognizer
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from sec4sr_pl import backbones
from sec4sr_pl.backbones import ECAPA, GE2E, AudioNet, HubXVector, IVector, ResNet, XVector
from sec4sr_pl.features import MFCC, EnergyVAD, Fbank, FrontEnd, LogMel, Mel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.types import valid_mask

Speech = tuple[Tensor, Tensor]


class Row(NamedTuple):
    """A backbone, the front end it is made for, and its size."""

    backbone: Callable[[], Any]
    features: Callable[[], FrontEnd]
    embedding_size: int


def audible_ge2e() -> GE2E:
    """With four times torch's initial weights, which hardly tell energies without a logarithm apart."""
    network = GE2E()
    with torch.no_grad():
        for weight in network.lstm.parameters():
            weight *= 4.0
    return network


def small_ecapa() -> ECAPA:
    """A sixteenth of the channels: the whole network is built in test_embeddings.py."""
    return ECAPA(channels=64)


def small_resnet() -> ResNet:
    """An eighth of the channels."""
    return ResNet(channels=16)


def small_hub_xvector() -> HubXVector:
    """An eighth of the channels."""
    return HubXVector(channels=64, pooled=192)


def bands() -> Fbank:
    """The front end of SpeechBrain's x-vectors."""
    return Fbank(24)


def cepstra() -> MFCC:
    """The front end of x-vectors."""
    return MFCC(30, deltas=0)


def voiced_cepstra() -> MFCC:
    """That of x-vectors with voice activity detection, which drops about half of the frames."""
    return MFCC(30, deltas=0, vad=EnergyVAD(2.5, 0.8, context=2, proportion=0.5))


def voiced_slopes() -> MFCC:
    """That of i-vectors likewise."""
    return MFCC(vad=EnergyVAD(2.5, 0.8, context=2, proportion=0.5))


TABLE = [
    Row(AudioNet, LogMel, 32),
    Row(audible_ge2e, Mel, 256),
    Row(small_ecapa, Fbank, 192),
    Row(small_resnet, Fbank, 256),
    Row(small_hub_xvector, bands, 512),
    Row(IVector, MFCC, 32),
    Row(IVector, voiced_slopes, 32),
    Row(XVector, cepstra, 512),
    Row(XVector, voiced_cepstra, 512),
]


@pytest.fixture(params=TABLE, ids=[f"{type(row.backbone()).__name__}-{row.features.__name__}" for row in TABLE])
def row(request: pytest.FixtureRequest) -> Row:
    found: Row = request.param
    return found


@pytest.fixture
def model(row: Row, make_recognizer: MakeRecognizer) -> Recognizer:
    return make_recognizer(features=row.features, backbone=row.backbone)


def close(scores: Tensor, expected: Tensor) -> bool:
    """The tolerance of DESIGN: 1e-4 * max(1, |score|)."""
    return bool(((scores - expected).abs() <= 1e-4 * expected.abs().clamp_min(1.0)).all())


# every backbone


def test_every_backbone_has_a_row() -> None:
    assert {type(row.backbone()).__name__ for row in TABLE} == set(backbones.__all__)


def test_a_backbone_is_built_without_arguments_and_tells_its_embedding_size(row: Row, speech: Speech) -> None:
    backbone = row.backbone().eval()
    frames, lengths = row.features()(*speech)
    embeddings = backbone(frames, lengths) if backbone.masked else backbone(frames[:, : lengths.min()])
    assert type(backbone)().embedding_size == row.embedding_size
    assert backbone.embedding_size == row.embedding_size
    assert embeddings.shape == (8, row.embedding_size) and embeddings.isfinite().all()
    assert backbone.minimum_frames >= 1 and isinstance(backbone.masked, bool)


def test_scores_in_a_padded_batch_are_those_alone(model: Recognizer, speech: Speech, device: torch.device) -> None:
    model, waveforms, lengths = model.to(device), *(tensor[::3].to(device) for tensor in speech)
    if device.type == "cuda":  # cuDNN computes another length by another algorithm, which rounds otherwise
        model, waveforms = model.double(), waveforms.double()
    scores = model(waveforms, lengths)
    assert scores.std(0).min() > 0.1
    for row, waveform, length in zip(scores, waveforms, lengths, strict=True):
        assert close(row, model(waveform[None, :length])[0])
        assert close(row, model(waveform[None, :length], length[None])[0])


def test_scores_do_not_depend_on_batch_mates(model: Recognizer, speech: Speech) -> None:
    waveforms, lengths = speech
    scores = model(waveforms, lengths)
    order = torch.tensor([5, 2, 7])
    assert close(model(waveforms[order], lengths[order]), scores[order])


def test_the_gradient_is_zero_on_padding_and_as_alone_before_it(
    model: Recognizer, speech: Speech, device: torch.device
) -> None:
    """In double precision: rounding that flips one ReLU moves the gradient of a deep network by percents."""
    model, waveforms, lengths = model.double().to(device), *(tensor[::3].to(device) for tensor in speech)
    waveforms = waveforms.double()
    leaf = waveforms.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(leaf, lengths)[:, 0].sum(), leaf)
    assert slope[~valid_mask(lengths, leaf.shape[1])].count_nonzero() == 0
    for row, waveform, length in zip(slope, waveforms, lengths, strict=True):
        own = waveform[None, :length].clone().requires_grad_()
        (expected,) = torch.autograd.grad(model(own)[:, 0].sum(), own)
        assert expected.norm() > 0
        assert (row[:length] - expected[0]).norm() < 1e-6 * expected.norm()


def test_what_stands_past_the_valid_frames_is_not_heard(row: Row, model: Recognizer, speech: Speech) -> None:
    frames, lengths = row.features()(*speech)
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    noisy = torch.where(valid_mask(lengths, frames.shape[1]).unsqueeze(2), frames, noise)
    if not model.backbone.masked:
        with pytest.raises(ValueError, match="can't mask: expected utterances of one length"):
            model.backbone(frames, lengths)
        return
    assert torch.equal(model.backbone(noisy, lengths), model.backbone(frames, lengths))


def test_the_shortest_utterance_is_scored_and_one_sample_less_is_refused_by_name(
    model: Recognizer, speech: Speech
) -> None:
    minimum = model.minimum_samples
    waveforms = speech[0][:3, 4_000 : 4_000 + 2 * minimum].contiguous()
    lengths = torch.tensor([2 * minimum, minimum, 2 * minimum - 7])
    waveforms = waveforms * valid_mask(lengths, waveforms.shape[1])
    model.check(waveforms, lengths, ["a", "b", "c"])
    scores = model(waveforms, lengths)
    assert scores.isfinite().all()
    assert close(scores[1], model(waveforms[1:2, :minimum])[0])
    lengths[1] -= 1
    with pytest.raises(ValueError, match=rf"Utterance 'b' has {minimum - 1} samples.* at least {minimum}:"):
        model.check(waveforms, lengths, ["a", "b", "c"])
    with pytest.raises(ValueError, match=rf"Utterance row 1 has {minimum - 1} samples"):
        model(waveforms, lengths)


def test_the_minimum_is_the_fewest_samples_that_give_the_backbone_its_frames(row: Row, model: Recognizer) -> None:
    minimum = model.minimum_samples
    assert row.features()(torch.ones(1, minimum))[1].item() == row.backbone().minimum_frames
    assert row.features()(torch.ones(1, minimum - 1))[1].item() == row.backbone().minimum_frames - 1


def test_evaluation_leaves_every_buffer_as_it_was(model: Recognizer, speech: Speech) -> None:
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(*speech)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_train_step_under_autocast_is_near_that_in_single_precision(model: Recognizer, speech: Speech) -> None:
    gradients = []
    crops = speech if model.backbone.masked else (speech[0][:, : speech[1].min()],)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for enabled in (False, True):
        model.load_state_dict(state)
        model.train().zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = functional.cross_entropy(model(*crops), torch.arange(8))
        loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.scorer.parameters()]))
    assert functional.cosine_similarity(*gradients, dim=0) > 0.95


# AudioNet


def plain_norm(norm: Any, signals: Sequence[Tensor], train: bool, statistics: list[tuple[Tensor, Tensor]]) -> Any:
    """Batch norm of un-padded (channels, ...) signals: over all positions of all of them in train mode."""
    if train:
        positions = torch.cat([signal.flatten(1) for signal in signals], dim=1)
        mean, variance = positions.mean(1), positions.var(1, correction=0)
        statistics.append((mean, positions.var(1)))
    else:
        mean, variance = norm.running_mean, norm.running_var
    scale, shift = norm.weight / (variance + norm.eps).sqrt(), norm.bias
    shape = [-1] + [1] * (signals[0].dim() - 1)
    return [(signal - mean.view(shape)) * scale.view(shape) + shift.view(shape) for signal in signals]


def plain_audionet(
    net: AudioNet, utterances: Sequence[Tensor], train: bool = False
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """AudioNet by its published description, on a list of un-padded (frames, 32) utterances, with the weights of `net`.

    Returns:
        (utterances, 32) embeddings, and in train mode the (mean, unbiased variance) that each batch norm met.
    """
    statistics: list[tuple[Tensor, Tensor]] = []
    signals = [functional.conv2d(u.T[None], net.prefilter.weight, net.prefilter.bias, padding=2) for u in utterances]
    signals = [signal[0] for signal in plain_norm(net.prefilter_norm, signals, train, statistics)]
    for block, pool in zip(net.blocks, (True, False, False, True, False, True), strict=True):
        weight, bias = block.convolution.weight, block.convolution.bias
        signals = [functional.conv1d(signal[None], weight, bias, padding=1)[0] for signal in signals]
        signals = [signal.relu() for signal in plain_norm(block.norm, signals, train, statistics)]
        if pool:
            signals = [functional.max_pool1d(signal, 2) for signal in signals]
    for index, signal in enumerate(signals):
        while signals[index].shape[1] < 3:
            signals[index] = torch.cat([signals[index], signal], dim=1)
    weight, bias = net.last.convolution.weight, net.last.convolution.bias
    signals = [functional.conv1d(signal[None], weight, bias)[0] for signal in signals]
    signals = [signal.relu() for signal in plain_norm(net.last.norm, signals, train, statistics)]
    return torch.stack([signal.amax(1) for signal in signals]), statistics


@pytest.fixture
def utterances(speech: Speech) -> list[Tensor]:
    """Forty frames of each of eight utterances."""
    frames, _ = LogMel()(*speech)
    return [row[20:60] for row in frames]


@pytest.fixture
def audionet(make_recognizer: MakeRecognizer) -> AudioNet:
    """AudioNet with plausible statistics, and scales that are negative as well as positive."""
    backbone = make_recognizer().backbone
    assert isinstance(backbone, AudioNet)
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return backbone


def test_audionet_is_what_was_published_for_8_to_40_frames(audionet: AudioNet, utterances: list[Tensor]) -> None:
    lengths = torch.arange(8, 41)
    rows = [utterances[int(length) % 8][:length] for length in lengths]
    expected = torch.cat([plain_audionet(audionet, [row])[0] for row in rows])
    assert expected.std(0).median() > 0
    assert_close(torch.cat([audionet(row[None]) for row in rows]), expected, rtol=1e-4, atol=1e-4)
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    assert_close(audionet(padded, lengths), expected, rtol=1e-4, atol=1e-4)
    assert_close(audionet(padded[:16], lengths[:16]), expected[:16], rtol=1e-4, atol=1e-4)  # all of them tiled


def test_seven_frames_are_too_few_for_audionet(audionet: AudioNet, utterances: list[Tensor]) -> None:
    assert audionet.minimum_frames == 8
    with pytest.raises(RuntimeError):
        plain_audionet(audionet, [utterances[0][:7]])


def test_training_statistics_count_valid_frames_only(audionet: AudioNet, utterances: list[Tensor]) -> None:
    lengths = torch.tensor([40, 33, 27, 24, 21, 16, 11, 8])
    rows = [utterance[:length] for utterance, length in zip(utterances, lengths, strict=True)]
    expected, statistics = plain_audionet(audionet, rows, train=True)
    norms: list[Any] = [module for module in audionet.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    embeddings = audionet.train()(nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths)
    assert_close(embeddings, expected, rtol=1e-3, atol=1e-3)
    assert len(norms) == len(statistics) == 8
    for norm, old, new in zip(norms, before, statistics, strict=True):
        for running, was, met in zip((norm.running_mean, norm.running_var), old, new, strict=True):
            assert (met - was).abs().max() > 1e-2
            assert_close(running, 0.9 * was + 0.1 * met, rtol=1e-4, atol=1e-4)


def test_training_without_padding_is_the_same_with_and_without_lengths(
    make_recognizer: MakeRecognizer, utterances: list[Tensor]
) -> None:
    frames = torch.stack(utterances)
    results = []
    for lengths in (None, torch.full((8,), 40)):
        net = make_recognizer().backbone.train()
        results.append((net(frames, lengths), dict(net.named_buffers())))
    assert_close(*results, rtol=1e-4, atol=1e-4)
