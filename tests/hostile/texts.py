"""YAML that is none, means more than it says, or asks for what nobody should get."""

from collections.abc import Callable, Iterator

from hostile.files import NO_CONTENT, NO_FILES, Spoil, spoiled, written
from hostile.good import COMMANDS, INPUTS
from hostile.place import Case, Place

RUN = "touch ran"
"""A command of the shell whose trace would be seen."""
TEXTS: dict[str, Spoil] = {
    **{name: spoil for name, spoil in NO_FILES.items() if name != "missing"},
    **{name: spoil for name, spoil in NO_CONTENT.items() if name != "empty"},
    "Latin-1": written("seed: 1 # für\n".encode("latin-1")),
    "UTF-16": written("seed: 1\n".encode("utf-16-le")),
    "NUL": written(b"seed: \0\n"),
    "aliases of aliases": written(
        b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 10))
        + b"seed: *a9\n"
    ),
    "alias of itself": written(b"seed: &a [*a]\n"),
    "deep brackets": written(b"seed: " + b"[" * 20_000),
    "deep maps": written(b"".join(b" " * i + b"a:\n" for i in range(1_500))),
    "tab": written(b"\tseed: 1\n"),
    "open quote": written(b'seed: "1\n'),
    "python object": written(f"seed: !!python/object/apply:os.system ['{RUN}']\n".encode()),
    "python module": written(b"seed: !!python/module:this\n"),
    "unknown tag": written(b"seed: !secret 1\n"),
    "scalar": written(b"5\n"),
    "list": written(b"- seed\n- 1\n"),
    "unknown key": written(b"sede: 1\n"),
    "number as key": written(b"5: 1\n"),
    "map for a number": written(b"seed: {a: 1}\n"),
    "list for a number": written(b"seed: [1, 2]\n"),
    "text for a number": written(b"seed: many\n"),
    "infinite": written(b"seed: .inf\n"),
    "not a number": written(b"seed: .nan\n"),
    "long number": written(b"seed: " + b"9" * 6_000 + b"\n"),
    "itself": written(b"config: spoiled.yaml\n"),
}
CONFIGURED = ("evaluate", "enroll", "universal", "background", "backend", "trial_list", "fit")


def cases() -> Iterator[Case]:
    """Each text as the configuration of each command, and values that no part of it may have."""
    for command in CONFIGURED:
        for kind, spoil in TEXTS.items():
            yield Case(f"{command}: {kind} as YAML", COMMANDS[command], configured(command, spoil))
    for key, values in PARTS.items():
        for value in values:
            yield part(key, value)


def configured(command: str, spoil: Spoil) -> Callable[[Place], list[str]]:
    """A spoiled configuration beside flags that are right."""

    def prepare(place: Place) -> list[str]:
        path = spoiled(place, spoil, "spoiled.yaml", *INPUTS)
        if command == "fit" and path.is_file() and not path.is_symlink():  # its seed has another name
            path.write_bytes(path.read_bytes().replace(b"seed:", b"seed_everything:"))
        return [*COMMANDS[command].arguments(), "--config=spoiled.yaml"]

    return prepare


IMPORTS = (
    f"{{class_path: os.system, init_args: {{command: {RUN}}}}}",
    f"{{class_path: subprocess.Popen, init_args: {{args: [sh, -c, {RUN}]}}}}",
    "{class_path: evil.Evil}",
    "{class_path: sec4sr_pl.checkpoint.export, init_args: {checkpoint: given.ckpt, destination: ran}}",
    "{class_path: torch.serialization.load, init_args: {f: code.pkl, weights_only: false}}",
    "evil.Evil",
)
"""What would run code, import a module of the current folder, or write a file."""
PARTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("evaluate", "data"): IMPORTS,
    ("evaluate", "defenses"): tuple(f"[{value}]" for value in IMPORTS),
    ("evaluate", "attacks"): tuple(f"[{value}]" for value in IMPORTS),
    ("evaluate", "attacks.init_args.source"): IMPORTS[:3],
    ("enroll", "scorer"): IMPORTS,
    ("enroll", "cohort"): IMPORTS[:3],
    ("universal", "attack"): IMPORTS,
    ("background", "data"): IMPORTS[:3],
    ("fit", "model.optimizer"): IMPORTS,
    ("fit", "model.scheduler"): (
        *IMPORTS[:4],
        "{class_path: torch.optim.lr_scheduler.LambdaLR, init_args: {lr_lambda: os.system}}",
    ),
    ("fit", "model.objective"): IMPORTS[:3],
    ("fit", "model.recognizer.init_args.backbone"): IMPORTS[:4],
    ("fit", "data.init_args.augmentations"): tuple(f"[{value}]" for value in IMPORTS[:3]),
    ("fit", "trainer.callbacks"): tuple(f"[{value}]" for value in IMPORTS[:4]),
    ("fit", "trainer.logger"): IMPORTS[:3],
    ("fit", "trainer.strategy"): IMPORTS[:3],
    ("fit", "trainer.plugins"): IMPORTS[:3],
    ("fit", "trainer.profiler"): IMPORTS[:3],
    ("fit", "data.init_args"): (
        "{root: [1]}",
        "{batch_size: 0}",
        "{batch_size: -3}",
        "{batch_size: 1.5}",
        "{crop_seconds: .inf}",
        "{crop_seconds: .nan}",
        "{crop_seconds: 1.0e+9}",
        "{crop_seconds: 0}",
        "{num_workers: -1}",
        "{train_split: ..}",
    ),
    ("fit", "model.recognizer.init_args.scorer.init_args"): (
        "{embedding_size: 1000000000}",
        "{embedding_size: 0}",
        "{embedding_size: -5}",
        "{embedding_size: 7}",
    ),
}


def part(key: tuple[str, str], value: str) -> Case:
    """A value at a place of a command's configuration."""
    command, where = key

    def prepare(place: Place) -> list[str]:
        for name in INPUTS:
            place.bring(name)
        (place / "evil.py").write_text("open('ran', 'w')\nclass Evil: ...\n")
        (place / "code.pkl").write_bytes(b"cposix\nsystem\n(S'%s'\ntR." % RUN.encode())
        lines = ""
        *parents, last = where.split(".")
        for depth, name in enumerate(parents):
            lines += f"{'  ' * depth}{name}:\n"
        lines += f"{'  ' * len(parents)}{last}: {value}\n"
        if where.startswith("attacks."):
            lines = f"attacks: [{{class_path: PGD, init_args: {{{last}: {value}}}}}]\n"
        (place / "spoiled.yaml").write_text(lines)
        changed = {where.split(".")[0]: None} if command != "fit" else {}
        return [*COMMANDS[command].arguments(**changed), "--config=spoiled.yaml"]

    return Case(f"{command}: {where} is {value}", COMMANDS[command], prepare)
