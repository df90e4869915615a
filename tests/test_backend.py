"""The back end of any embeddings, from the training of a network to enrollment, and what it writes."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import MakeRecognizer
from torch import Tensor
from torch.testing import assert_close

from sec4sr_pl.backbones import XVector
from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.cli import train
from sec4sr_pl.data import Background
from sec4sr_pl.defenses import GaussianNoise, Quantization
from sec4sr_pl.enrollment import embed
from sec4sr_pl.features import MFCC
from sec4sr_pl.kaldi import read_matrix
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import PLDA, normalize_length
from sec4sr_pl.training.background import fit_lda, fit_plda
from sec4sr_pl.training.background.backend import main

Speech = tuple[Tensor, Tensor]
CONFIGS = Path(__file__).parents[1] / "configs"
TEXTS = ("mean.vec", "transform.txt", "plda.txt")


@pytest.fixture
def folder(speech: Speech, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight speakers with an utterance each, of whom six are listed, and a trained network with a classifier head."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SEC4SR_DATA", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["train.py"])
    for index, (waveform, length) in enumerate(zip(*speech, strict=True)):
        path = tmp_path / "Spk251_train" / f"s{index}" / f"u{index}.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, waveform[:length].numpy(), 16_000)
    (tmp_path / "background201.txt").write_text("".join(f"s{index}\n" for index in range(6)))
    return tmp_path


@pytest.fixture
def network(make_recognizer: MakeRecognizer, folder: Path) -> Recognizer:
    """A small x-vector network, in trained.ckpt too."""
    recognizer = make_recognizer(features=lambda: MFCC(30, 0), backbone=lambda: XVector(30, 16, 24, 12))
    save_recognizer(recognizer, folder / "trained.ckpt")
    return recognizer


def run(checkpoint: str = "trained.ckpt", *flags: str) -> Recognizer:
    data = ["--data=Background", "--data.segment_seconds=0.4", "--data.development_seconds=0"]
    return main([f"--checkpoint={checkpoint}", *data, "--output=models", "--lda_size=4", *flags])


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("models").iterdir()}


def test_the_recognizer_its_checkpoint_and_kaldis_texts_score_alike(network: Recognizer, speech: Speech) -> None:
    made = [run(), load_recognizer(Path("models/recognizer.ckpt"))]
    scorer = PLDA.from_kaldi(*(Path("models") / name for name in TEXTS))
    made.append(Recognizer(network.features, network.backbone, scorer).eval())
    for recognizer in made:
        assert recognizer.scorer.speakers == () and recognizer.scorer.threshold == -torch.inf
        recognizer.scorer.enroll(recognizer.embed(*speech), ["a", "b", "c", "d"] * 2)
    scores = [recognizer(*speech) for recognizer in made]
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2]) and scores[0].std() > 0.05


def test_the_back_end_is_the_chain_of_its_parts_on_the_listed_speakers(network: Recognizer) -> None:
    scorer = run("trained.ckpt", "--shrinkage=0.2", "--plda_iterations=3", "--averaged=before").scorer
    assert isinstance(scorer, PLDA) and scorer.averaged == "before"
    part = Background(segment_seconds=0.4, development_seconds=0).dataset("train")
    names = [utterance.speaker for utterance in part.utterances]
    assert set(names) == {f"s{index}" for index in range(6)} and len(names) > 12
    vectors = torch.cat([network.embed(waveform[None]) for waveform, _, _ in part]).double()
    assert_close(scorer.center.double(), vectors.mean(0), rtol=1e-4, atol=1e-4)
    reduced = (vectors - vectors.mean(0)) @ fit_lda(vectors, names, 4, 0.2)[:, :-1].T
    assert_close(((vectors - scorer.center) @ scorer.lda.double()[:, :-1].T).abs(), reduced.abs(), rtol=1e-2, atol=1e-2)
    plda = fit_plda(normalize_length(reduced), names, 3)
    assert_close(scorer.psi.double(), plda.psi, rtol=1e-2, atol=1e-3)


def test_embeddings_come_through_the_recognizers_defenses(network: Recognizer, folder: Path) -> None:
    plain = run().scorer
    save_recognizer(network.with_defenses([Quantization()]), folder / "defended.ckpt")
    made = run("defended.ckpt")
    assert [type(defense) for defense in made.defenses] == [Quantization]
    waveforms = [waveform for waveform, _, _ in Background(segment_seconds=0.4, development_seconds=0).dataset("train")]
    rounded = [(waveform * 64).round() / 64 for waveform in waveforms]  # step 512 of 32,768
    expected = torch.cat([network.embed(waveform[None]) for waveform in rounded]).mean(0)
    assert_close(made.scorer.center, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made.scorer.center, plain.center, rtol=1e-2, atol=1e-2)


def test_a_randomized_defense_gives_the_same_models_again(network: Recognizer, folder: Path) -> None:
    save_recognizer(network.with_defenses([GaussianNoise()]), folder / "noisy.ckpt")
    seeds = []
    for seed in (0, 0, 1):
        run("noisy.ckpt", f"--seed={seed}")
        seeds.append(files())
    assert seeds[0] == seeds[1] and seeds[0]["mean.vec"] != seeds[2]["mean.vec"]


def test_a_second_run_replaces_the_files_and_one_that_fails_leaves_them(network: Recognizer) -> None:
    run()
    first = files()
    assert first.keys() == {*TEXTS, "recognizer.ckpt"}
    with pytest.raises(SystemExit):
        run("trained.ckpt", "--lda_size=6")
    assert files() == first
    with pytest.raises(SystemExit):
        run("models/recognizer.ckpt", "--lda_size=3")  # an input is not written over
    assert files() == first
    shutil.copy("models/recognizer.ckpt", "copy.ckpt")
    run("copy.ckpt", "--lda_size=3")  # the scorer that it brings is left out
    assert len(read_matrix(Path("models/transform.txt"))) == 3 and files().keys() == first.keys()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--checkpoint=none.ckpt"], "There is no checkpoint none.ckpt"),
        (["--lda_size=6"], "from 1 to 5 dimensions after LDA, got 6"),
        (["--data.segment_seconds=0.8"], r"at least 18 embeddings, .* got \d+ of 6 speakers in 12 dimensions"),
        (["--shrinkage=1.5"], r"shrinkage in \[0, 1\], got 1.5"),
        (["--data.segment_seconds=0.2"], r"u\d#\d' has \d+ samples, this recognizer needs at least \d+"),
        (["--data.listed=other.txt"], "There is no .*other.txt"),
        (["--data.root=elsewhere"], "There is no folder elsewhere"),
        (["--output=trained.ckpt"], "trained.ckpt"),
    ],
)
def test_what_its_user_can_mend_is_one_line(
    flags: list[str], said: str, network: Recognizer, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run("trained.ckpt", *flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1 and re.search(said, line)


def test_a_progress_bar_workers_and_a_label_change_no_embedding(network: Recognizer) -> None:
    part, state = Background(segment_seconds=0.4).dataset("train"), torch.random.get_rng_state()
    alone = embed(network, part, batch_size=5)
    assert torch.equal(torch.random.get_rng_state(), state)  # a training may go on after this
    assert torch.equal(embed(network, part, batch_size=5, num_workers=1, label="embeddings"), alone)


def test_a_network_trained_from_nothing_gets_its_back_end_and_is_enrolled(folder: Path, speech: Speech) -> None:
    config = f"--config={CONFIGS / 'train' / 'xvector_mini.yaml'}"
    flags = ["trainer.max_epochs=1", "trainer.logger=false", "trainer.accelerator=cpu", "data.init_args.num_workers=0"]
    sizes = ["crop_seconds=0.4", "segment_seconds=0.4", "crops_per_utterance=1", "batch_size=8"]
    train(["fit", config, *(f"--{flag}" for flag in flags), *(f"--data.init_args.{size}" for size in sizes)])
    made = run("runs/xvector_mini/last.ckpt", "--shrinkage=0.3")
    assert isinstance(made.backbone, XVector) and made.backbone.embedding_size == 128
    made.scorer.enroll(made.embed(*speech), ["a", "b", "c", "d", "e", "f", "g", "h"])
    assert torch.equal(made(*speech).argmax(1), torch.arange(8))  # each is likest to itself


# shrinkage


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_whole_shrinkage_leaves_the_principal_axes_of_the_speakers_means() -> None:
    names = [f"s{index // 3}" for index in range(30)]
    embeddings = draw(30, 40) + 2 * draw(10, 40, seed=1).repeat_interleave(3, 0)
    transform = fit_lda(embeddings, names, 5, shrinkage=1.0).numpy()
    means = embeddings.reshape(10, 3, 40).mean(1).numpy()
    axes = np.linalg.svd(means - means.mean(0))[2][:5]
    rows = transform[:, :-1] / np.linalg.norm(transform[:, :-1], axis=1, keepdims=True)
    assert_close(np.abs(rows @ axes.T), np.eye(5), rtol=0, atol=1e-9)
    assert_close(transform[:, :-1] @ means.mean(0) + transform[:, -1], np.zeros(5), rtol=0, atol=1e-9)


def test_shrinkage_mixes_the_covariance_with_its_mean_variance() -> None:
    names = [f"s{index // 4}" for index in range(40)]
    embeddings = draw(40, 6) @ draw(6, 6, seed=2) + draw(10, 6, seed=1).repeat_interleave(4, 0)
    transform = fit_lda(embeddings, names, 6, shrinkage=0.25)[:, :-1].numpy()
    parts = embeddings.reshape(10, 4, 6).numpy()
    within = np.mean([np.cov(own.T, bias=True) for own in parts], axis=0)
    mixed = 0.75 * within + 0.25 * np.trace(within) / 6 * np.eye(6)
    assert_close(transform @ mixed @ transform.T, np.eye(6), rtol=0, atol=1e-9)
    between = transform @ np.cov(parts.mean(1).T, bias=True) @ transform.T
    assert_close(between, np.diag(np.sort(np.diag(between))[::-1]), rtol=0, atol=1e-9)


def test_too_few_embeddings_for_their_dimensions_are_refused_without_shrinkage() -> None:
    names = ["a", "a", "b", "b", "c", "c"]
    with pytest.raises(ValueError, match=r"at least 7 embeddings, .* got 6 of 3 speakers in 4 dimensions"):
        fit_lda(draw(6, 4), names, 2)
    with pytest.raises(ValueError, match=r"at least 7 embeddings"):
        fit_plda(draw(6, 4), names)
    assert fit_lda(draw(6, 4), names, 2, shrinkage=0.1).isfinite().all()
