"""Two processes and one do the same: training, uneven data, validation under attack. With gloo and Lightning."""

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from forked import Forked
from torch import Tensor

from sec4sr_pl.types import SAMPLE_RATE

TIMEOUT = 400
"""Seconds after which processes that wait for each other are given up; they need about 20."""


def voices(root: Path) -> None:
    """Five voices of harmonics in noise: 9 utterances each in `train`; in `odd` 26 in all, 21 to train on."""
    for speaker in range(5):
        for split, number in (("train", 9), ("odd", 6 if speaker == 0 else 5)):
            folder = root / split / f"speaker{speaker}"
            folder.mkdir(parents=True)
            for utterance in range(number):
                generator = np.random.default_rng([speaker, utterance, len(split)])
                time = np.arange(int(SAMPLE_RATE * generator.uniform(0.6, 1.0))) / SAMPLE_RATE
                pitch = (100 + 37 * speaker) * (1 + 0.05 * np.sin(2 * np.pi * 3 * time))
                phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
                voice = sum(np.sin(h * phase + h) / h ** (0.5 + 0.2 * speaker) for h in range(1, 16))
                wave = 0.05 * voice * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time))
                wave += 0.005 * generator.normal(size=len(time))
                soundfile.write(folder / f"s{speaker}u{utterance}.wav", wave, SAMPLE_RATE, subtype="PCM_16")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def start(rank: int, world: int, port: int, root: Path, output: Path, script: str = "ddp_script.py") -> Forked:
    """A process, as Lightning or SLURM would start it on one machine."""
    own = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PL_"))},
        **{name: str(value) for name, value in own.items()},
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    command = [str(Path(__file__).with_name(script)), str(root), str(output)]
    return Forked(command, output, environment, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process has to tell, and each of two."""
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no torch.distributed")
    root, output = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("output")
    voices(root)
    port = free_port()
    processes = [start(rank, world, port, root, output) for rank, world in ((0, 2), (1, 2), (0, 1))]
    try:
        for process in processes:
            text, _ = process.communicate(timeout=TIMEOUT)
            assert process.returncode == 0, text[-3_000:]
    finally:
        for process in processes:
            process.kill()
    names = {"alone": "0-of-1", "first": "0-of-2", "second": "1-of-2"}
    return {name: torch.load(output / f"{file}.pt", weights_only=True) for name, file in names.items()}


def distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().nan_to_num().max()) for name in first)


def weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state without the statistics of batch norms."""
    return {name: tensor for name, tensor in state.items() if "running" not in name and "tracked" not in name}


@pytest.mark.parametrize("case", ["frozen", "moving"])
def test_both_processes_end_with_the_same_weights(case: str, results: dict[str, dict[str, Any]]) -> None:
    first, second = results["first"][case], results["second"][case]
    assert first["steps"] == second["steps"] == 20
    assert distance(weights(first["end"]), weights(second["end"])) == 0.0


def test_two_processes_train_like_one_at_the_same_global_batch(results: dict[str, dict[str, Any]]) -> None:
    """Crops, order, adversarial rows and random starts are the same; only sums have another order.

    In double precision: in single precision the order decides the signs of some of PGD's steps.
    """
    alone, shared = results["alone"]["frozen"], results["first"]["frozen"]
    assert alone["steps"] == 20
    assert distance(alone["start"], shared["start"]) == 0.0
    assert distance(alone["end"], alone["start"]) > 1e-2
    assert distance(alone["end"], shared["end"]) < 1e-5


def test_an_uneven_number_of_utterances_does_not_hang(results: dict[str, dict[str, Any]]) -> None:
    assert results["alone"]["moving"]["sizes"][:6] == [8, 8, 5, 8, 8, 5]
    for rank in ("first", "second"):  # 22 crops, one of them twice
        assert results[rank]["moving"]["sizes"][:6] == [4, 4, 3, 4, 4, 3]


def test_an_uneven_development_set_does_not_hang(results: dict[str, dict[str, Any]]) -> None:
    counts = [len(results[rank]["moving"]["validated"]) for rank in ("first", "second")]
    assert counts[0] > counts[1] > 0  # 3 of 5 utterances and 2 of 5, at each validation


def test_both_processes_validate_what_the_first_would_save(results: dict[str, dict[str, Any]]) -> None:
    """Also the statistics of batch norms, which each process gathers from its own utterances."""
    first, second = (results[rank]["moving"]["validated"] for rank in ("first", "second"))
    assert distance(first[-1], second[-1]) == 0.0
    assert distance(first[0], first[-1]) > 0.0


def test_both_processes_log_the_same_validation(results: dict[str, dict[str, Any]]) -> None:
    first, second = (results[rank]["moving"]["logged"] for rank in ("first", "second"))
    validation = {name for name in first if name.startswith(("robust/", "development/"))}
    assert {"development/accuracy", "robust/r1", "robust/snr", "robust/adversarial_accuracy"} <= validation
    for name in validation:
        assert first[name] == pytest.approx(second[name], nan_ok=True, abs=0)


def test_validation_under_attack_tells_the_same_for_one_process_and_two(results: dict[str, dict[str, Any]]) -> None:
    alone, *others = (results[name]["validated"] for name in ("alone", "first", "second"))
    assert 0.0 < alone["robust/attack_success"] < 1.0
    assert alone["robust/pesq"] > 1.0
    for other in others:
        assert other == pytest.approx(alone, rel=1e-5)
