"""What a command finds where it left things before: a campaign, the state of a training, checkpoints."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hostile.checkpoints import Code, nested
from hostile.files import NO_CONTENT, NO_FILES, Spoil, cut, flipped, spoiled, written
from hostile.good import COMMANDS, INPUTS
from hostile.place import OUTPUT, Case, Command, Place, faults, run

UNIT = "out/records/FGSM/00000.jsonl"
BENIGN = "out/records/benign/00000.jsonl"


def lines(change: Callable[[list[dict[str, Any]]], Any]) -> Spoil:
    """Other records in a unit."""

    def spoil(path: Path) -> None:
        records = [json.loads(line) for line in path.read_text().splitlines()]
        change(records)
        path.write_text("".join(json.dumps(one) + "\n" for one in records))

    return spoil


RECORDS: dict[str, Spoil] = {
    **NO_FILES,
    **NO_CONTENT,
    "cut": cut(0.6),
    "cut after a line": lambda path: path.write_text("".join(path.read_text().splitlines(True)[:-1])),
    "a bit flipped": flipped(1),
    "Latin-1": written("für\n".encode("latin-1")),
    "NaN": written(b'{"name": NaN}\n'),
    "a list": written(b"[1, 2]\n"),
    "deep": written(b"[" * 100_000),
    "success for all": lines(lambda records: [one.update(achieved=True, decision=-1) for one in records]),
    "no success": lines(lambda records: [one.update(achieved=False, decision=one["label"]) for one in records]),
    "another label": lines(lambda records: records[0].update(label=1 - records[0]["label"])),
    "another name": lines(lambda records: records[0].update(name="../../../x")),
    "a text as decision": lines(lambda records: records[0].update(decision="none")),
    "a field missing": lines(lambda records: records[0].pop("decision")),
    "a record twice": lines(lambda records: records.__setitem__(1, records[0])),
    "records swapped": lines(lambda records: records.reverse()),
    "a record more": lines(lambda records: records.append(records[0])),
    "of another attack": lambda path: path.write_bytes((path.parents[1] / "benign" / path.name).read_bytes()),
}


def campaign(**changed: Any) -> Spoil:
    """Another identity."""

    def spoil(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return spoil


IDENTITIES: dict[str, Spoil] = {
    **NO_CONTENT,
    "folder": NO_FILES["folder"],
    "pipe": NO_FILES["pipe"],
    "missing": Path.unlink,
    "a list": written(b"[1, 2]"),
    "a number": written(b"5"),
    "deep": written(b"[" * 100_000),
    "Latin-1": written(b'"\xfc"'),
    "another seed": campaign(seed=7),
    "another checkpoint": campaign(checkpoint="0" * 64),
    "unknown": campaign(more=1),
}


class Again(Case):
    """A campaign that is done already, and then spoiled: it is refused, or its table is what it was."""

    def faults(self, place: Place) -> list[str]:
        for name in (*INPUTS,):
            place.bring(name)
        place.bring("campaign", OUTPUT)
        table = (place.folder / OUTPUT / "summary.json").read_bytes()
        self.spoil(place)
        status, _ = run(self.command, place, self.command.arguments()) if self.may_work else (1, "")
        if status == 0:
            same = (place.folder / OUTPUT / "summary.json").read_bytes() == table
            return [] if same else ["another table"]
        return faults(self.command, place, self.command.arguments(), self.named)


def state(change: Callable[[Any], Any]) -> Spoil:
    """Another content of a file of a background training."""

    def spoil(path: Path) -> None:
        content = torch.load(path)
        other = change(content)
        torch.save(content if other is None else other[0], path)

    return spoil


def first(content: Any, value: object) -> dict[str, object]:
    """Another value of the first part of a model."""
    return {next(iter(content["model"])): value}


STATES: dict[str, Spoil] = {
    **{name: spoil for name, spoil in NO_FILES.items() if name in ("folder", "pipe", "endless device")},
    **NO_CONTENT,
    "cut": cut(0.7),
    "code": state(lambda content: [Code()]),
    "a list": state(lambda content: [[content]]),
    "a text": state(lambda content: ["state"]),
    "nothing": state(lambda content: [{}]),
    "no history": state(lambda content: content.pop("history") and None),
    "a number as history": state(lambda content: content.update(history=5)),
    "texts as history": state(lambda content: content.update(history=["a"])),
    "a longer history": state(lambda content: content.update(history=[0.0] * 50)),
    "no model": state(lambda content: content.pop("model") and None),
    "a list as model": state(lambda content: content.update(model=[1])),
    "a part missing": state(lambda content: content["model"].popitem() and None),
    "a part more": state(lambda content: content["model"].update(more=torch.zeros(3))),
    "a part of another shape": state(
        lambda content: content["model"].update({next(iter(content["model"])): torch.zeros(1)})
    ),
    "a text as part": state(lambda content: content["model"].update(first(content, "part"))),
    "NaN": state(lambda content: [part.fill_(torch.nan) for part in content["model"].values()] and None),
    "no origin": state(lambda content: content.pop("known") and None),
    "a text as origin": state(lambda content: content.update(known="here")),
    "another origin": state(lambda content: content["known"].update(frames="x", seed=9)),
    "deep": state(lambda content: content.update(history=nested(300))),
}
AGAIN = ("--gmm_iterations=2", "--extractor_iterations=2")


def cases() -> Iterator[Case]:
    """Each kind of damage to what is there."""
    evaluate = COMMANDS["evaluate"]
    for kind, spoil in RECORDS.items():
        yield Again(f"evaluate: records with {kind}", evaluate, on(UNIT, spoil), may_work=True)
    for kind in ("cut", "missing", "success for all", "records swapped", "a text as decision", "pipe"):
        yield Again(f"evaluate: benign records with {kind}", evaluate, on(BENIGN, RECORDS[kind]), may_work=True)
    for kind, spoil in IDENTITIES.items():
        yield Again(f"evaluate: a campaign with {kind}", evaluate, on("out/campaign.json", spoil))
    for kind in ("cut", "random bytes", "pipe", "missing", "a bit flipped"):
        spoil = {**NO_FILES, **RECORDS}[kind]
        yield Again(f"evaluate: audio with {kind}", evaluate, sound(spoil), may_work=True)
    yield from in_the_way()
    for name in ("gmm.pt", "extractor.pt"):
        for kind, spoil in STATES.items():
            yield Case(f"background: {kind} as {name}", COMMANDS["background"], begun(f"models/state/{name}", spoil))


def on(name: str, spoil: Spoil) -> Callable[[Place], Any]:
    """Spoil a file that is there."""
    return lambda place: spoil(place.folder / name) and None


def sound(spoil: Spoil) -> Callable[[Place], Any]:
    """Spoil a file of adversarial audio."""
    return lambda place: spoil(min((place.folder / OUTPUT).rglob("*.wav"))) and None


def begun(name: str, spoil: Spoil) -> Callable[[Place], Any]:
    """A training to go on with, whose state is spoiled."""

    def prepare(place: Place) -> list[str]:
        spoiled(place, spoil, name, *INPUTS)
        place.folder.joinpath(OUTPUT).rmdir()
        place.folder.joinpath("models").rename(place.folder / OUTPUT)
        return [*COMMANDS["background"].arguments(), *AGAIN]

    return prepare


OUTPUTS: dict[str, Callable[[Path], object]] = {
    "below a file": lambda path: (path.parent.rmdir(), path.parent.write_text("a file")),
    "a folder": lambda path: (path.mkdir(), (path / "kept.txt").write_text("kept")),
    "a pipe": os.mkfifo,
    "a device": lambda path: os.mknod(path, 0o020666, os.makedev(1, 3)),
    "a full device": lambda path: path.symlink_to("/dev/full"),
    "a link to a neighbor": lambda path: path.symlink_to("../../../neighbor.txt"),
    "a link to nothing": lambda path: path.symlink_to("../../../new.txt"),
    "a link to itself": lambda path: path.symlink_to(path.name),
}
"""What is in the way of an output."""
MAKERS = {"export": None, "enroll": "output", "universal": "output", "trial_list": "output"}


def in_the_way() -> Iterator[Case]:
    """Outputs that cannot be written: found before the work, and what is there stays."""
    for name in MAKERS:
        for kind, make in OUTPUTS.items():
            yield Case(f"{name}: {kind} as output", blind(COMMANDS[name]), blocked(name, make))
        yield Case(f"{name}: a long name as output", blind(COMMANDS[name]), renamed(name, "out/" + 300 * "x"))
        yield Case(f"{name}: NUL in the output", blind(COMMANDS[name]), renamed(name, "out/a\0b"))
    for name in ("evaluate", "background", "backend", "shards"):
        for kind in ("below a file", "a pipe", "a link to itself"):
            yield Case(f"{name}: {kind} as output", blind(COMMANDS[name]), blocked(name, OUTPUTS[kind], "out/folder"))
        yield Case(f"{name}: a long name as output", blind(COMMANDS[name]), renamed(name, "out/" + 300 * "x"))
    for kind in ("below a file", "a pipe"):
        yield Case(f"fit: {kind} as output", blind(COMMANDS["fit"]), blocked("fit", OUTPUTS[kind], "out/folder"))


def blind(command: Command) -> Command:
    """A command whose output is looked at as everything else is."""
    return Command(command.prog, command.entry, command.flags, "", command.before)


def blocked(name: str, make: Callable[[Path], object], output: str = "") -> Callable[[Place], Any]:
    """Something lies where the output should be."""

    def prepare(place: Place) -> list[str]:
        arguments = renamed(name, output or f"out/{COMMANDS[name].made}")(place)
        make(place.folder / (output or f"out/{COMMANDS[name].made}"))
        return arguments

    return prepare


def renamed(name: str, output: str) -> Callable[[Place], Any]:
    """An output of another name."""

    def prepare(place: Place) -> list[str]:
        for given in INPUTS:
            place.bring(given)
        if name == "export":
            return ["given.ckpt", output]
        if name == "fit":
            return [*COMMANDS[name].arguments(), f"--trainer.callbacks.init_args.dirpath={output}"]
        return COMMANDS[name].arguments(output=output)

    return prepare
