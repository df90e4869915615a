"""Checkpoints that would run code, hang or take far more memory than their size are refused from what they say."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked

from sec4sr_pl.checkpoint import CheckpointError, WholeCheckpoints, load_recognizer
from sec4sr_pl.imports import LISTED
from sec4sr_pl.weights import read_plain

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "audionet_mini_natural.ckpt"
MEMORY = 150
"""Megabytes that reading one of these may take."""


def content() -> dict[str, Any]:
    found: dict[str, Any] = torch.load(SHIPPED, weights_only=True)
    return found


def described(path: Path, scorer: Any = None, **init_args: Any) -> None:
    """The shipped recognizer with another description."""
    found = content()
    found["recognizer"]["init_args"] |= init_args
    if scorer is not None:
        found["recognizer"]["init_args"]["scorer"]["init_args"] = scorer
    torch.save(found, path)


def repacked(path: Path, change: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """The shipped file with another pickle."""
    with zipfile.ZipFile(SHIPPED) as source, zipfile.ZipFile(path, "w", compression) as target:
        for entry in source.infolist():
            data = source.read(entry)
            target.writestr(entry.filename, change(data) if entry.filename.endswith("data.pkl") else data)


def zip_bomb(path: Path) -> None:
    """0.5 GB of zeros in 3 MB."""
    with (
        zipfile.ZipFile(SHIPPED) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
    ):
        for entry in source.infolist():
            if entry.filename.endswith("data/0"):
                with target.open(entry.filename, "w", force_zip64=True) as file:
                    for _ in range(16):
                        file.write(bytes(2**25))
            else:
                target.writestr(entry.filename, source.read(entry))


def overlapping(path: Path) -> None:
    """A hundred entries of the directory at the place of one."""
    big = bytes(2**20)
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("a/data.pkl", pickle.dumps({}, 2))
        target.writestr("a/data/0", big)
        for number in range(1, 100):
            twin = zipfile.ZipInfo(f"a/data/{number}")
            twin.header_offset, twin.CRC = target.infolist()[1].header_offset, target.infolist()[1].CRC
            twin.file_size = twin.compress_size = len(big)
            target.filelist.append(twin)
            target.NameToInfo[twin.filename] = twin
        target._didModify = True  # type: ignore[attr-defined]


def compressed(path: Path) -> None:
    repacked(path, lambda data: data, zipfile.ZIP_DEFLATED)


def announced(path: Path) -> None:
    """A bytearray of 2 GB, which torch makes of four bytes."""
    repacked(path, lambda _: b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R.")


def uninitialized(path: Path) -> None:
    """A tensor by its size alone."""
    repacked(path, lambda _: b"\x80\x02ctorch\nTensor\nJ\x00\x00\x00\x7f\x85R.")


def many_objects(path: Path) -> None:
    """A set for each byte."""
    repacked(path, lambda _: b"\x80\x02" + 7_000_000 * b"]" + b".")


def expanded(path: Path) -> None:
    """A tensor of 4 GB with strides of 0, in four bytes."""
    found = content()
    found["state_dict"]["scorer.head.bias"] = torch.zeros(1).expand(1_000_000_000)
    torch.save(found, path)


def expanded_speakers(path: Path) -> None:
    """The same, where the description says so too."""
    found = content()
    found["recognizer"]["init_args"]["scorer"]["init_args"] = {"embedding_size": 32, "speakers": 900_000}
    found["recognizer"]["init_args"]["backbone"]["init_args"] = {}
    found["state_dict"]["scorer.head.weight"] = torch.zeros(1, 1).expand(900_000, 32)
    found["state_dict"]["scorer.head.bias"] = torch.zeros(1).expand(900_000)
    torch.save(found, path)


def billion_speakers(path: Path) -> None:
    described(path, {"embedding_size": 32, "speakers": 1_000_000_000})


def same_speakers(path: Path) -> None:
    """A name that would be counted a hundred thousand times a hundred thousand."""
    described(path, {"embedding_size": 32, "speakers": 300_000 * ["x"]})


def wide_speakers(path: Path) -> None:
    described(path, {"embedding_size": 1_000_000, "speakers": 900_000})


def wide_backbone(path: Path) -> None:
    described(path, backbone={"class_path": "sec4sr_pl.backbones.ECAPA", "init_args": {"channels": 60_000}})


def wide_buffers(path: Path) -> None:
    sizes = {"inputs": 30_000, "components": 100, "embedding_size": 100}
    described(path, backbone={"class_path": "sec4sr_pl.backbones.IVector", "init_args": sizes})


def wide_window(path: Path) -> None:
    described(path, features={"class_path": "sec4sr_pl.features.Fbank", "init_args": {"window": 200_000}})


def steep_slopes(path: Path) -> None:
    described(path, features={"class_path": "sec4sr_pl.features.MFCC", "init_args": {"deltas": 100_000}})


def many_defenses(path: Path) -> None:
    """One description at many places."""
    defense = {"class_path": "sec4sr_pl.defenses.Quantization", "init_args": {}}
    described(path, defenses=[defense] * 200_000)


def doubled(path: Path) -> None:
    """Lists of lists, each twice: a billion modules in a thousand bytes."""
    part: Any = {"class_path": "sec4sr_pl.defenses.Quantization", "init_args": {}}
    for _ in range(60):
        part = [part, part]
    described(path, defenses=part)


def deep(path: Path) -> None:
    part: Any = 1
    for _ in range(200):
        part = [part]
    described(path, defenses=part)


def deeper(path: Path) -> None:
    """Deeper than Python's stack; torch.save can't write it."""
    repacked(
        path,
        lambda data: (
            b"\x80\x02}(X\x0a\x00\x00\x00recognizer"
            + 100_000 * b"]("
            + 100_000 * b"e"
            + b"X\x0a\x00\x00\x00state_dict}u."
        ),
    )


def legacy_bomb(path: Path) -> None:
    """A file from before torch 1.6, whose pickle makes a bytearray."""
    buffer = io.BytesIO()
    torch.save({}, buffer, _use_new_zipfile_serialization=False)
    head = buffer.getvalue()
    start = head.index(pickle.dumps({}, 2), 60)
    path.write_bytes(head[:start] + b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R." + head[start + 4 :])


CASES = [
    zip_bomb,
    overlapping,
    compressed,
    announced,
    uninitialized,
    many_objects,
    expanded,
    expanded_speakers,
    billion_speakers,
    same_speakers,
    wide_speakers,
    wide_backbone,
    wide_buffers,
    wide_window,
    steep_slopes,
    many_defenses,
    doubled,
    deep,
    deeper,
    legacy_bomb,
]
CHILD = """
import json, resource, sys
from pathlib import Path
from sec4sr_pl.checkpoint import load_recognizer
load_recognizer(Path(sys.argv[1]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
said = {}
for path in sys.argv[2:]:
    before = peak()
    try:
        load_recognizer(Path(path))
        said[Path(path).name] = "it was loaded"
    except ValueError as error:
        said[Path(path).name] = str(error), peak() - before
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, int]]:
    """Case -> the error, and the megabytes by which memory grew, of one process that reads them all."""
    folder = tmp_path_factory.mktemp("hostile")
    for case in CASES:
        case(folder / case.__name__)
    script = folder / "script.py"
    script.write_text(CHILD)
    arguments = [str(script), str(SHIPPED), *(str(folder / case.__name__) for case in CASES)]
    process = Forked(arguments, folder, {**os.environ, "OMP_NUM_THREADS": "1"})
    shown, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    found: dict[str, tuple[str, int]] = json.loads(shown)
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_that_would_take_far_more_than_its_size_is_refused(
    case: Callable[[Path], None], said: dict[str, tuple[str, int]]
) -> None:
    error, grown = said[case.__name__]
    assert f"/{case.__name__}" in error
    assert grown < MEMORY


def test_errors_say_what_is_too_large(said: dict[str, tuple[str, int]]) -> None:
    assert "would unpack to more than its size" in said["zip_bomb"][0]
    assert "far larger than the file" in said["wide_backbone"][0]
    assert "at most 1,000,000 speakers" in said["billion_speakers"][0]
    assert "up to 1,000 modules" in said["doubled"][0]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        load_recognizer(tmp_path / "a.ckpt")
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "a.ckpt")


@pytest.mark.parametrize("case", [announced, compressed, expanded])
def test_a_resume_reads_no_other_way(case: Callable[[Path], None], tmp_path: Path) -> None:
    case(tmp_path / "a.ckpt")
    for path in (tmp_path / "a.ckpt", f"file://{tmp_path}/a.ckpt"):
        with pytest.raises(CheckpointError):
            WholeCheckpoints().load_checkpoint(path, weights_only=False)


def test_shared_weights_and_files_of_old_versions_are_read(tmp_path: Path) -> None:
    weight = torch.arange(6.0)
    plain = {"a": weight, "b": weight[2:], "c": weight.reshape(2, 3).T, "d": [1, "x", None], "e": torch.zeros(0, 5)}
    for new in (True, False):
        torch.save(plain, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
        found = read_plain(tmp_path / "a.pt")
        assert all(torch.equal(found[name], plain[name]) for name in "abce") and found["d"] == plain["d"]


@pytest.mark.parametrize("schedule", ["OneCycleLR", *LISTED["torch.optim.lr_scheduler"].split()])
def test_the_state_of_each_schedule_that_may_be_named_is_read_again(schedule: str, tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1, momentum=0.9)
    length = (0.1, 5) if schedule == "OneCycleLR" else (5,)
    made = getattr(torch.optim.lr_scheduler, schedule)(optimizer, *length)
    optimizer.step()
    made.step()
    torch.save(made.state_dict(), tmp_path / "a.ckpt")
    assert read_plain(tmp_path / "a.ckpt").keys() == made.state_dict().keys()


@pytest.mark.parametrize("optimizer", LISTED["torch.optim"].split())
def test_the_state_of_each_optimizer_that_may_be_named_is_read_again(optimizer: str, tmp_path: Path) -> None:
    weights = torch.nn.Parameter(torch.ones(2, 2))
    weights.grad = torch.ones(2, 2).to_sparse() if optimizer == "SparseAdam" else torch.ones(2, 2)
    made = getattr(torch.optim, optimizer)([weights], lr=0.1)
    made.step(weights.sum)
    torch.save(made.state_dict(), tmp_path / "a.ckpt")
    assert read_plain(tmp_path / "a.ckpt")["state"].keys() == made.state_dict()["state"].keys()
