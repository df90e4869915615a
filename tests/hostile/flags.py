"""Numbers that make no sense, names of nothing, and archives with more in them than data."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from hostile.files import cut, flipped, written
from hostile.good import COMMANDS, INPUTS
from hostile.place import Case, Command, Place, faults
from sec4sr_pl.data.download import SEC4SR, Archive

COUNT = ("0", "-1", "1.5", "nan", "x", "")
REAL = ("nan", "inf", "-1", "x")
REFUSED: dict[tuple[str, str], tuple[str, ...]] = {
    ("evaluate", "batch_size"): COUNT,
    ("evaluate", "limit"): ("0", "-1", "1.5", "x"),
    ("evaluate", "max_seconds"): ("nan", "inf", "-1", "0", "1e-9", "x"),
    ("evaluate", "threads"): COUNT,
    ("evaluate", "draws"): ("-1", "x"),
    ("evaluate", "seed"): ("1.5", "x"),
    ("evaluate", "target_prior"): (*REAL, "0", "1"),
    ("evaluate", "devices"): ("0", "-2", "x"),
    ("evaluate", "num_nodes"): ("0", "-1", "x"),
    ("evaluate", "accelerator"): ("abacus", "", "cuda:x"),
    ("evaluate", "part"): ("train", ""),
    ("evaluate", "goal"): ("any",),
    ("evaluate", "claims"): ("true", "perhaps"),
    ("evaluate", "attacks"): (
        "[{class_path: FGSM, init_args: {epsilon: .nan}}]",
        "[{class_path: FGSM, init_args: {epsilon: -1}}]",
        "[{class_path: PGD, init_args: {steps: -1}}]",
        "[{class_path: PGD, init_args: {step_size: .nan}}]",
        "[{class_path: PGD, init_args: {restarts: -1}}]",
        "[{class_path: UniversalPerturbation, init_args: {path: given.ckpt}}]",
        "[{class_path: UniversalPerturbation, init_args: {path: /dev/zero}}]",
        "[{class_path: Transfer, init_args: {attack: FGSM, surrogates: [data]}}]",
        "[{class_path: Transfer, init_args: {attack: FGSM, surrogates: [training.yaml]}}]",
        "[FGSM, FGSM]",
        "FGSM]",
    ),
    ("evaluate", "defenses"): (
        "[{class_path: Quantization, init_args: {step: 0}}]",
        "[{class_path: GaussianNoise, init_args: {snr: .nan}}]",
        "[{class_path: FeCo, init_args: {ratio: .nan}}]",
        "[{class_path: FeCo, init_args: {ratio: 0}}]",
    ),
    ("enroll", "batch_size"): COUNT,
    ("enroll", "max_seconds"): ("nan", "inf", "-1", "0"),
    ("enroll", "target_prior"): (*REAL, "0", "1"),
    ("enroll", "device"): ("abacus", "", "cuda:99"),
    ("enroll", "task"): ("any",),
    ("universal", "batch_size"): COUNT,
    ("universal", "epochs"): COUNT,
    ("universal", "seconds"): (*REAL, "0", "1e-9", "1e9"),
    ("universal", "device"): ("abacus", "", "cuda:99"),
    ("universal", "target"): ("nobody", ""),
    ("background", "batch_size"): COUNT,
    ("background", "components"): (*COUNT, "1000000000"),
    ("background", "embedding_size"): (*COUNT, "1000000000"),
    ("background", "lda_size"): COUNT,
    ("background", "gmm_iterations"): COUNT,
    ("background", "extractor_iterations"): COUNT,
    ("background", "plda_iterations"): ("-1", "x"),
    ("background", "num_workers"): ("-1", "x"),
    ("background", "device"): ("abacus", "cuda:99"),
    ("background", "data.segment_seconds"): (*REAL, "0"),
    ("backend", "batch_size"): COUNT,
    ("backend", "lda_size"): COUNT,
    ("backend", "shrinkage"): ("nan", "-0.1", "1.1"),
    ("backend", "num_workers"): ("-1", "x"),
    ("shards", "megabytes"): COUNT,
    ("trial_list", "trials"): COUNT,
    ("trial_list", "data.trial_splits"): ("[]", "[..]", "[/]", "[none]"),
    ("fit", "trainer.max_steps"): ("-5", "1.5", "x"),
    ("fit", "trainer.max_epochs"): ("-5", "x"),
    ("fit", "trainer.accelerator"): ("abacus",),
    ("fit", "trainer.strategy"): ("none",),
    ("fit", "trainer.precision"): ("7",),
    ("fit", "trainer.gradient_clip_val"): ("x",),
    ("fit", "trainer.check_val_every_n_epoch"): ("x",),
    ("fit", "model.optimizer.init_args.lr"): ("-1", "nan", "x"),
}


def cases() -> Iterator[Case]:
    """Each flag with each value, missing data, and archives."""
    for (command, flag), values in REFUSED.items():
        for value in values:
            yield Case(f"{command}: --{flag}={value}", COMMANDS[command], flagged(command, flag, value))
    for command in ("evaluate", "enroll", "universal", "background", "backend", "shards", "trial_list"):
        for kind, make in ROOTS.items():
            yield Case(f"{command}: {kind} as root", COMMANDS[command], rooted(command, make))
    for kind, make in ARCHIVES.items():
        yield Archived(f"download: {kind} in an archive", DOWNLOAD, make)


def flagged(command: str, flag: str, value: str) -> Callable[[Place], list[str]]:
    """A flag behind those that are right."""

    def prepare(place: Place) -> list[str]:
        for name in INPUTS:
            place.bring(name)
        return [*COMMANDS[command].arguments(**({} if command == "fit" else {flag: None})), f"--{flag}={value}"]

    return prepare


ROOTS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a file": lambda path: path.write_text("data"),
    "an empty folder": Path.mkdir,
    "empty splits": lambda path: [
        (path / name).mkdir(parents=True)
        for name in ("train", "test", "nested", "Spk10_enroll", "Spk10_test", "Spk10_imposter")
    ],
    "a link to itself": lambda path: path.symlink_to(path.name),
}


def rooted(command: str, make: Callable[[Path], object]) -> Callable[[Place], list[str]]:
    """Data at another root."""

    def prepare(place: Place) -> list[str]:
        for name in INPUTS:
            place.bring(name)
        make(place / "elsewhere")
        return COMMANDS[command].arguments(data__root="elsewhere")

    return prepare


DOWNLOAD = Command(
    "python -m sec4sr_pl.data.download", "sec4sr_pl.data.download:main", {}, "", before=("Spk10_enroll", "--root=out")
)


def archive(*members: tuple[str, bytes, str], body: bytes = b"x" * 100) -> Callable[[Path], None]:
    """A tar.gz file of members: name, kind, where a link points."""

    def make(path: Path) -> None:
        with tarfile.open(path, "w:gz") as tar:
            for name, kind, link in members:
                member = tarfile.TarInfo(name)
                member.type, member.linkname = kind, link
                member.size = len(body) if kind == tarfile.REGTYPE else 0
                tar.addfile(member, io.BytesIO(body))

    return make


FILE = ("Spk10_enroll/ann/1.wav", tarfile.REGTYPE, "")
FINE = archive(FILE)
ARCHIVES: dict[str, Callable[[Path], object]] = {
    "a way out": archive(FILE, ("../../../neighbor.txt", tarfile.REGTYPE, "")),
    "an absolute path": archive(FILE, ("/tmp/outside-of-all", tarfile.REGTYPE, "")),
    "a link to outside": archive(FILE, ("Spk10_enroll/out", tarfile.SYMTYPE, "../../..")),
    "a file behind a link": archive(
        ("Spk10_enroll/out", tarfile.SYMTYPE, "../.."), ("Spk10_enroll/out/neighbor.txt", tarfile.REGTYPE, "")
    ),
    "a hard link": archive(FILE, ("Spk10_enroll/out", tarfile.LNKTYPE, "../../neighbor.txt")),
    "a device": archive(FILE, ("Spk10_enroll/device", tarfile.CHRTYPE, "")),
    "a pipe": archive(FILE, ("Spk10_enroll/pipe", tarfile.FIFOTYPE, "")),
    "half of it": lambda path: (FINE(path), cut(0.5)(path)),
    "a bit flipped": lambda path: (FINE(path), flipped(3)(path)),
    "a web page": written(b"<html>" * 50),
    "nothing": written(b""),
    "a file in a file": archive(FILE, ("Spk10_enroll/ann/1.wav/2.wav", tarfile.REGTYPE, "")),
    "a long name": archive(FILE, ("Spk10_enroll/" + 300 * "x", tarfile.REGTYPE, "")),
}


class Archived(Case):
    """An archive that lies there already, with the checksum that was published."""

    def faults(self, place: Place) -> list[str]:
        path = place / "out/Spk10_enroll.tar.gz"
        self.spoil(path)  # type: ignore[arg-type]
        content = path.read_bytes()
        published = Archive(path.name, (), len(content), hashlib.md5(content).hexdigest())
        with mock.patch.dict(SEC4SR, {"Spk10_enroll": published}):
            found = faults(self.command, place, self.command.arguments(), path.name)
        return [*found, *["left what was unpacked"] * (place.folder / "out" / "Spk10_enroll").exists()]
