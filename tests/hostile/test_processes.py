"""What could hang, take all memory, run code or be stopped by a signal has a process of its own."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hostile.good import BACKGROUND, EVALUATE, INPUTS
from hostile.place import OUTPUT, Case, Command, Place
from hostile.test_hostile import all_cases
from hostile.test_hostile import good as good  # fixtures
from hostile.test_hostile import place as place

TIMEOUT = 120
"""Seconds after which a process is killed; none needs five."""
DANGERS = (
    "pipe",
    "endless",
    "aliases",
    "inflated",
    "10^",
    "touch ran",
    "evil",
    "code",
    "shell",
    "2^62",
    "huge",
    "deep",
)
"""Words in the names of cases that hung, took memory or ran code once."""
FAST = (
    "evaluate: pipe as wav",
    "evaluate: 2^62 frames as wav",
    "enroll: endless device as wav",
    "evaluate: pipe as YAML",
    "fit: aliases of aliases as YAML",
    "evaluate: python object as YAML",
    "evaluate: deep brackets as YAML",
    "export: code as checkpoint",
    "export: bare code as checkpoint",
    "export: another class as checkpoint",
    "evaluate: a module of here as checkpoint",
    "enroll: inflated zeros as checkpoint",
    "export: 10^9 speakers as checkpoint",
    "universal: a size of 10^9 as checkpoint",
    "fit: a shell as optimizer to resume",
    "validate: a shell as backbone to resume",
)


def cases() -> Iterator[Any]:
    """Those of the dangerous cases that are fast, and all of them."""
    for case in all_cases():
        if case.name in FAST or any(word in case.name for word in DANGERS):
            yield pytest.param(case, id=case.name, marks=[] if case.name in FAST else pytest.mark.slow)


def forked(work: Callable[[], object], log: Path) -> int:
    """The process of a child that works, in a group of its own, and what it says in a file."""
    if torch.cuda.is_initialized():
        pytest.skip("this process has used a GPU, and can't be forked")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            sys.stdout = sys.stderr = log.open("w", buffering=1)
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def ended(child: int) -> int | None:
    """The exit status of a child; None: it was killed, since it did not end."""
    for _ in range(TIMEOUT * 20):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@pytest.mark.parametrize("case", cases())
def test_alone_it_is_one_line_and_no_trace(case: Case, place: Place, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    child = forked(lambda: result.write_text(json.dumps(case.faults(place))), tmp_path / "log")
    assert ended(child) == 0, (tmp_path / "log").read_text()
    assert json.loads(result.read_text()) == []


LONG = "[{class_path: PGD, init_args: {steps: 1000000}}]"
STOPPED = {
    "evaluate": (EVALUATE, {"attacks": LONG}, "campaign.json"),
    "background": (BACKGROUND, {"gmm_iterations": 1_000_000}, "state/gmm.pt"),
    "background with workers": (
        BACKGROUND,
        {"gmm_iterations": 1_000_000, "num_workers": 1, "keep": "false"},
        "state/gmm.pt",
    ),
}
"""Commands that work long, and a file that shows that they do."""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("command", "flags", "sign"), STOPPED.values(), ids=STOPPED)
def test_a_signal_to_all_processes_is_its_status_and_one_line(
    command: Command,
    flags: dict[str, object],
    sign: str,
    sent: signal.Signals,
    place: Place,
    tmp_path: Path,
) -> None:
    for name in INPUTS:
        place.bring(name)

    def work() -> None:
        os.chdir(place.folder)
        os.environ["XDG_CACHE_HOME"] = str(place.root / "cache")
        try:
            command.main(command.arguments(**flags))
        except SystemExit as stop:
            os._exit(int(stop.code or 0))

    child = forked(work, tmp_path / "log")
    for _ in range(TIMEOUT * 20):
        if (place.folder / OUTPUT / sign).exists():
            break
        time.sleep(0.05)
    os.killpg(child, sent)
    assert ended(child) == 128 + sent
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert f"{command.prog}: interrupted; the same command" in said.splitlines()[-1]  # where a bar was, behind it
    assert not [*(place.folder / OUTPUT).rglob(".*partial")]
