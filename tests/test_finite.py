"""A training whose loss or weights become NaN stops, says where, and keeps its last good checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from test_resume import config as config  # fixtures
from test_resume import error_of, two_processes
from test_resume import somewhere_else as somewhere_else

from sec4sr_pl import cli
from sec4sr_pl.training.finite import FiniteLoss

PLAIN = "--model.objective={class_path: Standard, init_args: {noise: 0.0}}"


class Poison(Callback):
    """Makes what it is told NaN in the fifth step."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.names: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 4:
            self.names = batch.names
            if self.what == "loss":
                batch.waveforms.fill_(torch.nan)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == 5 and self.what == "weights":
            next(pl_module.parameters()).data[0] = torch.nan


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A training with one more callback."""

    def add(what: str) -> Poison:
        poison = Poison(what)
        before = cli.SpeakerCLI.before_instantiate_classes

        def with_poison(self: cli.SpeakerCLI) -> None:
            before(self)
            self.trainer_defaults["callbacks"] += [poison]

        monkeypatch.setattr(cli.SpeakerCLI, "before_instantiate_classes", with_poison)
        return poison

    return add


@pytest.mark.parametrize("late", [False, True], ids=["as on a CPU", "as on an accelerator"])
def test_a_loss_of_nan_stops_at_its_step_with_its_utterances(
    late: bool, poisoned: Any, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the host does not wait for the device, the next checkpoint, after step 6, is what looks."""
    if late:
        monkeypatch.setattr(FiniteLoss, "due", lambda *_: False)
    poison = poisoned("loss")
    text = error_of(config, tmp_path, PLAIN)
    assert f"The loss is no finite number at step 5, whose utterances are {', '.join(poison.names)}: " in text
    assert f"{tmp_path / 'last.ckpt'}, from before, is as it was" in text
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert content["global_step"] == 3
    assert all(tensor.isfinite().all() for name, tensor in content["state_dict"].items() if "threshold" not in name)


def test_weights_of_nan_are_never_kept(poisoned: Any, config: Path, tmp_path: Path) -> None:
    poisoned("weights")
    text = error_of(config, tmp_path, PLAIN, "--trainer.callbacks.every_n_train_steps=5")
    assert "The weights are no finite numbers after step 5, whose loss was finite: no checkpoint was kept" in text
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_training_that_diverges_stops(config: Path, tmp_path: Path) -> None:
    assert "no finite number" in error_of(config, tmp_path, PLAIN, "--model.scheduler.init_args.max_lr=1e30")


@pytest.mark.slow
def test_two_processes_stop_together(config: Path, tmp_path: Path) -> None:
    status, shown = two_processes(config, tmp_path, PLAIN, "--model.scheduler.init_args.max_lr=1e30", stop=False)
    assert status == 1, shown[-3_000:]
    assert "Traceback" not in shown
    assert "no finite number" in shown


def test_a_note_waits_for_no_device() -> None:
    """On the device `meta`, whatever needs a number raises."""
    finite = FiniteLoss()
    for step in range(1, 4):
        finite.note(torch.empty((), device="meta"), step, ["a"])
    assert len(finite.seen) == 3
