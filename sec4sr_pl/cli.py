"""The command line of training: LightningCLI, with the data's speakers linked to the classifier head."""

import netrc
import os
from urllib.parse import urlparse

import yaml
from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

import sec4sr_pl.attacks
import sec4sr_pl.backbones
import sec4sr_pl.callbacks
import sec4sr_pl.data.augment
import sec4sr_pl.features  # noqa: F401  imported, so that YAML may name classes without their modules
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.training import SpeakerModule


def wandb_has_key() -> bool:
    """Whether W&B can log in: by the variable WANDB_API_KEY or by `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class LoggedConfig(SaveConfigCallback):
    """The configuration as a file beside the logs, and as the hyperparameters of every logger."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called by the base on the first process."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        for logger in trainer.loggers:
            logger.log_hyperparams(config)


class SpeakerCLI(LightningCLI):
    """`fit` and `validate` of a `SpeakerModule` on a `SpeakerData`, from YAML and flags."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The test set belongs to evaluate.py."""
        everything: dict[str, set[str]] = LightningCLI.subcommands()
        return {name: everything[name] for name in ("fit", "validate")}

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
        if config.trainer.enable_progress_bar is not False:
            self.trainer_defaults["callbacks"] = [RichProgressBar()]
        if "WANDB_MODE" in os.environ or "WandbLogger" not in str(self.config) or wandb_has_key():
            return
        os.environ["WANDB_MODE"] = "offline"
        rank_zero_info(
            "W&B has no key (WANDB_API_KEY or `wandb login`): runs are kept offline, `wandb sync` sends them"
        )


def last_line(error: Exception) -> str:
    """What an error says, without the traceback that a loader's worker puts before it."""
    text = str(error).strip()
    return text.splitlines()[-1].partition(": ")[2] if text.startswith("Caught ") else text


def train(args: list[str] | None = None) -> SpeakerCLI:
    """Run the command line; what its user can mend ends it with one line on stderr and status 1.

    Args:
        args: default: those of the process.
    """
    try:
        return SpeakerCLI(
            SpeakerModule,
            SpeakerData,
            subclass_mode_data=True,
            save_config_callback=LoggedConfig,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=args,
        )
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(f"train.py: error: {last_line(error)}") from error
