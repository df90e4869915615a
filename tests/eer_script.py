"""What each process of `test_verification_eer.py` does: `eer_script.py DATA OUTPUT`, as one of WORLD_SIZE processes."""

import sys
from pathlib import Path
from typing import Any

import torch
from ddp_script import RANK, WORLD, make_trainer
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import SGD

from sec4sr_pl.backbones import ECAPA
from sec4sr_pl.callbacks import VerificationEER
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.defenses import GaussianNoise
from sec4sr_pl.features import Fbank
from sec4sr_pl.losses import AdditiveAngularMargin
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import CosineClosedSet
from sec4sr_pl.training import SpeakerModule, Standard


class Kept(VerificationEER):
    """Also keeps the embeddings and the weights that they were made with."""

    def embeddings(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> Any:
        self.made = super().embeddings(trainer, pl_module, *arguments)
        recognizer: Any = pl_module.recognizer
        self.state = {name: tensor.clone() for name, tensor in recognizer.state_dict().items()}
        return self.made


def data(root: Path) -> SpeakerData:
    """26 utterances of 5 speakers, 5 of them to validate on."""
    return SpeakerData(root, "odd", batch_size=8 // WORLD, eval_batch_size=1, crop_seconds=0.5, num_workers=0)


def module() -> SpeakerModule:
    """The same in every process, too small and behind too loud a defense to be right."""
    torch.manual_seed(0)
    scorer = CosineClosedSet(4, [f"speaker{index}" for index in range(5)])
    recognizer = Recognizer(Fbank(), ECAPA(channels=16, embedding_size=4), scorer, [GaussianNoise(-5.0)])
    return SpeakerModule(recognizer, Standard(0.0, margin=AdditiveAngularMargin()), lambda p: SGD(p, 0.1))


def validated(root: Path, callback: Kept, **arguments: Any) -> dict[str, Any]:
    """The figures of a recognizer as it is."""
    trainer = make_trainer(callbacks=[callback], **arguments)
    (logged,) = trainer.validate(module(), data(root), verbose=False)
    return {"logged": dict(logged), "embeddings": callback.made}


def trained(root: Path) -> dict[str, Any]:
    """The figures after 6 steps, in which each process gathers statistics of its own utterances."""
    callback = Kept(root / "trials.txt", batch_size=4)
    watch = Watch()
    trainer = make_trainer(callbacks=[watch, callback], max_steps=6)
    trainer.fit(module(), datamodule=data(root))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if "verification" in name}
    return {"logged": logged, "embeddings": callback.made, "state": callback.state, "own": watch.state}


class Watch(Callback):
    """The statistics of this process before validation."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        recognizer: Any = pl_module.recognizer
        self.state = {name: tensor.clone() for name, tensor in recognizer.state_dict().items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, output = Path(sys.argv[1]), Path(sys.argv[2])
    result = {
        "list": validated(root, Kept(Path("trials.txt"), batch_size=4)),
        "pairs": validated(root, Kept(part="test", batch_size=3)),
        "double": validated(root, Kept(Path("trials.txt")), precision="64-true"),
        "trained": trained(root),
    }
    torch.save(result, output / f"{RANK}-of-{WORLD}.pt")
