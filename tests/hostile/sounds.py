"""Audio files that are none, not whole, or not what was asked for."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from hostile.files import NO_CONTENT, NO_FILES, Spoil, cut, spoiled
from hostile.good import COMMANDS
from hostile.place import Case, Place

VICTIMS = {
    "evaluate": "data/test/bob/bob-2.wav",
    "enroll": "data/Spk10_enroll/bob/bob-4.wav",
    "universal": "data/train/ann/ann-0.wav",
    "background": "data/strangers/y/y-0.wav",
    "backend": "data/nested/id1/video/id1-0.wav",
    "shards": "data/test/ann/ann-2.wav",
    "trial_list": "data/nested/id1/video/id1-0.wav",
    "verify": "data/nested/id1/video/id1-0.wav",
    "fit": "data/train/bob/bob-0.wav",
}
"""A file that each command reads."""


def sound(samples: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16", container: str = "WAV") -> Spoil:
    """Samples in a file of a container, whatever its name says."""

    def spoil(path: Path) -> None:
        file = io.BytesIO()
        soundfile.write(
            file, samples, rate, subtype, "BIG" if container == "RIFX" else None, container.replace("RIFX", "WAV")
        )
        path.write_bytes(file.getvalue())

    return spoil


def header(offset: int, form: str, value: int) -> Spoil:
    """Another number in the header."""

    def spoil(path: Path) -> None:
        content = bytearray(path.read_bytes())
        struct.pack_into(form, content, offset, value)
        path.write_bytes(content)

    return spoil


def rf64(frames: int) -> bytes:
    """The header of a long file, and a second of it."""
    chunk = b"ds64" + struct.pack("<IQQQI", 28, 2 * frames + 72, 2 * frames, frames, 0)
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    return b"RF64\xff\xff\xff\xffWAVE" + chunk + form + b"data\xff\xff\xff\xff" + bytes(32_000)


NOISE = 0.1 * np.random.default_rng(0).standard_normal(8_000)
SOUNDS: dict[str, Spoil] = {
    **NO_FILES,
    **NO_CONTENT,
    "header alone": cut(44 / 12_844),
    "cut": cut(0.5),
    "cut by a byte": cut(0.9999),
    "stereo": sound(np.stack([NOISE, NOISE], 1)),
    "eight channels": sound(np.stack([NOISE] * 8, 1)),
    "48 kHz": sound(NOISE, 48_000),
    "1 Hz": sound(NOISE, 1),
    "no samples": sound(NOISE[:0]),
    "three samples": sound(NOISE[:3]),
    "NaN": sound(np.where(NOISE > 0.2, np.nan, NOISE).astype(np.float32), subtype="FLOAT"),
    "infinite": sound(np.where(NOISE > 0.2, np.inf, NOISE).astype(np.float32), subtype="FLOAT"),
    "RIFX": sound(NOISE, container="RIFX"),
    "W64": sound(NOISE, container="W64"),
    "AIFF": sound(NOISE, container="AIFF"),
    "AU": sound(NOISE, container="AU"),
    "Ogg": sound(NOISE, subtype="VORBIS", container="OGG"),
    "cut flac": lambda path: (sound(NOISE, container="FLAC")(path), cut(0.5)(path)),
    "2^62 frames": lambda path: path.write_bytes(rf64(2**62)),
    "2^31 bytes": header(40, "<I", 2**31),
    "no rate": header(24, "<I", 0),
    "no channel": header(22, "<H", 0),
    "65,535 channels": header(22, "<H", 65_535),
    "codec of nobody": header(20, "<H", 0x7777),
    "no bits": header(34, "<H", 0),
}
FINE = ("NaN", "infinite", "three samples", "cut flac")
"""What only samples show, which `trial_list` and `shards` do not hear, and of which a training hears a part."""


def cases() -> Iterator[Case]:
    """Each kind of file in each command's data."""
    for command, victim in VICTIMS.items():
        for kind, spoil in SOUNDS.items():
            if kind == "missing" or (command == "fit" and kind not in ("cut", "stereo", "NaN", "pipe", "48 kHz")):
                continue

            def prepare(place: Place, spoil: Spoil = spoil, victim: str = victim) -> None:
                spoiled(place, spoil, victim, "data", "given.ckpt", "training.yaml")

            unheard = command in ("trial_list", "shards", "fit") and kind in FINE
            unheard |= kind == "folder" or (command == "background" and kind == "three samples")
            named = "" if kind in ("three samples", "folder") else Path(victim).name
            yield Case(f"{command}: {kind} as wav", COMMANDS[command], prepare, named, unheard)
