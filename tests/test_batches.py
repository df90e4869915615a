"""A long file among short ones: batches are bounded by their samples, and cut the same everywhere."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import soundfile
import torch
from test_data import as_rank
from torch.testing import assert_close

from sec4sr_pl.attacks import FGSM
from sec4sr_pl.data import SpeakerData, Utterance
from sec4sr_pl.data.base import Utterances
from sec4sr_pl.enrollment import embed
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.robustness import Campaign
from sec4sr_pl.training.background.corpus import Corpus
from sec4sr_pl.types import SAMPLE_RATE

SECONDS = [0.4, 0.5, 0.6, 22.0, 0.7, 0.5, 0.4]
"""Two rows of 20 s is as much as a batch of two holds."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A speaker who spoke long once."""
    root = tmp_path_factory.mktemp("long")
    (root / "test" / "s").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for index, seconds in enumerate(SECONDS):
        noise = 0.1 * torch.randn(int(seconds * SAMPLE_RATE), generator=generator)
        soundfile.write(root / "test" / "s" / f"{index}.wav", noise.numpy(), SAMPLE_RATE)
    return root


@pytest.fixture
def data(root: Path) -> SpeakerData:
    return SpeakerData(root, "test", eval_batch_size=2)


@pytest.fixture
def padded(recognizer: Recognizer) -> list[tuple[int, ...]]:
    """The shapes of the batches that the recognizer of ten speakers hears."""
    shapes: list[tuple[int, ...]] = []
    first = next(iter(recognizer.features.stages.values()))
    first.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


def is_bounded(shapes: Sequence[Sequence[int]]) -> bool:
    """Whether batches of two are small, or of one row."""
    return all(rows == 1 or (rows <= 2 and rows * time <= 2 * 20 * SAMPLE_RATE) for rows, time in shapes)


@pytest.mark.parametrize(
    ("seconds", "size", "expected"),
    [
        ([], 2, []),
        ([1, 1, 1, 1, 1], 2, [[0, 1], [2, 3], [4]]),
        ([20, 20, 20, 20], 2, [[0, 1], [2, 3]]),
        ([1, 21, 1, 1], 2, [[0], [1], [2, 3]]),
        ([21, 1, 1], 2, [[0], [1, 2]]),
        ([1, 1, 25, 1, 1, 1, 1, 1], 4, [[0, 1, 2], [3, 4, 5, 6], [7]]),
        ([900, 900], 4, [[0], [1]]),
    ],
)
def test_a_batch_ends_where_its_rows_or_its_samples_would_be_too_many(
    seconds: list[int], size: int, expected: list[list[int]]
) -> None:
    from sec4sr_pl.data.batches import bounded

    utterances = [Utterance(str(n), "s", Path(), 0, s * SAMPLE_RATE, SAMPLE_RATE) for n, s in enumerate(seconds)]
    assert bounded(utterances, size) == expected
    order = [*reversed(range(len(seconds)))]
    reverse = bounded(utterances, size, order)
    assert [position for batch in reverse for position in batch] == order


@pytest.mark.parametrize("replicas", [1, 2])
def test_validation_pads_no_batch_beyond_its_bound_and_keeps_the_order(replicas: int, data: SpeakerData) -> None:
    names = [utterance.name for utterance in data.utterances("test")]
    for rank in range(replicas):
        batches = list(as_rank(data, rank, replicas).test_dataloader())
        assert [name for batch in batches for name in batch.names] == names[rank::replicas]
        assert is_bounded([batch.waveforms.shape for batch in batches])


def test_embeddings_beside_a_long_utterance_are_those_of_each_alone(
    data: SpeakerData, recognizer: Recognizer, padded: list[tuple[int, ...]]
) -> None:
    utterances = Utterances(data.utterances("test"), [0] * len(SECONDS))
    together = embed(recognizer, utterances, batch_size=2)
    assert is_bounded(padded) and len(padded) < len(SECONDS)
    assert_close(together, embed(recognizer, utterances, batch_size=1), rtol=1e-4, atol=1e-4)


def test_a_background_training_hears_bounded_batches_in_order(data: SpeakerData) -> None:
    utterances = Utterances(data.utterances("test"), [0] * len(SECONDS))
    assert [len(lengths) for _, lengths in Corpus(utterances, LogMel(), batch_size=2)] == [2, 1, 1, 2, 1]


def test_the_units_of_a_campaign_are_bounded_and_two_processes_leave_the_bytes_of_one(
    data: SpeakerData, recognizer: Recognizer, padded: list[tuple[int, ...]], tmp_path: Path
) -> None:
    def campaign(folder: str) -> Campaign:
        utterances = Utterances(data.utterances("test"), [0] * len(SECONDS))
        return Campaign(recognizer, utterances, [FGSM()], tmp_path / folder, batch_size=2, perceptual=False)

    campaign("alone").run()
    for rank in range(2):
        campaign("shared").run(rank, 2)
    assert is_bounded(padded)
    files = [path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*") if path.is_file()]
    assert len(files) > len(SECONDS)
    for file in files:
        assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "shared" / file).read_bytes(), file
    assert "row_seconds" in campaign("alone").identity


MEMORY = """
import resource, sys
from pathlib import Path
import torch
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.base import Utterances
from sec4sr_pl.enrollment import embed
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet
torch.set_num_threads(1)
data = SpeakerData(Path(sys.argv[1]), "test")
utterances = Utterances(data.utterances("test"), [0] * 16)
recognizer = Recognizer(LogMel(), AudioNet(), ClosedSet(32, 2)).eval()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
embed(recognizer, utterances)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_two_minutes_among_short_utterances_take_a_fraction_of_the_memory(tmp_path: Path) -> None:
    """Sixteen rows of two minutes would be 846 MB."""
    (tmp_path / "test" / "s").mkdir(parents=True)
    for index in range(16):
        noise = 0.1 * torch.randn((120 if index == 7 else 3) * SAMPLE_RATE)
        soundfile.write(tmp_path / "test" / "s" / f"{index:02}.wav", noise.numpy(), SAMPLE_RATE)
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(shown) < 400
