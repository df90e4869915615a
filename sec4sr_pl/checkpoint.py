"""A recognizer in a file that holds no code: its description as plain data, and its weights."""

import hashlib
import inspect
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import fsspec
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from sec4sr_pl.audio import Member
from sec4sr_pl.command import command
from sec4sr_pl.files import check_output, read_text, whole
from sec4sr_pl.imports import check, trusted_packages
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.weights import CheckpointError as CheckpointError
from sec4sr_pl.weights import check_finite, load_plain, read_plain

CHECKSUMS = "SHA256SUMS"
MODULES, ITEMS, DEPTH = 1_000, 2_000_000, 100
"""The most of a description: modules, values with all names of speakers, and levels."""


def describe(value: Any) -> Any:
    """Plain data from which `rebuild` makes the same object, without its weights.

    A module is its class path and its constructor's arguments, which it keeps as attributes of the same names.

    Raises:
        TypeError: a module that does not, or an argument that is no plain data.
    """
    if isinstance(value, (list, tuple, nn.ModuleList)):
        return [describe(item) for item in value]
    if isinstance(value, nn.ModuleDict):
        return {name: describe(item) for name, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if not isinstance(value, nn.Module):
        raise TypeError(f"Expected modules, numbers, strings, or lists of them, got {type(value).__name__}")
    cls = type(value)
    names = list(inspect.signature(cls).parameters)
    if missing := [name for name in names if not hasattr(value, name)]:
        raise TypeError(f"{cls.__name__} must keep its constructor's arguments as attributes, {missing} are missing")
    return {
        "class_path": f"{cls.__module__}.{cls.__qualname__}",
        "init_args": {name: describe(getattr(value, name)) for name in names},
    }


def class_paths(description: Any) -> Iterator[str]:
    """All that a description of `describe` names."""
    if isinstance(description, Mapping):
        if "class_path" in description:
            yield str(description["class_path"])
        description = list(description.values())
    for part in description if isinstance(description, list) else []:
        yield from class_paths(part)


def rebuild(description: Any, trusted: Sequence[str] = ()) -> Any:
    """The inverse of `describe`.

    Args:
        description: plain data.
        trusted: top-level packages whose modules may be imported, beside those of `sec4sr_pl.imports`.

    Raises:
        CheckpointError: a class that is not to be imported, one that does not exist or is no module, arguments that its
            constructor refuses, or a description that is too large.
    """
    _measure(description)
    return _rebuild(description, trusted)


def _measure(description: Any) -> None:
    """Refuse what would take more than its file: lists and dictionaries of plain data may stand at many places."""
    parts, items, modules = [(description, 0)], 0, 0
    while parts:
        part, depth = parts.pop()
        if not isinstance(part, (Mapping, list)):
            continue
        items, modules = items + len(part), modules + isinstance(part, Mapping)
        if items > ITEMS or modules > MODULES or depth > DEPTH:
            raise CheckpointError(
                f"Expected a description of up to {MODULES:,} modules, {ITEMS:,} values and {DEPTH} levels, got more"
            )
        parts.extend((item, depth + 1) for item in (part.values() if isinstance(part, Mapping) else part))


def _rebuild(description: Any, trusted: Sequence[str]) -> Any:
    if isinstance(description, list):
        return [_rebuild(item, trusted) for item in description]
    if not isinstance(description, Mapping):
        return description
    if not {"class_path", "init_args"} & description.keys():
        return {name: _rebuild(item, trusted) for name, item in description.items()}
    path = str(description.get("class_path"))
    module, _, name = path.rpartition(".")
    try:
        check(path, trusted)
    except ValueError as error:
        raise CheckpointError(f"The checkpoint wants the class {path}, but {error}") from error
    try:
        cls = getattr(import_module(module), name)
    except Exception as error:  # importing a module of somebody's runs it
        raise CheckpointError(
            f"The checkpoint wants the class {path}, which can't be imported ({type(error).__name__}: {error}): "
            "install its package, or name the folder that holds its module in PYTHONPATH"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise CheckpointError(f"The checkpoint wants {path}, which is no module")
    if cls.__module__.partition(".")[0] not in ("sec4sr_pl", *trusted_packages(trusted)):  # imported from another's
        raise CheckpointError(f"The checkpoint wants {path}, a class of {cls.__module__}, which is not trusted")
    arguments = description.get("init_args")
    if not isinstance(arguments, Mapping):
        raise CheckpointError(f"The checkpoint wants {path} without init_args, expected its constructor's arguments")
    arguments = {key: _rebuild(value, trusted) for key, value in arguments.items()}
    try:
        return cls(**arguments)
    except Exception as error:  # a constructor may raise anything
        raise CheckpointError(f"The checkpoint's arguments do not fit the class {path}: {error}") from error


@contextmanager
def no_larger_than(size: int) -> Iterator[None]:
    """Modules that are made inside have parameters and buffers of so many bytes in all.

    Raises:
        CheckpointError: they are of more.
    """
    left = size

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal left
        left -= 0 if tensor is None else tensor.nbytes
        if left < 0:
            raise CheckpointError("its parameters and buffers are far larger than the file that should hold them")

    hooks = register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def write_whole(path: str | Path, content: Any) -> None:
    """Save what torch.save takes; the file appears under its name only when it is whole and on the disk.

    Raises:
        OSError: the file can't be written; one of that name is as it was.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    try:
        with whole(path) as partial:
            partial.write_bytes(buffer.getbuffer())
    except OSError as error:
        raise OSError(
            f"The checkpoint {path} can't be written ({error.strerror}); one that was there is whole: "
            "make room or choose another folder, then go on from it"
        ) from error


def save_recognizer(recognizer: Recognizer, path: str | Path) -> None:
    """Write a recognizer, whole or not at all; errors are those of `describe` and `write_whole`.

    Raises:
        ValueError: also for a class that no other program finds.
    """
    description = describe(recognizer)
    for name in class_paths(description):
        if name.startswith("__main__.") or "<locals>" in name:
            raise ValueError(
                f"The checkpoint would name the class {name}, which no other program can import: put it into a module "
                "of its own, e.g. theirs.py, and import it from there"
            )
    weights = {name: tensor.detach().cpu() for name, tensor in recognizer.state_dict().items()}
    write_whole(path, {"recognizer": description, "state_dict": weights})


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints by `write_whole`: its own are copied from the temporary folder, which a kill cuts.

    They are removed only beside one that was written: a resume has their names from its checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folders: set[str] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Called by the trainer on the first process."""
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            write_whole(path, checkpoint)
        self.folders.add(os.path.dirname(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Called by the trainer on the first process, when there is a better one."""
        if os.path.dirname(path) not in self.folders or not str(path).endswith(".ckpt"):
            return
        if "://" in str(path):
            super().remove_checkpoint(path)
        elif Path(path).is_file():
            Path(path).unlink()

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Called by the trainer: plain data only, whatever it asks for."""
        if "://" in str(path):
            with fsspec.open(str(path), "rb") as file:
                return load_plain(file, str(path))  # type: ignore[no-any-return]
        return read_plain(Path(path))  # type: ignore[no-any-return]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint, which can't run code; checked against the SHA256SUMS beside it that names it.

    Raises:
        CheckpointError: no such file, another checksum, damaged, or one that holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}")
    expected = read_checksums(path.parent).get(path.name)
    if expected is not None and checksum(path) != expected:
        raise CheckpointError(f"{path} does not have the SHA-256 {expected} of {CHECKSUMS}: fetch it again")
    content = read_plain(path)
    if not isinstance(content, dict) or not {"recognizer", "state_dict"} <= content.keys():
        raise CheckpointError(f"{path} describes no recognizer: expected one written by train.py or save_recognizer")
    return content


def load_recognizer(path: str | Path, trusted: Sequence[str] = ()) -> Recognizer:
    """The recognizer of a file of `save_recognizer` or of training, in eval mode on the CPU.

    Args:
        path: of the file.
        trusted: top-level packages whose modules may be imported, as by the flag --trusted of commands.

    Raises:
        CheckpointError: as `read_checkpoint` and `rebuild`; also weights that do not fit the description, or hold
            NaN or an infinity.
    """
    content = read_checkpoint(path)
    most = 16 * Path(path).stat().st_size + 2**28  # some buffers are not in the file: they follow from others
    try:
        for device in ("cpu",) if trusted_packages(trusted) else ("meta", "cpu"):  # on meta nothing takes memory
            with no_larger_than(most), torch.device(device):
                recognizer = rebuild(content["recognizer"], trusted)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if not isinstance(recognizer, Recognizer):
        raise CheckpointError(f"{path} describes a {type(recognizer).__name__}, expected a Recognizer")
    weights = content["state_dict"]
    try:
        if "pytorch-lightning_version" in content:
            prefix = "recognizer."
            weights = {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
        if unreal := sorted(name for name, value in weights.items() if value.is_complex()):
            raise TypeError(f"{unreal[0]} is complex")
        recognizer.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The weights of {path} do not fit its own description: {error}") from error
    try:
        check_finite(recognizer.state_dict())
    except ValueError as error:
        raise CheckpointError(f"The weights of {path} can't be used: {error}") from error
    return recognizer.eval()


def checksum(path: str | Path | Member) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        FileNotFoundError: no such file, or a pipe, device or folder.
    """
    if isinstance(path, (str, Path)) and not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}")
    with (Path(path) if isinstance(path, str) else path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type, unused-ignore]


def read_checksums(folder: str | Path) -> dict[str, str]:
    """File name -> SHA-256 from the folder's SHA256SUMS, in the form of sha256sum.

    Raises:
        CheckpointError: a line in another form.
    """
    path = Path(folder, CHECKSUMS)
    sums = {}
    for line in read_text(path).splitlines() if path.is_file() else []:
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:\./)*(.+)", line)
        if match:
            sums[match[2]] = match[1].lower()
        elif line.strip():
            raise CheckpointError(f"{path} has the line '{line}', expected '<64 hexadecimal digits>  <file name>'")
    return sums


def export(checkpoint: Path, destination: Path) -> None:
    """Write the recognizer alone of a training checkpoint, and its checksum to SHA256SUMS.

    Args:
        checkpoint: of train.py.
        destination: the file to write.

    Raises:
        ValueError: it is the checkpoint itself, which would be written over.
        CheckpointError: as `load_recognizer`.
        OSError: it can't be written.
    """
    destination = Path(destination)
    if destination.name == CHECKSUMS or not destination.name.isprintable():
        raise ValueError(f"Expected a destination that {CHECKSUMS} can name in a line, got {destination.name!r}")
    listed = destination.parent / CHECKSUMS
    check_output(destination, checkpoint)
    check_output(listed, checkpoint)
    sums = read_checksums(destination.parent)
    save_recognizer(load_recognizer(checkpoint), destination)
    sums[destination.name] = checksum(destination)
    with whole(listed) as partial:
        partial.write_text("".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: default: those of the process.
    """
    command(
        export,
        "python -m sec4sr_pl.checkpoint",
        "Write the recognizer alone of a training checkpoint.",
        args,
        resumes=False,
        positional=True,
    )


if __name__ == "__main__":
    main()
