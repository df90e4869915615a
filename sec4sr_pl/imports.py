"""What files and flags may import: exact names, looked up before anything is imported."""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from typing import Any

from jsonargparse import set_parsing_settings

from sec4sr_pl import yaml_files

ROOMS = (
    "attacks backbones callbacks data data.augment defenses features losses normalization recognizer robustness "
    "scoring training"
)
"""Of this package; what they offer may be imported."""
LISTED = {
    **{f"sec4sr_pl.{room}": "" for room in ROOMS.split()},
    "torch.optim": "Adadelta Adafactor Adagrad Adam AdamW Adamax ASGD LBFGS NAdam RAdam RMSprop Rprop SGD",
    "torch.optim.lr_scheduler": "CosineAnnealingLR PolynomialLR",
    "pytorch_lightning.callbacks": (
        "BatchSizeFinder DeviceStatsMonitor EMAWeightAveraging EarlyStopping GradientAccumulationScheduler "
        "LearningRateFinder LearningRateMonitor ModelCheckpoint ModelSummary OnExceptionCheckpoint RichModelSummary "
        "RichProgressBar SpikeDetection StochasticWeightAveraging TQDMProgressBar ThroughputMonitor Timer "
        "WeightAveraging"
    ),
    "pytorch_lightning.loggers": "CSVLogger CometLogger MLFlowLogger TensorBoardLogger WandbLogger",
    "pytorch_lightning.strategies": "DDPStrategy SingleDeviceStrategy",
    "speechbrain.augment.time_domain": "DoClip DropBitResolution DropFreq FastDropChunk RandAmp SignFlip",
}
"""Module -> names of its classes; none: all that it offers.

What calls a function of its arguments (LambdaLR, LambdaCallback), reads pickles (sharded strategies) or reads lists of
files without our checks (speechbrain's AddNoise) is not here. Schedules are those whose second argument is a number of
steps, for it is given that of the training: ExponentialLR would take it for its factor."""
ALL_OR_SOME = ("sec4sr_pl", "torch", "pytorch_lightning", "lightning_fabric", "speechbrain")
"""Packages that nobody is advised to trust as a whole, nor Python's own modules: parts of them run any code."""
CONSTRUCTORS = ("pretrained", "from_kaldi")
"""Class methods of this package that a class path may name."""
VARIABLE = "SEC4SR_TRUSTED"
DENIED = re.compile(r"Importing '([\w.]+)' is not allowed")
"""What jsonargparse says somewhere in its error."""

_trusted: ContextVar[tuple[str, ...]] = ContextVar("_trusted", default=())


class UntrustedError(ValueError):
    """A file or a flag names something that may not be imported."""

    def __init__(self, path: str) -> None:
        package = path.partition(".")[0]
        whole = package in ALL_OR_SOME or package in sys.stdlib_module_names
        advice = "" if whole else f": add --trusted {package} if you trust that package"
        if package == "__main__":
            advice = ": it was defined in the script that named it; put it into a module of its own, and name it anew"
        super().__init__(f"{path} is not among what may be imported{advice}")


@cache
def listed(module: str) -> dict[str, Any]:
    """Full name -> what may be imported from a listed module.

    Those are its classes, by where they are offered and where they are defined, and their constructors.
    """
    source = import_module(module)
    names = LISTED[module].split() or getattr(source, "__all__", vars(source))
    found = {}
    for name in names:
        cls = getattr(source, name, None)
        if isinstance(cls, type) and cls.__module__.startswith(module) and not name.startswith("_"):
            for path in (f"{module}.{name}", f"{cls.__module__}.{cls.__qualname__}"):
                found[path] = cls
                if module.startswith("sec4sr_pl."):
                    found |= {f"{path}.{maker}": getattr(cls, maker) for maker in CONSTRUCTORS if hasattr(cls, maker)}
    return found


def trusted_packages(packages: Sequence[str] = ()) -> tuple[str, ...]:
    """Packages whose code may be imported: those given, those of the command's flag and those of SEC4SR_TRUSTED."""
    packages = (packages,) if isinstance(packages, str) else packages  # a string is a sequence of letters
    return (*packages, *_trusted.get(), *filter(None, os.environ.get(VARIABLE, "").split(",")))


def check(path: str, packages: Sequence[str] = ()) -> None:
    """Look a path up, before it is imported.

    Args:
        path: of a class or a class method.
        packages: trusted beside those of the command's flag and of SEC4SR_TRUSTED.

    Raises:
        UntrustedError: not listed, nor in a trusted package.
    """
    if path.partition(".")[0] in trusted_packages(packages):
        return
    if not any(path in listed(module) for module in LISTED if path.startswith(f"{module}.")):
        raise UntrustedError(path)


class Trusted(argparse.Action):
    """A flag that is read before all others: `guarded` does."""

    def __call__(self, *_: Any) -> None:
        """Nothing is left to do."""


def add_trusted(parser: argparse.ArgumentParser) -> None:
    """Let a command have the flag --trusted; a file of arguments can't give it."""
    parser.add_argument(
        "--trusted",
        action=Trusted,
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        metavar="PACKAGE",
        help=f"a package whose code files and flags may name; {VARIABLE}=A,B does the same",
    )


@contextmanager
def guarded(args: Sequence[str] | None = None) -> Iterator[None]:
    """What jsonargparse makes inside of flags and files is of listed classes, or of packages that the flags trust.

    Afterwards the process's parsers are still restricted to what is listed.

    Args:
        args: of the command line; None: those of the process.

    Raises:
        UntrustedError: a file or a flag names something else.
        ConfigError: a file of arguments that is not read.
    """
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    flags.add_argument("--trusted", action="append", default=[])
    given = flags.parse_known_args(sys.argv[1:] if args is None else args)[0].trusted
    flagged = [name for value in given for name in value.split(",")]
    packages = list(trusted_packages(flagged))
    if wrong := [name for name in packages if not name.isidentifier()]:
        raise ValueError(f"Expected --trusted PACKAGE, got {wrong[0]!r}")
    yaml_files.use()
    _restrict()
    set_parsing_settings(import_path_allowlist=packages)
    token = _trusted.set(tuple(flagged))
    try:
        yield
    except Exception as error:
        if denied := DENIED.search(str(error)):
            raise UntrustedError(denied[1]) from error
        raise
    finally:
        set_parsing_settings(import_path_denylist=packages)
        _trusted.reset(token)


@cache
def _restrict() -> None:
    """Let jsonargparse import no more than is listed, in this process."""
    names = {name: item for module in LISTED for name, item in listed(module).items()}
    classes = {name: item for name, item in names.items() if isinstance(item, type)}
    inner = {f"{name}.{part}" for name, cls in classes.items() for part in {*dir(cls), *dir(type)}}
    set_parsing_settings(
        import_path_denylist=["*", *(inner - names.keys())],  # an entry is for all that is under it
        import_path_allowlist=list(names),
        validate_subclass_spec_in_any=True,
        instantiate_subclass_spec_in_any=False,
        config_read_mode_fsspec_enabled=False,
    )
