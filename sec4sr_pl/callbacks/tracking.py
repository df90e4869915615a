"""What trackers of experiments show: one run over all resumes, its speed, and what its adversary sounds like."""

import csv
import re
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor

from sec4sr_pl.attacks import PGD, Attack, Objective
from sec4sr_pl.draws import key
from sec4sr_pl.files import read_rows, read_text, refuse_others, whole
from sec4sr_pl.metrics import signal_to_noise_ratio
from sec4sr_pl.types import SAMPLE_RATE, Batch


class AppendingWriter(ExperimentWriter):  # type: ignore[misc, unused-ignore]
    """The CSV file of a logger, which goes on where its training does; Lightning's own begins with an empty file.

    Args:
        folder: of the file.

    Raises:
        ValueError: a file of something else.
        OSError: one that can't be read, or something else than a plain file has its name.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self.path = Path(self.metrics_file_path)
        refuse_others(self.path)
        if self.path.exists() and not (text := read_text(self.path)).endswith("\n"):  # a kill has cut the last row
            with whole(self.path) as partial:
                partial.write_bytes(text[: text.rfind("\n") + 1].encode())
        self.metrics_keys, _ = self.read()

    def read(self) -> tuple[list[str], list[list[str]]]:
        """The names of the columns, and the rows."""
        if not self.path.exists():
            return [], []
        names, *rows = [row for row in read_rows(self.path) if row] or [[]]
        if rows and "step" not in names:
            raise ValueError(f"{self.path} has no column 'step': it is no training's, move it away")
        for row in rows:
            if len(row) != len(names) or not re.fullmatch(r"\d+(\.0*)?", row[names.index("step")]):
                raise ValueError(
                    f"{self.path} has the row '{','.join(row)}': expected {len(names)} values, of them 'step' a whole "
                    "number; move the file away"
                )
        return names, rows

    def _check_log_dir_exists(self) -> None:
        """Delete nothing."""

    def cut(self, step: int) -> None:
        """Drop the rows from a step on, which is done again."""
        names, rows = self.read()
        kept = [row for row in rows if float(row[names.index("step")]) < step]
        if rows and step == 0:
            rank_zero_warn(f"{self.path} held {len(rows)} rows of a training that is not resumed: it begins anew")
        if len(kept) < len(rows):
            with whole(self.path) as partial, partial.open("w", newline="") as file:
                csv.writer(file).writerows([names, *kept])


class LoggedRun(Callback):
    """Lets trackers go on with their run: W&B's id is in each checkpoint, as `wandb_run`; a CSV file is up to it."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Called by the trainer."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger) and logger.version is not None:
                checkpoint["wandb_run"] = str(logger.version)
            if isinstance(logger, CSVLogger):
                logger.save()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What comes now may have been logged before a kill."""
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, CSVLogger) and isinstance(logger.experiment, AppendingWriter):
                logger.experiment.cut(trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the last checkpoint be sent last: W&B calls `latest` what comes last."""
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                kept = sorted(logger._checkpoint_callbacks.items(), key=lambda item: item[1].save_top_k == 0)
                logger._checkpoint_callbacks = dict(kept)


class Throughput(Callback):
    """Logs `train/samples_per_second`: utterances of all processes, mean since the epoch or its last validation began.

    By the clock of the host, which is never made to wait for the device.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting: a resume may begin within an epoch."""
        self.begin, self.samples = time.perf_counter(), 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting anew."""
        self.on_train_start(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting anew: validation is not training."""
        self.on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count a batch."""
        self.samples += len(batch.names) * trainer.world_size
        pl_module.log("train/samples_per_second", self.samples / (time.perf_counter() - self.begin))


class AudioTable(Callback):
    """Some development utterances as they are, attacked, and the amplified difference: to be heard and seen.

    In W&B the table `development/audio`, with players and spectrograms; in TensorBoard the three players. The first
    process chooses, by a hash of the name, the same of its utterances at each validation.

    Args:
        attack: the adversary; default: PGD-10.
        utterances: rows of the table.
        every: validations from one table to the next.
        gain: of the difference, in dB; clipped at full scale.
        seed: of the attack's draws.
    """

    columns = (
        *("name", "speaker", "benign decision", "adversarial decision", "SNR (dB)"),
        *("benign", "adversarial", "difference"),
        *("benign spectrogram", "adversarial spectrogram", "difference spectrogram"),
    )

    def __init__(
        self, attack: Attack | None = None, utterances: int = 4, every: int = 1, gain: float = 40.0, seed: int = 0
    ) -> None:
        if utterances < 1 or every < 1:
            raise ValueError(f"Expected utterances >= 1 and every >= 1, got {utterances} and {every}")
        self.attack = PGD() if attack is None else attack
        self.utterances, self.every, self.gain, self.seed = utterances, every, gain, seed
        self.validations = 0
        self.rows: dict[int, tuple[list[Any], dict[str, Tensor]]] = {}

    def state_dict(self) -> dict[str, int]:
        """How many validations there were."""
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on counting."""
        self.validations = state_dict["validations"]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Attack the batch's utterances of the smallest hashes so far, while the weights are those of validation."""
        if not self._wanted(trainer):
            return
        ranks = [key(name, "audio") for name in batch.names]
        bound = sorted([*self.rows, *ranks])[: self.utterances][-1]
        chosen = [index for index, rank in enumerate(ranks) if rank <= bound]
        if not chosen:
            return
        names = [batch.names[index] for index in chosen]
        rows = torch.tensor(chosen, device=batch.waveforms.device)
        waveforms, lengths, speakers = batch.waveforms[rows], batch.lengths[rows], batch.speakers[rows]
        recognizer: Any = pl_module.recognizer
        recognizer.seed(key(self.seed, *names))
        generators = [torch.Generator().manual_seed(key(self.seed, "attack", name)) for name in names]
        objective = Objective(float(recognizer.scorer.threshold))
        result = self.attack(recognizer, waveforms, speakers, lengths, objective, generators)
        decisions = [recognizer.decide(recognizer(heard, lengths)).tolist() for heard in (waveforms, result.waveforms)]
        noise = signal_to_noise_ratio(result.waveforms, waveforms, lengths).tolist()
        for row, index in enumerate(chosen):
            said = [
                recognizer.scorer.speakers[s] if s >= 0 else "rejected"
                for s in (int(speakers[row]), decisions[0][row], decisions[1][row])
            ]
            benign, adversarial = (w[row, : int(lengths[row])].float().cpu() for w in (waveforms, result.waveforms))
            difference = ((adversarial - benign) * 10 ** (self.gain / 20)).clamp(-1.0, 1.0)
            signals = {"benign": benign, "adversarial": adversarial, "difference": difference}
            self.rows[ranks[index]] = ([names[row], *said, noise[row]], signals)
        self.rows = {rank: self.rows[rank] for rank in sorted(self.rows)[: self.utterances]}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the rows, and forget them."""
        if self._wanted(trainer):
            step = max(0, trainer.global_step - 1)  # as Lightning counts for loggers
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    data = [[*told, *self._media(signals)] for told, signals in self.rows.values()]
                    logger.log_table("development/audio", list(self.columns), data, step=step)
                elif isinstance(logger, TensorBoardLogger):
                    for told, signals in self.rows.values():
                        for kind, signal in signals.items():
                            tag = f"development/audio/{told[0]}/{kind}"
                            logger.experiment.add_audio(tag, signal, step, SAMPLE_RATE)
        self.rows = {}
        self.validations += not trainer.sanity_checking

    def _wanted(self, trainer: Trainer) -> bool:
        """Whether this process shows this validation to anyone."""
        return (
            trainer.is_global_zero
            and not trainer.sanity_checking
            and self.validations % self.every == 0
            and any(isinstance(logger, WandbLogger | TensorBoardLogger) for logger in trainer.loggers)
        )

    def _media(self, signals: dict[str, Tensor]) -> list[Any]:
        """The players and the spectrograms of a row."""
        import wandb  # takes a second

        captions = {**{kind: kind for kind in signals}, "difference": f"difference, amplified by {self.gain:g} dB"}
        players = [wandb.Audio(s.numpy(), SAMPLE_RATE, captions[kind]) for kind, s in signals.items()]
        return [*players, *(wandb.Image(spectrogram(s), caption=captions[kind]) for kind, s in signals.items())]


def spectrogram(signal: Tensor) -> Any:
    """A picture (height, width, 3) uint8 of a waveform (time,): 0 to 8 kHz upwards, -60 to 40 dB, 10 ms a column."""
    window = torch.hann_window(512)
    spectrum = torch.stft(signal, 512, SAMPLE_RATE // 100, window=window, pad_mode="constant", return_complex=True)
    level = (20.0 * spectrum.abs().clamp_min(1e-6).log10() + 60.0) / 100.0
    return (colormaps["magma"](level.clamp(0.0, 1.0).flip(0).numpy())[..., :3] * 255).astype("uint8")
