"""A training that is killed, told to stop, or runs out of disk goes on as if nothing had been."""

import io
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer

from sec4sr_pl import cli
from sec4sr_pl.checkpoint import load_recognizer
from sec4sr_pl.types import SAMPLE_RATE

REPOSITORY = Path(__file__).parents[1]
CHECKPOINTS = REPOSITORY / "checkpoints"
TIMEOUT = 300
"""Seconds after which processes are given up; they need about 20."""

CONFIG = """
trainer:
  max_epochs: 6
  accelerator: cpu
  logger: false
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  check_val_every_n_epoch: 2
  callbacks:
    - class_path: EpsilonSchedule
    - class_path: RobustValidation
      init_args: {attack: {class_path: FGSM}, pesq: 0.0}
    - class_path: pytorch_lightning.callbacks.EMAWeightAveraging
      init_args: {decay: 0.9}
    - class_path: LastCheckpoint
      init_args: {every_n_train_steps: 3}
model:
  recognizer:
    class_path: sec4sr_pl.recognizer.Recognizer
    init_args:
      features: {class_path: LogMel}
      backbone: {class_path: AudioNet}
      scorer: {class_path: ClosedSet, init_args: {embedding_size: 32}}
      defenses: [{class_path: FeCo, init_args: {ratio: 0.5}}]
  objective:
    class_path: AdversarialTraining
    init_args:
      attack: {class_path: PGD, init_args: {steps: 1, restarts: 1}}
  optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.005}}
  scheduler: {class_path: OneCycle, init_args: {max_lr: 0.005}}
data:
  class_path: SpeakerData
  init_args: {batch_size: 5, crop_seconds: 0.4, num_workers: 0, crops_per_utterance: 2}
"""
STEPS = 24

MOMENTS = {
    "a step begins": 24,
    "a step ended": 24,
    "a checkpoint is half written": 10,
    "a checkpoint is not yet renamed": 10,
    "validation": 4,
}
"""Where a kill is placed, and how often a training comes there."""


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of 24 steps in 6 epochs, beside its data: three speakers of four utterances."""
    folder = tmp_path_factory.mktemp("training")
    generator = torch.Generator().manual_seed(0)
    for speaker in range(3):
        for utterance in range(4):
            moments = torch.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
            voice = sum(torch.sin(2 * math.pi * 110 * (speaker + 1) * h * moments) / h for h in range(1, 8))
            wave = 0.1 * voice + 0.01 * torch.randn(len(moments), generator=generator)
            path = folder / "train" / f"speaker{speaker}" / f"s{speaker}u{utterance}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave.numpy(), SAMPLE_RATE, subtype="PCM_16")
    (folder / "train.yaml").write_text(CONFIG)
    return folder / "train.yaml"


class Die(Callback):
    """Sends this process a signal when it comes to a moment for the n-th time."""

    def __init__(self, moment: str, number: int, sent: int = signal.SIGKILL) -> None:
        self.moment, self.left, self.sent = moment, number, sent
        fsync = os.fsync

        def half(descriptor: int) -> None:
            if ".ckpt" not in os.readlink(f"/proc/self/fd/{descriptor}"):
                return fsync(descriptor)
            size = os.fstat(descriptor).st_size
            if self.moment == "a checkpoint is half written" and self.left == 1:
                os.truncate(descriptor, size // 2)
            self.now("a checkpoint is half written")
            fsync(descriptor)
            self.now("a checkpoint is not yet renamed")

        os.fsync = half  # this process is a child that ends with the training

    def now(self, moment: str) -> None:
        self.left -= moment == self.moment
        if self.left == 0 and moment == self.moment:
            os.kill(os.getpid(), self.sent)

    def on_train_batch_start(self, *_: Any) -> None:
        self.now("a step begins")

    def on_train_batch_end(self, *_: Any) -> None:
        self.now("a step ended")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.now("validation")


def forked(work: Callable[[], None], log: Path, kill_after: float | None = None) -> int:
    """What `os.waitpid` tells of a child that does the work; killed after some seconds unless it is through."""
    if torch.cuda.is_initialized():
        pytest.skip("this process has used a GPU, and can't be forked")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.stdout = sys.stderr = log.open("a", buffering=1)
            work()
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def fit(config: Path, folder: Path, *flags: str, die: Die | None = None) -> cli.SpeakerCLI:
    """Train by the command line with checkpoints in a folder."""

    arguments = [f"--data.root={config.parent}", f"--trainer.callbacks.dirpath={folder}", *flags]
    return train_with(die, f"--config={config}", f"--trainer.default_root_dir={config.parent}", *arguments)


def train_with(die: Die | None, *arguments: str) -> cli.SpeakerCLI:
    """The command line, with one more callback."""

    class Dying(cli.SpeakerCLI):
        def before_instantiate_classes(self) -> None:
            super().before_instantiate_classes()
            self.trainer_defaults["callbacks"] += [die] if die else []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "SpeakerCLI", Dying)
        return cli.train(["fit", *arguments])


def final(folder: Path) -> dict[str, torch.Tensor]:
    """Every number of the last checkpoint: weights, their average, moments of the optimizer."""
    numbers: dict[str, torch.Tensor] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            numbers[name] = value
        elif isinstance(value, dict | list):
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                collect(f"{name}.{key}", item)

    content = torch.load(folder / "last.ckpt", weights_only=True)
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        collect(part, content[part])
    return numbers


@pytest.fixture(scope="module")
def uninterrupted(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], float]:
    """The end of a training that nothing happened to, and how long it took in seconds."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    begin = time.perf_counter()
    assert forked(lambda: train_on(config, folder), folder / "log") == 0, (folder / "log").read_text()[-3_000:]
    return final(folder), time.perf_counter() - begin


def train_on(config: Path, folder: Path, die: tuple[str, int] | None = None, *flags: str) -> None:
    """Start a training, or go on with it; its last step is in the last checkpoint."""
    trained = fit(config, folder, "--ckpt_path=last", *flags, die=Die(*die) if die else None)
    trained.trainer.save_checkpoint(folder / "last.ckpt")


def check_kill(
    seed: int, config: Path, folder: Path, uninterrupted: tuple[dict[str, torch.Tensor], float], kills: int
) -> None:
    """Kill a training at random moments, go on each time, and compare its end."""
    draw = random.Random(seed)
    expected, seconds = uninterrupted
    for _ in range(kills):
        if draw.random() < 0.5:
            moment = draw.choice(list(MOMENTS))
            place = (moment, draw.randint(1, MOMENTS[moment]))
            status = forked(lambda: train_on(config, folder, place), folder / "log")  # noqa: B023
        else:
            status = forked(lambda: train_on(config, folder), folder / "log", draw.uniform(0.2, 1.0) * seconds)
        assert status in (0, signal.SIGKILL), (folder / "log").read_text()[-3_000:]
        if (folder / "last.ckpt").exists():
            load_recognizer(folder / "last.ckpt")
    assert forked(lambda: train_on(config, folder), folder / "log") == 0, (folder / "log").read_text()[-3_000:]
    ended = final(folder)
    assert ended.keys() == expected.keys()
    different = [name for name, tensor in expected.items() if not torch.equal(tensor, ended[name])]
    assert not different
    assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {"last.ckpt", "log"}


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(("a step ended", 14), marks=pytest.mark.slow),
        ("a checkpoint is half written", 3),
        pytest.param(("a step begins", 9), marks=pytest.mark.slow),  # after a validation
    ],
    ids=lambda p: p[0],
)
def test_a_killed_training_ends_with_the_same_weights(
    place: tuple[str, int], config: Path, tmp_path: Path, uninterrupted: tuple[dict[str, torch.Tensor], float]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    assert forked(lambda: train_on(config, folder, place), tmp_path / "log") == signal.SIGKILL
    assert not list(config.parent.glob("config*.yaml"))  # nothing is logged
    left = {path.name for path in folder.iterdir()} - {"last.ckpt"}
    assert len(left) == ("half" in place[0]) and all(name.startswith(".last.ckpt.") for name in left)
    assert 0 < torch.load(folder / "last.ckpt", weights_only=True)["global_step"] < STEPS
    check_kill(0, config, folder, uninterrupted, kills=0)


def test_a_kill_after_a_resume_from_the_last_step_of_an_epoch_repeats_no_epoch(
    config: Path, tmp_path: Path, uninterrupted: tuple[dict[str, torch.Tensor], float]
) -> None:
    """Step 12 is the last of an epoch without a validation, step 16 that of one with it."""
    folder = tmp_path / "run"
    folder.mkdir()
    for step, place in ((12, ("a step begins", 13)), (16, ("a step begins", 5))):
        assert forked(lambda: train_on(config, folder, place), folder / "log") == signal.SIGKILL  # noqa: B023
        assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == step
    check_kill(0, config, folder, uninterrupted, kills=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_training_killed_anywhere_ends_with_the_same_weights(
    seed: int, config: Path, tmp_path: Path, uninterrupted: tuple[dict[str, torch.Tensor], float]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    check_kill(seed, config, folder, uninterrupted, kills=1 + seed % 3)


def test_a_loader_that_reads_ahead_goes_on_where_it_was(
    config: Path, tmp_path: Path, uninterrupted: tuple[dict[str, torch.Tensor], float]
) -> None:
    """With a worker, which has more batches than the training took."""
    place = ("a step ended", 7)
    status = forked(lambda: train_on(config, tmp_path, place, "--data.num_workers=1"), tmp_path / "log")
    assert status == signal.SIGKILL
    assert forked(lambda: train_on(config, tmp_path, None, "--data.num_workers=1"), tmp_path / "log") == 0
    ended = final(tmp_path)
    assert all(torch.equal(tensor, ended[name]) for name, tensor in uninterrupted[0].items())


def test_the_shipped_configurations_keep_the_last_checkpoint_at_each_validation(config: Path, tmp_path: Path) -> None:
    """Their callbacks, on other data: killed in the step after the first validation."""
    shipped = yaml.safe_load((REPOSITORY / "configs" / "train" / "mini_adversarial.yaml").read_text())
    kept = [c for c in shipped["trainer"]["callbacks"] if c["class_path"].endswith("Checkpoint")]
    for callback in kept:
        callback["init_args"] |= {"dirpath": str(tmp_path / "run")}
    own = yaml.safe_load(CONFIG)
    own["trainer"]["callbacks"] = [c for c in own["trainer"]["callbacks"] if "Checkpoint" not in c["class_path"]] + kept
    own["data"]["init_args"]["root"] = str(config.parent)
    (tmp_path / "shipped.yaml").write_text(yaml.safe_dump(own))

    def killed() -> None:
        train_with(Die("a step begins", 10), f"--config={tmp_path / 'shipped.yaml'}")

    assert forked(killed, tmp_path / "log") == signal.SIGKILL, (tmp_path / "log").read_text()[-3_000:]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 8


# SIGTERM


@pytest.mark.parametrize(
    ("moment", "number", "step"),
    [
        pytest.param("a step begins", 7, 7, marks=pytest.mark.slow),
        ("a step begins", 8, 9),
        pytest.param("validation", 2, 9, marks=pytest.mark.slow),  # the first is the sanity check
    ],
    ids=["in a step", "in the last step before a validation", "in a validation"],
)
def test_sigterm_ends_the_step_writes_a_checkpoint_and_stops(
    moment: str,
    number: int,
    step: int,
    config: Path,
    tmp_path: Path,
    uninterrupted: tuple[dict[str, torch.Tensor], float],
) -> None:
    def stopped() -> None:
        fit(config, tmp_path, die=Die(moment, number, signal.SIGTERM))

    assert os.waitstatus_to_exitcode(forked(stopped, tmp_path / "log")) == 143
    shown = (tmp_path / "log").read_text()
    assert f"stopped by SIGTERM after step {step}: resume with --ckpt_path {tmp_path / 'last.ckpt'}" in shown
    assert "Traceback" not in shown
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == step
    assert forked(lambda: train_on(config, tmp_path), tmp_path / "log") == 0
    ended = final(tmp_path)
    assert all(torch.equal(tensor, ended[name]) for name, tensor in uninterrupted[0].items())


def two_processes(config: Path, folder: Path, *flags: str, stop: bool) -> tuple[int, str]:
    """Status and output of a training by Lightning's own launcher; stopped, or not, after its first checkpoint."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.batch_size=2", "--ckpt_path=last"]
    own = [f"--config={config}", f"--data.root={config.parent}", f"--trainer.callbacks.dirpath={folder}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PL_"))}
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", str(REPOSITORY / "train.py"), "fit", *own, *two, *flags],
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            begin = time.monotonic()
            while stop and not (folder / "last.ckpt").exists() and process.poll() is None:
                assert time.monotonic() - begin < TIMEOUT
                time.sleep(0.1)
            if stop:
                process.send_signal(signal.SIGTERM)
            shown, _ = process.communicate(timeout=TIMEOUT)  # ends when both have closed their output
        finally:
            process.kill()
    return process.returncode, shown


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_stops_both(config: Path, tmp_path: Path) -> None:
    status, shown = two_processes(config, tmp_path, "--trainer.max_epochs=10000", stop=True)
    assert status == 143, shown[-3_000:]
    assert shown.count("stopped by SIGTERM after step") == 1
    assert "Traceback" not in shown
    step = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert f"after step {step}:" in shown
    load_recognizer(tmp_path / "last.ckpt")


@pytest.mark.slow
def test_two_processes_go_on_as_if_nothing_had_been(config: Path, tmp_path: Path) -> None:
    for folder, stops in (("whole", [False]), ("stopped", [True, False])):
        for stop in stops:
            status, shown = two_processes(config, tmp_path / folder, stop=stop)
            assert status == (143 if stop else 0), shown[-3_000:]
    whole, stopped = (final(tmp_path / folder) for folder in ("whole", "stopped"))
    assert all(torch.equal(tensor, stopped[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(("status", "requeued"), [(143, True), (1, False), (0, False)])
def test_a_job_whose_time_is_up_waits_for_another_turn(status: int, requeued: bool, tmp_path: Path) -> None:
    """The job script itself, where `srun` ends with a status and `scontrol` writes down what it is asked."""
    shutil.copytree(REPOSITORY / "configs" / "cluster", tmp_path / "configs" / "cluster")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    for name, text in (("srun", f'echo "$@" > ran; exit {status}'), ("scontrol", 'echo "$@" > asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SEC4SR_DATA": "data", "SLURM_JOB_ID": "251"}
    job = subprocess.run(["bash", "configs/cluster/slurm.sbatch"], cwd=tmp_path, env=environment, check=False)
    assert job.returncode == status
    assert "--ckpt_path last" in (tmp_path / "ran").read_text()
    assert (tmp_path / "asked").exists() is requeued
    assert not requeued or (tmp_path / "asked").read_text() == "requeue 251\n"


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 5 MB: it has room for one checkpoint and not for two."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=5m", "tmpfs", folder]).returncode != 0:
        pytest.skip("this user can't mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def error_of(config: Path, folder: Path, *flags: str) -> str:
    """What a training that fails for its user says, in one line."""
    with pytest.raises(SystemExit) as stop, redirect_stderr(io.StringIO()) as shown:
        fit(config, folder, *flags)
    assert stop.value.code == 1
    (line,) = [line for line in shown.getvalue().splitlines() if line.startswith("train.py: ")]
    return line


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--trainer.strategy=ddp_spawn", "Expected the strategy auto or ddp, got one of ddp_spawn"),
        ("--trainer.callbacks+={class_path: ModelCheckpoint, init_args: {save_last: link}}", "Expected save_last true"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_at_the_start(flag: str, said: str, config: Path, tmp_path: Path) -> None:
    assert error_of(config, tmp_path, flag).startswith(f"train.py: error: {said}")


def test_a_full_disk_is_one_error_and_leaves_the_last_checkpoint_whole(config: Path, small_disk: Path) -> None:
    text = error_of(config, small_disk)
    assert text.startswith(f"train.py: error: The checkpoint {small_disk / 'last.ckpt'} can't be written (No space")
    assert [path.name for path in small_disk.iterdir()] == ["last.ckpt"]
    load_recognizer(small_disk / "last.ckpt")
    assert torch.load(small_disk / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_folder_that_only_reads_is_one_error_before_training(config: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for folder in (small_disk, small_disk / "run"):
        text = error_of(config, folder)
        assert text.startswith(f"train.py: error: Checkpoints can't be kept in {folder} (")


def test_a_folder_below_a_file_is_one_error_before_training(config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    text = error_of(config, tmp_path / "file" / "run")
    assert f"can't be kept in {tmp_path / 'file' / 'run'} (Not a directory)" in text


def test_a_checkpoint_that_is_not_there_or_none_is_one_error(config: Path, tmp_path: Path) -> None:
    assert "missing.ckpt" in error_of(config, tmp_path, "--ckpt_path=missing.ckpt")
    (tmp_path / "web.ckpt").write_text("<html>")
    (tmp_path / "cut.ckpt").write_bytes((CHECKPOINTS / "audionet_mini_natural.ckpt").read_bytes()[:100_000])
    for name in ("web.ckpt", "cut.ckpt"):
        text = error_of(config, tmp_path, f"--ckpt_path={tmp_path / name}")
        assert text.startswith(f"train.py: error: {tmp_path / name} ") and "damaged" in text
