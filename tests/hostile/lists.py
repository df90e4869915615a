"""Lists, indexes, checksums, Kaldi's texts: small files that say where others are, or what they must be."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hostile.files import NO_CONTENT, NO_FILES, Spoil, cut, spoiled, written
from hostile.good import COMMANDS, INPUTS
from hostile.place import Case, Place

PAIR = "id0/video/id0-0.wav id0/video/id0-1.wav"
LATIN = "für\n".encode("latin-1")
TRIALS: dict[str, Spoil] = {
    **NO_FILES,
    **NO_CONTENT,
    "Latin-1": written(f"1 {PAIR}\n".encode() + LATIN),
    "two fields": written(f"{PAIR}\n".encode()),
    "four fields": written(f"1 {PAIR} more\n".encode()),
    "another label": written(f"2 {PAIR}\n".encode()),
    "both labels": written(f"1 {PAIR}\n0 {PAIR}\n".encode()),
    "files of nobody": written(b"1 id9/video/1.wav id9/video/2.wav\n"),
    "a way out": written(b"1 ../../neighbor.txt ../../neighbor.txt\n"),
    "an absolute path": written(b"1 /etc/hosts /etc/hosts\n"),
    "one kind alone": written(f"1 {PAIR}\n".encode()),
}
SPEAKERS: dict[str, Spoil] = {
    **NO_FILES,
    **NO_CONTENT,
    "Latin-1": written(b"x\n" + LATIN),
    "nobody": written(b"\n\n"),
    "strangers": written(b"x\ny\nz\neve\n"),
    "a way out": written(b"x\n../x\n"),
    "one alone": written(b"x\n"),
}


def row(**changed: str) -> Spoil:
    """Another value in the first row of an index."""

    def spoil(path: Path) -> None:
        names = ("name", "speaker", "frames", "rate", "shard", "path", "size", "offset")
        first, *others = path.read_text().splitlines()
        values = {**dict(zip(names, first.split(","), strict=True)), **changed}
        path.write_text("\n".join([",".join(values.values()), *others]) + "\n")

    return spoil


INDEXES: dict[str, Spoil] = {
    **NO_CONTENT,
    **{name: NO_FILES[name] for name in ("pipe", "endless device")},
    "Latin-1": lambda path: path.write_bytes(path.read_bytes() + LATIN),
    "cut": cut(0.7),
    "a way out by its shard": row(shard="../../../given.ckpt"),
    "an absolute shard": row(shard="/etc/hosts"),
    "a way out by its path": row(path="../../x.wav"),
    "another shard": row(shard="00007.tar"),
    "a folder as shard": row(shard="."),
    "a negative offset": row(offset="-512"),
    "a large offset": row(offset="1000000000000"),
    "a huge offset": row(offset=str(2**70)),
    "an offset inside": row(offset="1024"),
    "a negative size": row(size="-1"),
    "a large size": row(size="1000000000000"),
    "no size": row(size="0"),
    "frames of a day": row(frames=str(16_000 * 86_400)),
    "2^62 frames": row(frames=str(2**62)),
    "no rate": row(rate="0"),
    "a text for a number": row(frames="many"),
    "a field too many": row(offset="1,2"),
    "a name twice": lambda path: path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n"),
}
SUM = "0" * 64
CHECKSUMS: dict[str, Spoil] = {
    "another sum": written(f"{SUM}  given.ckpt\n".encode()),
    "another form": written(b"given.ckpt: 123\n"),
    "Latin-1": written(LATIN),
    "random bytes": NO_CONTENT["random bytes"],
    "zeros": NO_CONTENT["zeros"],
    "large": lambda path: (path.touch(), os.truncate(path, 10**11)),
}
MODELS = ("final_ubm.txt", "final_ie.txt", "mean.vec", "transform.txt", "plda.txt")


def number(text: str) -> Spoil:
    """Another last number of the first vector or matrix."""
    return lambda path: path.write_text(re.sub(r"\S+(?=\s+\])", text, path.read_text(), count=1))


KALDI: dict[str, Spoil] = {
    **NO_FILES,
    **NO_CONTENT,
    "cut": cut(0.6),
    **{kind: number(kind) for kind in ("nan", "inf", "many", "1e999")},
}


def cases() -> Iterator[Case]:
    """Each text in the place of each kind of list."""
    for kind, spoil in TRIALS.items():
        if kind == "one kind alone":
            continue
        changed = {"part": "trials", "data": "VoxCeleb", "data__test_split": "nested"}
        more = {"data__trial_splits": "[nested]", "data__trials": "trials.txt", "checkpoint": "verify.ckpt"}
        yield Case(
            f"evaluate: {kind} as trials", COMMANDS["evaluate"], at("data/trials.txt", spoil, {**changed, **more})
        )
    for kind, spoil in TRIALS.items():
        yield Case(f"verify: {kind} as trials", COMMANDS["verify"], at("data/trials.txt", spoil))
    for kind, spoil in SPEAKERS.items():
        yield Case(f"background: {kind} as speakers", COMMANDS["background"], at("data/listed.txt", spoil))
    for command in ("evaluate", "fit", "universal"):
        for kind, spoil in INDEXES.items():
            yield Case(f"{command}: index with {kind}", COMMANDS[command], sharded(command, spoil))
    for command in ("export", "evaluate", "enroll"):
        for kind, spoil in CHECKSUMS.items():
            yield Case(f"{command}: checksums with {kind}", COMMANDS[command], at("SHA256SUMS", spoil))
    for name in MODELS:
        for kind, spoil in KALDI.items():
            yield Case(f"enroll: {kind} as {name}", COMMANDS["kaldi"], at(f"models/{name}", spoil), name)


def at(name: str, spoil: Spoil, flags: dict[str, object] | None = None) -> Callable[[Place], Any]:
    """Everything good but one file."""

    def prepare(place: Place) -> dict[str, object]:
        spoiled(place, spoil, name, *INPUTS, "verify.ckpt")
        return flags or {}

    return prepare


def sharded(command: str, spoil: Spoil) -> Callable[[Place], Any]:
    """Shards whose index is spoiled, of the split that the command reads."""

    def prepare(place: Place) -> list[str]:
        for name in INPUTS:
            place.bring(name)
        split = "test" if command == "evaluate" else "train"
        spoiled(place, spoil, f"sharded/{split}/index.csv", "sharded")
        arguments = COMMANDS[command].arguments(**({} if command == "fit" else {"data__root": "sharded"}))
        return [*arguments, *["--data.init_args.root=sharded"] * (command == "fit")]

    return prepare
