"""Trainings with loader workers and campaigns, killed or told to stop at 200 random points, end as if nothing was."""

import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from test_resume import config as config  # fixtures
from test_resume import final, train_on

from sec4sr_pl import evaluation
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.checkpoint import save_recognizer
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet

pytestmark = pytest.mark.slow

POINTS = 10
"""Kills of a test; there are ten tests of each kind."""
THROUGH = os.WEXITED | os.WNOHANG | os.WNOWAIT
"""Asks whether a process is through, and leaves it to be waited for."""


class Work(NamedTuple):
    """Something that is begun, killed, begun again, and has an end."""

    begin: Callable[[Path], object]
    """Begin in a folder, or go on."""
    ended: Callable[[Path], object]
    """What is in the folder at the end."""
    expected: object
    seconds: float
    """It takes without an interruption."""


def begun(work: Work, folder: Path) -> int:
    """A child that leads a process group of its own, as a batch system's task does."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        status = 1
        try:
            log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)  # pytest's own would lose what is not flushed
            work.begin(folder)
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    with suppress(PermissionError):  # it was faster
        os.setpgid(child, child)
    return child


def status_of(child: int, sent: int | None = None, after: float = 0.0) -> int:
    """How a child ended, as a shell tells it, to whose whole group a signal was sent after some seconds."""
    if sent is not None:
        begin = time.monotonic()
        while time.monotonic() < begin + after and os.waitid(os.P_PID, child, THROUGH) is None:
            time.sleep(0.01)
        os.killpg(child, sent)  # a child that is through still has its group: nobody waited for it
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return 128 - code if code < 0 else code


def killed_anywhere(work: Work, folder: Path, seed: int) -> Counter[tuple[str, int]]:
    """Kill some work again and again, go on each time, and compare each end that it comes to."""
    draw, statuses = random.Random(seed), Counter[tuple[str, int]]()
    runs, seconds = 0, work.seconds
    while True:
        place = folder / f"{runs}"
        place.mkdir(exist_ok=True)
        sent = draw.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGKILL])
        enough = sum(statuses.values()) == POINTS
        status = status_of(begun(work, place), None if enough else sent, draw.uniform(0.0, seconds))
        shown = place.with_suffix(".log").read_text()
        assert "Traceback" not in shown, shown[-3_000:]
        if status != 0:
            assert not enough and status == 128 + sent, f"{status} after {sent.name}: {shown[-3_000:]}"
            statuses[sent.name, status] += 1
            continue
        assert work.ended(place) == work.expected
        runs += 1  # it was through before the signal came
        seconds *= 0.8  # so others come sooner
        if enough:
            return statuses


def timed(begin: Callable[[Path], object], ended: Callable[[Path], object], folder: Path) -> Work:
    """Work that went undisturbed once."""
    begun_at = time.perf_counter()
    place = folder / "undisturbed"
    place.mkdir()
    status = status_of(begun(Work(begin, ended, None, 0.0), place))
    assert status == 0, place.with_suffix(".log").read_text()[-3_000:]
    return Work(begin, ended, ended(place), time.perf_counter() - begun_at)


@pytest.fixture(scope="module")
def training(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Of 24 steps with adversary, validation under attack, weight averaging and two loader workers."""

    def begin(folder: Path) -> None:
        train_on(config, folder, None, "--data.num_workers=2")

    def ended(folder: Path) -> dict[str, bytes]:
        return {name: tensor.numpy().tobytes() for name, tensor in final(folder).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        return timed(begin, ended, tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def campaign(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Of three attacks on six units of two utterances."""
    folder = tmp_path_factory.mktemp("campaign")
    torch.manual_seed(0)
    speakers = [f"speaker{number}" for number in range(3)]
    save_recognizer(Recognizer(LogMel(), AudioNet(), ClosedSet(32, speakers)).eval(), folder / "small.ckpt")
    attacks = "[FGSM, {class_path: PGD, init_args: {steps: 3}}, {class_path: CWinf, init_args: {steps: 2}}]"

    def begin(output: Path) -> None:
        data = ["--data=SpeakerData", f"--data.root={config.parent}", "--data.test_split=train"]
        few = ["--batch_size=2", "--perceptual=false", f"--attacks={attacks}"]
        evaluation.main([f"--checkpoint={folder / 'small.ckpt'}", *data, *few, f"--output={output}"])

    def ended(output: Path) -> dict[str, bytes]:
        files = [path for path in sorted(output.rglob("*")) if path.is_file() and path.suffix != ".png"]
        kept = [path for path in files if not path.name.endswith(".partial")]  # half a file, for an hour
        return {str(path.relative_to(output)): path.read_bytes() for path in kept}

    return timed(begin, ended, folder)


@pytest.fixture
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


@pytest.mark.usefixtures("somewhere_else")
@pytest.mark.parametrize("seed", range(10))
def test_a_training_killed_anywhere_ends_with_the_same_weights(seed: int, training: Work, tmp_path: Path) -> None:
    print(killed_anywhere(training, tmp_path, seed))  # noqa: T201  shown by -s


@pytest.mark.usefixtures("somewhere_else")
@pytest.mark.parametrize("seed", range(10))
def test_a_campaign_killed_anywhere_ends_with_the_same_files(seed: int, campaign: Work, tmp_path: Path) -> None:
    print(killed_anywhere(campaign, tmp_path, seed))  # noqa: T201  shown by -s
