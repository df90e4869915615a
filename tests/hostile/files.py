"""What may lie where a file is expected, whatever its kind."""

import os
import random
from collections.abc import Callable
from pathlib import Path

from hostile.place import Place

Spoil = Callable[[Path], object]
"""Takes the path of a good file, and leaves something else there."""


def instead(make: Spoil) -> Spoil:
    """Something else than a file."""

    def spoil(path: Path) -> None:
        path.unlink(missing_ok=True)
        make(path)

    return spoil


def written(content: bytes) -> Spoil:
    """Another content."""
    return lambda path: path.write_bytes(content)


def cut(fraction: float) -> Spoil:
    """A part of it, from the beginning."""
    return lambda path: os.truncate(path, int(fraction * path.stat().st_size))


def flipped(seed: int, bits: int = 1) -> Spoil:
    """A few bits of it, anywhere."""

    def spoil(path: Path) -> None:
        content, draw = bytearray(path.read_bytes()), random.Random(seed)
        for _ in range(bits):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)

    return spoil


NO_FILES: dict[str, Spoil] = {
    "missing": Path.unlink,
    "folder": instead(Path.mkdir),
    "pipe": instead(os.mkfifo),
    "endless device": instead(lambda path: path.symlink_to("/dev/zero")),
    "link to nothing": instead(lambda path: path.symlink_to("nowhere")),
    "link to itself": instead(lambda path: path.symlink_to(path.name)),
}
NO_CONTENT: dict[str, Spoil] = {
    "empty": written(b""),
    "web page": written(b"<html><body>404</body></html>\n" * 20),
    "random bytes": written(random.Random(0).randbytes(3_000)),
    "zeros": written(bytes(3_000)),
    "one line without end": written(b"a" * 300_000),
}


def spoiled(place: Place, spoil: Spoil, name: str, *brought: str) -> Path:
    """Bring good inputs, and spoil a file."""
    for good in brought:
        place.bring(good)
    path = place / name
    spoil(path)
    return path
