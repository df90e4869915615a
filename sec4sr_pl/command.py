"""A function as a command: its arguments from YAML and flags, its errors in one line."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]

Result = TypeVar("Result")


def unwrapped(error: BaseException) -> BaseException:
    """What a constructor raised, out of jsonargparse's dump of an optional argument's configuration around it."""
    while str(error).startswith("Does not validate against any of the Union subtypes") and error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def one_line_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """An error of the user ends the command with one line on stderr and status 1, an interruption with 130."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: error: {' '.join(str(unwrapped(error)).split())}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the same command starts again, or goes on where it can\n")


def command(
    function: Callable[..., Result], prog: str, description: str, configs: str, args: list[str] | None
) -> Result:
    """Call a function with arguments of the command line; an error of its user ends it with one line and status 1.

    Args:
        function: its arguments may be classes, which are given as `class_path` and `init_args`.
        prog: how the command is called.
        description: what it does.
        configs: the folder of YAML files for it.
        args: None: those of the process.
    """
    parser = ArgumentParser(prog=prog, description=description)
    parser.add_argument("--config", action=ActionConfigFile, help=f"a YAML file, e.g. one of {configs}")
    parser.add_function_arguments(function, fail_untyped=False)
    config = parser.parse_args(args)
    with one_line_errors(parser):
        values = parser.instantiate(config).as_dict()
        values.pop("config", None)
        return function(**values)
