"""Processes that run a script of Python as a command would, forked from a server that has imported all of it already.

To start Python and import this package takes seconds of CPU time, to fork a moment.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["sec4sr_pl.cli", "sec4sr_pl.evaluation"])


class Forked:
    """As much of `subprocess.Popen` as the tests ask of it; in a session of its own.

    Args:
        arguments: a script, and its arguments.
        cwd: working directory.
        env: the environment.
        stderr: `subprocess.STDOUT` to have both in one.
    """

    def __init__(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], stderr: int | None = None) -> None:
        self.shown = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115
        out, err = (file.name for file in self.shown)
        target = (list(map(str, arguments)), str(cwd), dict(env), out, out if stderr == subprocess.STDOUT else err)
        self.process = FORKS.Process(target=become, args=target)
        self.process.start()
        self.pid = int(self.process.pid or 0)

    @property
    def returncode(self) -> int | None:
        """None while it runs; the negative number of a signal that ended it."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """Until it has ended."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout or 0.0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote until it ended."""
        self.wait(timeout)
        out, err = (Path(file.name).read_text() for file in self.shown)
        return out, err

    def kill(self) -> None:
        """By SIGKILL."""
        self.process.kill()


def become(arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    """Run the script as the main program of this process."""
    os.setsid()
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), stream.fileno())
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv[:] = arguments
    sys.path[0] = str(Path(arguments[0]).resolve().parent)
    runpy.run_path(arguments[0], run_name="__main__")
