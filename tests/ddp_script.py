"""What each process of `test_ddp.py` does: `ddp_script.py DATA OUTPUT`, as one of WORLD_SIZE processes."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Adam

from sec4sr_pl.attacks import PGD
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.callbacks import EpsilonSchedule, RobustValidation
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.training import AdversarialTraining, OneCycle, SpeakerModule

WORLD, RANK = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])


class Notes(Callback):
    """The recognizer's state at each validation, and the size of each training batch."""

    def __init__(self) -> None:
        self.validated: list[dict[str, Tensor]] = []
        self.sizes: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.sizes.append(len(batch.names))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        self.validated.append({n: t.clone() for n, t in pl_module.recognizer.state_dict().items()})  # type: ignore[union-attr]


def norms(recognizer: nn.Module) -> list[nn.Module]:
    return [module for module in recognizer.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def make(data: SpeakerData) -> SpeakerModule:
    """The same module in every process, with statistics of the data in its batch norms."""
    torch.manual_seed(0)
    recognizer = Recognizer(LogMel(), AudioNet(), ClosedSet(32, data.speakers))
    waveforms = torch.stack([data.dataset("train")[index][0][:8_000] for index in range(10)])
    for norm in norms(recognizer):
        norm.momentum = None  # type: ignore[assignment]
    with torch.no_grad():
        recognizer.train()(waveforms)
    for norm in norms(recognizer):
        norm.momentum = 0.1  # type: ignore[assignment]
    objective = AdversarialTraining(PGD(step_size=0.0008, steps=2, restarts=1), fraction=0.5)
    return SpeakerModule(
        recognizer,
        objective,
        optimizer=lambda parameters: Adam(parameters, lr=0.002),
        scheduler=lambda optimizer, steps: OneCycle(optimizer, steps, max_lr=0.002),
    )


def make_trainer(**arguments: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=WORLD,
        strategy="ddp" if WORLD > 1 else "auto",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )


def frozen(root: Path) -> dict[str, Any]:
    """20 steps at a global batch of 8 with frozen batch norm, in double precision."""
    data = SpeakerData(root, batch_size=8 // WORLD, crop_seconds=0.5, num_workers=0)
    module = make(data)
    start = {name: tensor.clone() for name, tensor in module.recognizer.state_dict().items()}
    for norm in norms(module.recognizer):
        norm.eval()
    trainer = make_trainer(
        max_epochs=4,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=[EpsilonSchedule(0.5)],
        precision="64-true",
    )
    trainer.fit(module, datamodule=data)
    return {"steps": trainer.global_step, "start": start, "end": module.recognizer.state_dict()}


def moving(root: Path) -> dict[str, Any]:
    """20 steps with moving batch norm, a number of utterances that the processes can't share evenly, and validation."""
    data = SpeakerData(root, "odd", batch_size=8 // WORLD, eval_batch_size=1, crop_seconds=0.5, num_workers=0)
    module, notes = make(data), Notes()
    trainer = make_trainer(max_steps=20, callbacks=[notes, RobustValidation(PGD(steps=1), pesq=0)])
    trainer.fit(module, datamodule=data)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        "steps": trainer.global_step,
        "end": module.recognizer.state_dict(),
        "sizes": notes.sizes,
        "validated": notes.validated,
        "logged": logged,
    }


def validated(root: Path) -> dict[str, float]:
    """What validation logs about one recognizer; in double precision, whose rounding flips no decision."""
    data = SpeakerData(root, eval_batch_size=2, development_fraction=0.34, num_workers=0)
    attack = PGD(epsilon=0.0001, step_size=0.00005, steps=2, restarts=2)
    callback = RobustValidation(attack, fraction=0.8, pesq=0.5)
    (logged,) = make_trainer(callbacks=[callback], precision="64-true").validate(make(data), data, verbose=False)
    return dict(logged)


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, output = Path(sys.argv[1]), Path(sys.argv[2])
    result = {
        "frozen": frozen(root),
        "moving": moving(root),
        "validated": validated(root),
    }
    torch.save(result, output / f"{RANK}-of-{WORLD}.pt")
