"""Runs of background training: which state they may go on from, and what they refuse before the work begins."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from conftest import MakeRecognizer
from test_background import batches as batches  # fixtures
from test_background import draw
from test_ivector_plda import SMALL, background
from test_ivector_plda import folder as folder
from torch import Tensor

from sec4sr_pl.checkpoint import save_recognizer
from sec4sr_pl.data import Background
from sec4sr_pl.features import MFCC, EnergyVAD
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.training.background import backend, fit_gmm, fit_lda, fit_plda
from sec4sr_pl.training.background.__main__ import train
from sec4sr_pl.training.background.corpus import Corpus
from sec4sr_pl.weights import CheckpointError

Batches = list[tuple[Tensor, Tensor]]
QUICK = {**SMALL, "gmm_iterations": 2, "extractor_iterations": 2}


def run(folder: Path, **arguments: object) -> Recognizer:
    data = {name: arguments.pop(name) for name in ("seconds", "listed", "root") if name in arguments}
    return train(background(folder, **data), folder / "models", **{**QUICK, **arguments})  # type: ignore[arg-type]


# which state a run may go on from


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"listed": "fewer.txt"}, r"gmm.pt holds a model of other frames: remove it"),
        ({"seconds": 0.3}, r"gmm.pt holds a model of other frames"),
        ({"vad": True}, r"gmm.pt holds a model of other frames"),
        ({"vad": True, "seed": 5}, r"gmm.pt holds a model of other frames, other seed"),
        ({"components": 3}, r"gmm.pt holds a model of other sizes"),
        ({"gmm_iterations": 1}, r"gmm.pt holds a model of 2 iterations, more than 1"),
        ({"gmm_iterations": 3}, r"extractor.pt holds a model of other GMM"),
        ({"embedding_size": 4}, r"extractor.pt holds a model of other sizes"),
    ],
)
def test_a_run_with_other_arguments_does_not_take_the_old_models(
    changed: dict[str, object], said: str, folder: Path
) -> None:
    (folder / "fewer.txt").write_text("".join(f"s{index}\n" for index in range(5)))
    run(folder)
    with pytest.raises(ValueError, match=said):
        run(folder, **changed)


def test_a_run_does_not_go_on_with_other_samples_of_the_same_names_and_lengths(folder: Path) -> None:
    run(folder)
    path = folder / "data" / "train" / "s3" / "u3.wav"
    samples, rate = soundfile.read(path)
    soundfile.write(path, 0.5 * samples, rate)
    with pytest.raises(ValueError, match=r"gmm.pt holds a model of other frames: remove it"):
        run(folder, extractor_iterations=3)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: [content],
        lambda content: content.pop("history"),
        lambda content: content["model"].pop("means"),
        lambda content: content.update(model=[]),
        lambda content: content.update(known=5),
        lambda content: content["model"]["means"].fill_(torch.nan),
    ],
    ids=["list", "no history", "no means", "another model", "another origin", "NaN"],
)
def test_a_state_of_another_form_is_named(change: Callable[[Any], Any], folder: Path) -> None:
    run(folder)
    path = folder / "models" / "state" / "gmm.pt"
    content = torch.load(path)
    changed = change(content)
    torch.save(changed if isinstance(changed, list) and len(changed) == 1 else content, path)
    with pytest.raises(CheckpointError, match=r"The weights of .*gmm.pt are not those of this training: "):
        run(folder)


def test_a_damaged_state_is_named(folder: Path) -> None:
    run(folder)
    path = folder / "models" / "state" / "gmm.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"gmm.pt (was refused|is damaged)"):
        run(folder)


@pytest.mark.parametrize("keep", [True, False])
def test_every_long_pass_has_a_bar(keep: bool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(folder, keep=keep)
    bars = re.findall(r"^(.*?) ━+ 100%", capsys.readouterr().out, re.MULTILINE)
    steps = ["GMM 1/2", "GMM 2/2", "i-vector extractor 1/2", "i-vector extractor 2/2"]
    assert bars == ["checksum", "GMM start", *steps, "i-vectors"]


def test_a_run_goes_on_with_what_changes_no_model(folder: Path) -> None:
    """In other batches, with its files elsewhere, and of more iterations of the extractor."""
    first = run(folder)
    (folder / "data").rename(folder / "moved")
    again = run(folder, root="moved", batch_size=3, extractor_iterations=3, plda_iterations=2)
    assert torch.equal(again.backbone.means, first.backbone.means)  # type: ignore[arg-type]


def test_frames_are_known_by_utterances_and_front_end(folder: Path) -> None:
    def identity(seconds: float = 0.25, vad: EnergyVAD | None = None, batch_size: int = 5) -> str:
        return Corpus(background(folder, seconds).dataset("train"), MFCC(vad=vad), batch_size).identity

    assert identity() == identity(batch_size=3)
    different = [identity(), identity(0.3), identity(vad=EnergyVAD()), identity(vad=EnergyVAD(threshold=5.0))]
    assert len(set(different)) == 4


def test_a_file_without_what_it_was_made_from_is_refused(batches: Batches, tmp_path: Path) -> None:
    path = tmp_path / "gmm"
    fit_gmm(batches, 2, iterations=1, path=path)
    content = torch.load(path, weights_only=True)
    torch.save({name: content[name] for name in ("model", "history")}, path)
    with pytest.raises(ValueError, match="gmm was written before models told what they are made from: remove it"):
        fit_gmm(batches, 2, iterations=1, path=path)


def test_a_mixture_of_another_floor_is_another(batches: Batches, tmp_path: Path) -> None:
    fit_gmm(batches, 2, iterations=1, path=tmp_path / "gmm")
    with pytest.raises(ValueError, match="gmm holds a model of other floor"):
        fit_gmm(batches, 2, iterations=1, floor=0.1, path=tmp_path / "gmm")


# what is refused before the work begins


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"components": 0}, "at least 1 component, got 0"),
        ({"embedding_size": 0}, "dimensions of an i-vector and at least 1 iteration, got 0 and 2"),
        ({"extractor_iterations": 0}, "dimensions of an i-vector and at least 1 iteration, got 5 and 0"),
        ({"plda_iterations": -1}, "at least 0 iterations of PLDA, got -1"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_workers": -1}, "num_workers"),
        ({"seconds": float("nan")}, "segment_seconds above 0 .*, got nan"),
        ({"device": "nonsense"}, "a device that is here, such as cpu, got 'nonsense'"),
        ({"lda_size": 6}, "from 1 to 5 dimensions after LDA, got 6"),
        ({"lda_size": 0}, "from 1 to 5 dimensions after LDA, got 0"),
        ({"embedding_size": 40}, r"at least 46 embeddings, .* in 40 dimensions"),
    ],
)
def test_what_can_not_be_is_refused_before_the_first_iteration(
    wrong: dict[str, object], said: str, folder: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        run(folder, **wrong)
    assert not (folder / "models").exists()


def test_a_back_end_that_can_not_be_is_refused_before_an_utterance_is_embedded(
    folder: Path, make_recognizer: MakeRecognizer
) -> None:
    """An utterance that is too short for the network would be refused first."""
    save_recognizer(make_recognizer(), folder / "network.ckpt")
    data = Background(folder / "data", "train", listed=folder / "listed.txt", segment_seconds=0.02)
    with pytest.raises(ValueError, match="from 1 to 5 dimensions after LDA, got 6"):
        backend.train(folder / "network.ckpt", data, folder / "models", lda_size=6)
    with pytest.raises(ValueError, match="at least 0 iterations of PLDA, got -1"):
        backend.train(folder / "network.ckpt", data, folder / "models", lda_size=5, plda_iterations=-1)
    with pytest.raises(ValueError, match="this recognizer needs at least"):
        backend.train(folder / "network.ckpt", data, folder / "models", lda_size=5)


@pytest.mark.parametrize(
    "fit", [lambda x, names: fit_lda(x, names, 1), fit_plda, lambda x, names: fit_lda(x, names, 1, shrinkage=0.1)]
)
def test_embeddings_of_which_nothing_can_be_learned_are_refused(fit: Callable[[Tensor, list[str]], object]) -> None:
    names = ["a", "b", "c", "d"] * 5
    embeddings = draw(20, 6)
    embeddings[3, 2] = torch.nan
    with pytest.raises(ValueError, match=r"finite embeddings, got others of the speakers d$"):
        fit(embeddings, names)
    still = draw(4, 6).repeat(5, 1)
    with pytest.raises(ValueError, match="vary within speakers in each of 6 dimensions, got 0"):
        fit(still, names)


def test_utterances_that_stand_twice_do_not_count_for_a_variance() -> None:
    names, embeddings = ["a", "b"] * 8, draw(4, 5).repeat(4, 1)
    fit_plda(draw(16, 5), names)
    for fit in (lambda: fit_lda(embeddings, names, 1), lambda: fit_plda(embeddings, names)):
        with pytest.raises(ValueError, match="vary within speakers in each of 5 dimensions, got 2"):
            fit()
