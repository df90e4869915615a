"""The command that trains an i-vector-PLDA recognizer from a folder, and what it writes."""

from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl.backbones import IVector
from sec4sr_pl.checkpoint import load_recognizer
from sec4sr_pl.data import Background
from sec4sr_pl.data.manifest import DataError, Utterance, segments
from sec4sr_pl.features import MFCC, EnergyVAD
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA
from sec4sr_pl.training.background.__main__ import train
from sec4sr_pl.training.background.corpus import Corpus

Speech = tuple[Tensor, Tensor]
SMALL = {"components": 4, "embedding_size": 5, "lda_size": 3, "batch_size": 5}


@pytest.fixture
def folder(speech: Speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight speakers with an utterance each."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for index, (waveform, length) in enumerate(zip(*speech, strict=True)):
        path = tmp_path / "data" / "train" / f"s{index}" / f"u{index}.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, waveform[:length].numpy(), 16_000)
    (tmp_path / "listed.txt").write_text("".join(f"s{index}\n" for index in range(6)))
    return tmp_path


def background(folder: Path, seconds: float = 0.25, listed: str = "listed.txt", root: str = "data") -> Background:
    """The segments of whole utterances: nothing is held out."""
    whole = {"development_fraction": 1e-6, "development_seconds": 0.0}
    return Background(folder / root, "train", listed=folder / listed, segment_seconds=seconds, **whole)


def run(folder: Path, output: str, **arguments: int) -> Recognizer:
    return train(
        background(folder),
        folder / output,
        **{**SMALL, "gmm_iterations": 4, "extractor_iterations": 3, **arguments},  # type: ignore[arg-type]
    )


def test_the_recognizer_its_checkpoint_and_kaldis_texts_score_alike(folder: Path, speech: Speech) -> None:
    recognizer, output = run(folder, "models"), folder / "models"
    texts = Recognizer(
        MFCC(),
        IVector.from_kaldi(output / "final_ubm.txt", output / "final_ie.txt"),
        PLDA.from_kaldi(output / "mean.vec", output / "transform.txt", output / "plda.txt"),
    )
    scores = []
    for made in (recognizer, load_recognizer(output / "recognizer.ckpt"), texts.eval()):
        made.scorer.enroll(made.embed(*speech), ["a", "b", "c", "d"] * 2)
        scores.append(made(*speech))
    assert torch.equal(scores[0], scores[1]) and scores[0].std() > 0.01
    assert (scores[0] - scores[2]).norm() < 1e-4 * scores[0].norm()


def test_a_run_that_was_stopped_ends_in_the_same_models(folder: Path) -> None:
    run(folder, "whole")
    run(folder, "stopped", gmm_iterations=2, extractor_iterations=1)
    (folder / "stopped" / "state" / "extractor.pt").unlink()  # it was stopped in the mixture
    run(folder, "stopped")
    for name in ("final_ubm.txt", "final_ie.txt", "mean.vec", "transform.txt", "plda.txt"):
        assert (folder / "stopped" / name).read_text() == (folder / "whole" / name).read_text()


def test_speakers_who_are_not_listed_are_not_heard(folder: Path) -> None:
    assert {piece.speaker for piece in background(folder).utterances("train")} == {f"s{index}" for index in range(6)}
    (folder / "listed.txt").write_text("s1 nobody")
    with pytest.raises(DataError, match=r"1 speakers of .*listed\.txt have no utterance: nobody"):
        background(folder).utterances("train")
    (folder / "listed.txt").write_text("\n")
    with pytest.raises(DataError, match=r"listed\.txt names no speaker: expected a speaker a line"):
        background(folder).utterances("train")


def test_segments_are_equal_parts_of_at_least_their_length() -> None:
    utterances = [Utterance(str(frames), "s", Path("x"), 7, frames, 16_000) for frames in (10_000, 48_000, 160_001)]
    found = [(piece.name, piece.start, piece.frames) for piece in segments(utterances, 48_000)]
    assert found == [
        ("10000#0", 7, 10_000),
        ("48000#0", 7, 48_000),
        ("160001#0", 7, 53_333),
        ("160001#1", 53_340, 53_333),
        ("160001#2", 106_673, 53_333),
    ]


@pytest.mark.parametrize("keep", [True, False])
def test_every_pass_brings_the_same_frames(folder: Path, keep: bool) -> None:
    pieces = background(folder).dataset("train")
    corpus = Corpus(pieces, MFCC(vad=EnergyVAD()), batch_size=5, keep=keep)
    first, second = list(corpus), list(corpus)
    assert sum(len(lengths) for _, lengths in first) == len(pieces) > 8
    for own, again in zip(first, second, strict=True):
        assert_close(own, again, rtol=0, atol=0)
