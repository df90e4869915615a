"""Download: what comes through bad lines and from bad servers is whole and right, or one clear error."""

import errno
import hashlib
import io
import re
import runpy
import shlex
import socket
import struct
import sys
import tarfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from sec4sr_pl.data import download, librispeech
from sec4sr_pl.data.download import SEC4SR, TRIES, Archive, extract, fetch, main
from sec4sr_pl.data.manifest import COMMANDS, DataError, list_files

DATA = np.random.default_rng(0).bytes(300_000)
SIZE = len(DATA)


class Mood(NamedTuple):
    """How a server answers one request."""

    cut: int | None = None
    """Bytes of the body after which it closes the connection."""
    reset: bool = False
    """Closes it rudely."""
    ranges: bool = True
    length: bool = True
    status: int = 200
    html: bool = False
    content_range: str | None = None
    """Said instead of the truth, with status 206."""
    location: str | None = None


class Server(ThreadingHTTPServer):
    """Serves `data` at every path; `moods` are for the next requests, `asked` has the Range of each past one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.moods = DATA, deque[Mood]()
        self.asked: list[str | None] = []
        self.paths: list[str] = []

    def url(self, path: str = "file") -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        mood = self.server.moods.popleft() if self.server.moods else Mood()
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        self.server.paths.append(self.path)
        body, status, headers = self.server.data, mood.status, {}
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if mood.html:
            body, headers["Content-Type"] = b"<html>Quota exceeded</html>", "text/html; charset=utf-8"
        elif mood.location:
            body, headers["Location"] = b"", mood.location
        elif mood.content_range:
            status, headers["Content-Range"] = 206, mood.content_range
        elif status == 200 and asked and mood.ranges:
            if start < len(body):
                status, headers["Content-Range"] = 206, f"bytes {start}-{len(body) - 1}/{len(body)}"
                body = body[start:]
            else:
                status, headers["Content-Range"], body = 416, f"bytes */{len(body)}", b""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if mood.length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if mood.cut is None else body[: mood.cut])
        if mood.reset:
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been made, seconds."""
    made: list[float] = []
    monkeypatch.setattr(download.time, "sleep", made.append)
    return made


def archive(*urls: str, data: bytes = DATA, name: str = "a.tar.gz") -> Archive:
    return Archive(name, urls, len(data), hashlib.md5(data).hexdigest())


def test_a_link_at_the_name_of_a_part_is_not_followed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("as it was")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.tar.gz.part").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match="Expected a file or a free name, got a symbolic link"):
        fetch(archive(server.url()), tmp_path / "folder")
    assert (tmp_path / "outside").read_text() == "as it was"


def check(path: Path, folder: Path) -> None:
    """The file is whole, and nothing else is there."""
    assert path == folder / "a.tar.gz" and path.read_bytes() == DATA
    assert list(folder.iterdir()) == [path]


# Whole and right


def test_a_file_is_downloaded_and_nothing_else_left(server: Server, tmp_path: Path) -> None:
    check(fetch(archive(server.url()), tmp_path / "made"), tmp_path / "made")
    assert server.asked == [None]


def test_a_local_file_comes_first(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(DATA)
    check(fetch(archive(server.url()), tmp_path), tmp_path)
    assert server.asked == []


def test_a_wrong_local_file_is_told_and_left_alone(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(b"other")
    came, expected = hashlib.md5(b"other").hexdigest(), hashlib.md5(DATA).hexdigest()
    with pytest.raises(DataError, match=rf"{path} has the MD5 {came}, expected {expected}: .*remove it"):
        fetch(archive(server.url()), tmp_path)
    assert path.read_bytes() == b"other" and server.asked == []


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("cut", [1, 65_536, SIZE - 1])
def test_a_cut_connection_is_resumed_where_it_stopped(
    server: Server, tmp_path: Path, waits: list[float], cut: int, reset: bool
) -> None:
    server.moods.append(Mood(cut, reset))
    check(fetch(archive(server.url()), tmp_path), tmp_path)
    first, second = server.asked
    assert first is None and waits == [1.0]
    if reset:  # what was on its way may be lost
        assert second is None or int(second[6:-1]) <= cut
    else:
        assert second == f"bytes={cut}-"


def test_progress_is_patient(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.moods.extend([Mood(1_000)] * (3 * TRIES))
    check(fetch(archive(server.url()), tmp_path), tmp_path)
    assert server.asked == [None] + [f"bytes={1_000 * count}-" for count in range(1, 3 * TRIES + 1)]
    assert set(waits) == {1.0}


@pytest.mark.parametrize("mood", [Mood(0), Mood(100, ranges=False), Mood(status=503), Mood(status=429)], ids=str)
def test_without_progress_it_gives_up_after_growing_pauses(
    server: Server, tmp_path: Path, waits: list[float], mood: Mood
) -> None:
    server.moods.extend([mood] * 100)
    path = tmp_path / "a.tar.gz"
    with pytest.raises(DataError, match=rf"{server.url()}: .*put it at {path}"):
        fetch(archive(server.url()), tmp_path)
    assert len(server.asked) == len(waits) + 1 == TRIES
    assert all(later == 2 * earlier for earlier, later in pairwise(waits))


def test_a_server_without_ranges_begins_again(server: Server, tmp_path: Path) -> None:
    server.moods.extend([Mood(1_000, ranges=False), Mood(70_000, ranges=False), Mood(ranges=False)])
    check(fetch(archive(server.url()), tmp_path), tmp_path)
    assert server.asked == [None, "bytes=1000-", "bytes=70000-"]


def test_a_server_that_does_not_tell_the_length_is_believed_by_the_checksum(server: Server, tmp_path: Path) -> None:
    server.moods.append(Mood(length=False))
    check(fetch(archive(server.url()), tmp_path), tmp_path)


def test_a_redirected_download_is_resumed(server: Server, tmp_path: Path) -> None:
    there = Mood(status=302, location=server.url("there"))
    server.moods.extend([there, Mood(5_000), there])
    check(fetch(archive(server.url("here")), tmp_path), tmp_path)
    assert server.paths == ["/here", "/there"] * 2 and server.asked == [None, None, "bytes=5000-", "bytes=5000-"]


@pytest.mark.parametrize(
    ("stale", "asked"),
    [
        (DATA, [f"bytes={SIZE}-"]),  # killed before the renaming
        (DATA + b"more", [f"bytes={SIZE + 4}-", None]),
        (DATA[:-1], [f"bytes={SIZE - 1}-"]),
        (b"", [None]),
    ],
    ids=["complete", "longer", "one byte less", "empty"],
)
def test_an_old_part_is_used_where_it_can_be(
    server: Server, tmp_path: Path, stale: bytes, asked: list[str | None]
) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(stale)
    check(fetch(archive(server.url()), tmp_path), tmp_path)
    assert server.asked == asked


@pytest.mark.parametrize("lie", [f"bytes 0-{SIZE - 1}/{SIZE}", f"bytes 1001-{SIZE - 1}/{SIZE}", "bytes", "pages 1-2/3"])
def test_another_range_than_asked_for_is_never_appended(server: Server, tmp_path: Path, lie: str) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(DATA[:1_000])
    server.moods.append(Mood(content_range=lie))
    check(fetch(archive(server.url()), tmp_path), tmp_path)
    assert server.asked == ["bytes=1000-", None]


def test_a_range_that_nobody_asked_for_is_refused(server: Server, tmp_path: Path) -> None:
    server.moods.append(Mood(content_range=f"bytes 5-{SIZE - 1}/{SIZE}"))
    with pytest.raises(DataError, match="nobody asked for"):
        fetch(archive(server.url()), tmp_path)
    assert list(tmp_path.iterdir()) == []


# Mirrors and bad answers


def test_mirrors_are_tried_in_turn_and_go_on_with_each_others_part(server: Server, tmp_path: Path) -> None:
    server.moods.extend([Mood(status=404), Mood(2_000), Mood(status=503), Mood(9_000)])
    check(fetch(archive(*map(server.url, "abc")), tmp_path), tmp_path)
    assert server.paths == ["/a", "/b", "/c", "/b", "/c"]
    assert server.asked == [None, None, "bytes=2000-", "bytes=2000-", "bytes=11000-"]


def test_states_that_pass_are_waited_for(server: Server, tmp_path: Path, waits: list[float]) -> None:
    server.moods.extend([Mood(status=503), Mood(status=500), Mood(status=429)])
    check(fetch(archive(server.url()), tmp_path), tmp_path)
    assert waits == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        (Mood(status=404), "answered 404"),
        (Mood(status=403, html=True), "answered 403"),
        (Mood(html=True), r"a web page \(http://127\.0\.0\.1:\d+/file\) came instead of the file"),
    ],
    ids=["missing", "forbidden", "page"],
)
@pytest.mark.parametrize("part", [b"", DATA[:100]], ids=["fresh", "resumed"])
def test_an_answer_that_will_not_change_is_told_at_once_with_the_way_by_hand(
    server: Server, tmp_path: Path, waits: list[float], mood: Mood, reason: str, part: bytes
) -> None:
    (tmp_path / "a.tar.gz.part").write_bytes(part)
    server.moods.append(mood)
    with pytest.raises(DataError, match=rf"{reason}.* by hand.*put it at {tmp_path / 'a.tar.gz'}"):
        fetch(archive(server.url()), tmp_path)
    assert len(server.asked) == 1 and waits == []
    assert (tmp_path / "a.tar.gz.part").read_bytes() == part


def test_a_dead_server_is_named(server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/file"
        with pytest.raises(DataError, match=rf"{url}: .*refused"):
            fetch(archive(url), tmp_path)
        check(fetch(archive(url, server.url()), tmp_path), tmp_path)


def test_a_wrong_checksum_is_told_and_the_next_try_begins_afresh(server: Server, tmp_path: Path) -> None:
    server.data = DATA[:-1] + b"?"
    came, expected = hashlib.md5(server.data).hexdigest(), hashlib.md5(DATA).hexdigest()
    bad = tmp_path / "a.tar.gz.bad"
    with pytest.raises(DataError, match=rf"MD5 {came} and {SIZE} bytes, expected {expected}.*moved to {bad}; run"):
        fetch(archive(server.url()), tmp_path)
    assert list(tmp_path.iterdir()) == [bad] and bad.read_bytes() == server.data
    server.data = DATA
    assert fetch(archive(server.url()), tmp_path).read_bytes() == DATA
    assert server.asked == [None, None]


# Full disks and interruptions


class Failing(io.FileIO):
    """A file that takes some bytes, then fails."""

    room = 10_000
    error: BaseException

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.room:
            super().write(data[: max(0, self.room - self.tell())])
            raise self.error
        return super().write(data)


@contextmanager
def failing(error: BaseException) -> Iterator[None]:
    """Lets parts fail while they are written."""
    original = Path.open

    def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if path.suffix != ".part" or mode[0] not in "wa":
            return original(path, mode, *args, **kwargs)
        file = Failing(path, mode)
        file.error = error
        return file

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", opened)
        yield


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), DataError, r"part can't be written \(No space.*make room"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
    ids=["full", "interrupted"],
)
def test_what_came_before_the_end_is_kept(
    server: Server, tmp_path: Path, error: BaseException, raised: type[BaseException], text: str | None
) -> None:
    with failing(error), pytest.raises(raised, match=text):
        fetch(archive(server.url()), tmp_path)
    assert len(server.asked) == 1
    assert (tmp_path / "a.tar.gz.part").read_bytes() == DATA[:10_000]
    check(fetch(archive(server.url()), tmp_path), tmp_path)
    assert server.asked == [None, "bytes=10000-"]


def test_a_network_that_fails_within_the_answer_is_not_taken_for_the_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, failures = HTTPResponse.read1, [OSError(errno.EHOSTUNREACH, "No route to host")]

    def failing_once(self: HTTPResponse, size: int = -1) -> bytes:
        if failures and self.status == 200:
            raise failures.pop()
        return read(self, size)

    monkeypatch.setattr(HTTPResponse, "read1", failing_once)
    check(fetch(archive(server.url()), tmp_path), tmp_path)
    assert not failures and len(server.asked) == 2


@pytest.mark.parametrize("length", [True, False])
def test_a_disk_that_is_too_small_is_told_before_a_byte_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: bool
) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": SIZE - 1}))
    server.moods.append(Mood(length=length))
    with pytest.raises(DataError, match=r"needs 0\.00 GB more, 0\.00 GB are free: make room"):
        fetch(archive(server.url()), tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.tar.gz.part").write_bytes(DATA[:1])
    check(fetch(archive(server.url()), tmp_path), tmp_path)  # what is there needs no room


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"can't be written \(File exists\)"):
        fetch(archive("http://127.0.0.1:9/"), tmp_path / "file")


# Unpacking


def member(name: str, data: bytes | None = b"text", kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o4755
    info.size = len(data) if kind == tarfile.REGTYPE and data else 0
    return info


def pack(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(b"text"[: info.size]))
    return path


def test_the_archives_only_folder_becomes_the_target(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar.gz", member("Other/s/u.wav"), member("Other/s/v.wav"))
    folder = extract(path, tmp_path / "deep" / "Spk")
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*.wav")) == ["s/u.wav", "s/v.wav"]
    assert (folder / "s" / "u.wav").read_bytes() == b"text"
    assert not (folder / "s" / "u.wav").stat().st_mode & 0o4000
    assert [entry.name for entry in folder.parent.iterdir()] == ["Spk"]


def test_several_top_folders_go_into_the_target(tmp_path: Path) -> None:
    folder = extract(pack(tmp_path / "a.tar.gz", member("s/u.wav"), member("t/v.wav")), tmp_path / "Spk")
    assert sorted(entry.name for entry in folder.iterdir()) == ["s", "t"]


def test_a_folder_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "Spk").mkdir()
    assert extract(tmp_path / "missing.tar.gz", tmp_path / "Spk") == tmp_path / "Spk"
    assert list((tmp_path / "Spk").iterdir()) == []


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil"),
        member("Spk/../../evil"),
        member("/evil"),
        member("Spk/link", kind=tarfile.SYMTYPE, link="../../outside"),
        member("Spk/link", kind=tarfile.SYMTYPE, link="/etc"),
        member("Spk/link", kind=tarfile.SYMTYPE, link="s"),
        member("Spk/link", kind=tarfile.LNKTYPE, link="../outside/secret"),
        member("Spk/link", kind=tarfile.LNKTYPE, link="Spk/s/u.wav"),
        member("Spk/device", kind=tarfile.CHRTYPE),
        member("Spk/device", kind=tarfile.BLKTYPE),
        member("Spk/pipe", kind=tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}-{info.linkname}",
)
def test_a_member_that_is_no_plain_file_inside_is_refused(tmp_path: Path, evil: tarfile.TarInfo) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    path = pack(tmp_path / "a.tar.gz", member("Spk/s/u.wav"), evil, member("Spk/link/inside"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=rf"'{re.escape(evil.name)}' in .* is refused"):
        extract(path, tmp_path / "Spk")
    assert sorted(tmp_path.rglob("*")) == before and not Path("/evil").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"<html>",
        lambda data: data[:10],
        lambda data: data[: len(data) // 2],
        lambda data: data[: len(data) // 2] + bytes(50) + data[len(data) // 2 + 50 :],
    ],
    ids=["empty", "page", "header alone", "half", "hole"],
)
def test_a_damaged_archive_leaves_nothing_behind(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    whole = tmp_path / "a.tar.gz"
    with tarfile.open(whole, "w:gz") as tar:
        for number in range(300):  # many small members: an end between two must not look like the archive's
            info = member(f"Spk/s/{number}.wav", DATA[number * 512 : (number + 1) * 512])
            tar.addfile(info, io.BytesIO(DATA[number * 512 : (number + 1) * 512]))
    whole.write_bytes(damage(whole.read_bytes()))
    with pytest.raises(DataError, match=r"a\.tar\.gz is damaged or no tar\.gz archive"):
        extract(whole, tmp_path / "Spk")
    assert list(tmp_path.iterdir()) == [whole]


def test_a_disk_that_fills_while_unpacking_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = pack(tmp_path / "a.tar.gz", member("Spk/s/u.wav"))
    monkeypatch.setattr(tarfile, "copyfileobj", full)
    with pytest.raises(DataError, match=r"can't be unpacked to .*Spk \(No space left on device\)"):
        extract(path, tmp_path / "Spk")
    assert list(tmp_path.iterdir()) == [path]


# The command


@pytest.fixture
def published(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small archives on the local server."""
    server.data = pack(tmp_path / "made.tar.gz", member("Spk/s/u.wav")).read_bytes()
    for name in ("Spk10_enroll", "Spk10_test"):
        small = archive(server.url(name), data=server.data, name=f"{name}.tar.gz")
        monkeypatch.setitem(SEC4SR, name, small)


@pytest.mark.usefixtures("published")
def test_the_command_downloads_checks_and_unpacks(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    main(["Spk10_enroll", "Spk10_test", "--root", str(root)])
    assert server.paths == ["/Spk10_enroll", "/Spk10_test"]
    assert [[Path(path) for path in list_files(root, name)] for name in ("Spk10_enroll", "Spk10_test")] == [
        [root / "Spk10_enroll" / "s" / "u.wav"],
        [root / "Spk10_test" / "s" / "u.wav"],
    ]
    assert f"{root / 'Spk10_test'} is there" in capsys.readouterr().out
    (root / "Spk10_enroll.tar.gz").unlink()
    main(["Spk10_enroll", "--root", str(root)])
    assert len(server.paths) == 2


@pytest.mark.usefixtures("published")
def test_an_error_of_the_user_is_one_line_and_status_1(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.moods.append(Mood(status=404))
    with pytest.raises(SystemExit) as stopped:
        main(["Spk10_enroll", "--root", str(tmp_path)])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1
    assert len(lines) == 1 and lines[0].startswith("python -m sec4sr_pl.data.download: error: Spk10_enroll.tar.gz")


def test_an_interruption_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "fetch", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["Spk10_enroll", "--root", str(tmp_path)])
    assert stopped.value.code == 130 and "the same command goes on" in capsys.readouterr().err


def test_the_module_runs_and_its_help_lists_names_and_sizes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, download.__name__)  # as in a fresh process
    monkeypatch.setattr(sys, "argv", ["download", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(download.__name__, run_name="__main__")
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    for name, size in (("Spk10_enroll", "18"), ("Spk251_train", "10,000"), ("pre-trained-models", "340")):
        assert re.search(rf"^  {name} +{size} MB$", text, re.MULTILINE)


def test_the_published_archives_are_well_formed() -> None:
    archives = [*SEC4SR.values(), *librispeech.ARCHIVES.values()]
    assert len({one.md5 for one in archives}) == len({url for one in archives for url in one.urls[:1]}) == 9
    assert all(re.fullmatch("[0-9a-f]{32}", one.md5) and one.size > 10_000_000 for one in archives)
    assert all(url.startswith("https://") for one in archives for url in one.urls)
    for name, one in SEC4SR.items():
        assert one.name == f"{name}.tar.gz"
        assert re.search(r"\?id=[\w-]{33}&export=download&confirm=t$", one.urls[0])
    for name, one in librispeech.ARCHIVES.items():
        assert len(one.urls) == 3 and all(url.endswith(f"/resources/12/{name}.tar.gz") for url in one.urls)


# The way from a missing folder to its command


@pytest.mark.parametrize("split", ["Spk251_train", "Spk251_test", "Spk10_enroll", "Spk10_test", "Spk10_imposter"])
def test_a_missing_published_split_names_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    root = tmp_path / "with space"
    with pytest.raises(DataError, match=rf"no folder .*{split}.*, or fetch it: python -m ") as raised:
        list_files(root, split)
    module, *arguments = shlex.split(str(raised.value).partition("python -m ")[2])
    brought: list[Path] = []
    monkeypatch.setattr(
        librispeech, "spk251", lambda root, archives: brought.extend(map(root.joinpath, librispeech.SPK251))
    )
    monkeypatch.setattr(download, "fetch", lambda archive, folder: folder / archive.name)
    monkeypatch.setattr(download, "extract", lambda path, folder: brought.append(folder))
    {one.__name__: one for one in (download, librispeech)}[module].main(arguments)
    assert root / split in brought


def test_other_splits_name_no_command(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        list_files(tmp_path, "train")
    assert "python -m" not in str(raised.value) and set(COMMANDS) == {"Spk251", "Spk10"}
