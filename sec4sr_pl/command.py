"""A function as a command: its arguments from YAML and flags, its errors in one line."""

import os
import re
import signal
import sys
import threading
from argparse import ArgumentError, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ActionConfigFile, ArgumentParser  # type: ignore[attr-defined]
from lightning_utilities.core.rank_zero import rank_zero_only

from sec4sr_pl.files import FULL
from sec4sr_pl.imports import add_trusted, guarded

Result = TypeVar("Result")

TRACEBACK = "SEC4SR_TRACEBACK"
"""The variable that shows an error as Python does, with its traceback."""
RESUMES = "the same command goes on with what is there"
STARTS_OVER = "the same command starts over"
FOR_USERS = (ValueError, OSError, ImportError)
"""Errors whose text says what to do; of all others the type is told too, as in `KeyError: 'x'`."""
LENGTH = 2_000
"""Characters of the longest error."""
DUMP = re.compile(
    r"\s*Does not validate against any of the Union subtypes\s+Subtypes: [^\n]*\s+Errors:"
    r"|\n *- Expected a <class 'NoneType'>|\n *Given value type: [^\n]*"
)
"""What jsonargparse says of optional arguments beside what is wrong."""
WORKER = re.compile(r"Caught \w+ in .*\n  [^\n]*\n[\w.]+(?:: )?(.*)", re.DOTALL)
"""An error of a loader's worker: the traceback there, then what it says."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came: as Ctrl-C, but the status is 143. Its text, if it has one, is told."""


def unwrapped(error: BaseException) -> BaseException:
    """What a constructor raised, out of jsonargparse's dump of an optional argument's configuration around it."""
    while str(error).startswith("Does not validate against any of the Union subtypes") and error.__cause__ is not None:
        error = error.__cause__
    return error


def at_home(config: Any) -> Any:
    """A configuration in which `~/` at the beginning of a path or a string is the user's home, as in a shell."""
    if isinstance(config, Namespace):
        return type(config)(**{name: at_home(value) for name, value in vars(config).items()})
    if isinstance(config, dict):
        return {name: at_home(value) for name, value in config.items()}
    if type(config) in (list, tuple):  # a named tuple takes its fields one by one
        return type(config)(map(at_home, config))
    if isinstance(config, (str, Path)) and (config == Path("~") or str(config).startswith("~/")):
        return type(config)(os.path.expanduser(config))
    return config


def in_one_line(error: BaseException) -> str:
    """What an error says to who called the command."""
    error = unwrapped(error)
    text = DUMP.sub("", WORKER.sub(r"\1", str(error)))
    line = " ".join(re.sub(r"<class '([\w.]+)'>", r"\1", text).split())
    if isinstance(error, OSError) and error.errno in FULL and error.filename is None:
        line += ": there is no room for an output or a log; make some, and start again"
    if len(line) > LENGTH:
        line = f"{line[: LENGTH // 2]} ... {line[-LENGTH // 2 :]}"
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)
    if line and isinstance(error, (*FOR_USERS, ArgumentError)):
        return line
    return f"{type(error).__name__}{': ' * bool(line)}{line} ({TRACEBACK}=1 shows where)"


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside, once, and takes the place of an error that follows from it.

    A worker that it ended too is such an error. An interruption that met the end of an object, from which Python raises
    nothing, comes again.
    """
    received: list[Terminated] = []
    process = os.getpid()

    def receive(*_: Any) -> None:
        if os.getpid() != process:  # a worker that was forked
            os._exit(128 + signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a launcher sends one more when one of its processes is through
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would tell of each worker that it ended too
        received.append(Terminated())
        raise received[0]

    def lost(what: Any) -> None:
        if not isinstance(what.exc_value, KeyboardInterrupt):
            tell(what)
            return
        again = signal.SIGTERM if isinstance(what.exc_value, Terminated) else signal.SIGINT
        if again is signal.SIGTERM:
            signal.signal(again, receive)
        threading.Timer(0.1, os.kill, (process, again)).start()

    if threading.current_thread() is not threading.main_thread():  # no other may listen
        yield
        return
    before = signal.signal(signal.SIGTERM, receive)
    tell, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield
    except Exception as error:
        if received:
            raise received[0] from error
        raise
    else:
        if received:  # and taken for an error that may be passed over
            raise received[0]
    finally:
        sys.unraisablehook = tell
        signal.signal(signal.SIGTERM, signal.SIG_IGN if isinstance(sys.exception(), Terminated) else before)


@contextmanager
def one_line_errors(prog: str, again: str = RESUMES) -> Iterator[None]:
    """Whatever is raised inside ends the command with one line on stderr and a status.

    The status is 2 for arguments that are not understood, 130 for Ctrl-C, 143 for SIGTERM and 1 for all else. Where the
    variable SEC4SR_TRACEBACK is set, errors are raised as they are.

    Args:
        prog: how the command is called.
        again: what happens after an interruption when it is called again.
    """
    try:
        with terminable():
            yield
    except KeyboardInterrupt as interruption:
        received = signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT
        if not getattr(rank_zero_only, "rank", 0):
            sys.stderr.write(f"{prog}: {str(interruption) or f'interrupted; {again}'}\n")
        raise SystemExit(128 + received) from interruption
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        misread = isinstance(error, ArgumentError)
        sys.stderr.write(f"{prog}: error: {in_one_line(error)}{f'; see {prog} --help' if misread else ''}\n")
        raise SystemExit(2 if misread else 1) from error


def command(
    function: Callable[..., Result],
    prog: str,
    description: str,
    args: list[str] | None = None,
    configs: str | None = None,
    resumes: bool = True,
    positional: bool = False,
) -> Result:
    """Call a function with arguments of the command line; its errors are told as by `one_line_errors`.

    Args:
        function: its arguments may be classes, which are given as `class_path` and `init_args`.
        prog: how the command is called.
        description: what it does.
        args: None: those of the process.
        configs: the folder of YAML files for it, where there is one.
        resumes: whether the same command goes on where it was interrupted, or starts over.
        positional: arguments without a default are given by their order alone.
    """
    with one_line_errors(prog, RESUMES if resumes else STARTS_OVER), guarded(args):
        parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
        example = "" if configs is None else f", e.g. one of {configs}"
        parser.add_argument("--config", action=ActionConfigFile, help=f"a YAML file of arguments{example}")
        parser.add_function_arguments(function, as_positional=positional, fail_untyped=False, sub_configs=True)
        add_trusted(parser)
        config = at_home(parser.parse_args(args))
        values = parser.instantiate(config).as_dict()
        values.pop("config", None)
        return function(**values)
