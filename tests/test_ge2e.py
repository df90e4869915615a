"""GE2E and its front end: against Resemblyzer itself, librosa, and double precision."""

import copy
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sec4sr_pl import audio
from sec4sr_pl.attacks import PGD, Objective
from sec4sr_pl.backbones import GE2E
from sec4sr_pl.backbones.ge2e import TAIL, count_windows
from sec4sr_pl.features import Loudness, Mel, MelStage
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet

INSTALL = "needs the weights: pip install --no-deps resemblyzer"


@pytest.fixture(scope="module")
def resemblyzer() -> Iterator[Any]:
    """The package itself, without its voice activity detector, which `embed_utterance` does not use."""
    pytest.importorskip("librosa", reason="Resemblyzer's features need librosa")
    if find_spec("resemblyzer") is None:
        pytest.skip(INSTALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "webrtcvad", ModuleType("webrtcvad"))  # asks for a setuptools of the past
        import resemblyzer

        yield resemblyzer


@pytest.fixture(scope="module")
def real(data_root: Path) -> list[Tensor]:
    """Six utterances of 1 to 4 s; the first made quiet, the last cut below a window."""
    rows = [audio.read(path) for path in sorted((data_root / "Spk10_test").glob("*/*"))[2::3]]
    rows[0], rows[-1] = rows[0] * 0.05, rows[-1][:17_001]
    return rows


@pytest.fixture(scope="module")
def network() -> GE2E:
    if find_spec("resemblyzer") is None:
        pytest.skip(INSTALL)
    return GE2E.pretrained().eval().requires_grad_(False)


# the front end


@pytest.mark.slow  # librosa compiles itself first
def test_mel_is_the_spectrogram_of_librosa_and_two_frames_in_which_the_window_leaves(
    speech: tuple[Tensor, Tensor],
) -> None:
    librosa = pytest.importorskip("librosa")
    frames, valid = Mel(level=None)(*speech)
    for row, count, waveform, length in zip(frames, valid, *speech, strict=True):
        longer = torch.cat([waveform[:length], torch.zeros(2 * 160 + 1_600)]).numpy()
        expected = torch.from_numpy(
            librosa.feature.melspectrogram(y=longer, sr=16_000, n_fft=400, hop_length=160, n_mels=40)
        )
        assert count == length // 160 + 3
        assert (row[:count] - expected.T[:count]).abs().max() < 1e-5 * expected.max()
        assert expected.T[count:].count_nonzero() == 0 == row[count:].count_nonzero()
        assert expected.T[count - 2].count_nonzero() > 0


def test_quiet_utterances_are_amplified_to_the_level_and_loud_ones_left(speech: tuple[Tensor, Tensor]) -> None:
    waveforms, lengths = speech
    rms = (waveforms.square().sum(1) / lengths).sqrt()
    scale = torch.tensor([0.001, 0.01, 0.1, 0.3, 1.0, 2.0, 3.0, 4.0]) * 0.03 / rms
    output, same = Loudness(-30.0)(waveforms * scale.unsqueeze(1), lengths)
    level = 20 * (output.square().sum(1) / lengths).sqrt().log10()
    assert torch.equal(same, lengths)
    assert level[:4].tolist() == pytest.approx([-30.0] * 4, abs=1e-3)
    assert torch.equal(output[5:], (waveforms * scale.unsqueeze(1))[5:])


def test_silence_is_finite_and_so_is_its_gradient() -> None:
    silence = torch.zeros(1, 4_000, requires_grad=True)
    frames, _ = Mel()(silence)
    (slope,) = torch.autograd.grad(frames.sum(), silence)
    assert frames.count_nonzero() == 0 and slope.isfinite().all()


def test_the_gradient_of_mel_passes_finite_differences_through_the_loudness() -> None:
    generator = torch.Generator().manual_seed(0)
    waveforms = 0.01 * torch.randn(2, 90, dtype=torch.float64, generator=generator)
    lengths = torch.tensor([90, 61])
    front_end = Mel(mels=3, window=20, hop=8).double()
    assert torch.autograd.gradcheck(lambda x: front_end(x, lengths)[0], waveforms.requires_grad_(), eps=1e-7, atol=1e-6)


def test_the_front_end_and_the_network_agree_about_the_frames_past_the_end() -> None:
    assert MelStage.TAIL == TAIL


# the network


def test_as_many_windows_as_resemblyzer_takes(resemblyzer: Any) -> None:
    samples = range(1, 70_000, 53)
    theirs = [len(resemblyzer.VoiceEncoder.compute_partial_slices(n, 1.3, 0.75)[0]) for n in samples]
    assert count_windows(torch.tensor([n // 160 + 3 for n in samples])).tolist() == theirs
    assert sorted(set(theirs)) == list(range(1, 6))


@pytest.mark.parametrize("normalized", [False, True])
def test_embeddings_are_those_of_resemblyzer_on_real_speech_in_a_padded_batch(
    resemblyzer: Any, network: GE2E, real: list[Tensor], normalized: bool
) -> None:
    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
    quiet = [resemblyzer.normalize_volume(row.numpy(), -30, increase_only=True) for row in real]
    given = quiet if normalized else [row.numpy() for row in real]
    expected = torch.stack([torch.from_numpy(encoder.embed_utterance(row)) for row in given])
    features = Mel() if normalized else Mel(level=None)
    together = network(*features(pad_sequence(real, batch_first=True), torch.tensor([len(row) for row in real])))
    alone = torch.cat([network(features(row[None])[0]) for row in real])
    assert (together - expected).abs().max() < 1e-4
    assert (alone - expected).abs().max() < 1e-4


def test_the_gradient_to_the_waveform_passes_finite_differences(network: GE2E, real: list[Tensor]) -> None:
    features, exact = Mel().double(), copy.deepcopy(network).double()
    quiet = real[0][8_000:48_000].double()[None]  # two windows, below the level
    generator = torch.Generator().manual_seed(0)
    toward = torch.randn(256, dtype=torch.float64, generator=generator)
    for waveform in (quiet, 60 * quiet):
        leaf = waveform.clone().requires_grad_()
        (slope,) = torch.autograd.grad((exact(features(leaf)[0]) @ toward).sum(), leaf)
        direction = torch.randn(leaf.shape, dtype=torch.float64, generator=generator) * waveform.std()
        step = 1e-5
        ends = [float(exact(features(waveform + sign * step * direction)[0]) @ toward) for sign in (1, -1)]
        measured = (ends[0] - ends[1]) / (2 * step)
        assert float((slope * direction).sum()) == pytest.approx(measured, rel=1e-4)


def test_an_attack_in_eval_mode_moves_the_scores(network: GE2E, real: list[Tensor]) -> None:
    torch.manual_seed(0)
    scorer = ClosedSet(256, 3).requires_grad_(False)
    recognizer = Recognizer(Mel(), network, scorer).eval()
    waveforms = real[1][None, :24_000]
    labels = recognizer(waveforms).argmax(1)
    result = PGD(steps=3)(recognizer, waveforms, labels)
    objective = Objective()
    before, after = (objective.loss(recognizer(x), labels) for x in (waveforms, result.waveforms))
    assert after < before


def test_weights_that_are_not_there_are_named_with_the_line_that_brings_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match="pip install --no-deps resemblyzer"):
        GE2E.pretrained(tmp_path / "pretrained.pt")
    monkeypatch.setattr("sec4sr_pl.backbones.ge2e.find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pretrained.pt").write_text("somebody else's")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps resemblyzer"):
        GE2E.pretrained()
