"""The command line of training: LightningCLI, with the data's speakers linked to the classifier head."""

import netrc
import os
from urllib.parse import urlparse

from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

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


class SpeakerCLI(LightningCLI):
    """`fit`, `validate` and `test` of a `SpeakerModule` on a `SpeakerData`, from YAML and flags."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """A classifier head has the speakers of the data, unless the config names them."""
        parser.link_arguments(
            "data.speakers",
            "model.recognizer.init_args.scorer.init_args.speakers",
            apply_on="instantiate",
        )

    def before_instantiate_classes(self) -> None:
        """Keep W&B offline where it has no key, and say so once."""
        if "WANDB_MODE" in os.environ or "WandbLogger" not in str(self.config) or wandb_has_key():
            return
        os.environ["WANDB_MODE"] = "offline"
        rank_zero_info(
            "W&B has no key (WANDB_API_KEY or `wandb login`): runs are kept offline, `wandb sync` sends them"
        )


def train(args: list[str] | None = None) -> SpeakerCLI:
    """Run the command line.

    Args:
        args: default: those of the process.
    """
    return SpeakerCLI(
        SpeakerModule,
        SpeakerData,
        subclass_mode_data=True,
        trainer_defaults={"callbacks": [RichProgressBar()]},
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        parser_kwargs={"parser_mode": "yaml"},
        args=args,
    )
