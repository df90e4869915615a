"""Checkpoints that are damaged, of something else, run code, or want too much."""

import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hostile.files import NO_CONTENT, NO_FILES, Spoil, cut, flipped, spoiled
from hostile.good import COMMANDS
from hostile.place import Case, Place
from hostile.texts import RUN

Content = dict[str, Any]


class Code:
    """Runs a command of the shell when it is unpickled."""

    def __reduce__(self) -> Any:
        import os

        return os.system, (RUN,)


def changed(change: Callable[[Content], Any]) -> Spoil:
    """Another content; what `change` returns, or what it leaves of it."""

    def spoil(path: Path) -> None:
        content = torch.load(path, weights_only=False)
        other = change(content)
        torch.save(content if other is None else other[0], path)

    return spoil


def described(*keys: str, **values: Any) -> Spoil:
    """Other arguments in the description, at a place in it."""

    def change(content: Content) -> None:
        place = content["recognizer"]["init_args"]
        for key in keys:
            place = place[key]["init_args"]
        place.update(values)

    return changed(change)


def weights(change: Callable[[Content], Any]) -> Spoil:
    """Other weights."""

    def inside(content: Content) -> None:
        change(content["state_dict"])

    return changed(inside)


def first(state: Content) -> str:
    """The name of a tensor of weights."""
    return next(name for name, value in state.items() if value.dim() > 1)


def as_class(path: str, /, **arguments: Any) -> Spoil:
    """Another class as backbone."""
    return described(backbone={"class_path": path, "init_args": arguments})


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


def deep(path: Path) -> None:
    """A pickle of lists in lists."""
    torch.save({"recognizer": "DEEP", "state_dict": {}}, path)
    path.write_bytes(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")


def bomb(path: Path, megabytes: int = 2_000) -> None:
    """A checkpoint whose tensor is of zeros, deflated: a thousandth of its size until it is read."""
    torch.save({"recognizer": 1, "state_dict": {"x": torch.zeros(megabytes * 250_000 // 1_000)}}, path)
    small = path.read_bytes()
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = squeeze.compress(bytes(1_000_000)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    body = block * megabytes + squeeze.flush()
    archive = small[30 : 30 + struct.unpack_from("<H", small, 26)[0]].split(b"/")[0]
    pickled = pickled_tensor(megabytes * 250_000)
    entries = [
        (archive + b"/data.pkl", pickled, len(pickled), 0, zlib.crc32(pickled)),
        (archive + b"/data/0", body, megabytes * 1_000_000, 8, 0),
        (archive + b"/version", b"3\n", 2, 0, zlib.crc32(b"3\n")),
        (archive + b"/byteorder", b"little", 6, 0, zlib.crc32(b"little")),
    ]
    out, directory = b"", b""
    for name, data, size, method, crc in entries:
        common = struct.pack("<HHHHHIII", 20, 0, method, 0, 0, crc, len(data), size) + struct.pack("<HH", len(name), 0)
        directory += b"PK\x01\x02\x14\0" + common + struct.pack("<HHHII", 0, 0, 0, 0, len(out)) + name
        out += b"PK\x03\x04" + common + name + data
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(directory), len(out), 0)
    path.write_bytes(out + directory + b"PK\x05\x06" + end)


def pickled_tensor(numbers: int) -> bytes:
    """The pickle of a checkpoint with one tensor of so many float32."""
    size = b"J" + struct.pack("<i", numbers)
    storage = b"((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpu" + size + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + storage + b"K\0" + size + b"\x85K\1\x85\x89"
    tensor += b"ccollections\nOrderedDict\n)RtR"
    return b"\x80\2}(X\x0a\0\0\0recognizerK\1X\x0a\0\0\0state_dict}X\1\0\0\0x" + tensor + b"su."


CHECKPOINTS: dict[str, Spoil] = {
    **NO_FILES,
    **NO_CONTENT,
    **{f"cut to {part:.0%}": cut(part) for part in (0.001, 0.1, 0.5, 0.9, 0.999)},
    "bare code": lambda path: path.write_bytes(pickle.dumps(Code())),
    "code": changed(lambda content: [Code()]),
    "code among weights": changed(lambda content: content.update(more=Code())),
    "code as a name": changed(lambda content: content["recognizer"].update(class_path=Code())),
    "a list": changed(lambda content: [[content]]),
    "a tensor": changed(lambda content: [torch.zeros(3)]),
    "nothing": changed(lambda content: [{}]),
    "no description": changed(lambda content: content.pop("recognizer") and None),
    "no weights": changed(lambda content: content.pop("state_dict") and None),
    "weights alone": changed(lambda content: [content["state_dict"]]),
    "a text as description": changed(lambda content: content.update(recognizer="AudioNet")),
    "a number as description": changed(lambda content: content.update(recognizer=5)),
    "a list as description": changed(lambda content: content.update(recognizer=[content["recognizer"]])),
    "no arguments": changed(lambda content: content["recognizer"].pop("init_args") and None),
    "a list of arguments": changed(lambda content: content["recognizer"].update(init_args=[1, 2])),
    "numbers as arguments": changed(lambda content: content["recognizer"].update(init_args={5: 5})),
    "no class": changed(lambda content: content["recognizer"].pop("class_path") and None),
    "an empty class": changed(lambda content: content["recognizer"].update(class_path="")),
    "dots as class": changed(lambda content: content["recognizer"].update(class_path="sec4sr_pl...")),
    "a number as class": changed(lambda content: content["recognizer"].update(class_path=5)),
    "another class": as_class("os.system", command=RUN),
    "a class of torch": as_class("torch.nn.Linear", in_features=2, out_features=2),
    "a module of here": as_class("evil.Evil"),
    "a function of ours": as_class("sec4sr_pl.checkpoint.export", checkpoint="given.ckpt", destination="ran"),
    "an import of ours": as_class("sec4sr_pl.checkpoint.os.system", command=RUN),
    "a data module": as_class("sec4sr_pl.data.SyntheticVoices", root="ran"),
    "another part of the chain": as_class("sec4sr_pl.features.LogMel"),
    "a file of weights": as_class("sec4sr_pl.backbones.GE2E.pretrained", path="given.ckpt"),
    "an unknown argument": described("backbone", depth=5),
    "a wrong argument": described("scorer", embedding_size="many"),
    "a negative size": described("scorer", embedding_size=-3),
    "another size": described("scorer", embedding_size=7),
    "a size of 10^9": described("scorer", embedding_size=10**9),
    "10^9 speakers": described("scorer", speakers=10**9),
    "10^30 speakers": described("scorer", speakers=10**30),
    "no speakers": described("scorer", speakers=[]),
    "speakers twice": described("scorer", speakers=["ann", "ann"]),
    "numbers as speakers": described("scorer", speakers=[1, 2]),
    "a speaker too many": described("scorer", speakers=["ann", "bob", "eve"]),
    "deep": changed(lambda content: content.update(recognizer=nested(400))),
    "very deep": deep,
    "weights as a list": changed(lambda content: content.update(state_dict=[1, 2])),
    "no weights at all": changed(lambda content: content.update(state_dict=None)),
    "texts as weights": weights(lambda state: state.update({first(state): "weights"})),
    "a weight missing": weights(lambda state: state.pop(first(state))),
    "a weight more": weights(lambda state: state.update(more=torch.zeros(3))),
    "a weight of another shape": weights(lambda state: state.update({first(state): torch.zeros(3)})),
    "a weight of 10^10 numbers": weights(lambda state: state.update({first(state): torch.zeros(1).expand(10**10)})),
    "complex weights": weights(lambda state: state.update({first(state): state[first(state)] * 1j})),
    "a sparse weight": weights(lambda state: state.update({first(state): state[first(state)].to_sparse()})),
    "a weight without numbers": weights(lambda state: state.update({first(state): state[first(state)].to("meta")})),
    "NaN in a weight": weights(lambda state: state[first(state)].fill_(torch.nan)),
    "an infinite weight": weights(lambda state: state[first(state)].fill_(torch.inf)),
    "NaN as threshold": weights(lambda state: state["scorer.threshold"].fill_(torch.nan)),
    "inflated zeros": bomb,
}
FLIPS = {f"{bits} bits flipped ({seed})": flipped(seed, bits) for seed in range(10) for bits in (1, 30)}
READERS = ("export", "evaluate", "enroll", "universal", "backend")
MORE_STEPS = ("--trainer.max_steps=2",)


def cases() -> Iterator[Case]:
    """Each checkpoint to each command that reads one."""
    for command in READERS:
        for kind, spoil in CHECKPOINTS.items():
            yield Case(f"{command}: {kind} as checkpoint", COMMANDS[command], given(spoil), "given.ckpt")
    for kind, spoil in FLIPS.items():
        yield Case(f"export: {kind} in a checkpoint", COMMANDS["export"], given(spoil), may_work=True)
    for command in ("fit", "validate"):
        for kind, spoil in RESUMED.items():
            if command == "fit" or kind in WEIGHTS_ONLY:
                yield Case(f"{command}: {kind} to resume", COMMANDS[command], resumed(command, spoil), foreseen=False)
        for kind, spoil in IGNORED.items():
            yield Case(f"{command}: {kind} to resume", COMMANDS[command], resumed(command, spoil), may_work=True)


def given(spoil: Spoil) -> Any:
    """A spoiled checkpoint."""

    def prepare(place: Place) -> None:
        (place / "evil.py").write_text("open('ran', 'w')\nclass Evil: ...\n")
        spoiled(place, spoil, "given.ckpt", "given.ckpt", "data")

    return prepare


def resumed(command: str, spoil: Spoil) -> Any:
    """A spoiled checkpoint of a training."""

    def prepare(place: Place) -> list[str]:
        (place / "evil.py").write_text("open('ran', 'w')\nclass Evil: ...\n")
        (place / "neighbors").mkdir()
        (place / "neighbors" / "file.txt").write_text("as it was")
        for name in ("training.yaml", "data"):
            place.bring(name)
        spoil(place.bring("trained/last.ckpt", "last.ckpt"))
        return [*COMMANDS[command].arguments(), "--ckpt_path=last.ckpt", *MORE_STEPS * (command == "fit")]

    return prepare


def hyperparameters(**values: Any) -> Spoil:
    """What Lightning's command line would merge into the model's configuration."""
    made = {"_instantiator": "pytorch_lightning.cli.instantiate_module", **values}
    return changed(lambda content: content.update(hyper_parameters=made))


def kept(**state: Any) -> Spoil:
    """Another state of the callbacks that keep checkpoints."""

    def change(content: Content) -> None:
        for name, own in content["callbacks"].items():
            if "Checkpoint" in name:
                own.update(state)

    return changed(change)


SHELL = {"class_path": "os.system", "init_args": {"command": RUN}}
RESUMED: dict[str, Spoil] = {
    **{name: CHECKPOINTS[name] for name in ("folder", "pipe", "empty", "web page", "cut to 50%", "code", "a list")},
    **{name: CHECKPOINTS[name] for name in ("nothing", "no weights", "a weight missing", "a weight of another shape")},
    "another optimizer": changed(lambda content: content["optimizer_states"][0].update(param_groups=[])),
    "other loops": changed(lambda content: content.update(loops={"fit_loop": 5})),
    "other callbacks": changed(lambda content: content.update(callbacks=5)),
}
IGNORED: dict[str, Spoil] = {
    "a shell as optimizer": hyperparameters(optimizer=SHELL),
    "a shell as objective": hyperparameters(objective=SHELL),
    "a shell as backbone": hyperparameters(recognizer={"init_args": {"backbone": SHELL}}),
    "a module of here as backbone": hyperparameters(
        recognizer={"init_args": {"backbone": {"class_path": "evil.Evil"}}}
    ),
    "a text as parameters": changed(lambda content: content.update(hyper_parameters="none")),
    "a neighbor as best model": kept(
        best_model_path="neighbors", best_k_models={"neighbors": torch.tensor(0.0)}, kth_best_model_path="neighbors"
    ),
    "a neighbor as last model": kept(last_model_path="neighbors"),
    "no optimizer": changed(lambda content: content.update(optimizer_states=[])),
    "no loops": changed(lambda content: content.pop("loops") and None),
    "a text as step": changed(lambda content: content.update(global_step="many")),
    "another folder": kept(dirpath="neighbors"),
}
"""What a resume may leave aside."""
WEIGHTS_ONLY = ("folder", "pipe", "empty", "web page", "cut to 50%", "code", "a list", "nothing", "no weights")
"""What is wrong for a validation, too."""
