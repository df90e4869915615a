"""Files of tensors and plain data, which can't run code."""

import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from torch import nn

Network = TypeVar("Network")
PLAIN = re.compile(
    r"collections (OrderedDict|Counter)|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
    r"|torch (?!Typed|Untyped)\w+Storage|torch ((b?float|u?int|complex)\d+\w*|bool|device|Size)"
)
"""What a pickle of tensors and plain data names; other names that torch takes make objects of any size."""
OPERATIONS = 2_000_000
"""The most of a pickle, about two a value: each may take a hundred times its length in memory."""
LEGACY_PICKLES = 5
"""At the beginning of a file from before torch 1.6: magic number, version, system, content, names of storages."""


class CheckpointError(ValueError):
    """A checkpoint that can't be used, with what was expected, what came, and what to do."""


def read_plain(path: Path) -> Any:
    """The content of a file of torch.save.

    Raises:
        FileNotFoundError: no such file, or a pipe, device or folder.
        CheckpointError: damaged, one that holds code, or one that would take far more memory than its size.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}")
    with path.open("rb") as file:
        return load_plain(file, str(path))


def load_plain(file: IO[bytes], path: str) -> Any:
    """The content of an open file of torch.save, wherever it lies; errors are those of `read_plain`."""
    try:
        look_over(file, path)
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
        refuse_expanded(content, path)
        return content
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was refused: it holds more than the tensors and plain data that were expected, which could run "
            "code, or is damaged"
        ) from error
    except Exception as error:  # from a damaged file or a web page, torch.load raises anything
        raise CheckpointError(f"{path} is damaged or no checkpoint: {type(error).__name__}: {error}") from error


def check_finite(tensors: Mapping[str, Any]) -> None:
    """Refuse weights of which nothing can be made but figures that look like results.

    Args:
        tensors: by name; a `threshold` may be -inf, which every score exceeds.

    Raises:
        ValueError: the first that holds NaN or an infinity.
    """
    for name, tensor in tensors.items():
        good = torch.as_tensor(tensor).isfinite()
        if name.endswith("threshold"):
            good |= tensor == -torch.inf
        if not good.all():
            raise ValueError(f"'{name}' holds NaN or an infinity")


def look_over(file: IO[bytes], path: str) -> None:
    """Bound what torch.load will take for a file by the file's size, from its directory and its pickles.

    Raises:
        CheckpointError: entries that are compressed or overlap, or a pickle that is too long.
        pickle.UnpicklingError: a pickle that names more than tensors and plain data.
        Exception: a damaged file.
    """
    size = file.seek(0, os.SEEK_END)
    if not zipfile.is_zipfile(file):
        file.seek(0)
        for _ in range(LEGACY_PICKLES):
            look_over_pickle(file, path)
        return
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or archive.comment or sum(entry.file_size for entry in entries) > size:
            raise CheckpointError(f"{path} would unpack to more than its size, which torch.save does not write")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                with archive.open(entry) as part:
                    look_over_pickle(part, path)


def look_over_pickle(file: IO[bytes], path: str) -> None:
    """Go through the operations of a pickle without carrying them out; errors are those of `look_over`."""
    for number, (operation, argument, _) in enumerate(pickletools.genops(file)):
        if number >= OPERATIONS:
            raise CheckpointError(f"{path} holds more plain data than a recognizer needs, beside its tensors")
        if operation.name in ("GLOBAL", "INST", "STACK_GLOBAL") and not PLAIN.fullmatch(str(argument)):
            raise pickle.UnpicklingError(argument)


def refuse_expanded(content: Any, path: str) -> None:
    """Refuse tensors that stand for more than was stored, by strides of 0.

    Raises:
        CheckpointError: there is one.
    """
    parts, seen = [content], set[int]()
    while parts:
        part = parts.pop()
        if isinstance(part, torch.Tensor):
            if part.numel() * part.element_size() > part.untyped_storage().nbytes():
                raise CheckpointError(f"{path} holds a tensor of {tuple(part.shape)}, of which not all is stored")
        elif isinstance(part, (dict, list, tuple)) and id(part) not in seen:
            seen.add(id(part))
            parts.extend(part.values() if isinstance(part, dict) else part)


def restore(name: str, make: Callable[[Any], Network], path: Path) -> Network:
    """What `make` makes of a file's content.

    Args:
        name: of what is made, for the error.
        make: takes the content, which may be of another network or anything else; it may raise what it will.
        path: the file.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: as `read_plain`, or `make` failed.
    """
    content = read_plain(path)
    try:
        made = make(content)
        if isinstance(made, nn.Module):
            check_finite(made.state_dict())
        return made
    except Exception as error:
        raise CheckpointError(
            f"The weights of {path} are not those of {name}: {type(error).__name__}: {error}"
        ) from error
