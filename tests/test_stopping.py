"""A training that is told to stop by a signal, or that loses one of its processes, says so in one line and a status."""

import contextlib
import multiprocessing
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import resource_sharer
from pathlib import Path

import pytest
import torch
from forked import Forked
from test_resume import REPOSITORY, TIMEOUT, Die, final, fit, forked, train_on
from test_resume import config as config  # fixtures
from test_resume import somewhere_else as somewhere_else
from test_resume import uninterrupted as uninterrupted

from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.data.loader import begin_work
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet

WORKERS = "--data.num_workers=2"


class DieTogether(Die):
    """Sends the signal to the whole process group, loader workers included, as a batch system may."""

    def now(self, moment: str) -> None:
        self.left -= moment == self.moment
        if self.left == 0 and moment == self.moment:
            command = ["kill", "-s", str(int(self.sent)), "--", f"-{os.getpgrp()}"]
            subprocess.run(command, start_new_session=True, check=True)


def in_a_group(work: Callable[[], object], log: Path) -> int:
    """The exit code of a child that leads a process group of its own; negative: the signal that ended it."""

    def lead() -> None:
        os.setpgid(0, 0)
        work()

    return os.waitstatus_to_exitcode(forked(lead, log))


@pytest.mark.parametrize(
    ("moment", "sent", "status"),
    [
        ("a step begins", signal.SIGTERM, 143),
        pytest.param("validation", signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param("a step ended", signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_group_with_workers_ends_the_step_and_stops(
    moment: str,
    sent: signal.Signals,
    status: int,
    config: Path,
    tmp_path: Path,
    uninterrupted: tuple[dict[str, torch.Tensor], float],
) -> None:
    work = lambda: fit(config, tmp_path, WORKERS, die=DieTogether(moment, 3, sent))  # noqa: E731
    assert in_a_group(work, tmp_path / "log") == status, (tmp_path / "log").read_text()[-3_000:]
    shown = (tmp_path / "log").read_text()
    assert f"stopped by {sent.name} after step " in shown
    assert f"resume with --ckpt_path {tmp_path / 'last.ckpt'}" in shown
    assert "Traceback" not in shown
    assert forked(lambda: train_on(config, tmp_path, None, WORKERS), tmp_path / "log") == 0
    ended = final(tmp_path)
    assert all(torch.equal(tensor, ended[name]) for name, tensor in uninterrupted[0].items())


def test_a_loader_that_is_gone_is_no_fault_of_its_worker(tmp_path: Path) -> None:
    def worker() -> None:
        sys.stderr = (tmp_path / "log").open("w", buffering=1)
        begin_work(0)
        address = resource_sharer.DupFd(os.pipe()[1])._id[0]  # type: ignore[attr-defined]
        with socket.socket(socket.AF_UNIX) as loader:
            loader.connect(address)
        resource_sharer.stop(timeout=10)  # once it has answered

    process = multiprocessing.get_context("fork").Process(target=worker)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == ""


def test_a_worker_that_begins_after_its_loader_was_killed_ends() -> None:
    alive, held = os.pipe()  # held by the worker alone, once the others are gone

    def worker() -> None:
        loader = multiprocessing.parent_process()
        while loader and os.getppid() == loader.pid:
            time.sleep(0.01)
        begin_work(0)
        time.sleep(90)

    def start() -> None:
        context.Process(target=worker).start()
        os._exit(0)

    context = multiprocessing.get_context("fork")
    killed = context.Process(target=start)
    killed.start()
    os.close(held)
    killed.join()
    assert select.select([alive], [], [], 60)[0]
    assert os.read(alive, 1) == b""


def test_sigterm_is_not_forgotten_over_a_later_interruption(config: Path, tmp_path: Path) -> None:
    class DieTwice(Die):
        def now(self, moment: str) -> None:
            super().now(moment)
            if self.left == 0 and moment == self.moment:
                os.kill(os.getpid(), signal.SIGINT)

    work = lambda: fit(config, tmp_path, die=DieTwice("a step begins", 2, signal.SIGTERM))  # noqa: E731
    assert os.waitstatus_to_exitcode(forked(work, tmp_path / "log")) == 143
    assert "stopped by SIGTERM after step 2" in (tmp_path / "log").read_text()


def test_workers_do_not_outlive_a_training_that_is_killed(config: Path, tmp_path: Path) -> None:
    work = lambda: fit(config, tmp_path, WORKERS, die=Die("a step begins", 3))  # noqa: E731
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        forked(work, tmp_path / "log")
        os._exit(0)
    os.waitpid(child, 0)
    begin = time.monotonic()
    while True:
        try:
            os.killpg(child, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() - begin < 60
        time.sleep(0.2)


ABANDONED = """
from sec4sr_pl.data import SpeakerData
from sys import argv

def main():
    batches = iter(SpeakerData(argv[1], batch_size=2, crop_seconds=0.1).train_dataloader())
    assert len(next(batches).names) == 2
    if argv[2] == "raised":
        raise SystemExit(3)
    return batches

kept = main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "status"), [("left", 0), ("raised", 3)])
def test_a_script_ends_while_its_workers_have_more_to_read(
    how: str, status: int, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    process = started("-c", ABANDONED, str(config.parent), how)
    shown = once_it_works(process, tmp_path, lambda: None, "sec4sr_pl")
    assert process.returncode == status, shown
    assert not shown


def two(config: Path, folder: Path, *flags: str) -> "subprocess.Popen[str]":
    """A training of two processes by Lightning's launcher, in a group of its own."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    arguments = [f"--config={config}", f"--data.root={config.parent}", f"--trainer.callbacks.dirpath={folder}"]
    shared = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2", "--ckpt_path=last", WORKERS]
    return started(str(REPOSITORY / "train.py"), "fit", *arguments, *shared, *flags)


def started(*command: str) -> "subprocess.Popen[str]":
    """A Python of its own, which leads a process group."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PL_"))}
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *command],
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def children(process: int) -> list[int]:
    """Its processes that are trainings themselves."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in listed if "train.py" in Path(f"/proc/{child}/cmdline").read_text()]


def once_it_works(
    process: "subprocess.Popen[str] | Forked", folder: Path, act: Callable[[], object], first: str = "last.ckpt"
) -> str:
    """The output of processes to which something happened after their first file."""
    try:
        begin = time.monotonic()
        while not any(folder.glob(first)) and process.poll() is None:
            assert time.monotonic() - begin < TIMEOUT
            time.sleep(0.1)
        act()
        shown, _ = process.communicate(timeout=TIMEOUT)  # ends when all have closed their output
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return shown


@pytest.fixture
def endless(config: Path, tmp_path: Path) -> "subprocess.Popen[str]":
    return two(config, tmp_path, "--trainer.max_epochs=10000")


@pytest.mark.slow
def test_sigterm_to_the_group_of_two_processes_and_their_workers(
    endless: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    shown = once_it_works(endless, tmp_path, lambda: os.killpg(endless.pid, signal.SIGTERM))
    assert endless.returncode == 143, shown[-3_000:]
    assert shown.count("stopped by SIGTERM after step") == 1
    assert "Traceback" not in shown
    load_recognizer(tmp_path / "last.ckpt")


@pytest.mark.slow
def test_an_interruption_of_one_process_is_that_of_all(endless: "subprocess.Popen[str]", tmp_path: Path) -> None:
    interrupt = lambda: os.kill(children(endless.pid)[0], signal.SIGINT)  # noqa: E731
    shown = once_it_works(endless, tmp_path, interrupt)
    assert endless.returncode == 130, shown[-3_000:]
    assert shown.count("stopped by SIGINT after step") == 1


def brought(name: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Write a module that commands find; the flags with which they trust it."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return [f"--trusted={name}"]


SLOW_LOGGER = """
import time
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.loggers import CSVLogger

class Slow(CSVLogger):
    @rank_zero_only
    def finalize(self, status):
        time.sleep(12)
"""


@pytest.mark.slow
def test_a_logger_may_take_its_time_after_the_other_processes_have_stopped(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--trainer.max_epochs=10000", *brought("slow_logger", SLOW_LOGGER, tmp_path, monkeypatch)]
    logger = f"{{class_path: slow_logger.Slow, init_args: {{save_dir: {tmp_path}}}}}"
    process = two(config, tmp_path, *flags, f"--trainer.logger={logger}")
    shown = once_it_works(process, tmp_path, process.terminate)
    assert process.returncode == 143, shown[-3_000:]
    assert shown.count("stopped by SIGTERM after step") == 1


PATIENT = """
from functools import partialmethod
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from pytorch_lightning import Callback

_ChildProcessObserver.__init__ = partialmethod(_ChildProcessObserver.__init__, sleep_period=3600)

class Patient(Callback):
    pass
"""


@pytest.mark.slow
def test_a_dead_process_is_named(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By this process, where Lightning's observer, which kills it without a word, is not faster."""
    flags = ["--trainer.max_epochs=10000", *brought("patient", PATIENT, tmp_path, monkeypatch)]
    process = two(config, tmp_path, *flags, "--trainer.callbacks+=patient.Patient")
    shown = once_it_works(process, tmp_path, lambda: os.kill(children(process.pid)[0], signal.SIGKILL))
    assert process.returncode == 1, shown[-3_000:]
    assert "Traceback" not in shown
    assert "train.py: error: Process 0 can't go on: process 1 was killed by SIGKILL\n" in shown


@pytest.mark.slow
def test_a_process_whose_first_one_died_says_so(endless: "subprocess.Popen[str]", tmp_path: Path) -> None:
    shown = once_it_works(endless, tmp_path, endless.kill)
    assert "Traceback" not in shown
    assert shown.count("train.py: error: Process 1 can't go on: another process died") == 1


@pytest.mark.slow
def test_torchrun_that_is_told_to_stop_says_143(config: Path, tmp_path: Path) -> None:
    """The signal to the agent alone, which tells its two processes."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    flags = [f"--config={config}", f"--data.root={config.parent}", f"--trainer.callbacks.dirpath={tmp_path}", WORKERS]
    shared = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2", "--trainer.max_epochs=10000"]
    launcher = ["-m", "sec4sr_pl.torchrun", "--nproc-per-node=2", "--standalone", "--shutdown-timeout=120"]
    process = started(*launcher, str(REPOSITORY / "train.py"), "fit", *flags, *shared)
    shown = once_it_works(process, tmp_path, process.terminate)
    assert process.returncode == 143, shown[-3_000:]
    assert shown.count("stopped by SIGTERM after step") == 1
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] > 0


CAMPAIGN = "[FGSM, {class_path: PGD, init_args: {steps: 100000}}]"


@pytest.mark.parametrize(
    ("devices", "sent", "status"),
    [
        (1, signal.SIGTERM, 143),
        pytest.param(1, signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(2, signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_campaign_that_is_told_to_stop_ends_all_its_processes_and_says_how_to_go_on(
    devices: int, sent: signal.Signals, status: int, config: Path, tmp_path: Path
) -> None:
    recognizer = Recognizer(LogMel(), AudioNet(), ClosedSet(32, [f"speaker{n}" for n in range(3)]))
    save_recognizer(recognizer.eval(), tmp_path / "small.ckpt")
    data = ["--data=SpeakerData", f"--data.root={config.parent}", "--data.test_split=train", "--batch_size=2"]
    flags = [f"--checkpoint={tmp_path / 'small.ckpt'}", f"--attacks={CAMPAIGN}", f"--output={tmp_path / 'out'}"]
    shared = [f"--devices={devices}", "--accelerator=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = Forked(["evaluate.py", *flags, *data, *shared], REPOSITORY, environment, stderr=subprocess.STDOUT)
    done = tmp_path / "out"
    shown = once_it_works(process, done, lambda: os.kill(process.pid, sent), "**/*.wav")
    assert process.returncode == status, shown[-3_000:]
    assert "Traceback" not in shown
    assert shown.count("evaluate.py: interrupted; the same command goes on with what is there") == 1
