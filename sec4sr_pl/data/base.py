"""A data module over folders of speakers: crops for training, whole utterances for everything else."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from sec4sr_pl import audio
from sec4sr_pl.data.augment import FromFolder
from sec4sr_pl.data.batches import bounded
from sec4sr_pl.data.loader import Loader
from sec4sr_pl.data.manifest import Utterance, find_root, join, label, scan, split_development, tell_short, to_samples
from sec4sr_pl.data.problems import DataError, Problems
from sec4sr_pl.data.tree import parse
from sec4sr_pl.data.trials import Trials, find_trials
from sec4sr_pl.draws import key
from sec4sr_pl.types import Batch

Item = tuple[Tensor, int, str]
"""A waveform, its label and its name."""


class Utterances(Dataset[Item]):
    """Whole utterances, in manifest order."""

    def __init__(self, utterances: Iterable[Utterance], labels: Iterable[int], resample: bool = False) -> None:
        self.utterances, self.labels, self.resample = list(utterances), list(labels), resample

    def __len__(self) -> int:
        """Utterances."""
        return len(self.utterances)

    def __getitem__(self, index: int) -> Item:
        """The utterance at a position."""
        utterance = self.utterances[index]
        waveform = audio.read(utterance.path, utterance.start, utterance.frames, self.resample)
        return waveform, self.labels[index], utterance.name


class Crops(Dataset[Item]):
    """Random crops of one length, augmented; all draws are from (seed, epoch, name), short utterances are tiled.

    An utterance is met `repeats` times an epoch, as `name#0`, `name#1`, ...; an index past the end goes on with it.
    """

    def __init__(
        self, source: Utterances, samples: int, repeats: int, seed: int, augmentations: Sequence[nn.Module] = ()
    ) -> None:
        self.source, self.samples, self.repeats, self.seed = source, samples, repeats, seed
        self.augmentations = augmentations

    def __len__(self) -> int:
        """Crops an epoch."""
        return len(self.source) * self.repeats

    def __getitem__(self, drawn: tuple[int, int] | int) -> Item:
        """The crop of an (epoch, index), or of an index alone: that of the first epoch, as overfitting asks for."""
        epoch, drawn = drawn if isinstance(drawn, tuple) else (0, drawn)
        again, index = divmod(drawn, len(self))
        utterance = self.source.utterances[index // self.repeats]
        name = f"{utterance.name}#{index % self.repeats + again * self.repeats}"
        frames = min(self.samples, utterance.frames)
        offset = key(self.seed, epoch, name, "crop") % (utterance.frames - frames + 1)
        waveform = audio.read(utterance.path, utterance.start + offset, frames, self.source.resample)
        if frames < self.samples:
            waveform = waveform.repeat(-(-self.samples // frames))[: self.samples]
        if self.augmentations:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):  # libraries draw from the global generator
                torch.default_generator.manual_seed(key(self.seed, epoch, name, "augmentations"))  # not a GPU's
                for augmentation in self.augmentations:
                    changed = augmentation(waveform.unsqueeze(0))
                    if changed.shape != (1, self.samples):
                        raise DataError(
                            f"{type(augmentation).__name__} made {tuple(changed.shape)} of a crop of {self.samples} "
                            "samples: an augmentation must keep the length"
                        )
                    waveform = changed.squeeze(0)
        return waveform, self.source.labels[index // self.repeats], name


class EpochSampler(DistributedSampler[Item]):
    """The order of an epoch, from (seed, epoch), dealt to the ranks; yields (epoch, index): workers need both."""

    start = 0
    """Where in the epoch the next iteration begins: after so many utterances of this rank."""

    def __iter__(self) -> Iterator[Any]:
        """(epoch, index) pairs of this rank."""
        return ((self.epoch, index) for index in islice(super().__iter__(), self.start, None))


class BalancedSampler(EpochSampler):
    """Meets every speaker as often, instead of every utterance: rounds of all speakers, each in an order of its own.

    A speaker's utterances come in turns, each in an order of its own; each time another crop is taken.

    Args:
        crops: their number is that of an epoch.
        replicas: processes.
        rank: this process.
        seed: of the order.
    """

    def __init__(self, crops: Crops, replicas: int, rank: int, seed: int) -> None:
        super().__init__(crops, replicas, rank, shuffle=False, seed=seed)
        speakers = torch.tensor(crops.source.labels)
        counts = torch.unique(speakers, return_counts=True)[1].tolist()
        self.own = torch.split(speakers.argsort(stable=True), counts)  # the utterances of each speaker
        self.size, self.repeats = len(crops), crops.repeats

    def __iter__(self) -> Iterator[Any]:
        """(epoch, index) pairs of this rank."""
        order = self.order()
        return ((epoch, order[position]) for epoch, position in super().__iter__())

    def order(self) -> list[int]:
        """The indices of an epoch over all ranks."""
        generator = torch.Generator().manual_seed(key(self.seed, self.epoch, "balanced"))
        rounds = -(-self.size // len(self.own))
        queues = []
        for own in self.own:
            turns = [
                own[torch.randperm(len(own), generator=generator)] * self.repeats
                + turn % self.repeats
                + turn // self.repeats * self.size
                for turn in range(-(-rounds // len(own)))
            ]
            queues.append(torch.cat(turns)[:rounds])
        shuffled = torch.rand(rounds, len(self.own), generator=generator).argsort(1)
        return torch.stack(queues, 1).gather(1, shuffled).flatten()[: self.size].tolist()


class ResumableLoader(Loader[Item]):
    """Keeps in checkpoints how many batches of the epoch were taken, and goes on after them.

    The sampler is asked at the first batch, not at `iter`, which Lightning calls before it tells the epoch.
    """

    taken = 0
    resumed = 0

    def __iter__(self) -> Any:
        """The batches of an epoch; of a resumed one, those that are left."""
        self.taken, self.resumed = self.resumed, 0
        self.sampler.start = self.taken * self.batch_size  # type: ignore[attr-defined, operator]
        for batch in super().__iter__():
            self.taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Called by Lightning for each checkpoint."""
        return {"taken": self.taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Called by Lightning in a resume; a whole epoch is followed by the next."""
        if not isinstance(taken := state.get("taken"), int) or taken < 0:
            raise DataError(f"Expected how many batches of the epoch the checkpoint's training took, got {taken!r}")
        self.taken = self.resumed = taken % len(self)


def collate(items: Sequence[Item]) -> Batch:
    """A batch, zero-padded at the end."""
    waveforms, labels, names = zip(*items, strict=True)
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    return Batch(pad_sequence(list(waveforms), batch_first=True), lengths, torch.tensor(labels), list(names))


class Batches(Dataset[Batch]):
    """Batches of whole utterances, as `bounded` cuts them: for a loader that makes no batches of its own.

    Args:
        source: the utterances.
        size: of a batch of short ones.
        order: of positions in the source; None: all of it, as it is.
    """

    def __init__(self, source: Utterances, size: int, order: Iterable[int] | None = None) -> None:
        self.source, self.positions = source, bounded(source.utterances, size, order)

    def __len__(self) -> int:
        """Batches."""
        return len(self.positions)

    def __getitem__(self, index: int) -> Batch:
        """The batch at a position."""
        return collate([self.source[position] for position in self.positions[index]])


class SpeakerData(LightningDataModule):
    """Speakers as folders: `<root>/<split>/<speaker>/<utterance>.<wav|flac>`, 16 kHz, mono.

    A development part is taken from the training utterances, so that nothing is ever selected on the test set.

    Args:
        root: holds the splits; default: the variable SEC4SR_DATA, else `data`.
        train_split: folder of the training utterances.
        test_split: folder of the test utterances.
        batch_size: utterances of a batch on each process, in training.
        eval_batch_size: utterances of a batch on each process, in validation and test; fewer where one is long.
        crop_seconds: length of a training crop.
        crops_per_utterance: how often an epoch meets each utterance.
        balanced: an epoch, as long as before, meets every speaker as often, instead of every utterance.
        development_fraction: of each speaker's training material, held out for validation.
        development_seconds: the least of it, where an utterance has twice as much.
        augmentations: modules (1, time) -> (1, time) that change training crops, in order: ours, or a library's such
            as speechbrain.augment.time_domain.DropFreq.
        num_workers: processes that read ahead.
        resample: convert files of other sample rates, noises and rooms included, instead of refusing them.
        folders: names of the folders below a split that hold the files, one of them `speaker`: `speaker/session` where
            each session has one, `region/speaker` for TIMIT.
        trials: list of verification trials, `label path path` a line, in `root` unless absolute.
        trial_splits: folders that hold the files of the trials; default: the test split.
        seed: of crops and order.

    Raises:
        ValueError: a parameter outside its range.
    """

    open_set: ClassVar[bool] = False
    """Speakers who are not enrolled belong to the data, as imposters; otherwise they are a mistake."""

    def __init__(
        self,
        root: Path | None = None,
        train_split: str = "train",
        test_split: str = "test",
        batch_size: int = 64,
        eval_batch_size: int = 16,
        crop_seconds: float = 2.0,
        crops_per_utterance: int = 1,
        balanced: bool = False,
        development_fraction: float = 0.1,
        development_seconds: float = 0.5,
        augmentations: Sequence[nn.Module] = (),
        num_workers: int = 1,
        resample: bool = False,
        folders: str = "speaker",
        trials: Path | None = None,
        trial_splits: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or eval_batch_size < 1 or crops_per_utterance < 1 or num_workers < 0:
            raise ValueError("Expected batch sizes and crops_per_utterance >= 1 and num_workers >= 0")
        if not 0.0 < development_fraction < 1.0:
            raise ValueError(f"Expected development_fraction in (0, 1), got {development_fraction}")
        self.root = find_root(root)
        self.train_split, self.test_split = train_split, test_split
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.crop_samples, self.crops_per_utterance = to_samples(crop_seconds, "crop_seconds"), crops_per_utterance
        self.development_fraction = development_fraction
        self.development_samples = to_samples(development_seconds, "development_seconds", 0.0)
        parse(folders)  # refuses what names no speaker
        self.folders = folders
        self.augmentations = list(augmentations)
        self.balanced, self.resample, self.seed = balanced, resample, seed
        self.trial_list = None if trials is None else self.root / trials
        self.trial_splits = list(trial_splits) or [test_split]
        self._speakers: tuple[str, ...] | None = None
        self._problems: Problems | None = None
        self._seen: dict[Path, list[Utterance]] = {}
        self._loader: ResumableLoader | None = None
        self._position: dict[str, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """How far the epoch is: in checkpoints."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Where a resume goes on. Lightning would tell the loader itself, unless a schedule had it made before."""
        self._position = state_dict or None

    @property
    def speakers(self) -> tuple[str, ...]:
        """The names that labels index: those of the connected recognizer, else of the training split, sorted.

        What is wrong with files is not told here, but where they are used.
        """
        if self._speakers is None:
            self.prepare_data()
            with self.collected():
                self._speakers = tuple(sorted({utterance.speaker for utterance in self.utterances("train")}))
        return self._speakers

    def connect(self, speakers: Sequence[str]) -> None:
        """Let labels index a recognizer's speakers."""
        self._speakers = tuple(speakers)

    def utterances(self, part: str) -> list[Utterance]:
        """The utterances of `train`, `development` or `test`, in manifest order, or those of the `trials`.

        Raises:
            DataError: another part, or files that can't be used.
        """
        if part == "test":
            return self.scan(self.test_split)
        if part == "trials":
            return self.trials().utterances
        if part not in ("train", "development"):
            raise DataError(
                f"{type(self).__name__} has the parts 'train', 'development', 'test' and, of a list, 'trials', got "
                f"'{part}'; speakers are enrolled from the folders of Spk10, by --data Spk10 --data.enroll_split ..."
            )
        whole = self.scan(self.train_split)
        train, development = split_development(whole, self.development_fraction, self.development_samples)
        return train if part == "train" else development

    def scan(self, split: str) -> list[Utterance]:
        """All utterances of a folder in `root`.

        Raises:
            DataError: no such folder, or files that can't be used.
        """
        folder = self.root / split
        if folder not in self._seen:
            found = scan(self.root, split, self.resample, self.folders, self._problems)
            if self._problems is None:
                return found
            self._seen[folder] = found
        return self._seen[folder]

    @contextmanager
    def collected(self) -> Iterator[Problems]:
        """What is wrong with files looked at in the block, each split once, instead of an error at the first."""
        self._problems, self._seen = Problems(), {}
        try:
            yield self._problems
        finally:
            self._problems, self._seen = None, {}

    def setup(self, stage: str) -> None:
        """Look at the headers of all that a training reads, before it begins; called by the trainer.

        Raises:
            DataError: all that can't be used, with counts: files of the training split, of noises and of rooms, and
                development utterances that are too short for the recognizer.
        """
        model: Any = self.trainer.lightning_module if self.trainer else None
        minimum = getattr(getattr(model, "recognizer", None), "minimum_samples", 1)
        with self.collected() as problems:
            if stage == "fit":
                self.look(problems, minimum)
            else:
                self.utterances("development")
            seen = self._seen
        problems.tell()
        if stage == "fit":
            self._seen = seen  # the loaders of the training need not look again

    def teardown(self, stage: str) -> None:
        """Forget the files that were looked at; called by the trainer at the end."""
        self._seen = {}

    def on_exception(self, exception: BaseException) -> None:
        """Likewise, where a training stops."""
        self._seen = {}

    def look(self, problems: Problems, minimum: int = 1) -> None:
        """Look at the headers of all that a training reads.

        Args:
            problems: are told of all that can't be used.
            minimum: samples of the shortest utterance that the recognizer can score.
        """
        for utterance in self.utterances("train"):
            if utterance.frames < minimum:
                problems.note(utterance.path, f"has {utterance.frames} samples: its crops repeat them", "repeated")
        tell_short(self.utterances("development"), minimum, problems)
        self.locate_sounds(problems)

    def locate_sounds(self, problems: Problems | None = None) -> None:
        """Find the files of augmentations.

        Raises:
            DataError: without `problems` to tell, a folder that is missing, empty, or holds files that can't be used.
        """
        told = Problems()
        for module in self.from_folders():
            module.locate(self.root, self.resample, told)
        told.pass_to(problems)

    def from_folders(self) -> list[FromFolder]:
        """The augmentations, and parts of them, that take sounds from folders."""
        modules = chain.from_iterable(augmentation.modules() for augmentation in self.augmentations)
        return [module for module in modules if isinstance(module, FromFolder)]

    @property
    def held_out(self) -> list[str]:
        """The folders in `root` of those who are enrolled or heard in tests."""
        return [self.test_split, *self.trial_splits]

    @property
    def splits(self) -> list[str]:
        """The folders in `root` that belong to the data, each once."""
        return list(dict.fromkeys([self.train_split, *self.held_out]))

    @property
    def lists(self) -> list[Path]:
        """The text files that belong to the data."""
        return [] if self.trial_list is None else [self.trial_list]

    @property
    def inputs(self) -> list[Path]:
        """The folders of all splits and the text files: what no output may write over."""
        return [*(self.root / split for split in self.splits), *self.lists]

    def trials(self) -> Trials:
        """The verification trials, among the utterances of `trial_splits`.

        Raises:
            DataError: no list, one that can't be used, or files that are not there.
        """
        if self.trial_list is None:
            raise DataError(f"{type(self).__name__} has no list of trials: name one by --data.trials")
        return find_trials(self.trial_list, join({split: self.scan(split) for split in self.trial_splits}))

    def dataset(self, part: str) -> Utterances:
        """Whole utterances of a part, with labels that index `speakers`; imposters are `REJECT`."""
        utterances = self.utterances(part)
        closed = not self.open_set and part != "trials"
        return Utterances(utterances, label(utterances, self.speakers, closed), self.resample)

    def train_dataloader(self) -> DataLoader[Item]:
        """Crops of one length, in an order drawn from (seed, epoch); every process gets as many batches.

        Raises:
            DataError: files that can't be used, or an augmentation's folder that is missing or holds no audio.
        """
        if not self._seen:  # else `setup` did
            self.locate_sounds()
        crops = Crops(self.dataset("train"), self.crop_samples, self.crops_per_utterance, self.seed, self.augmentations)
        if self.balanced:
            sampler: EpochSampler = BalancedSampler(crops, *self._world(), seed=self.seed)
        else:
            sampler = EpochSampler(crops, *self._world(), shuffle=True, seed=self.seed)
        self._loader = ResumableLoader(
            crops,
            self.batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self._on_cuda(),
        )
        if self._position is not None:
            self._loader.load_state_dict(self._position)
            self._position = None
        return self._loader

    def _on_cuda(self) -> bool:
        """Whether a trainer will bring the batches to a GPU: to pin their memory would open one otherwise."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def val_dataloader(self) -> DataLoader[Batch]:
        """The development part, no utterance twice."""
        return self._eval_dataloader("development")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test part, no utterance twice."""
        return self._eval_dataloader("test")

    def _eval_dataloader(self, part: str) -> DataLoader[Batch]:
        dataset = self.dataset(part)
        replicas, rank = self._world()
        if len(dataset) < replicas:
            raise DataError(f"The {part} part has {len(dataset)} utterances, too few for {replicas} processes")
        own = Batches(dataset, self.eval_batch_size, range(rank, len(dataset), replicas))
        # Lightning deals what has no DistributedSampler, and this is dealt
        return DataLoader(own, None, sampler=DistributedSampler(own, 1, 0, shuffle=False))

    def _world(self) -> tuple[int, int]:
        """How many processes share the data, and which this is."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
