"""Verification trials: pairs of utterances, and whether one speaker said both."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from torch import Tensor

from sec4sr_pl import audio
from sec4sr_pl.data.manifest import DataError, Utterance, directory, mono
from sec4sr_pl.data.tree import OTHERS
from sec4sr_pl.data.trial_lines import read_list
from sec4sr_pl.files import inside
from sec4sr_pl.types import SAMPLE_RATE


class Trials(NamedTuple):
    """Pairs among utterances, each of which stands once."""

    utterances: list[Utterance]
    pairs: Tensor
    """(trials, 2) int64, which utterances: the one that is enrolled, and the one that claims to be the same speaker."""
    target: Tensor
    """(trials,) bool, whether the speaker is the same."""

    @property
    def speakers(self) -> set[str]:
        """Who speaks in them."""
        return {utterance.speaker for utterance in self.utterances}

    def spread(self, limit: int) -> "Trials":
        """As many trials in their order, spread evenly over the list; the targets are as large a part as before.

        Raises:
            DataError: no trial.
        """
        if limit < 1:
            raise DataError(f"Expected at least one trial, got a limit of {limit}")
        total = len(self.pairs)
        if limit >= total:
            return self
        by_kind = self.target.argsort(stable=True)
        chosen = by_kind[torch.arange(limit) * total // limit].sort().values
        used, pairs = torch.unique(self.pairs[chosen], return_inverse=True)
        return Trials([self.utterances[index] for index in used.tolist()], pairs, self.target[chosen])

    def enrolled(self) -> list[Utterance]:
        """The utterances that are enrolled, each once."""
        return [self.utterances[index] for index in torch.unique(self.pairs[:, 0]).tolist()]

    def claims(self, speakers: Sequence[str]) -> tuple[list[Utterance], list[int]]:
        """Of each trial, the utterance that claims, and its label; in the order of the utterances.

        Args:
            speakers: names of enrolled utterances, each a speaker of its own.
        """
        column = {name: index for index, name in enumerate(speakers)}
        order = self.pairs[:, 1].argsort(stable=True)
        made = [
            claim(self.utterances[test], (name := self.utterances[one].name), column[name], target)
            for (one, test), target in zip(self.pairs[order].tolist(), self.target[order].tolist(), strict=True)
        ]
        return distinct([utterance for utterance, _ in made]), [label for _, label in made]

    def check(self, source: object) -> "Trials":
        """These trials.

        Raises:
            DataError: trials of one kind only.
        """
        targets = int(self.target.sum())
        if targets in (0, len(self.target)):
            raise DataError(
                f"Expected trials of the same and of different speakers, but {source} has {targets} of the same among "
                f"{len(self.target)}"
            )
        return self


def claim(utterance: Utterance, speaker: str, column: int, target: bool) -> tuple[Utterance, int]:
    """An utterance that claims to be a speaker, under a name of its own, and its label: `column`, else its complement.

    So labels are those of `sec4sr_pl.attacks.Claim`.
    """
    return utterance._replace(name=f"{utterance.name}@{speaker}"), column if target else ~column


def distinct(utterances: Iterable[Utterance]) -> list[Utterance]:
    """The same, where a name that comes again is followed by its number."""
    counts: Counter[str] = Counter()
    found = []
    for utterance in utterances:
        counts[utterance.name] += 1
        count = counts[utterance.name]
        found.append(utterance if count == 1 else utterance._replace(name=f"{utterance.name}#{count}"))
    return found


def find_trials(path: Path, utterances: Iterable[Utterance]) -> Trials:
    """The trials of a list among utterances, which are known by the places of their files.

    A file's folders, as far as the list gives them, must be the utterance's; its extension may be another.

    Args:
        path: as in `read_list`.
        utterances: that have those of the trials among them.

    Raises:
        DataError: as `read_list`, a file that is none of the utterances' or several, or a label that their speakers
            contradict.
    """
    trials = read_list(path)
    files = sorted({file for _, *pair in trials for file in pair})
    places = {file: (*PurePosixPath(file).parent.parts, _stem(PurePosixPath(file))) for file in files}
    found = _by_place(utterances, {len(place) for place in places.values()})
    there = {file: found[place] for file, place in places.items() if place in found}
    if missing := [file for file in files if file not in there]:
        raise DataError(f"{len(missing)} of the {len(files)} files of {path} are not there, first {missing[0]}")
    if several := [file for file in files if len(there[file]) > 1]:
        one, other, *_ = [utterance.path for utterance in there[several[0]]]
        raise DataError(f"{several[0]} of {path} is {one} and {other}: give its folders in the list")
    only = {file: utterance for file, (utterance,) in there.items()}
    for target, enroll, test in trials:
        speakers = only[enroll].speaker, only[test].speaker
        if target != (speakers[0] == speakers[1]):
            raise DataError(
                f"{path} has the label {int(target)} for '{enroll} {test}', of speakers {speakers[0]} and {speakers[1]}"
            )
    return _pair_up(trials, only)


def _by_place(utterances: Iterable[Utterance], depths: Iterable[int]) -> dict[tuple[str, ...], list[Utterance]]:
    """The utterances at each end of a path that has so many parts, without extensions."""
    found: dict[tuple[str, ...], list[Utterance]] = {}
    for utterance in utterances:
        name = _stem(PurePosixPath(utterance.path.name))
        parts = (*Path(directory(utterance)).absolute().parts, name)
        for depth in depths:
            found.setdefault(parts[-depth:], []).append(utterance)
    return found


def _stem(path: PurePosixPath) -> str:
    """The name of a file without its extension, if it has one: a dot in a name is none."""
    return path.stem if path.suffix.lower() in (*audio.EXTENSIONS, *OTHERS) else path.name


def read_trials(path: Path, root: Path, resample: bool = False) -> Trials:
    """The trials of a list among files that need be no data set.

    Args:
        path: as in `read_list`.
        root: where the list's paths begin; they may be without an extension.
        resample: accept other sample rates than 16 kHz.

    Raises:
        DataError: as `read_list`, trials of one kind only, or a file of another sample rate.
        AudioError: a file that is not there, not audio, or not mono.
        ValueError: a file outside the root.
    """
    trials = read_list(path)
    files = sorted({file for _, *pair in trials for file in pair})
    found = {file: _utterance(file, _find(inside(root, file)), resample) for file in files}
    return _pair_up(trials, found).check(path)


def _find(path: Path) -> Path:
    """A file of this name or, where there is none, of this name and an extension."""
    named = (path.with_name(path.name + extension) for extension in audio.EXTENSIONS)
    return path if path.exists() else next((other for other in named if other.exists()), path)


def _pair_up(trials: Sequence[tuple[bool, str, str]], files: Mapping[str, Utterance]) -> Trials:
    utterances = by_length({utterance.name: utterance for utterance in files.values()}.values())
    place = {utterance.name: index for index, utterance in enumerate(utterances)}
    return Trials(
        utterances,
        torch.tensor([[place[files[enroll].name], place[files[test].name]] for _, enroll, test in trials]),
        torch.tensor([label for label, _, _ in trials]),
    )


def _utterance(name: str, path: Path, resample: bool) -> Utterance:
    header = mono(path)
    if header.rate != SAMPLE_RATE and not resample:
        raise DataError(f"{path} has {header.rate} samples a second, expected {SAMPLE_RATE}: convert it")
    return Utterance(name, path.parent.name, path, 0, audio.samples_at_16_khz(header.frames, header.rate), header.rate)


def all_pairs(utterances: Sequence[Utterance], limit: int = 200_000, seed: int = 0) -> Trials:
    """Every utterance against every other, once; where these are more than `limit`, a sample of it, half of it targets.

    It may be smaller: what is drawn twice stands in it once.

    Args:
        utterances: each once.
        limit: pairs.
        seed: of the sample.

    Raises:
        DataError: a limit below 2, or pairs of one kind only.
    """
    if limit < 2:
        raise DataError(f"Expected at least 2 trials, got {limit}")
    ordered = by_length(utterances)
    index = {name: place for place, name in enumerate(sorted({utterance.speaker for utterance in ordered}))}
    speakers = torch.tensor([index[utterance.speaker] for utterance in ordered])
    few = len(ordered) * (len(ordered) - 1) // 2 <= limit
    pairs = torch.combinations(torch.arange(len(ordered))) if few else _drawn(speakers, limit, seed)
    one, other = speakers[pairs].unbind(1)
    return Trials(ordered, pairs, one == other).check("the set of all pairs")


def _drawn(speakers: Tensor, limit: int, seed: int) -> Tensor:
    """Different pairs of places, (at most limit, 2): half drawn among those of one speaker, half among all others."""
    generator, half = torch.Generator().manual_seed(seed), limit // 2
    grouped = speakers.argsort(stable=True)  # a speaker's utterances side by side
    own = speakers[grouped]
    counts = torch.bincount(speakers)
    first = counts.cumsum(0) - counts
    one, other = torch.randint(len(own), (2, half), generator=generator)
    mate = first[own[one]] + (torch.rand(half, generator=generator) * counts[own[one]]).long()
    same = torch.stack([one, mate], 1)[one != mate]
    different = torch.stack([one, other], 1)[own[one] != own[other]]
    pairs: Tensor = torch.unique(grouped[torch.cat([same, different])].sort(1).values, dim=0)
    return pairs


def by_length(utterances: Iterable[Utterance]) -> list[Utterance]:
    """In an order in which a batch has little padding, the same everywhere."""
    return sorted(utterances, key=lambda utterance: (utterance.frames, utterance.name))
