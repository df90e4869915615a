"""Files are whole or not there, whatever happens to the process that writes them."""

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from sec4sr_pl.files import whole


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_appears_at_the_end_of_the_block_and_in_a_folder_that_is_made(shared: bool, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    for text in ("first", "second"):
        with whole(path, shared) as partial:
            partial.write_text(text)
            assert partial.parent == path.parent and partial.name[0] == "."
            assert path.exists() is (text == "second") and (not path.exists() or path.read_text() == "first")
        assert path.read_text() == text and names(path.parent) == {"file.txt"}


@pytest.mark.parametrize("shared", [False, True])
def test_an_error_leaves_the_file_as_it_was_and_nothing_else(shared: bool, tmp_path: Path) -> None:
    def write() -> None:
        with whole(tmp_path / "file.txt", shared) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write()
    assert (tmp_path / "file.txt").read_text() == "old" and names(tmp_path) == {"file.txt"}


def forked(write: Callable[[Path], None], path: Path) -> int | None:
    """The exit status of another process that writes a file."""
    process = multiprocessing.get_context("fork").Process(target=write, args=(path,))
    process.start()
    process.join()
    return process.exitcode


def fill(path: Path) -> None:
    """Write on a disk that is full after 1,000 bytes, and tell by the exit status that it was."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
    try:
        with whole(path) as partial:
            partial.write_bytes(bytes(2_000))
    except OSError:
        os._exit(3)


def die(path: Path) -> None:
    """Be killed between two writes."""
    with whole(path) as partial, partial.open("wb", buffering=0) as file:
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("end", "status", "left"), [(fill, 3, set()), (die, -signal.SIGKILL, {".file.txt.partial"})])
def test_a_full_disk_or_a_kill_leaves_the_file_as_it_was(
    end: Callable[[Path], None], status: int, left: set[str], tmp_path: Path
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    assert forked(end, path) == status
    assert path.read_text() == "old" and names(tmp_path) == {"file.txt"} | left
    with whole(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new" and names(tmp_path) == {"file.txt"}


def share(path: Path) -> None:
    with whole(path, shared=True) as partial:
        partial.write_text("other")


def test_two_processes_that_share_a_file_do_not_write_over_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with whole(path, shared=True) as partial:
        partial.write_text("one")
        assert forked(share, path) == 0
        assert path.read_text() == "other"
    assert path.read_text() == "one" and names(tmp_path) == {"file.txt"}
