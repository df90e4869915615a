"""Files that are whole or not there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path, shared: bool = False) -> Iterator[Path]:
    """A hidden name beside a file, to write to; at the end of the block it takes the file's place.

    An error leaves the file as it was, and nothing else. A kill leaves `.<name>.partial` as well, which the next
    process writes over.

    Args:
        path: of the file, whose folder is made if missing.
        shared: several processes may write the file at once: each has a hidden name of its own, `.<name>.<process>`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid() if shared else 'partial'}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
