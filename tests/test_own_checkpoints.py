"""A resume deletes nothing but its own checkpoints, whatever the checkpoint says."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sec4sr_pl.callbacks import OwnCheckpoints
from sec4sr_pl.checkpoint import WholeCheckpoints


class Line(LightningModule):
    """Learns that a number is itself; its score is better after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        self.log("score", float(self.current_epoch))
        return (self.layer(batch) - batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder: Path, epochs: int, resume: Path | None = None) -> ModelCheckpoint:
    kept = ModelCheckpoint(folder, "{epoch}", "score", mode="max", save_last=True)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[kept, OwnCheckpoints()],
        plugins=[WholeCheckpoints()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(Line(), DataLoader(torch.ones(4, 1), 2), ckpt_path=resume, weights_only=True)
    return kept


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = torch.load(path, weights_only=True)
    (state,) = [state for name, state in content["callbacks"].items() if "ModelCheckpoint" in name]
    change(state)
    torch.save(content, path)


def test_a_resume_replaces_its_own_best_checkpoint(tmp_path: Path) -> None:
    fit(tmp_path, 1)
    assert names(tmp_path) == {"epoch=0.ckpt", "last.ckpt"}
    fit(tmp_path, 2, tmp_path / "last.ckpt")
    assert names(tmp_path) == {"epoch=1.ckpt", "last.ckpt"}


@pytest.mark.parametrize(
    "victim", ["outside", "outside/x.ckpt", "run/below", "run/../outside", "run/../outside/x.ckpt"]
)
def test_a_resume_deletes_no_folder_and_nothing_outside(victim: str, tmp_path: Path) -> None:
    folder, named = tmp_path / "run", str(tmp_path / victim)
    fit(folder, 1)
    for path in (tmp_path / "outside" / "x.ckpt", folder / "below" / "x.ckpt"):
        path.parent.mkdir()
        path.touch()

    def hostile(state: dict[str, Any]) -> None:
        state["best_k_models"] = {named: torch.tensor(-1.0)}
        state["kth_best_model_path"] = state["best_model_path"] = state["last_model_path"] = named

    rewritten(folder / "last.ckpt", hostile)
    kept = fit(folder, 2, folder / "last.ckpt")
    assert (tmp_path / "outside" / "x.ckpt").exists() and (folder / "below" / "x.ckpt").exists()
    assert kept.best_model_path == str(folder / "epoch=1.ckpt")


def test_what_a_checkpoint_names_elsewhere_is_forgotten_before_a_tracker_sends_it(tmp_path: Path) -> None:
    fit(tmp_path / "run", 1)
    secret = tmp_path / "secret"
    secret.touch()
    rewritten(tmp_path / "run" / "last.ckpt", lambda state: state.update(best_model_path=str(secret), dirpath="/"))
    kept = fit(tmp_path / "run", 1, tmp_path / "run" / "last.ckpt")  # nothing is left to train, nothing is better
    assert kept.best_model_path != str(secret)


def test_the_run_of_a_moved_folder_goes_on_there(tmp_path: Path) -> None:
    fit(tmp_path / "before", 1)
    shutil.move(tmp_path / "before", tmp_path / "after")
    kept = fit(tmp_path / "after", 3, tmp_path / "after" / "last.ckpt")
    assert kept.best_model_path == str(tmp_path / "after" / "epoch=2.ckpt")
    assert not (tmp_path / "before").exists()
    assert Path(kept.last_model_path).parent == tmp_path / "after"
    assert torch.load(kept.last_model_path, weights_only=True)["epoch"] == 2


def test_only_what_lies_beside_a_checkpoint_that_was_written_is_removed(tmp_path: Path) -> None:
    files = WholeCheckpoints()
    for name in ("a/x.ckpt", "a/y.ckpt", "a/notes.txt", "b/x.ckpt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    files.save_checkpoint({}, tmp_path / "a" / "new.ckpt")
    for name in ("a/x.ckpt", "a/notes.txt", "b/x.ckpt", "a/../a/y.ckpt", "a", "b"):
        files.remove_checkpoint(tmp_path / name)
    assert names(tmp_path / "a") == {"new.ckpt", "y.ckpt", "notes.txt"} and names(tmp_path / "b") == {"x.ckpt"}
