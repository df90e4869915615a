"""Speaker-balanced epochs: every speaker as often, from (seed, epoch), on any number of processes, after any resume."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from test_data import as_rank, batches, by_name
from test_data import cache as cache  # a fixture
from test_data import root as root

from sec4sr_pl.data import SpeakerData
from sec4sr_pl.types import Batch


def data(root: Path, **changes: object) -> SpeakerData:
    settings = {"balanced": True, "num_workers": 0, "crops_per_utterance": 4, "crop_seconds": 0.1, "batch_size": 4}
    return SpeakerData(root, **{**settings, **changes})  # type: ignore[arg-type]


def names(loaded: list[Batch]) -> list[str]:
    return [name for batch in loaded for name in batch.names]


def test_every_speaker_is_met_as_often_and_once_a_round(root: Path) -> None:
    speakers = [index for batch in batches(data(root).train_dataloader(), 3) for index in batch.speakers.tolist()]
    assert len(speakers) == 28  # 2 + 1 + 4 utterances for training, 4 times
    for first in range(0, 27, 3):
        assert set(speakers[first : first + 3]) == {0, 1, 2}
    assert len({tuple(speakers[first : first + 3]) for first in range(0, 27, 3)}) > 1


def test_utterances_of_a_speaker_are_met_as_often(root: Path) -> None:
    counts = Counter(name.partition("#")[0] for name in names(batches(data(root).train_dataloader())))
    assert {counts[f"eve-train-{index}"] for index in range(4)} <= {2, 3}
    assert {counts[f"ada-train-{index}"] for index in range(2)} <= {4, 5}
    assert counts["bob-train-0"] in (9, 10)


def test_no_crop_is_met_twice(root: Path) -> None:
    loaded = batches(data(root).train_dataloader())
    assert len(set(names(loaded))) == 28
    crops = [crop for name, crop in by_name(loaded).items() if name.startswith("bob")]
    assert len({tuple(crop.tolist()) for crop in crops}) == len(crops) >= 9  # of one utterance


def test_an_epoch_has_an_order_of_its_own_and_the_same_in_every_run(root: Path) -> None:
    first, again, next_one, other = (
        names(batches(data(root, seed=seed).train_dataloader(), epoch))
        for seed, epoch in ((0, 5), (0, 5), (0, 6), (1, 5))
    )
    assert first == again and first != next_one and first != other


@pytest.mark.parametrize("epoch", [0, 7])
def test_two_ranks_see_at_each_step_the_batch_of_one_process_of_twice_the_size(root: Path, epoch: int) -> None:
    alone = batches(data(root, batch_size=8).train_dataloader(), epoch)
    ranks = [batches(as_rank(data(root), rank, 2).train_dataloader(), epoch) for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert sorted(whole.names) == sorted(name for part in parts for name in part.names)
        shared = by_name([whole])
        for name, crop in by_name(parts).items():
            assert torch.equal(crop, shared[name])


def test_a_resume_goes_on_after_the_batches_that_were_taken(root: Path) -> None:
    whole = names(batches(data(root).train_dataloader(), 2))
    loader = data(root).train_dataloader()
    loader.sampler.set_epoch(2)  # type: ignore[union-attr]
    taken = iter(loader)
    before = names([next(taken) for _ in range(3)])
    resumed = data(root)
    resumed.load_state_dict(loader.state_dict())  # type: ignore[attr-defined]
    assert before + names(batches(resumed.train_dataloader(), 2)) == whole


def test_without_balance_utterances_are_met_as_often(root: Path) -> None:
    loaded = names(batches(data(root, balanced=False).train_dataloader()))
    assert set(Counter(name.partition("#")[0] for name in loaded).values()) == {4}
