"""Speex and AMR, the codecs of telephony, by their reference libraries."""

import ctypes
import io
from ctypes import POINTER, byref, c_char_p, c_int, c_int16, c_void_p, create_string_buffer
from functools import cache

import numpy as np

from sec4sr_pl import system
from sec4sr_pl.defenses.codec import Codec, Gradient, Samples, one_of_rates, within
from sec4sr_pl.defenses.codecs import read_file, write_file
from sec4sr_pl.types import SAMPLE_RATE

FRAME = 320
"""Samples of a frame of 20 ms at 16 kHz."""


def load(name: str, *commands: str) -> ctypes.CDLL:
    """A shared library, by name.

    Raises:
        ImportError: it is not installed; the message names what to install.
    """
    found = system.library(name)
    if found is None:
        raise ImportError(f"lib{name} is not installed: {', or '.join(commands)}")
    return ctypes.CDLL(found)


def frames_of(samples: Samples) -> Samples:
    """(time,) samples with zeros up to whole frames, (frames, 320)."""
    return np.pad(samples, (0, -len(samples) % FRAME)).reshape(-1, FRAME)


class SpeexBits(ctypes.Structure):
    """libspeex's buffer of bits."""

    _fields_ = (
        ("chars", c_void_p),
        ("nbBits", c_int),
        ("charPtr", c_int),
        ("bitPtr", c_int),
        ("owner", c_int),
        ("overflow", c_int),
        ("buf_size", c_int),
        ("reserved1", c_int),
        ("reserved2", c_void_p),
    )


WIDEBAND, SET_COMPLEXITY, SET_BITRATE = 1, 16, 18
COMPLEXITY = 3  # that of the ffmpeg command


@cache
def libspeex() -> ctypes.CDLL:
    """The library, with the types of what is called."""
    library = load("speex", "apt-get install libspeex1", "brew install speex", "conda install -c conda-forge speex")
    samples = POINTER(c_int16)
    library.speex_lib_get_mode.restype = c_void_p
    for coder in ("encoder", "decoder"):
        getattr(library, f"speex_{coder}_init").argtypes = [c_void_p]
        getattr(library, f"speex_{coder}_init").restype = c_void_p
        getattr(library, f"speex_{coder}_destroy").argtypes = [c_void_p]
    library.speex_encoder_ctl.argtypes = [c_void_p, c_int, c_void_p]
    library.speex_encode_int.argtypes = [c_void_p, samples, POINTER(SpeexBits)]
    library.speex_decode_int.argtypes = [c_void_p, POINTER(SpeexBits), samples]
    library.speex_bits_read_from.argtypes = [POINTER(SpeexBits), c_char_p, c_int]
    return library


class Speex(Codec):
    """Wideband Speex by libspeex (SPEEX).

    Args:
        bit_rate: bits a second; the best of Speex's modes that needs no more is taken, from 4000 to 42,200.
        gradient: as in `Codec`.

    Raises:
        ValueError: a bit rate below every mode, or above 44,000.
        ImportError: libspeex is missing.

    Source: Valin, "Speex: A free codec for free speech", 2016.
    """

    def __init__(self, bit_rate: int = 11_000, gradient: Gradient = "identity") -> None:
        within("bit_rate", bit_rate, 4_000, 44_000)
        self.bit_rate = 42_200  # every mode has the delay of the best; the vocoder of the lowest matches no waveform
        super().__init__(gradient)
        self.bit_rate = bit_rate

    def round_trip(self, samples: Samples) -> Samples:
        """Frame by frame."""
        speex, bits, data = libspeex(), SpeexBits(), create_string_buffer(2_000)
        mode = speex.speex_lib_get_mode(WIDEBAND)
        encoder, decoder = speex.speex_encoder_init(mode), speex.speex_decoder_init(mode)
        speex.speex_bits_init(byref(bits))
        try:
            speex.speex_encoder_ctl(encoder, SET_COMPLEXITY, byref(c_int(COMPLEXITY)))
            speex.speex_encoder_ctl(encoder, SET_BITRATE, byref(c_int(self.bit_rate)))
            frames = frames_of(samples)  # a copy: the encoder writes into what it reads
            decoded = np.empty_like(frames)
            for source, sink in zip(frames, decoded, strict=True):
                speex.speex_bits_reset(byref(bits))
                speex.speex_encode_int(encoder, source.ctypes.data_as(POINTER(c_int16)), byref(bits))
                size = speex.speex_bits_write(byref(bits), data, len(data))
                speex.speex_bits_read_from(byref(bits), data, size)
                if speex.speex_decode_int(decoder, byref(bits), sink.ctypes.data_as(POINTER(c_int16))):
                    raise RuntimeError("libspeex can't decode what it encoded")
            return decoded.reshape(-1)
        finally:
            speex.speex_bits_destroy(byref(bits))
            speex.speex_encoder_destroy(encoder)
            speex.speex_decoder_destroy(decoder)


@cache
def libvo_amrwbenc() -> ctypes.CDLL:
    """The library, with the types of what is called."""
    library = load("vo-amrwbenc", "apt-get install libvo-amrwbenc0", "conda install -c conda-forge vo-amrwbenc")
    library.E_IF_init.restype = c_void_p
    library.E_IF_encode.argtypes = [c_void_p, c_int, POINTER(c_int16), c_char_p, c_int]
    library.E_IF_exit.argtypes = [c_void_p]
    return library


class AMR(Codec):
    """Adaptive multi-rate speech coding (AMR): wideband by libvo-amrwbenc, narrowband (8 kHz) by PyAV's opencore-amr.

    Args:
        bit_rate: bits a second, one of the nine wideband or the eight narrowband modes.
        gradient: as in `Codec`.

    Raises:
        ValueError: a bit rate that is no mode's.
        ImportError: a library is missing.

    Source: 3GPP TS 26.190 (wideband) and TS 26.090 (narrowband).
    """

    WIDEBAND = (6_600, 8_850, 12_650, 14_250, 15_850, 18_250, 19_850, 23_050, 23_850)
    NARROWBAND = (4_750, 5_150, 5_900, 6_700, 7_400, 7_950, 10_200, 12_200)

    def __init__(self, bit_rate: int = 6_600, gradient: Gradient = "identity") -> None:
        one_of_rates(bit_rate, (*self.WIDEBAND, *self.NARROWBAND))
        self.bit_rate = bit_rate
        super().__init__(gradient)

    def round_trip(self, samples: Samples) -> Samples:
        """Through an AMR file."""
        if self.bit_rate in self.NARROWBAND:
            file = write_file(samples, "libopencore_amrnb", "amr", SAMPLE_RATE // 2, {"b": str(self.bit_rate)})
        else:
            file = io.BytesIO(b"#!AMR-WB\n" + self.wideband(samples))
        return read_file(file, "amr")

    def wideband(self, samples: Samples) -> bytes:
        """The frames of a wideband file."""
        encoder, data = libvo_amrwbenc(), create_string_buffer(100)
        state, coded = encoder.E_IF_init(), []
        try:
            for frame in frames_of(samples):
                pointer = frame.ctypes.data_as(POINTER(c_int16))
                size = encoder.E_IF_encode(state, self.WIDEBAND.index(self.bit_rate), pointer, data, 0)
                coded.append(data.raw[:size])
        finally:
            encoder.E_IF_exit(state)
        return b"".join(coded)
