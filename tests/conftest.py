"""Fixtures that every test shares: devices, real speech, a recognizer with plausible random weights."""

import copy
import os
import signal
from collections.abc import Callable, Sequence
from functools import lru_cache
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sec4sr_pl import audio
from sec4sr_pl.arithmetic import exact_arithmetic
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.defenses import Defense
from sec4sr_pl.features import FrontEnd, LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.robustness import campaign
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.types import SAMPLE_RATE

SPEECH = Path(__file__).parent / "speech"
"""Cut from LibriSpeech, as its README.md says."""
SAMPLES = [31_987 - 2_713 * index for index in range(8)]  # 2.0 s down to 0.8 s, no multiples of the hop

PROBE = {"PROBED": campaign.PROBED, "QUERIES": campaign.QUERIES}
"""What a campaign asks beside its attacks."""
MakeRecognizer = Callable[..., Recognizer]
"""make_recognizer(speakers=10, defenses=(), seed=0) -> Recognizer in eval mode, on the CPU."""


def pytest_sessionfinish() -> None:
    """End the server of `forked.py`, whose CPU time counts only then."""
    forkserver._forkserver._stop()  # type: ignore[attr-defined]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell the CPU time of the tests and of the processes that they started."""
    terminalreporter.write_line(
        f"{sum(os.times()[:4]):.0f} s of CPU time; of a whole run on a quiet machine, at most 600 are wanted"
    )


def pytest_configure() -> None:
    """Hear Ctrl-C, as commands that tests start do, where a shell lets jobs ignore it; campaigns ask little."""
    campaign.PROBED = campaign.QUERIES = 2
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def arithmetic() -> None:
    """The tests share their machine, and a GPU computes as it does in an evaluation."""
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        exact_arithmetic(torch.device("cuda"))


@pytest.fixture(
    params=[
        "cpu",
        *(["pretend"] if os.environ.get("SEC4SR_PRETEND") else []),
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device that there is; with SEC4SR_PRETEND, one that is none, which changes torch in all of its process."""
    if request.param == "pretend":
        import pretend_device  # noqa: F401
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def whole_probe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Campaigns ask as much beside their attacks as users' do, in the tests that are about it."""
    if request.node.get_closest_marker("whole_probe"):
        for name, value in PROBE.items():
            monkeypatch.setattr(campaign, name, value)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """A few stretches of real speech, `<split>/<speaker>/<utterance>.flac`, in the layout of librispeech-mini."""
    return SPEECH


@pytest.fixture(scope="session")
def corpus() -> Path:
    """All of librispeech-mini: for figures, which a few stretches can't give."""
    root = Path(os.environ.get("SEC4SR_DATA", ""))
    if not (root / "speakers.csv").is_file():
        pytest.skip("needs all of librispeech-mini: set the variable SEC4SR_DATA to it")
    return root


@pytest.fixture(scope="session")
def voxceleb(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real speech in the form of VoxCeleb: 10 speakers of 2 utterances in each of 2 videos to train on, 8 others of 2
    utterances, trials."""
    root, claims = tmp_path_factory.mktemp("voxceleb"), []
    for split, video in (("Spk10_enroll", "x-6uYqmx31k"), ("Spk10_test", "8jEAjG6SegY")):
        for speaker in (data_root / split).iterdir():
            for number, path in enumerate(sorted(speaker.iterdir()), 1):
                target = root / "vox2_dev" / "wav" / f"id{speaker.name:>05}" / video / f"{number:05}.wav"
                target.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(target, soundfile.read(path, 32_000 + 16 * number, dtype="int16")[0], SAMPLE_RATE)
    for speaker in sorted((data_root / "Spk10_imposter").iterdir())[:8]:
        samples, _ = soundfile.read(next(speaker.iterdir()), dtype="int16")
        for number, half in enumerate(np.array_split(samples, 2), 1):
            name = f"id{speaker.name:>05}/nnnnnnnnnnn/{number:05}.wav"
            (root / "vox1_test" / "wav" / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(root / "vox1_test" / "wav" / name, half, SAMPLE_RATE)
            claims.append(name)
    pairs = [(one, other) for index, one in enumerate(claims) for other in claims[index + 1 :]]
    lines = [f"{int(one[:7] == other[:7])} {one} {other}\n" for one, other in pairs]
    (root / "veri_test2.txt").write_text("".join(lines))
    return root


@pytest.fixture(scope="session")
def recorded_once() -> tuple[Tensor, Tensor]:
    """What `speech` copies."""
    files = sorted((SPEECH / "Spk251_test").glob("*/*"))
    rows = [audio.read(path, 0, size) for path, size in zip(files, SAMPLES, strict=False)]
    return pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows])


@pytest.fixture
def speech(recorded_once: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Utterances of eight speakers, the longest first: (8, time) zero-padded float32, and (8,) valid samples.

    A fresh copy for each test.
    """
    waveforms, lengths = recorded_once
    return waveforms.clone(), lengths.clone()


def halved(waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The first half of each utterance of `speech`, for tests of what costs as long as its input."""
    lengths = lengths // 2
    padding = torch.arange(int(lengths.max())) >= lengths.unsqueeze(1)
    return waveforms[:, : padding.shape[1]].masked_fill(padding, 0.0), lengths


@pytest.fixture
def frames(speech: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-mel frames of eight utterances."""
    found: tuple[Tensor, Tensor] = LogMel()(*speech)
    return found


@pytest.fixture(scope="session")
def settled(recorded_once: tuple[Tensor, Tensor]) -> Callable[..., Recognizer]:
    """What `make_recognizer` copies; the last few are kept, since each takes passes over `speech`."""

    @lru_cache(maxsize=16)
    def make(
        speakers: int | tuple[str, ...], seed: int, features: Callable[[], FrontEnd], backbone: Callable[[], Any]
    ) -> Recognizer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = backbone()
            recognizer = Recognizer(features(), network, ClosedSet(network.embedding_size, speakers))
        settle(recognizer, *recorded_once)
        return recognizer

    return make


@pytest.fixture
def make_recognizer(settled: Callable[..., Recognizer]) -> MakeRecognizer:
    """A factory of small recognizers in eval mode, on the CPU, whose scores and gradients are not degenerate."""

    def make(
        speakers: int | Sequence[str] = 10,
        defenses: Sequence[Defense] = (),
        seed: int = 0,
        features: Callable[[], FrontEnd] = LogMel,
        backbone: Callable[[], Any] = AudioNet,
    ) -> Recognizer:
        """A front end, a backbone and a classifier head with random weights from `seed`, the same for any defenses.

        Batch norms know the statistics of `speech`, and each speaker's score has mean 0 and deviation 3 over `speech`,
        so that decisions differ between utterances.
        """
        names = speakers if isinstance(speakers, int) else tuple(speakers)
        parts = copy.deepcopy(settled(names, seed, features, backbone))
        return Recognizer(parts.features, parts.backbone, parts.scorer, defenses).eval()

    return make


@pytest.fixture
def recognizer(make_recognizer: MakeRecognizer) -> Recognizer:
    """The undefended recognizer of ten speakers."""
    return make_recognizer()


@torch.no_grad()
def settle(recognizer: Recognizer, waveforms: Tensor, lengths: Tensor) -> None:
    """Set batch-norm statistics by one pass in train mode, and center and scale the scores."""
    norms = [module for module in recognizer.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a cumulative average: after one pass, the statistics of that pass
    if recognizer.backbone.masked:
        recognizer.train()(waveforms, lengths)
    else:  # batch statistics of utterances of one length
        recognizer.train()(waveforms[:, : lengths.min()])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    recognizer.eval()
    head = recognizer.scorer.head
    scores = recognizer(waveforms, lengths)
    head.weight *= 3.0 / scores.std(0).unsqueeze(1)
    head.bias -= recognizer(waveforms, lengths).mean(0)
