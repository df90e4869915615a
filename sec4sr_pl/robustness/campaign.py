"""A campaign: every attack on every utterance, in units of work that survive a kill and fall to any rank.

A unit is one attack on one fixed batch of utterances, in manifest order. Its random draws are seeded from what it is,
never from what ran before, so records are the same bytes for any number of processes and after any kill. They are
sealed: what was changed since, or belongs elsewhere, is found, and done again.
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sec4sr_pl import audio, metrics
from sec4sr_pl.attacks import PGD, Attack, AttackResult, Claim, Objective, Square, UniformNoise
from sec4sr_pl.attacks.base import NonFiniteError
from sec4sr_pl.attacks.written import as_written
from sec4sr_pl.checkpoint import checksum, describe
from sec4sr_pl.data.base import Utterances, collate
from sec4sr_pl.data.batches import SECONDS, bounded
from sec4sr_pl.data.manifest import check_lengths
from sec4sr_pl.draws import kept_generators, key, seed_generators
from sec4sr_pl.files import filename, read_text, whole
from sec4sr_pl.recognizer import Ensemble, Recognizer
from sec4sr_pl.robustness.probe import (
    ALONE,
    Onward,
    ball,
    beside_others,
    onward,
    repeated,
    slopes,
    steepness,
    white_box,
    without_substitutes,
    witness,
)
from sec4sr_pl.robustness.targets import Goal, choose_targets
from sec4sr_pl.types import REJECT, Batch

Record = dict[str, Any]
RECORDS, AUDIO = "records", "audio"
"""Folders of the output."""
BENIGN = "benign"
PROBE = "probe"
"""Of the records of what is asked beside the attacks."""
PROBED, REPEATED = 16, 4
"""Utterances, spread over the manifest, on which it is asked; those that are heard twice at the start."""
QUERIES = 50
"""Of the black box that doubts attacks by gradients where the campaign brings none."""
WIDE, WIDEST = 10.0, 0.02
"""The ball in which hardly anything stands, as a multiple of an attack's, and the least."""
FORMAT = 5
"""Of the records; a folder of another one is another campaign."""
ROUNDING = 2.0**-23
"""By how much float32 arithmetic on samples up to 1 may move the edge of a ball."""


class CampaignError(ValueError):
    """A campaign that can't go on, with what was expected, what came, and what to do."""


def write_text(path: Path, text: str) -> None:
    """Write a file that appears under its name only when it is whole."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_settings(attacks: Sequence[Attack], batch_size: int, draws: int) -> None:
    """Refuse what no campaign can have, before utterances are looked at.

    Raises:
        CampaignError: attacks of one name, no utterance in a batch, or no draw.
    """
    names = [attack.name for attack in attacks]
    if len(set(names)) < len(names) or {BENIGN, PROBE} & set(names):
        raise CampaignError(f"Expected attacks with names of their own, got {', '.join(names)}")
    if batch_size < 1 or draws < 1:
        raise CampaignError(f"Expected batch_size and draws >= 1, got {batch_size} and {draws}")


class Campaign:
    """Attacks on a recognizer over a list of utterances, recorded under a folder.

    The success of an attack is measured on the file that it left behind, read again. A closed set rejects nobody:
    utterances with the label `REJECT` are then left out, and counted.

    Args:
        recognizer: the system under test, with its defenses, on the device that shall do the work.
        data: utterances and their labels.
        attacks: each with a name of its own.
        output: folder of `campaign.json`, `records/` and `audio/`.
        goal: what the attacks want.
        adaptive: attack through the defenses; False crafts on the undefended recognizer (oblivious).
        batch_size: utterances of a unit; fewer where one is long.
        seed: of all draws.
        draws: further fresh draws of a randomized recognizer on each utterance.
        perceptual: measure PESQ and STOI, about 0.1 s an utterance.
        identity: what else tells this campaign from another, e.g. the checkpoint's checksum.
        claims: verification, where labels are those of `Claim`.
        nonfinite_succeeds: scores of NaN or infinity count as errors of the recognizer and as successes of the attack;
            else they stop the campaign.

    Raises:
        CampaignError: as `check_settings`, or no utterance.
        DataError: an utterance that is too short for the recognizer.

    Warns:
        UserWarning: scores that depend on batch mates or on padding.
    """

    def __init__(
        self,
        recognizer: Recognizer | Ensemble,
        data: Utterances,
        attacks: Sequence[Attack],
        output: Path,
        goal: Goal = "untargeted",
        adaptive: bool = True,
        batch_size: int = 16,
        seed: int = 0,
        draws: int = 10,
        perceptual: bool = True,
        identity: dict[str, Any] | None = None,
        claims: bool = False,
        nonfinite_succeeds: bool = False,
    ) -> None:
        check_settings(attacks, batch_size, draws)
        self.threshold = float(recognizer.scorer.threshold)
        decidable = [self.threshold > -math.inf or label != REJECT for label in data.labels]
        self.excluded = decidable.count(False)
        data = Utterances(compress(data.utterances, decidable), compress(data.labels, decidable), data.resample)
        if not len(data):
            raise CampaignError(f"Expected at least one utterance, got none ({self.excluded} of imposters left out)")
        check_lengths(data.utterances, recognizer.minimum_samples)
        self.recognizer = recognizer.eval()
        self.undefended = recognizer.with_defenses([])
        self.victim = self.recognizer if adaptive else self.undefended
        self.data, self.attacks, self.output = data, list(attacks), Path(output)
        self.goal, self.adaptive, self.batch_size, self.seed = goal, adaptive, batch_size, seed
        self.draws, self.perceptual = draws, perceptual
        kind = Claim if claims else Objective
        self.objective = kind(self.threshold, goal != "untargeted", nonfinite_succeeds=nonfinite_succeeds)
        self.verification = claims or (self.threshold > -math.inf and len(recognizer.scorer.speakers) == 1)
        self.batches = bounded(data.utterances, batch_size)
        count = min(PROBED, len(data))
        self.sample = [index * len(data) // count for index in range(count)]
        self.defenses = describe(recognizer.defenses)
        heard_twice = bounded(data.utterances, batch_size, self.sample[:: -(-count // REPEATED)])
        self.repeats = all(repeated(self.recognizer, self.batch(part)) for part in heard_twice)
        self.randomized = self.recognizer.randomized or not self.repeats
        if not self.randomized and batch_size > 1:
            self.warn_of_mates(self.batch(max(heard_twice, key=len)))
        self.identity = self._identity(identity or {})
        self.mark = sha256(json.dumps(self.identity).encode()).hexdigest()

    def warn_of_mates(self, batch: Batch) -> None:
        """Hear an utterance of a batch by itself too."""
        if len(batch.names) > 1 and (change := beside_others(self.recognizer, batch)) > ALONE:
            warnings.warn(
                f"The scores of '{batch.names[int(batch.lengths.argmin())]}' change by {100 * change:.2g} % of the "
                "largest with other utterances in the batch, so the figures depend on it: a backbone that minds "
                "padding must say masked = False, one that minds its batch mates (batch norm without statistics, a "
                "mean over the batch) must be mended, or take --batch_size 1",
                stacklevel=3,
            )

    def _identity(self, extra: dict[str, Any]) -> dict[str, Any]:
        """What makes this campaign; written down, and compared by a resume."""
        files = {path: checksum(path) for path in {utterance.path for utterance in self.data.utterances}}
        utterances = [(u.name, u.speaker, u.start, u.frames, files[u.path]) for u in self.data.utterances]
        weights = [(name, content(tensor)) for name, tensor in self.recognizer.state_dict().items()]
        return {
            **extra,
            "format": FORMAT,
            "weights": f"{key(*((name, sha256(held).hexdigest()) for name, held in weights)):016x}",
            "torch": torch.__version__,
            "software": sorted({defense.software for defense in self.recognizer.defenses} - {""}),
            "recognizer": describe(self.recognizer),
            "attacks": {attack.name: attack.identity for attack in self.attacks},
            "goal": self.goal,
            "adaptive": self.adaptive,
            "randomized": self.randomized,
            "batch_size": self.batch_size,
            "row_seconds": SECONDS,
            "seed": self.seed,
            "draws": self.draws,
            "perceptual": self.perceptual,
            "nonfinite_succeeds": self.objective.nonfinite_succeeds,
            "utterances": len(utterances),
            "excluded": self.excluded,
            "manifest": f"{key(*utterances):016x}",
            **({"claims": f"{key(*self.data.labels):016x}"} if isinstance(self.objective, Claim) else {}),
        }

    def open(self) -> None:
        """Claim the output folder.

        Raises:
            CampaignError: it belongs to another campaign or does not say to which, can't be written, or holds a link.
        """
        for folder, names, _ in (step for part in (RECORDS, AUDIO) for step in os.walk(self.output / part)):
            for path in (Path(folder), *(Path(folder, name) for name in names)):
                if path.is_symlink():
                    raise CampaignError(f"{path} leads out of {self.output}: remove the link")
        path = self.output / "campaign.json"
        text = json.dumps(self.identity, indent=1) + "\n"
        if any((self.output / RECORDS).rglob("*.jsonl")) and not path.exists():
            raise CampaignError(
                f"{self.output} holds records and no campaign.json that says of what: choose another output folder, or "
                "remove this one"
            )
        try:
            if not path.exists():
                write_text(path, text)
            found = dict(json.loads(read_text(path)))
        except OSError as error:
            raise CampaignError(f"{self.output} can't be written ({error}): choose another output folder") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise CampaignError(f"{path} is no campaign's ({error}): choose another output folder") from error
        expected = json.loads(text)
        if different := sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)):
            raise CampaignError(
                f"{self.output} holds another campaign, which differs in {', '.join(different)}: "
                "choose another output folder, or remove this one"
            )

    def run(self, rank: int = 0, world: int = 1, progress: Callable[[int], None] | None = None) -> None:
        """Do this rank's units that are not on disk yet, or not as they were left there.

        Args:
            rank: of this process.
            world: number of processes; each takes whole batches.
            progress: told the number of utterances done, after each unit.

        Warns:
            UserWarning: records or audio that do not fit.
        """
        self.open()
        with kept_generators(self.recognizer.scorer.threshold.device):
            self.work(rank, world, progress or (lambda done: None))

    def work(self, rank: int, world: int, told: Callable[[int], None]) -> None:
        """As `run`."""
        for index in range(rank, len(self.batches), world):
            missing = [a for a in (None, *self.attacks) if not self.done(name_of(a), index, a)]
            batch = self.batch(self.batches[index]) if missing else None
            for attack in (None, *self.attacks):
                if attack in missing and batch is not None:
                    records = self.benign(batch) if attack is None else self.attack(attack, batch, index)
                    self.write(name_of(attack), index, records)
                told(len(self.batches[index]))
        if rank == 0:
            if not self.done(PROBE, 0):
                parts = bounded(self.data.utterances, self.batch_size, self.sample)
                self.write(PROBE, 0, [record for part in parts for record in self.probe(self.batch(part))])
            told(len(self.sample))

    def batch(self, positions: Sequence[int]) -> Batch:
        """Utterances of the manifest, where the recognizer is."""
        device = self.recognizer.scorer.threshold.device
        batch = collate([self.data[position] for position in positions])
        return Batch(batch.waveforms.to(device), batch.lengths.to(device), batch.speakers.to(device), batch.names)

    def positions(self, name: str, index: int) -> list[int]:
        """The utterances of a unit, by their positions in the manifest."""
        return self.sample if name == PROBE else self.batches[index]

    def unit(self, name: str, index: int) -> Path:
        """The file of an attack's records on a batch."""
        return self.output / RECORDS / filename(name) / f"{index:05d}.jsonl"

    def records(self, name: str) -> Iterator[Record]:
        """All records of an attack, of `benign` or of `probe`, in manifest order.

        Raises:
            CampaignError: a unit that is not there, or does not fit.
        """
        for index in range(1 if name == PROBE else len(self.batches)):
            try:
                yield from self.read(name, index)
            except CampaignError as error:
                raise CampaignError(f"{error}: run the same command again, it does what is left") from error

    def read(self, name: str, index: int) -> list[Record]:
        """The records of a unit.

        Raises:
            CampaignError: it is not there, or is not what this campaign wrote there.
        """
        path = self.unit(name, index)
        if not path.is_file():
            raise CampaignError(f"{path} is missing")
        try:
            text = read_text(path)
            records = [json.loads(line) for line in text.splitlines()]
            for record in records:
                del record["seal"]
            fits = len(records) == len(self.positions(name, index)) and text == self.sealed(name, index, records)
        except (ValueError, KeyError, TypeError, RecursionError):
            fits = False
        if not fits:
            raise CampaignError(f"{path} was changed or cut, or is of another unit or campaign")
        return records

    def write(self, name: str, index: int, records: Iterable[Record]) -> None:
        """Write a unit's records down; `read` gives them back."""
        write_text(self.unit(name, index), self.sealed(name, index, records))

    def sealed(self, name: str, index: int, records: Iterable[Record]) -> str:
        """A unit's lines, each with the checksum of them all, of their place, and of the campaign."""
        lines = [json.dumps(record, allow_nan=False) for record in records]
        seal = sha256("\n".join([self.mark, name, str(index), *lines]).encode()).hexdigest()
        return "".join(f'{line[:-1]}, "seal": "{seal}"}}\n' for line in lines)

    def done(self, name: str, index: int, attack: Attack | None = None) -> bool:
        """Whether the records of a unit, and the audio of an attack's, are there as they were written.

        Warns:
            UserWarning: they are there, and are not.
        """
        if not self.unit(name, index).exists():
            return False
        try:
            for position, record in zip(self.positions(name, index), self.read(name, index), strict=True):
                path = None if attack is None else self.audio(attack, position)
                if path is not None and not (path.is_file() and checksum(path) == record["sha256"]):
                    raise CampaignError(f"{path} is missing or was changed")
        except CampaignError as error:
            warnings.warn(f"{error}: it is done again", stacklevel=2)
            return False
        return True

    def seeds(self, name: str, names: Sequence[str], purpose: str) -> int:
        """The seed of a unit's draws for a purpose."""
        return key(self.seed, name, self.defenses, *names, purpose)

    def restart(self, name: str, names: Sequence[str], purpose: str) -> None:
        """Restart the draws of the recognizer, and of whatever draws in it without saying so."""
        seed = self.seeds(name, names, purpose)
        self.undefended.seed(seed)  # it shares what it can, and may have a scorer of its own
        self.recognizer.seed(seed)
        seed_generators(seed, self.recognizer.scorer.threshold.device)

    def aims(self, batch: Batch) -> Tensor:
        """What the attacks want of each utterance, (batch,): to leave its label, or to reach the target."""
        if self.goal == "untargeted":
            return batch.speakers
        self.restart(BENIGN, batch.names, "targets")
        scores = self.undefended(batch.waveforms, batch.lengths)
        decisions = self.objective.decide(scores, batch.speakers)
        targets = choose_targets(scores, decisions, batch.speakers, batch.names, self.goal, self.objective, self.seed)
        return torch.tensor(list(targets), device=batch.speakers.device)

    @torch.no_grad()
    def benign(self, batch: Batch) -> list[Record]:
        """The recognizer on the utterances as they are, the targets, and what can be said before any attack."""
        labels = self.aims(batch)
        targets = labels.tolist() if self.objective.targeted else [None] * len(batch.names)
        decisions, measured = self.measure(batch.waveforms, batch, BENIGN, labels)
        self.restart(BENIGN, batch.names, "gradient")
        gradients = finite(steepness(self.victim, batch, self.objective, labels))
        noise = {str(epsilon): self.noise(epsilon, batch, labels) for epsilon in self.balls}
        return [
            {
                "name": name,
                "label": label,
                "decision": decision,
                "correct": decision == label,
                "correct_rate": measured["correct"][i],
                "target": targets[i],
                "margin": measured["margin"][i],
                "finite": measured["finite"][i],
                "gradient": gradients[i],
                "noise": {epsilon: achieved[i] for epsilon, achieved in noise.items()},
            }
            for i, (name, label, decision) in enumerate(
                zip(batch.names, batch.speakers.tolist(), decisions.tolist(), strict=True)
            )
        ]

    @property
    def balls(self) -> list[float]:
        """The radii of the attacks' L-infinity balls."""
        return sorted({ball(attack) for attack in self.attacks} - {math.inf})

    def noise(self, epsilon: float, batch: Batch, labels: Tensor) -> list[bool]:
        """Whether uniform noise achieves the goal, the control of the attacks in that ball."""
        result = self.craft(UniformNoise(epsilon), self.recognizer, batch, labels, f"noise {epsilon}")
        return result.achieved.tolist()

    def craft(
        self, attack: Attack, victim: Recognizer | Ensemble, batch: Batch, labels: Tensor, name: str
    ) -> AttackResult:
        """What an attack returns; its draws and those of the defenses depend on `name` and the utterances alone.

        Raises:
            CampaignError: scores that are not finite, unless they count as errors.
        """
        self.restart(name, batch.names, "defenses")
        generator = torch.Generator().manual_seed(self.seeds(name, batch.names, "attack"))
        try:
            return attack(victim, batch.waveforms, labels, batch.lengths, self.objective, generator)
        except NonFiniteError as error:
            raise CampaignError(not_finite([batch.names[row] for row in error.rows], name)) from error

    @torch.no_grad()
    def probe(self, batch: Batch) -> list[Record]:
        """What a few utterances tell of the recognizer and of the attacks, before there is any."""
        labels, names = self.aims(batch), batch.names
        found = slopes(without_substitutes(self.recognizer), batch, self.objective, labels)
        ratios, lift = [finite(ratio) for ratio in found.ratios], finite(found.lift)
        queried, wide, oblivious = {}, {}, {}
        if self.adaptive:
            for epsilon in self.doubted:
                black_box = Square(epsilon, QUERIES)
                queried[str(epsilon)] = self.achieved(black_box, self.victim, batch, labels, f"probe {black_box.name}")
                radius = max(WIDE * epsilon, WIDEST)
                if radius < 1.0:
                    large = PGD(radius, radius / 5.0)
                    wide[str(epsilon)] = self.achieved(large, self.victim, batch, labels, f"probe {large.name}")
            for attack in self.attacks if len(self.recognizer.defenses) else []:
                if (unaware := witness(attack)) is not None:
                    oblivious[attack.name] = self.achieved(unaware, self.undefended, batch, labels, attack.name)
        return [
            {
                "name": name,
                "slopes": [ratio[i] for ratio in ratios],
                "lift": lift[i],
                "queried": {epsilon: achieved[i] for epsilon, achieved in queried.items()},
                "wide": {epsilon: achieved[i] for epsilon, achieved in wide.items()},
                "oblivious": {attack: achieved[i] for attack, achieved in oblivious.items()},
            }
            for i, name in enumerate(names)
        ]

    def achieved(
        self, attack: Attack, victim: Recognizer | Ensemble, batch: Batch, labels: Tensor, name: str
    ) -> list[bool]:
        """Whether the recognizer falls for what an attack makes of a victim, as a file would hold it."""
        result = self.craft(attack, victim, batch, labels, name)
        written = as_written(result.waveforms, batch.waveforms, attack.epsilon)
        decisions, _ = self.measure(written, batch, name, labels)
        found: list[bool] = ((decisions == labels) == self.objective.targeted).tolist()
        return found

    @property
    def doubted(self) -> list[float]:
        """The radii of the L-infinity balls in which the campaign attacks by gradients."""
        return sorted({ball(attack) for attack in self.attacks if white_box(attack)} - {math.inf})

    def further(self, attack: Attack, batch: Batch, labels: Tensor, crafted: Tensor) -> list[float | None]:
        """By how much a few steps more lower the margins, before any rounding; None where that can't be asked."""
        descent = onward(attack)
        if descent is None:
            return [None] * len(batch.names)
        result = self.craft(Onward(descent, crafted), self.victim, batch, labels, attack.name)
        ends = [self.measure(waveforms, batch, attack.name, labels)[1] for waveforms in (crafted, result.waveforms)]
        falls = zip(*(end["margin"] for end in ends), strict=True)
        return [None if before is None or after is None else before - after for before, after in falls]

    def attack(self, attack: Attack, batch: Batch, index: int) -> list[Record]:
        """An attack on a batch: craft, write, read again, measure."""
        labels = batch.speakers
        if self.objective.targeted:
            labels = torch.tensor([record["target"] for record in self.read(BENIGN, index)], device=labels.device)
        result = self.craft(attack, self.victim, batch, labels, attack.name)
        paths = [self.audio(attack, i) for i in self.batches[index]]
        compared = zip(*attack.present(batch.waveforms, batch.lengths), strict=True)  # as long as the result
        originals = [row[:n].cpu() for row, n in compared]
        crafted = [row[:n].cpu() for row, n in zip(result.waveforms, result.lengths.tolist(), strict=True)]
        for path, adversarial, original in zip(paths, crafted, originals, strict=True):
            audio.write_adversarial(path, adversarial, original, attack.epsilon)
        read = [audio.read(path) for path in paths]
        again = collate([(waveform, 0, "") for waveform in read])
        with torch.no_grad():
            heard = again.waveforms.to(batch.waveforms.device)
            decisions, measured = self.measure(
                heard, batch._replace(lengths=again.lengths.to(heard.device)), attack.name, labels
            )
            nothing: list[float | None] = [None] * len(batch.names)
            further = self.further(attack, batch, labels, result.waveforms) if index == 0 else nothing
        records = []
        for i, name in enumerate(batch.names):
            decision, label = int(decisions[i]), int(batch.speakers[i])
            achieved = decision == int(labels[i]) if self.objective.targeted else decision != label
            records.append(
                {
                    "name": name,
                    "label": label,
                    "target": int(labels[i]) if self.objective.targeted else None,
                    "decision": decision,
                    "correct": decision == label,
                    "achieved": achieved,
                    "correct_rate": measured["correct"][i],
                    "achieved_rate": measured["achieved"][i],
                    "margin": measured["margin"][i],
                    "finite": measured["finite"][i],
                    "further": further[i],
                    "queries": int(result.queries[i]),
                    **distortion(read[i], originals[i], attack.epsilon, name, self.perceptual),
                    "audio": paths[i].relative_to(self.output).as_posix(),
                    "sha256": checksum(paths[i]),
                }
            )
        return records

    def audio(self, attack: Attack, position: int) -> Path:
        """Where the adversarial utterance lies: the layout of a split, one an attack."""
        utterance = self.data.utterances[position]
        folder = self.output / AUDIO / filename(attack.name) / filename(utterance.speaker)
        return folder / f"{filename(utterance.name)}.wav"

    def measure(
        self, waveforms: Tensor, batch: Batch, name: str, labels: Tensor
    ) -> tuple[Tensor, dict[str, list[Any]]]:
        """Decisions of one fresh draw, (batch,); the margin, rates of correct decisions and of success, and `finite`.

        For a randomized recognizer these are over further draws, for a deterministic one the rates are None.

        Raises:
            CampaignError: scores that are not finite, unless they count as errors.
        """
        self.restart(name, batch.names, "measure")
        scores, *further = [
            self.recognizer(waveforms, batch.lengths) for _ in range(1 + self.draws * int(self.randomized))
        ]
        usable = torch.stack([drawn.isfinite().all(1) for drawn in (scores, *further)]).all(0).tolist()
        if not (all(usable) or self.objective.nonfinite_succeeds):
            raise CampaignError(not_finite(compress(batch.names, [not good for good in usable]), name))
        decisions = self.objective.decide(scores, labels)
        nothing: list[float | None] = [None] * len(batch.names)
        measured = {"correct": nothing, "achieved": nothing, "finite": usable}
        if not further:
            return decisions, {**measured, "margin": finite(self.objective.loss(scores, labels))}
        drawn = torch.stack([self.objective.decide(scores, labels) for scores in further])
        correct = (drawn == batch.speakers).double().mean(0)
        achieved = (drawn == labels).double().mean(0) if self.objective.targeted else 1.0 - correct
        margins = torch.stack([self.objective.loss(scores, labels) for scores in further]).mean(0)
        return decisions, {
            **measured,
            "correct": correct.tolist(),
            "achieved": achieved.tolist(),
            "margin": finite(margins),
        }


def content(tensor: Tensor) -> bytes:
    """What a tensor holds, of any type: numpy knows no bfloat16."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def not_finite(names: Iterable[str], attack: str) -> str:
    """What is said of utterances whose scores can't be compared."""
    return (
        f"The recognizer gave scores that are not finite for {', '.join(names)} (attack: {attack}). Mend it, or count "
        "them as its errors with --nonfinite_succeeds true"
    )


def finite(values: Tensor) -> list[float | None]:
    """The values, None where they are not finite, which JSON has no word for."""
    return [value if math.isfinite(value) else None for value in values.tolist()]


def counted(records: Iterable[Record], benign: dict[str, Record]) -> list[Record]:
    """The records of utterances that an attack can succeed on: decided correctly before, and no target of their own."""
    return [r for r in records if benign[r["name"]]["correct"] and r["target"] != r["label"]]


def name_of(attack: Attack | None) -> str:
    """The attack's name, or `benign`."""
    return BENIGN if attack is None else attack.name


def distortion(
    adversarial: Tensor, original: Tensor, epsilon: float, name: str, perceptual: bool
) -> dict[str, float | None]:
    """How far and how audible: L0, L1, L2, Linf, SNR (dB), PESQ, STOI; None where there is no finite value.

    Raises:
        CampaignError: a file outside the attack's ball.
    """
    values = {
        "l0": int(metrics.l0_norm(adversarial[None], original[None])),
        "l1": float(metrics.l1_norm(adversarial[None], original[None])),
        "l2": float(metrics.l2_norm(adversarial[None], original[None])),
        "linf": float(metrics.linf_norm(adversarial[None], original[None])),
        "snr": float(metrics.signal_to_noise_ratio(adversarial[None], original[None])),
        "pesq": metrics.perceptual_evaluation_of_speech_quality(adversarial, original) if perceptual else math.nan,
        "stoi": metrics.short_time_objective_intelligibility(adversarial, original) if perceptual else math.nan,
    }
    if not values["linf"] <= epsilon + ROUNDING:
        raise CampaignError(f"'{name}' was changed by {values['linf']:.6g}, outside the ball of {epsilon:.6g}")
    return {measure: value if math.isfinite(value) else None for measure, value in values.items()}
