"""Opus, MP3 and AAC, by the encoders in PyAV's wheel."""

import io
from typing import Any

import numpy as np

from sec4sr_pl.defenses.codec import Codec, Gradient, Samples, one_of_rates, within
from sec4sr_pl.types import SAMPLE_RATE

LAMBDA = 118
"""FFmpeg's scale of `global_quality`."""


def pyav() -> Any:
    """The module.

    Raises:
        ImportError: PyAV is missing; the message names what to install.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("Codecs need PyAV: pip install 'sec4sr_pl[codecs]'") from error
    return av


def write_file(samples: Samples, encoder: str, container: str, rate: int, options: dict[str, str]) -> io.BytesIO:
    """(time,) samples at 16 kHz, encoded into a file in memory as the ffmpeg command would do it.

    Args:
        samples: to encode.
        encoder: FFmpeg's name of it.
        container: FFmpeg's name of the file's format.
        rate: samples a second that the encoder gets.
        options: of the encoder.

    Raises:
        ValueError: settings that the encoder refuses.
        ImportError: PyAV is missing, or was built without the encoder.
    """
    av, file = pyav(), io.BytesIO()
    try:
        with av.open(file, "w", format=container) as output:
            stream = output.add_stream(encoder, rate=rate, options=options, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            for packet in (*stream.encode(frame), *stream.encode(None)):
                output.mux(packet)
    except av.codec.codec.UnknownCodecError as error:
        raise ImportError(f"PyAV {av.__version__} has no {encoder}: pip install --upgrade av") from error
    except av.FFmpegError as error:
        raise ValueError(f"{encoder} refuses {options} at {rate} samples a second ({error})") from error
    file.seek(0)
    return file


def read_file(file: io.BytesIO, container: str) -> Samples:
    """(time,) samples at 16 kHz of an encoded file of a format by FFmpeg's name."""
    av = pyav()
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    with av.open(file, format={"adts": "aac"}.get(container, container)) as source:  # one format, two names
        frames = [part for frame in source.decode(audio=0) for part in resampler.resample(frame)]
    frames += resampler.resample(None)
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


class Opus(Codec):
    """Opus by libopus (OPUS).

    Args:
        bit_rate: bits a second, 6000 to 256,000.
        gradient: as in `Codec`.

    Raises:
        ValueError: a bit rate out of range.
        ImportError: PyAV is missing.

    Source: Valin et al., "Definition of the Opus audio codec", RFC 6716, 2012.
    """

    def __init__(self, bit_rate: int = 8_000, gradient: Gradient = "identity") -> None:
        within("bit_rate", bit_rate, 6_000, 256_000)
        self.bit_rate = bit_rate
        super().__init__(gradient)

    def round_trip(self, samples: Samples) -> Samples:
        """Through an Ogg file."""
        return read_file(write_file(samples, "libopus", "ogg", SAMPLE_RATE, {"b": str(self.bit_rate)}), "ogg")


class MP3Constant(Codec):
    """MP3 of a constant bit rate by LAME (MP3-C).

    Args:
        bit_rate: bits a second, one that MPEG-2 layer III has at 16 kHz.
        gradient: as in `Codec`.

    Raises:
        ValueError: another bit rate, which LAME would replace by the nearest.
        ImportError: PyAV is missing.
    """

    def __init__(self, bit_rate: int = 24_000, gradient: Gradient = "identity") -> None:
        one_of_rates(bit_rate, (8_000, *range(16_000, 64_001, 8_000), *range(80_000, 160_001, 16_000)))
        self.bit_rate = bit_rate
        super().__init__(gradient)

    def round_trip(self, samples: Samples) -> Samples:
        """Through an MP3 file."""
        return read_file(write_file(samples, "libmp3lame", "mp3", SAMPLE_RATE, {"b": str(self.bit_rate)}), "mp3")


class MP3Variable(Codec):
    """MP3 of constant quality by LAME (MP3-V).

    Args:
        quality: 0, the best, to 9.
        gradient: as in `Codec`.

    Raises:
        ValueError: a quality out of range.
        ImportError: PyAV is missing.
    """

    def __init__(self, quality: int = 4, gradient: Gradient = "identity") -> None:
        within("quality", quality, 0, 9)
        self.quality = quality
        super().__init__(gradient)

    def round_trip(self, samples: Samples) -> Samples:
        """Through an MP3 file."""
        options = {"flags": "+qscale", "global_quality": str(LAMBDA * self.quality)}
        return read_file(write_file(samples, "libmp3lame", "mp3", SAMPLE_RATE, options), "mp3")


class AACConstant(Codec):
    """AAC-LC of a constant bit rate by FFmpeg's own encoder (AAC-C).

    The paper's encoder is fdk-aac, whose license keeps it out of binaries: another psychoacoustic model, so the same
    bit rate sounds different, and a delay of 2048 samples where this one has 1024.

    Args:
        bit_rate: bits a second, 8000 to 96,000.
        gradient: as in `Codec`.

    Raises:
        ValueError: a bit rate out of range.
        ImportError: PyAV is missing.
    """

    def __init__(self, bit_rate: int = 15_000, gradient: Gradient = "identity") -> None:
        within("bit_rate", bit_rate, 8_000, 96_000)
        self.bit_rate = bit_rate
        super().__init__(gradient)

    def round_trip(self, samples: Samples) -> Samples:
        """Through an ADTS file."""
        return read_file(write_file(samples, "aac", "adts", SAMPLE_RATE, {"b": str(self.bit_rate)}), "adts")


class AACVariable(Codec):
    """AAC-LC of constant quality by FFmpeg's own encoder (AAC-V).

    Its scale is not that of the paper's fdk-aac. The default needs about 21 kbit/s for read speech, in the range of 20
    to 32 that is told of that encoder's lowest mode, the paper's choice.

    Args:
        quality: above 0, the worst, to 2.
        gradient: as in `Codec`.

    Raises:
        ValueError: a quality out of range.
        ImportError: PyAV is missing.
    """

    def __init__(self, quality: float = 0.3, gradient: Gradient = "identity") -> None:
        within("quality", quality, 0.01, 2.0)
        self.quality = quality
        super().__init__(gradient)

    def round_trip(self, samples: Samples) -> Samples:
        """Through an ADTS file."""
        options = {"flags": "+qscale", "global_quality": str(round(LAMBDA * self.quality))}
        return read_file(write_file(samples, "aac", "adts", SAMPLE_RATE, options), "adts")
