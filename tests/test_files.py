"""Files are whole or not there, whatever happens to the process that writes them and whoever waits at their names."""

import multiprocessing
import os
import resource
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sec4sr_pl.files import STALE, check_writable, filename, inside, read_rows, read_text, whole


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def write(path: Path, text: str) -> None:
    with whole(path) as partial:
        partial.write_text(text)


def test_a_file_appears_at_the_end_of_the_block_and_in_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    for text in ("first", "second"):
        with whole(path) as partial:
            partial.write_text(text)
            assert partial.parent == path.parent and partial.name[0] == "."
            assert path.exists() is (text == "second") and (not path.exists() or path.read_text() == "first")
        assert path.read_text() == text and names(path.parent) == {"file.txt"}


def test_an_error_leaves_the_file_as_it_was_and_nothing_else(tmp_path: Path) -> None:
    def fail() -> None:
        with whole(tmp_path / "file.txt") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    (tmp_path / "file.txt").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "file.txt").read_text() == "old" and names(tmp_path) == {"file.txt"}


def test_the_umask_gives_a_file_its_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "file.txt", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o640


def forked(write: Callable[[Path], None], path: Path) -> int | None:
    """The exit status of another process that writes a file."""
    process = multiprocessing.get_context("fork").Process(target=write, args=(path,))
    process.start()
    process.join()
    return process.exitcode


def fill(path: Path) -> None:
    """Write on a disk that is full after 1,000 bytes, and tell by the exit status that the error names the file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
    try:
        with whole(path) as partial:
            partial.write_bytes(bytes(2_000))
    except OSError as error:
        os._exit(3 if str(path) in str(error) else 4)


def die(path: Path) -> None:
    """Be killed between two writes."""
    with whole(path) as partial, partial.open("wb", buffering=0) as file:
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("end", "status", "left"), [(fill, 3, 0), (die, -signal.SIGKILL, 1)])
def test_a_full_disk_or_a_kill_leaves_the_file_as_it_was(
    end: Callable[[Path], None], status: int, left: int, tmp_path: Path
) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    assert forked(end, path) == status
    assert path.read_text() == "old"
    hidden = names(tmp_path) - {"file.txt"}
    assert len(hidden) == left and all(name.startswith(".file.txt.") for name in hidden)


def test_what_kills_left_an_hour_ago_is_removed_by_a_later_process_that_writes_into_the_folder(tmp_path: Path) -> None:
    for name in ("file.txt", "other.txt"):
        forked(die, tmp_path / name)
    (tmp_path / ".mine.partial").touch()
    for hidden in tmp_path.glob(".*"):
        os.utime(hidden, (hidden.stat().st_mtime - STALE - 1,) * 2)
    forked(die, tmp_path / "young.txt")  # another may be at work on it
    forked(lambda path: write(path, "new"), tmp_path / "file.txt")
    mine, young = sorted(names(tmp_path) - {"file.txt"})
    assert mine == ".mine.partial" and young.startswith(".young.txt.")
    assert (tmp_path / "file.txt").read_text() == "new"


def test_of_many_files_that_are_written_into_a_folder_the_first_alone_lists_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))  # type: ignore[func-returns-value]
    for number in range(3):
        write(tmp_path / f"{number}.txt", "text")
    assert len(listed) == 1


def write_often(path: Path, text: str) -> None:
    for _ in range(40):
        write(path, text)


def test_processes_that_write_one_file_at_once_all_do_and_a_reader_meets_whole_files(tmp_path: Path) -> None:
    path, texts = tmp_path / "file.txt", {letter * 50_000 for letter in "abc"}
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(path, text)) for text in sorted(texts)]
    write(path, "a" * 50_000)
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert path.read_text() in texts
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert path.read_text() in texts and names(tmp_path) == {"file.txt"}


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this user can't make a device")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: path.symlink_to(path.with_name("outside")), "a symbolic link"),
        (lambda path: path.symlink_to(path.with_name("nowhere")), "a symbolic link"),
        (lambda path: path.mkdir(), "a folder"),
        (os.mkfifo, "a pipe"),
        (make_socket, "a socket"),
        (make_device, "a device"),
    ],
)
def test_what_is_no_file_is_refused_and_stays_as_it_was(
    make: Callable[[Path], None], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = Path("target")
    Path("outside").write_text("as it was")
    make(path)
    before, there = path.lstat(), names(tmp_path)
    for refused in (check_writable, lambda path: write(path, "text")):
        with pytest.raises(FileExistsError, match=f"Expected a file or a free name, got {kind}: 'target'"):
            refused(path)
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_rdev) == (before.st_ino, before.st_mode, before.st_rdev)
    assert Path("outside").read_text() == "as it was" and names(tmp_path) == there


def test_a_link_planted_at_a_hidden_name_is_not_followed(tmp_path: Path) -> None:
    """At the names that earlier versions used, and at one of today's form."""
    outside = tmp_path / "outside"
    outside.write_text("as it was")
    planted = [f".file.txt.{end}" for end in ("partial", str(os.getpid()), "0123456789abcdef.partial")]
    for name in planted:
        (tmp_path / name).symlink_to(outside)
    write(tmp_path / "file.txt", "text")
    assert outside.read_text() == "as it was" and (tmp_path / "file.txt").read_text() == "text"


@pytest.mark.parametrize("place", ["file/under", "file/under/it", "closed/new"])
def test_where_no_file_can_be_is_found_before_the_work_by_its_name(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir(mode=0o500)
    if os.access(tmp_path / "closed", os.W_OK) and place.startswith("closed"):
        pytest.skip("this user may write anywhere")
    with pytest.raises(OSError, match=r"(Not a directory|Permission denied): '.*") as caught:
        check_writable(tmp_path / place)
    assert caught.value.filename == str(tmp_path / place)


def test_a_trial_of_writing_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "file.txt")
    assert not names(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\0b", ".."])
def test_a_name_that_may_lead_out_of_a_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Expected the name of something inside"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a/b..c") == tmp_path / "a" / "b..c"


@pytest.mark.parametrize("name", ["anna-0", "anna 0#1", "anna@bert", "~anna", "Анна", "安娜", "a.b", "-a"])
def test_a_usual_name_is_that_of_its_file(name: str) -> None:
    assert filename(name) == name


def test_any_name_is_that_of_one_file_inside_the_folder(tmp_path: Path) -> None:
    """Each with its own, which a long name and those that look like another's form have too."""
    odd = ["", ".", "..", "../x", "..%2Fx", "%2E.%2Fx", "/x", "x/1", "x%2F1", "x\\1", "x\n", "x\0", "%", "%%", "\udc80"]
    long = ["x" * 200, "x" * 201, "x" * 202, "安" * 300, "安" * 301, "/" * 100, "%" * 100]
    for name in odd + long:
        path = inside(tmp_path, f"{filename(name)}.wav")
        assert path.parent == tmp_path and path.name[0] != "."
        write(path, name.encode(errors="replace").decode())
    assert len(names(tmp_path)) == len(odd + long)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda path: path.write_bytes(b"one\ntwo\nthr\xffe\n"),
            r"file\.txt, line 3: expected text .* 0xff",
        ),
        (os.mkfifo, r"Expected .*file\.txt to be a file, got a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), r"Expected .*file\.txt to be a file, got a device"),
        (Path.mkdir, r"Is a directory: '.*file\.txt'"),
        (lambda path: path.touch() or os.truncate(path, 10**12), r"file\.txt .* at most .* got 1,000,000,000,000"),
    ],
    ids=["bytes", "pipe", "device", "folder", "large"],
)
def test_what_is_no_text_is_refused_by_name_before_it_is_read(
    make: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    make(tmp_path / "file.txt")
    with pytest.raises((ValueError, OSError), match=said):
        read_text(tmp_path / "file.txt")


def test_a_row_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("a,b\n" + "x" * 200_000)
    with pytest.raises(ValueError, match=r"index\.csv, line 2: expected a row .* got one with field"):
        read_rows(tmp_path / "index.csv")
