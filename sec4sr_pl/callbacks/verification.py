"""Verification of speakers as a metric of validation."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import functional

from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.base import Utterances
from sec4sr_pl.data.batches import bounded
from sec4sr_pl.data.manifest import check_lengths
from sec4sr_pl.data.trials import Trials, all_pairs, read_trials
from sec4sr_pl.enrollment import embed
from sec4sr_pl.metrics import equal_error_rate, min_dcf
from sec4sr_pl.types import REJECT


class VerificationEER(Callback):
    """Score trials by the cosine of their embeddings at each validation: `verification/eer` and `verification/min_dcf`.

    Each utterance is embedded once, in batches that do not depend on the number of processes, which share them: the
    figures are the same to the bit for any number, and NaN, with a warning, where an embedding is. A sanity check is
    spared the work. Choose a checkpoint by them only where the trials are no test.

    Args:
        trials: list of lines `<1 or 0> <file> <file>`; None: as `part` says.
        root: where the list, if its path is relative, and its paths begin; None: at the root of the data module.
        part: `development` or `test` of the data module, of which at most 200,000 pairs are trials; None: its own list,
            or without one the development part.
        target_prior: probability of a target, for the detection cost.
        batch_size: utterances embedded at a time; fewer where one is long.
        seed: of the draws of randomized defenses.

    Raises:
        ValueError: a prior outside (0, 1), a batch_size below 1.
    """

    def __init__(
        self,
        trials: Path | None = None,
        root: Path | None = None,
        part: str | None = None,
        target_prior: float = 0.01,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        if not 0.0 < target_prior < 1.0 or batch_size < 1:
            raise ValueError(
                f"Expected target_prior in (0, 1) and batch_size >= 1, got {target_prior} and {batch_size}"
            )
        self.trials, self.root, self.part = trials, root, part
        self.target_prior, self.batch_size, self.seed = target_prior, batch_size, seed
        self._found: Trials | None = None
        self._resample = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the trials before training begins.

        Raises:
            ValueError: trials that can't be used, or an utterance that is too short for the recognizer.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, SpeakerData):
            raise ValueError(f"Expected a SpeakerData, which knows where utterances are, got {type(data).__name__}")
        self._resample = data.resample
        if self.trials is None and self.part is None and data.trial_list is not None:
            self._found = data.trials().check(data.trial_list)
        elif self.trials is None:
            self._found = all_pairs(data.utterances("development" if self.part is None else self.part))
        else:
            root = data.root if self.root is None else self.root
            self._found = read_trials(root / self.trials, root, data.resample)
        recognizer: Any = pl_module.recognizer
        check_lengths(self._found.utterances, recognizer.minimum_samples)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the trials once, when processes agree about batch norms and averaged weights are in: not before."""
        if batch_idx or self._found is None or trainer.sanity_checking:
            return
        units = functional.normalize(self.embeddings(trainer, pl_module, self._found))
        pairs = torch.split(self._found.pairs.to(units.device), 2**16)  # of embeddings, all would be many
        scores = torch.cat([units[part].prod(1).sum(1) for part in pairs])
        target = self._found.target.to(scores.device)
        kinds = scores[target], scores[~target]
        if undefined := int(scores.isnan().sum()):
            rank_zero_warn(f"{undefined} of the scores of {len(scores)} trials are NaN, and so is verification/eer")
            figures = dict.fromkeys(("eer", "min_dcf"), scores.new_tensor(torch.nan))
        else:
            figures = {"eer": equal_error_rate(*kinds), "min_dcf": min_dcf(*kinds, self.target_prior)}
        for name, value in figures.items():  # equal on all ranks, of which the mean may round
            pl_module.log(f"verification/{name}", value, prog_bar=name == "eer", reduce_fx="max", sync_dist=True)

    def embeddings(self, trainer: Trainer, pl_module: LightningModule, trials: Trials) -> Tensor:
        """(utterances, embedding), of which each process makes every so many batches."""
        recognizer: Any = pl_module.recognizer
        size = (len(trials.utterances), recognizer.backbone.embedding_size)
        made: Tensor = recognizer.scorer.threshold.new_zeros(size)
        for rows in bounded(trials.utterances, self.batch_size)[trainer.global_rank :: trainer.world_size]:
            own = Utterances([trials.utterances[row] for row in rows], [REJECT] * len(rows), self._resample)
            made[rows] = embed(recognizer, own, self.batch_size, self.seed)
        return trainer.strategy.reduce(made, reduce_op="sum")
