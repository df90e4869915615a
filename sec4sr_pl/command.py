"""A function as a command: its arguments from YAML and flags, its errors in one line."""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

Result = TypeVar("Result")


def unwrapped(error: BaseException) -> BaseException:
    """What a constructor raised, out of jsonargparse's dump of an optional argument's configuration around it."""
    while str(error).startswith("Does not validate against any of the Union subtypes") and error.__cause__ is not None:
        error = error.__cause__
    return error


def at_home(config: Any) -> Any:
    """A configuration in which `~/` at the beginning of a path or a string is the user's home, as in a shell."""
    if isinstance(config, argparse.Namespace):
        return type(config)(**{name: at_home(value) for name, value in vars(config).items()})
    if isinstance(config, dict):
        return {name: at_home(value) for name, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(map(at_home, config))
    if isinstance(config, (str, Path)) and (config == Path("~") or str(config).startswith("~/")):
        return type(config)(os.path.expanduser(config))
    return config


@contextmanager
def one_line_errors(parser: argparse.ArgumentParser, resumes: bool = True) -> Iterator[None]:
    """An error of the user ends the command with one line on stderr and status 1, an interruption with 130.

    Args:
        parser: of the command.
        resumes: whether the same command goes on where it was interrupted, or starts over.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {' '.join(str(unwrapped(error)).split())}\n")
    except KeyboardInterrupt:
        again = "goes on with what is there" if resumes else "starts over"
        parser.exit(130, f"{parser.prog}: interrupted; the same command {again}\n")


def command(
    function: Callable[..., Result],
    prog: str,
    description: str,
    args: list[str] | None = None,
    configs: str | None = None,
    resumes: bool = True,
    positional: bool = False,
) -> Result:
    """Call a function with arguments of the command line; an error of its user ends it with one line and status 1.

    Args:
        function: its arguments may be classes, which are given as `class_path` and `init_args`.
        prog: how the command is called.
        description: what it does.
        args: None: those of the process.
        configs: the folder of YAML files for it, where there is one.
        resumes: as in `one_line_errors`.
        positional: arguments without a default are given in their order, without their names.
    """
    parser = ArgumentParser(prog=prog, description=description)
    example = "" if configs is None else f", e.g. one of {configs}"
    parser.add_argument("--config", action=ActionConfigFile, help=f"a YAML file of arguments{example}")
    parser.add_function_arguments(function, as_positional=positional, fail_untyped=False, sub_configs=True)
    config = at_home(parser.parse_args(args))
    with one_line_errors(parser, resumes):
        values = parser.instantiate(config).as_dict()
        values.pop("config", None)
        return function(**values)
