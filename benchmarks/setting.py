"""What a benchmark finds: its size, speech, codecs.

Every benchmark takes `--smallest`, which only shows that it runs, and `--rounds`, fewer of which take less time.
"""

import os
import tempfile
from argparse import ArgumentParser
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from sec4sr_pl import audio
from sec4sr_pl.types import SAMPLE_RATE

Size = TypeVar("Size")
Made = TypeVar("Made")

parser = ArgumentParser(add_help=False, allow_abbrev=False)
parser.add_argument("--smallest", action="store_true")
parser.add_argument("--rounds", type=int)
OPTIONS, ARGUMENTS = parser.parse_known_args()
SPEECH = Path(__file__).parent.parent / "tests" / "speech"


def sized(usual: Size, smallest: Size) -> Size:
    """One of the two."""
    return smallest if OPTIONS.smallest else usual


def rounds(usual: int) -> int:
    """How often what is compared is measured, in turn."""
    return OPTIONS.rounds or sized(usual, 1)


@cache
def real_speech() -> Path:
    """The folder at SEC4SR_DATA, in the layout of librispeech-mini; else the tests' few stretches, which is told."""
    if root := os.environ.get("SEC4SR_DATA"):
        return Path(root)
    print("SEC4SR_DATA is not set: on the 105 s of speech in tests/speech", flush=True)
    return SPEECH


def corpus() -> Path:
    """All of librispeech-mini, for figures on recognition; at the smallest size any speech."""
    if not OPTIONS.smallest and not os.environ.get("SEC4SR_DATA"):
        raise SystemExit("Expected SEC4SR_DATA to name the folder of librispeech-mini; --smallest runs without")
    return real_speech()


def figure(name: str) -> Path:
    """Where a figure goes: to runs/figures, from where one may be copied into docs, or at the smallest size nowhere."""
    return sized(Path("runs/figures"), Path(tempfile.gettempdir())) / name


def beginnings(count: int, frames: int) -> list[Path]:
    """Files of so many test utterances, spread evenly over those that are long enough."""
    folder = corpus() / "Spk251_test"
    long = [path for path in sorted(folder.glob("*/*.flac")) if audio.info(path).frames >= frames]
    if len(long) < count:
        raise SystemExit(
            f"Expected at least {count} utterances of {frames / SAMPLE_RATE} s in {folder}, got {len(long)}"
        )
    return [long[index * len(long) // count] for index in range(count)]


def made(make: Callable[[], Made]) -> Made | None:
    """A codec, or, where its library is not installed, a line that says so."""
    try:
        return make()
    except ImportError as error:
        print(f"  left out: {error}", flush=True)
        return None
