"""What the look over 10,000 utterances costs at the start of a training: the first time, and from the header cache.

Four of the files, the noises and a development utterance are wrong: all of it is told in one message.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from setting import sized

from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.augment import Noise
from sec4sr_pl.data.problems import DataError

SPEAKERS = sized(100, 3)
UTTERANCES = 100
SECONDS = 0.2


def write(path: Path, samples: int = round(SECONDS * 16_000), rate: int = 16_000, channels: int = 1) -> None:
    """A file of silence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros((samples, channels), np.int16), rate)


def make(root: Path) -> None:
    """The corpus, with its faults."""
    for speaker in range(SPEAKERS):
        for number in range(UTTERANCES):
            write(root / "train" / f"s{speaker:03}" / f"{number:03}.wav")
    write(root / "train" / "s000" / "100.wav", samples=960)  # 60 ms, held out for development
    write(root / "train" / "s000" / "000.wav", rate=48_000)
    write(root / "train" / "s001" / "000.wav", rate=48_000)
    write(root / "train" / "s002" / "000.wav", channels=2)
    (root / "train" / "s002" / "001.wav").write_bytes(b"")
    write(root / "noise" / "many.wav", channels=8)


def look(root: Path) -> tuple[tuple[float, float], str]:
    """Seconds, and those of the processor, of the look before a training, and what is told."""
    begin, data = (time.perf_counter(), time.process_time()), SpeakerData(root, augmentations=[Noise(Path("noise"))])
    assert len(data.speakers) == SPEAKERS
    with data.collected() as problems:
        data.look(problems, minimum=1_121)  # AudioNet's
    try:
        problems.tell()
    except DataError as error:
        return (time.perf_counter() - begin[0], time.process_time() - begin[1]), str(error)
    raise RuntimeError("Expected faults to be told")


with tempfile.TemporaryDirectory() as folder:
    os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
    root = Path(folder) / "corpus"
    make(root)
    first, told = look(root)
    again = [look(root)[0] for _ in range(3)]
    for name, (seconds, processor) in (("first", first), ("then", min(again))):
        print(f"{SPEAKERS * UTTERANCES + 1:,} utterances, {name}: {seconds:.2f} s, {processor:.2f} s of the processor")
    print(told.replace(folder, ""))
