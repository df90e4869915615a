"""Synthetic speech of many speakers for demos and tests, made by eSpeak NG on the spot: no download, no recordings."""

import ctypes
import importlib
import json
import logging
import math
import tempfile
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly  # type: ignore[import-untyped, unused-ignore]

from sec4sr_pl import audio
from sec4sr_pl.files import read_text
from sec4sr_pl.types import SAMPLE_RATE

_log = logging.getLogger(__name__)

# Variants of eSpeak NG that sound like people, repeat exactly once seeded, and can be told apart, women and men mixed.
_VARIANTS = (
    "f1 m1 f2 m2 f3 Alex f5 m5 linda m7 Annie m8 Andrea max belinda Michael grandma Mario shelby Denis Alicia robert "
    "steph pedro anika john aunty pablo zac quincy m3 boris victor marcelo Nguyen Henrique mike2 benjamin david "
    "announcer travis norbert paul sandro Andy ian Lee edward2"
)
_ACCENTS = (("", "en-us", 0), ("-scotland", "en-gb-scotland", 15), ("-rp", "en-gb-x-rp", -15))  # name, language, pitch

# "The", one phrase of each row and a full stop make a sentence.
_ROWS = (
    "cheerful, clever, curious, drowsy, gentle, hungry, nervous, patient, quiet, stubborn, thirsty, young",
    "baker, captain, dentist, farmer, gardener, painter, pilot, plumber, sailor, teacher, tailor, violinist",
    "borrowed, carried, counted, dropped, found, guarded, ignored, polished, repaired, sketched, sold, washed",
    "blue bottles, five ladders, four baskets, fresh apples, heavy boxes, old clocks, seven lanterns, silver coins, "
    "small boats, thick blankets, two bicycles, wooden chairs",
    "across the river, after breakfast, behind the castle, beside the lake, during the storm, in the garden, "
    "near the station, on Thursday, over the weekend, under the bridge, at the market, with great care",
)
_PHRASES = tuple(row.split(", ") for row in _ROWS)
_SENTENCES = math.prod(len(row) for row in _PHRASES)

_ENGINE_RATE = 22_050  # Hz
_ENGINE = threading.Lock()  # the library is not thread-safe
_SYNCHRONOUS, _NO_EXIT, _UTF8 = 2, 0x8000, 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class Speaker(NamedTuple):
    """A voice with a name."""

    name: str
    """Safe as the name of a folder."""
    language: str
    variant: str
    pitch: int
    """0 to 99, 50 is the variant's own."""


SPEAKERS = tuple(
    Speaker(variant.lower() + suffix, language, variant, 50 + pitch)
    for suffix, language, pitch in _ACCENTS
    for variant in _VARIANTS.split()
)
"""Every speaker there is; a data set of n speakers has the first n."""

MAX_UTTERANCES = _SENTENCES // len(SPEAKERS)
"""Utterances of a speaker over all splits, each with a sentence that nobody else says."""


def synthesize(root: Path, split: str, speakers: int, utterances: int, seed: int = 0, first_utterance: int = 0) -> Path:
    """Write `root/split/speaker/speaker-number.wav`: 16 kHz, mono, 16 bit, 2 to 4 seconds each.

    An utterance depends on seed, speaker and number alone, so splits whose numbers do not overlap share speakers but
    no sentence. The folder appears complete or not at all; one made earlier with the same arguments is kept as it is,
    one made with others is replaced. Linux and macOS.

    Args:
        root: where data sets are kept; made if missing.
        split: name of the folder, e.g. `train`.
        speakers: the first so many of `SPEAKERS`.
        utterances: of each speaker, numbered from `first_utterance`.
        seed: of sentences, rate, pitch, level and noise.
        first_utterance: number of the first utterance.

    Returns:
        `root/split`.

    Raises:
        ValueError: an argument out of range.
        FileExistsError: the folder exists and was not made by this function.
        ImportError: `espeakng-loader` is not installed.
        RuntimeError: the engine did not speak.
    """
    if not split or split != Path(split).name or split.startswith("."):
        raise ValueError(f"Expected split to be a plain folder name, got {split!r}")
    if not 1 <= speakers <= len(SPEAKERS):
        raise ValueError(f"Expected 1 to {len(SPEAKERS)} speakers, got {speakers}")
    if utterances < 1 or first_utterance < 0 or first_utterance + utterances > MAX_UTTERANCES:
        raise ValueError(
            f"Expected at least 1 utterance, numbered inside 0 to {MAX_UTTERANCES - 1}, "
            f"got {utterances} from number {first_utterance}"
        )
    if seed < 0:
        raise ValueError(f"Expected seed to be at least 0, got {seed}")
    folder = Path(root) / split
    recipe = {"recipe": 1, "speakers": speakers, "utterances": utterances, "seed": seed, "first": first_utterance}
    if _made_by(folder, recipe):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{split}-") as scratch:
        made, samples = Path(scratch) / "new", 0
        sentences = np.random.default_rng(seed).permutation(_SENTENCES)
        for index, speaker in enumerate(SPEAKERS[:speakers]):
            (made / speaker.name).mkdir(parents=True)
            for number in range(first_utterance, first_utterance + utterances):
                generator = np.random.default_rng([seed, index, number])
                signal = _utterance(_sentence(sentences[number * len(SPEAKERS) + index]), speaker, generator)
                path = made / speaker.name / f"{speaker.name}-{number:04d}.wav"
                path.write_bytes(audio.encode(np.rint(signal * 32_768).astype(np.int16), "WAV"))
                samples += signal.size
        (made / ".synthesis.json").write_text(json.dumps(recipe))
        if not _made_by(folder, recipe):  # another process may have been faster
            if folder.exists():
                folder.rename(Path(scratch) / "old")
            made.rename(folder)
    _log.info("made %s: %d speakers, %.0f seconds of speech", folder, speakers, samples / SAMPLE_RATE)
    return folder


def _made_by(folder: Path, recipe: dict[str, int]) -> bool:
    """Whether the folder was made with this recipe; raises FileExistsError if it is not ours to replace."""
    if not folder.exists():
        return False
    note = folder / ".synthesis.json"
    if not note.is_file():
        raise FileExistsError(f"Expected {folder} to be absent or made by synthesize, but it has no {note.name}")
    return bool(json.loads(read_text(note)) == recipe)


def _sentence(number: int) -> str:
    """The sentence of a number below `_SENTENCES`."""
    choice = np.unravel_index(number, [len(row) for row in _PHRASES])
    return "The " + " ".join(row[int(index)] for row, index in zip(_PHRASES, choice, strict=True)) + "."


def _utterance(text: str, speaker: Speaker, generator: np.random.Generator) -> NDArray[np.float64]:
    """(time,) samples at 16 kHz with a peak of about 0.5, the noise of a quiet room 60 dB under full scale."""
    rate, pitch, intonation, seed = map(int, generator.integers([155, -6, 35, 0], [185, 7, 66, 2**31]))
    spoken = _speak(text, speaker, rate, speaker.pitch + pitch, intonation, seed)
    loud = np.flatnonzero(np.abs(spoken) > 0.01 * np.abs(spoken).max(initial=0.0))
    if loud.size < _ENGINE_RATE // 2:
        raise RuntimeError(f"Expected speech from {speaker.variant!r} in {speaker.language!r}, got almost silence")
    margin = _ENGINE_RATE // 20
    signal = resample_poly(spoken[max(0, loud[0] - margin) : loud[-1] + margin], 320, 441)
    signal *= generator.uniform(0.4, 0.55) / np.abs(signal).max()
    return np.asarray(signal + generator.normal(0.0, 1e-3, signal.size), dtype=np.float64)


def _speak(text: str, speaker: Speaker, rate: int, pitch: int, intonation: int, seed: int) -> NDArray[np.float64]:
    """(time,) samples at 22.05 kHz on the 16-bit scale; rate in words a minute, pitch and intonation 0 to 99.

    The library keeps phases and random state from one text to the next and can't be reset, so each text gets a
    freshly loaded copy of it: a few milliseconds.
    """
    loader = _loader()
    data = Path(loader.get_data_path())
    if not (data / "voices" / "!v" / speaker.variant).is_file():  # the library would use another voice in silence
        raise RuntimeError(f"Expected eSpeak NG to have the voice variant {speaker.variant!r}, but {data} has not")
    chunks: list[bytes] = []

    def collect(samples: int | None, count: int, events: int | None) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback, encoded = _CALLBACK(collect), text.encode()
    with _ENGINE:
        library = ctypes.CDLL(loader.get_library_path())
        try:
            library.espeak_Initialize(_SYNCHRONOUS, 0, str(data).encode(), _NO_EXIT)
            if library.espeak_ng_GetSampleRate() != _ENGINE_RATE:  # espeak_Initialize answers 0 on failure
                raise RuntimeError(f"eSpeak NG could not read {data} (its paths may have about 150 characters)")
            library.espeak_SetSynthCallback(callback)
            status = library.espeak_SetVoiceByName(f"{speaker.language}+{speaker.variant}".encode())
            for parameter, value in enumerate((rate, 40, pitch, intonation), start=1):  # 40 of 100: loud voices clip
                status = status or library.espeak_SetParameter(parameter, value, 0)
            library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
            size = ctypes.c_size_t(len(encoded) + 1)
            status = status or library.espeak_Synth(encoded, size, 0, 1, 0, _UTF8, None, None)
            if status:
                raise RuntimeError(f"Expected eSpeak NG to speak as {speaker.name!r}, it answered status {status}")
        finally:
            library.espeak_Terminate()
            unload = ctypes.CDLL(None).dlclose
            unload.argtypes = [ctypes.c_void_p]
            unload(library._handle)
    return np.frombuffer(b"".join(chunks), dtype=np.int16).astype(np.float64)


def _loader() -> Any:
    try:
        return importlib.import_module("espeakng_loader")
    except ImportError as error:
        raise ImportError(
            "Synthetic speech needs eSpeak NG: pip install espeakng-loader, or the extra sec4sr_pl[demo]"
        ) from error
