"""YAML of command lines, looked over before it is read: kind, size, nesting, and what its aliases stand for."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from sec4sr_pl.files import read_text

BYTES, NODES, DEPTH = 2**20, 100_000, 100
"""The most of a file; its nodes are counted as if each alias were written out."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
COMMANDS = ("fit", "validate")
"""Keys of a file under which arguments may stand."""
_load = jsonargparse.get_loader("yaml")


class ConfigError(ValueError):
    """A file of arguments that is not read, and why."""


def look_over(text: str) -> None:
    """Count what a text of YAML stands for, before anything is made of it.

    Raises:
        ConfigError: too much, too deep, or an alias of what is around it.
        yaml.YAMLError: no YAML.
    """
    sizes: dict[str | None, int] = {}
    parts: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            parts.append((event.anchor, 1))
            if len(parts) > DEPTH:
                raise ConfigError(f"it has more than {DEPTH} levels")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = parts.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
            if "*" in event.value and event.value != text.strip():  # a string may be read as YAML in its turn
                with suppress(yaml.YAMLError):
                    look_over(event.value)
        elif isinstance(event, yaml.AliasEvent):
            anchor, size = None, sizes.get(event.anchor, NODES + 1)  # not finished: it holds itself
        else:
            continue
        sizes[anchor] = size
        above, before = parts.pop()
        parts.append((above, before + size))
        if before + size > NODES:
            raise ConfigError(f"it has more than {NODES:,} values, or an alias of itself")


def load(text: str) -> Any:
    """The value of a text of YAML, as jsonargparse reads it.

    Raises:
        ConfigError: as `look_over`; also a key `trusted`, which only who runs the command may say.
        yaml.YAMLError: no YAML.
    """
    look_over(text)
    try:
        value = _load(text)
    except (ValueError, KeyError, OverflowError) as error:  # of a scalar, such as an integer of 5,000 digits
        raise yaml.YAMLError(str(error)) from error
    if isinstance(value, dict):
        for part in (value, *map(value.get, COMMANDS)):
            if isinstance(part, dict) and "trusted" in part:
                raise ConfigError("A file can't say what is trusted: that is a flag, --trusted PACKAGE")
    return value


def read(path: Any) -> str:
    """The text of a file of arguments, in place of jsonargparse's own reading.

    Raises:
        ValueError: as `read_text`, no YAML, or as `load`.
    """
    text = read_text(Path(path), BYTES)
    try:
        load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML of plain data: {' '.join(str(error).split())}") from error
    except ConfigError as error:
        raise ConfigError(f"{path} is not read: {error}") from error
    return text


def use() -> None:
    """Let jsonargparse read by `read` and `load`, in this process."""
    jsonargparse.set_loader("yaml", load, (yaml.YAMLError,))
    jsonargparse.Path.read_text = read  # type: ignore[attr-defined, method-assign, assignment]
