"""The command line of training: LightningCLI, with the data's speakers linked to the classifier head."""

import netrc
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

import yaml
from lightning_fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.utilities.exceptions import SIGTERMException

import sec4sr_pl.attacks
import sec4sr_pl.backbones
import sec4sr_pl.callbacks
import sec4sr_pl.data.augment
import sec4sr_pl.features
import sec4sr_pl.losses  # noqa: F401  imported, so that YAML may name classes without their modules
from sec4sr_pl.allocator import keep_large_blocks
from sec4sr_pl.callbacks import LoggedRun, OwnCheckpoints, StopOnSignal
from sec4sr_pl.callbacks.interruption import SIGINTException
from sec4sr_pl.callbacks.tracking import AppendingWriter
from sec4sr_pl.checkpoint import CheckpointError, WholeCheckpoints, read_checkpoint
from sec4sr_pl.command import Terminated, at_home, one_line_errors
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.files import check_writable
from sec4sr_pl.imports import add_trusted, guarded
from sec4sr_pl.processes import one_fate
from sec4sr_pl.training import SpeakerModule

RIGHT = (
    ".*Checkpoint directory .* exists and is not empty",  # it holds the logs of the same run
    ".*does not have many workers",  # validation has none, so that it draws the same whatever the machine
    ".*``compute`` method of metric .* was called before the ``update`` method",  # PESQ of few, none in a sanity check
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # within Lightning
)
"""What libraries warn of where all is as it should be."""
MONITORS = ("LearningRateMonitor", "DeviceStatsMonitor", "ThroughputMonitor")
"""Callbacks that have nothing to do, and refuse to do it, where nothing is logged."""


def wandb_has_key() -> bool:
    """Whether W&B can log in: by the variable WANDB_API_KEY or by `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def classes(config: Any, *names: str) -> Iterator[Any]:
    """The init_args of the classes of these names in a part of the configuration: one class, several, or none."""
    for item in config if isinstance(config, list) else [config]:
        if str(getattr(item, "class_path", "")).rpartition(".")[2] in names:
            yield item.init_args


def plain(parser: LightningArgumentParser, config: Any) -> Any:
    """A configuration as plain data."""
    return yaml.safe_load(parser.dump(config, skip_none=False))


class LoggedConfig(SaveConfigCallback):
    """The configuration as a file beside the logs, if there are any, and as the hyperparameters of every logger."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called by the trainer."""
        self.save_to_log_dir = bool(trainer.loggers)  # without, the file would lie in the current folder
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called by the base on the first process."""
        configuration = cast(SpeakerModule, pl_module).configuration or {}
        for logger in trainer.loggers:
            logger.log_hyperparams(configuration)


class SpeakerCLI(LightningCLI):
    """`fit` and `validate` of a `SpeakerModule` on a `SpeakerData`, from YAML and flags."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The test set belongs to evaluate.py."""
        everything: dict[str, set[str]] = LightningCLI.subcommands()
        return {name: everything[name] for name in ("fit", "validate")}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Called by the base for the command and each of its subcommands."""
        parser = super().init_parser(**kwargs)
        add_trusted(parser)
        return parser

    def _parse_ckpt_path(self) -> None:
        """Nothing in a checkpoint configures the model, where the base takes its `hyper_parameters`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """A classifier head has the speakers of the data."""
        parser.link_arguments(
            "data.speakers",
            "model.recognizer.init_args.scorer.init_args.speakers",
            apply_on="instantiate",
        )

    def before_instantiate_classes(self) -> None:
        """A resume never runs a checkpoint's code; W&B stays offline where it has no key, and says so once."""
        config = self.config[self.subcommand]
        config.weights_only = True
        if config.trainer.enable_checkpointing is False or config.trainer.barebones:
            raise ValueError("Expected checkpoints, got enable_checkpointing false or barebones: a stop would lose all")
        for message in RIGHT:
            warnings.filterwarnings("ignore", message)
        callbacks = self.trainer_defaults["callbacks"] = [StopOnSignal(), LoggedRun(), OwnCheckpoints()]
        if config.trainer.logger is False and isinstance(config.trainer.callbacks, list):
            config.trainer.callbacks = [c for c in config.trainer.callbacks if not any(classes(c, *MONITORS))]
        if config.trainer.enable_progress_bar is not False:
            callbacks.append(RichProgressBar())
        if "WANDB_MODE" in os.environ or "WandbLogger" not in str(self.config) or wandb_has_key():
            return
        os.environ["WANDB_MODE"] = "offline"
        rank_zero_info(
            "W&B has no key (WANDB_API_KEY or `wandb login`): runs are kept offline, `wandb sync` sends them"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Find the file that `--ckpt_path last` means, and go on with the W&B run of the checkpoint."""
        super().parse_arguments(parser, args)
        self.config = at_home(self.config)
        config = self.config.get(self.config.get("subcommand"))
        if config is not None and config.ckpt_path is None and self.config.subcommand == "validate":
            raise ValueError("Expected --ckpt_path, the checkpoint to validate, got none: the weights would be random")
        if config is None or config.ckpt_path is None:
            return
        if config.ckpt_path == "last":
            kept = classes(config.trainer.callbacks, "ModelCheckpoint", "LastCheckpoint")
            folders = [Path(checkpoint.dirpath) for checkpoint in kept if checkpoint.dirpath]
            if not folders:
                raise ValueError(
                    "Expected a dirpath of LastCheckpoint or ModelCheckpoint, in which --ckpt_path last looks, got none"
                )
            files = {path for folder in folders for path in folder.glob("last*.ckpt")}
            if not files and self.config.subcommand == "validate":
                raise ValueError(f"There is no last checkpoint to validate in {', '.join(map(str, folders))}")
            config.ckpt_path = str(max(files, key=lambda path: path.stat().st_mtime, default="last"))
        if not Path(config.ckpt_path).is_file():
            if Path(config.ckpt_path).exists():
                raise ValueError(f"Expected a checkpoint, which is a file, got {config.ckpt_path}")
            return
        content = read_checkpoint(Path(config.ckpt_path))
        if "pytorch-lightning_version" not in content:
            raise CheckpointError(
                f"{config.ckpt_path} holds a recognizer alone, expected a training's checkpoint: --model.weights "
                "begins a training from it, evaluate.py measures it"
            )
        run = content.get("wandb_run")
        for logger in classes(config.trainer.logger, "WandbLogger") if self.config.subcommand == "fit" else ():
            if not logger.version and not logger.id:  # "" comes from a CSVLogger, whose arguments a flag keeps
                logger.id = run

    def after_instantiate_classes(self) -> None:
        """A resume compares the configuration with that of the checkpoint."""
        if self.subcommand is not None:
            self.model.configuration = plain(self._parser(self.subcommand), self.config[self.subcommand])

    def fit(self, **arguments: Any) -> None:
        """Called by the base, as `Trainer.fit`."""
        with one_fate(self.trainer.strategy):
            self.trainer.fit(**arguments)

    def validate(self, **arguments: Any) -> None:
        """Called by the base, as `Trainer.validate`."""
        with one_fate(self.trainer.strategy):
            self.trainer.validate(**arguments)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Checkpoints are whole or not there, and a folder that can't be written is found before training."""
        trainer = super().instantiate_trainer(**kwargs)
        if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):  # others' checkpoints hold pickles
            raise ValueError(f"Expected the strategy auto or ddp, got {type(trainer.strategy).__name__}")
        if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
            raise ValueError("Expected the strategy auto or ddp, got one of ddp_spawn, ddp_fork and ddp_notebook")
        trainer.strategy.checkpoint_io = WholeCheckpoints()
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, CSVLogger):
                logger._experiment = AppendingWriter(logger.log_dir)
        for callback in trainer.checkpoint_callbacks if self.subcommand == "fit" else []:
            folder = callback.dirpath if isinstance(callback, ModelCheckpoint) else None
            if isinstance(callback, ModelCheckpoint) and callback.save_last == "link":
                raise ValueError(
                    "Expected save_last true or false of ModelCheckpoint, got link: it could not be replaced"
                )
            if folder is not None and "://" not in str(folder):
                if self.config[self.subcommand].ckpt_path is None and any(Path(folder).glob("*.ckpt")):
                    rank_zero_warn(f"{folder} holds checkpoints, which are written over: --ckpt_path last goes on")
                try:
                    check_writable(Path(folder) / "last.ckpt")
                except OSError as error:
                    raise OSError(
                        f"Checkpoints can't be kept in {folder} ({error.strerror}): name another dirpath of "
                        f"{type(callback).__name__}"
                    ) from error
        return trainer


def train(args: list[str] | None = None) -> SpeakerCLI:
    """Run the command line; its errors are told as by `one_line_errors`.

    Args:
        args: default: those of the process.
    """
    keep_large_blocks()
    again = "--ckpt_path last goes on from the last checkpoint, where they are kept"
    with one_line_errors("train.py", again), guarded(args):
        try:
            return SpeakerCLI(
                SpeakerModule,
                SpeakerData,
                subclass_mode_data=True,
                save_config_callback=LoggedConfig,
                save_config_kwargs={"overwrite": True},
                seed_everything_default=0,
                auto_configure_optimizers=False,
                parser_kwargs={"exit_on_error": False},
                args=args,
            )
        except SIGTERMException as stop:
            raise Terminated(str(stop)) from stop
        except SIGINTException as stop:
            raise KeyboardInterrupt(str(stop)) from stop
        except MisconfigurationException as error:
            raise ValueError(error) from error
        except SystemExit as stop:  # Lightning ends so on Ctrl-C
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise stop.__context__ from None
            raise


if __name__ == "__main__":
    train()
