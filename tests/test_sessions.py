"""The development part of data with sessions: utterances from all over a speaker's, and of other data what it was."""

from itertools import combinations
from pathlib import Path

import pytest

from sec4sr_pl.audio import Member
from sec4sr_pl.data import VoxCeleb
from sec4sr_pl.data.manifest import Utterance, split_development
from sec4sr_pl.data.shards import convert
from sec4sr_pl.data.trials import all_pairs


def utterances(sessions: str, sharded: bool = False) -> list[Utterance]:
    """One of a session for each letter, sorted by name; where there is but one session, as in flat data."""
    found = []
    for number, session in enumerate(sessions):
        path = Path("train", "ann", session, f"{number:02}.wav")
        place = Member(Path("train/00000.tar"), str(path.relative_to("train")), 0, 9) if sharded else path
        found.append(Utterance(f"{number:02}", "ann", place, 0, 16_000, 16_000))
    return found


@pytest.mark.parametrize("sharded", [False, True], ids=["files", "shards"])
@pytest.mark.parametrize(
    ("sessions", "fraction", "held_out"),
    [
        ("aaaaaaaaaa", 0.3, [7, 8, 9]),  # flat: the last
        ("aaaaabbbbbccccc", 0.14, [9, 14]),  # the last of the last sessions
        ("aaaaabbbbbccccc", 0.2, [4, 9, 14]),
        ("aaaaabbbbbccccc", 0.34, [4, 8, 9, 13, 14]),
        ("aaaab", 0.6, [2, 3, 4]),  # a session has no more than it has
        ("ab", 0.5, [1]),
    ],
)
def test_what_is_held_out_is_spread_over_the_sessions(
    sessions: str, fraction: float, held_out: list[int], sharded: bool
) -> None:
    own = utterances(sessions, sharded)
    train, development = split_development(own, fraction, 1)
    assert development == [own[place] for place in held_out]
    assert train == [utterance for utterance in own if utterance not in development]


@pytest.mark.parametrize("sharded", [False, True], ids=["files", "shards"])
def test_target_trials_of_voxcelebs_development_part_compare_videos(
    sharded: bool, voxceleb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = voxceleb
    if sharded:
        convert(VoxCeleb(voxceleb), root := tmp_path / "shards", ["vox2_dev/wav"])
    development = VoxCeleb(root, development_fraction=0.5).utterances("development")
    assert [u.name for u in development] == [
        u.name for u in VoxCeleb(voxceleb, development_fraction=0.5).utterances("development")
    ]
    trials = all_pairs(development)
    targets = trials.pairs[trials.target].tolist()
    videos = [{trials.utterances[index].name[:-6] for index in pair} for pair in targets]
    assert len(targets) == sum(
        one.speaker == other.speaker for one, other in combinations(development, 2)
    ) >= 10 and all(len(pair) == 2 for pair in videos)
