"""Archives that arrive: taken from a local folder or downloaded, checked, and unpacked inside their folder alone."""

import errno
import gzip
import hashlib
import re
import shutil
import ssl
import tarfile
import tempfile
import time
import zlib
from argparse import RawDescriptionHelpFormatter
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import rich.progress
from jsonargparse import ArgumentParser
from rich.console import Console

from sec4sr_pl.command import at_home, one_line_errors
from sec4sr_pl.data.manifest import DataError
from sec4sr_pl.files import refuse_others

TRIES = 6
"""Failures in a row, without a byte gained, after which a download is given up."""
TIMEOUT = 60.0
"""Seconds that a server may be silent."""
CHUNK = 1 << 20
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""HTTP states that another try may change."""
FULL = (errno.ENOSPC, errno.EDQUOT)
NETWORK_ERRORS = (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError)


class Archive(NamedTuple):
    """A file that public servers keep."""

    name: str
    """File name."""
    urls: tuple[str, ...]
    """Where it is, tried in turn."""
    size: int
    """Bytes, about: for people, and for the check of free space where a server does not tell."""
    md5: str


def _on_google_drive(name: str, megabytes: int, md5: str, identifier: str) -> Archive:
    """An archive of SEC4SR; `confirm=t` answers the question that Google asks before large files."""
    url = f"https://drive.usercontent.google.com/download?id={identifier}&export=download&confirm=t"
    return Archive(f"{name}.tar.gz", (url,), megabytes * 1_000_000, md5)


SEC4SR = {
    name: _on_google_drive(name, megabytes, md5, identifier)
    for name, megabytes, md5, identifier in (
        ("Spk10_enroll", 18, "0e90fb00b69989c0dde252a585cead85", "1BBAo64JOahk0F3yBAovnRLZ1NvjwBy7y"),
        ("Spk10_test", 114, "b0f8eb0db3d2eca567810151acf13f16", "1WctqJtP5Es74-U7y3cFXqfHi7JkDz6g5"),
        ("Spk10_imposter", 212, "42abd80e27b78983a13b74e44a67be65", "1f1GULs0aj_Xrw8JRxe6zzvTN3r2nnOf6"),
        ("Spk251_train", 10_000, "02bee7caf460072a6fc22e3666ac2187", "1iGcMPiPMzcCLI7xKJLwH1L0Ff_95-tmB"),
        ("Spk251_test", 1_000, "182dd6b17f8bcfed7a998e1597828ed6", "1rsXzuEyi5Zqd1XAsr1_Op7mC7hqY0tsp"),
        ("pre-trained-models", 340, "b011ead1e6663d557afa9e037f30a866", "1kxsSr7V_DbPloUPeqgsxUbuHsV6rBveH"),
    )
}
"""The data sets and background models that SEC4SR published, by the name of the folder that each unpacks to."""


class _RefusedError(Exception):
    """An answer of a server that another try would not change."""


def fetch(archive: Archive, folder: Path) -> Path:
    """The archive in the folder: the one that is there, else downloaded to `NAME.part`, which a next call goes on with.

    Args:
        archive: what to get.
        folder: made if missing.

    Returns:
        `folder/NAME`, whose checksum was right.

    Raises:
        DataError: a wrong checksum, servers that do not give the file, or no room for it.
    """
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    if path.is_file():
        if (came := md5(path)) != archive.md5:
            raise DataError(
                f"{path} has the MD5 {came}, expected {archive.md5}: replace it by the right file, or remove it and "
                "the same command downloads it"
            )
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_others(part)
        _download(archive, part)
        if (came := md5(part)) == archive.md5:
            return part.replace(path)
        bad = part.replace(folder / f"{archive.name}.bad")
    except OSError as error:
        raise DataError(
            f"{part} can't be written ({error.strerror or error}): make room, or choose another folder, and run the "
            "same command again; it goes on with what is there"
        ) from error
    raise DataError(
        f"What came for {archive.name} has the MD5 {came} and {bad.stat().st_size} bytes, expected {archive.md5} and "
        f"about {archive.size}: moved to {bad}; run the same command to download it anew, or put the file at {path}"
    )


def md5(path: Path) -> str:
    """MD5 of a file, in hexadecimal: what the archives' authors published."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download(archive: Archive, part: Path) -> None:
    """Complete the part, from one address after the other, with growing pauses."""
    urls, reasons = deque(archive.urls), {}
    failures, most = 0, 0
    while urls and failures < TRIES:
        url = urls[0]
        if failures:
            time.sleep(min(2.0 ** (failures - 1), TIMEOUT))
        try:
            return _receive(url, part, archive.size)
        except _RefusedError as error:
            reasons[url] = str(error)
            urls.popleft()
        except NETWORK_ERRORS as error:
            reasons[url] = str(error) or type(error).__name__
            urls.rotate(-1)
            size = _size(part)
            failures = 1 if size > most else failures + 1
            most = max(most, size)
    told = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
    raise DataError(
        f"{archive.name} could not be downloaded ({told}): run the same command again later, or fetch the file by "
        f"hand, e.g. in a browser, and put it at {part.with_name(archive.name)}"
    )


def _receive(url: str, part: Path, about: int) -> None:
    """One request for what the part lacks; returns when it has all bytes."""
    have = _size(part)
    headers = {"User-Agent": "sec4sr_pl"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        with error:
            if error.code == 416 and have:
                if error.headers.get("Content-Range") == f"bytes */{have}":
                    return None  # nothing is lacking
                part.unlink()  # longer than the file: not a part of it
                return _receive(url, part, about)
            if error.code in PASSING:
                raise
            raise _RefusedError(f"the server answered {error.code} {error.reason}") from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _RefusedError(
                f"a web page ({response.url}) came instead of the file: a quota, or a request to sign in"
            )
        start, length = 0, response.headers.get("Content-Length")
        total = int(length) if length else None
        if response.status == 206:
            match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if not match or int(match[1]) != have:
                if not have:
                    raise _RefusedError("the server answered with a part of the file that nobody asked for")
                part.unlink()
                return _receive(url, part, about)
            start, total = have, int(match[2])
        needed, free = (about if total is None else total) - have, shutil.disk_usage(part.parent).free
        if needed > free:
            raise DataError(f"{part} needs {needed / 1e9:.2f} GB more, {free / 1e9:.2f} GB are free: make room")
        with part.open("ab" if start else "wb") as file, _progress() as progress:
            task = progress.add_task(part.stem, total=total, completed=start)
            while chunk := _read(response):
                file.write(chunk)
                progress.advance(task, len(chunk))
    if total is not None and (size := _size(part)) < total:
        raise ConnectionError(f"the connection was cut after {size} of {total} bytes")


def _read(response: HTTPResponse) -> bytes:
    """Some bytes, none at the end; an error is the network's, not the disk's."""
    try:
        return response.read1(CHUNK)
    except NETWORK_ERRORS:
        raise
    except OSError as error:
        raise ConnectionError(f"the connection failed ({error.strerror or error})") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _progress() -> rich.progress.Progress:
    columns = (rich.progress.DownloadColumn(), rich.progress.TransferSpeedColumn())
    return rich.progress.Progress(*rich.progress.Progress.get_default_columns(), *columns, console=Console(stderr=True))


@contextmanager
def open_archive(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar.gz file to be read once from front to back, with a progress bar.

    Raises:
        DataError: damaged, or no tar file.
    """
    try:
        with (
            rich.progress.open(path, "rb", description=path.name, console=Console(stderr=True)) as file,
            tarfile.open(fileobj=file, mode="r:gz") as tar,
        ):
            yield tar
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is damaged or no tar.gz archive ({error}): remove it and run the command again"
        ) from error


def extract(path: Path, folder: Path) -> Path:
    """Unpack a tar.gz file to the folder, which appears when it is whole; one that is there already is kept as it is.

    Args:
        path: the archive; its only top folder, whatever its name, becomes `folder`, else all of it does.
        folder: nothing is ever written outside it.

    Returns:
        `folder`.

    Raises:
        DataError: a damaged archive, no room, or a member that is no plain file or folder inside the archive.
    """
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            place = Path(scratch) / folder.name
            place.mkdir()
            with open_archive(path) as tar:
                tar.extractall(place, filter=partial(_plain, path))
                while tar.fileobj and tar.fileobj.read(CHUNK):
                    pass  # to the end, where gzip's own checksum stands: tarfile takes a damaged header for the end
            inside = list(place.iterdir())
            (inside[0] if len(inside) == 1 and inside[0].is_dir() else place).rename(folder)
    except OSError as error:
        advice = "make room" if error.errno in FULL else "remove what is in the way, or choose another folder"
        raise DataError(f"{path} can't be unpacked to {folder} ({error.strerror or error}): {advice}") from error
    return folder


def _plain(path: Path, member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """The member, without owner and special permissions; the data sets need no links, so none is let through."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
        raise DataError(f"'{member.name}' in {path} is refused: expected plain files and folders inside the archive")
    return tarfile.data_filter(member, folder)


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: default: those of the process.
    """
    sizes = "\n".join(f"  {name:20} {archive.size / 1e6:7,.0f} MB" for name, archive in SEC4SR.items())
    parser = ArgumentParser(
        prog="python -m sec4sr_pl.data.download",
        description="Download data sets of SEC4SR to ROOT/NAME.tar.gz, check them, and unpack them to ROOT/NAME/.\n"
        "A NAME.tar.gz that is there already is taken as it is, once its checksum is right; what is\n"
        "unpacked is kept; an interrupted download goes on. The archives may be removed afterwards.",
        epilog=f"names:\n{sizes}\n\nSpk251 from its durable source: python -m sec4sr_pl.data.librispeech spk251",
        formatter_class=RawDescriptionHelpFormatter,
        exit_on_error=False,
    )
    parser.add_argument("names", nargs="+", choices=SEC4SR, metavar="NAME", help="one of the names below")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of the data (default: data)")
    with one_line_errors(parser.prog):
        options = at_home(parser.parse_args(args))
        for name in options.names:
            folder = options.root / name
            if not folder.exists():
                extract(fetch(SEC4SR[name], options.root), folder)
            Console().print(f"{folder} is there", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
