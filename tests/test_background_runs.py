"""Runs of background training: which state they may go on from, and what they refuse before the work begins."""

from pathlib import Path

import pytest
import torch
from test_background import batches as batches  # fixtures
from test_ivector_plda import SMALL
from test_ivector_plda import folder as folder
from torch import Tensor

from sec4sr_pl.features import MFCC, EnergyVAD
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.training.background import fit_gmm
from sec4sr_pl.training.background.__main__ import train
from sec4sr_pl.training.background.corpus import Corpus, background

Batches = list[tuple[Tensor, Tensor]]
QUICK = {**SMALL, "gmm_iterations": 2, "extractor_iterations": 2}


def run(folder: Path, **arguments: object) -> Recognizer:
    listed = arguments.pop("speakers", folder / "listed.txt")
    return train(folder / "models", folder / "data", "train", listed, **{**QUICK, **arguments})  # type: ignore[arg-type]


# which state a run may go on from


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"speakers": None}, r"gmm.pt holds a model of other frames: remove it"),
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
    run(folder)
    with pytest.raises(ValueError, match=said):
        run(folder, **changed)


def test_a_run_goes_on_with_what_changes_no_model(folder: Path) -> None:
    """In other batches, with its files elsewhere, and of more iterations of the extractor."""
    first = run(folder)
    (folder / "data").rename(folder / "moved")
    again = train(
        folder / "models",
        folder / "moved",
        "train",
        folder / "listed.txt",
        **{**QUICK, "batch_size": 3, "extractor_iterations": 3, "plda_iterations": 2},  # type: ignore[arg-type]
    )
    assert torch.equal(again.backbone.means, first.backbone.means)  # type: ignore[arg-type]


def test_frames_are_known_by_utterances_and_front_end(folder: Path) -> None:
    def identity(seconds: float = 0.25, vad: EnergyVAD | None = None, batch_size: int = 5) -> str:
        return Corpus(background(folder / "data", "train", None, seconds), MFCC(vad=vad), batch_size).identity

    assert identity() == identity(batch_size=3)
    different = [identity(), identity(0.3), identity(vad=EnergyVAD()), identity(vad=EnergyVAD(threshold=5.0))]
    assert len(set(different)) == 4


def test_a_file_without_what_it_was_made_from_is_refused(batches: Batches, tmp_path: Path) -> None:
    path = tmp_path / "gmm"
    fit_gmm(batches, 2, iterations=1, path=path)
    content = torch.load(path, weights_only=True)
    torch.save({name: content[name] for name in ("model", "history")}, path)
    with pytest.raises(ValueError, match="gmm holds a model of other sizes, other frames, other seed, other floor"):
        fit_gmm(batches, 2, iterations=1, path=path)


def test_a_mixture_of_another_floor_is_another(batches: Batches, tmp_path: Path) -> None:
    fit_gmm(batches, 2, iterations=1, path=tmp_path / "gmm")
    with pytest.raises(ValueError, match="gmm holds a model of other floor"):
        fit_gmm(batches, 2, iterations=1, floor=0.1, path=tmp_path / "gmm")
