"""The shipped checkpoints are what docs/results.md says they are."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sec4sr_pl.attacks import PGD, Attack
from sec4sr_pl.checkpoint import checksum, load_recognizer, read_checksums
from sec4sr_pl.data import Spk251
from sec4sr_pl.robustness import Campaign, Summary, summarize

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
NATURAL, ADVERSARIAL = CHECKPOINTS / "audionet_mini_natural.ckpt", CHECKPOINTS / "audionet_mini_adversarial.ckpt"


@pytest.fixture
def attacked(corpus: Path, tmp_path: Path) -> Callable[..., Summary]:
    """The summary of attacks on a shipped checkpoint, over test utterances of librispeech-mini."""

    def run(checkpoint: Path, attacks: list[Attack], every: int = 1) -> Summary:
        recognizer = load_recognizer(checkpoint)
        data = Spk251(root=corpus)
        data.connect(recognizer.scorer.speakers)
        dataset = data.dataset("test")
        dataset.utterances, dataset.labels = dataset.utterances[::every], dataset.labels[::every]
        campaign = Campaign(recognizer, dataset, attacks, tmp_path / checkpoint.stem, perceptual=False)
        campaign.run()
        return summarize(campaign)

    return run


@pytest.mark.parametrize("path", [NATURAL, ADVERSARIAL], ids=lambda path: path.stem)
def test_a_shipped_checkpoint_has_its_checksum_and_loads(path: Path) -> None:
    assert read_checksums(CHECKPOINTS)[path.name] == checksum(path)
    assert len(load_recognizer(path).scorer.speakers) == 251


@pytest.mark.slow
def test_adversarial_training_made_the_difference(attacked: Callable[..., Summary]) -> None:
    natural, adversarial = (attacked(path, [PGD()], every=3) for path in (NATURAL, ADVERSARIAL))
    assert natural.benign.successes >= 50  # of 84
    assert natural.rows[0].accuracy.successes == 0
    assert adversarial.rows[0].accuracy.successes >= 6


@pytest.mark.slow
def test_natural_training_recognizes_speakers_and_is_not_robust(attacked: Callable[..., Summary]) -> None:
    summary = attacked(NATURAL, [PGD()])
    assert summary.benign.value >= 0.60
    assert summary.rows[0].accuracy.value <= 0.02


@pytest.mark.slow
def test_adversarial_training_is_robust(attacked: Callable[..., Summary]) -> None:
    summary = attacked(ADVERSARIAL, [PGD(), PGD(steps=100)])
    assert summary.benign.value >= 0.55
    assert summary.rows[0].accuracy.value >= 0.12
    assert summary.rows[1].accuracy.value >= 0.08
