"""What a training tells its trackers: with the real W&B, offline, and the real TensorBoard."""

import csv
import json
import math
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.data import DataLoader

from sec4sr_pl.attacks import PGD, Attack
from sec4sr_pl.callbacks import AudioTable
from sec4sr_pl.callbacks.tracking import AppendingWriter, spectrogram
from sec4sr_pl.cli import train
from sec4sr_pl.draws import key
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.training import SpeakerModule
from sec4sr_pl.types import SAMPLE_RATE, Batch

wandb = pytest.importorskip("wandb", reason="wandb is not installed")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:.*could not find the monitored key.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
]

CONFIG = """
trainer:
  max_epochs: 4
  accelerator: cpu
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: RobustValidation
      init_args: {attack: {class_path: FGSM}, pesq: 0.0}
    - class_path: pytorch_lightning.callbacks.EMAWeightAveraging
      init_args: {decay: 0.9}
    - class_path: pytorch_lightning.callbacks.ModelCheckpoint
      init_args: {monitor: development/accuracy, mode: max, filename: best, dirpath: run, enable_version_counter: false}
    - class_path: LastCheckpoint
      init_args: {dirpath: run}
    - class_path: pytorch_lightning.callbacks.LearningRateMonitor
    - class_path: Throughput
    - class_path: AudioTable
      init_args: {utterances: 2, every: 2}
model:
  recognizer:
    class_path: sec4sr_pl.recognizer.Recognizer
    init_args:
      features: {class_path: LogMel}
      backbone: {class_path: AudioNet}
      scorer: {class_path: ClosedSet, init_args: {embedding_size: 32}}
  objective: {class_path: AdversarialTraining, init_args: {attack: {class_path: PGD, init_args: {steps: 2}}}}
data: {class_path: SpeakerData, init_args: {batch_size: 4, crop_seconds: 0.4, num_workers: 0}}
"""
WANDB = {
    "class_path": "pytorch_lightning.loggers.WandbLogger",
    "init_args": {"project": "speakers", "save_dir": ".", "log_model": True},
}
CURVES = {
    "train/loss",
    "train/loss_benign",
    "train/loss_adversarial",
    "train/attack_passes",
    "train/samples_per_second",
    "train/benign_accuracy",
    "train/adversarial_accuracy",
    "lr-Adam",
    "development/accuracy",
    "robust/benign_accuracy",
    "robust/adversarial_accuracy",
    "robust/attack_success",
    "robust/r1",
    "robust/snr",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of this module's trainings, with data and a configuration."""
    folder = tmp_path_factory.mktemp("tracking")
    generator = torch.Generator().manual_seed(0)
    for speaker in range(3):
        for utterance in range(3):
            time = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
            voice = sum(torch.sin(2 * math.pi * 110 * (speaker + 1) * h * time) / h for h in range(1, 8))
            wave = 0.1 * voice + 0.01 * torch.randn(len(time), generator=generator)
            path = folder / "data" / "train" / f"speaker{speaker}" / f"s{speaker}u{utterance}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, wave.numpy(), SAMPLE_RATE, subtype="PCM_16")
    (folder / "train.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["train.py"])
        for variable in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_RUN_ID", "WANDB_PROJECT"):
            patch.delenv(variable, raising=False)
        patch.setenv("HOME", str(folder))  # no key of this machine's user
        patch.setenv("WANDB_DATA_DIR", str(folder / "wandb-data"))
        patch.setenv("WANDB_SILENT", "true")
        yield folder


def fit(*flags: str, logger: Any = WANDB) -> None:
    """Train by the command line."""
    config = yaml.safe_load(CONFIG)
    config["trainer"]["logger"] = logger
    Path("train.yaml").write_text(yaml.safe_dump(config))
    try:
        train(["fit", "--config=train.yaml", "--data.root=data", *flags])
    finally:
        wandb.finish()


def records(run: Path) -> list[Any]:
    """What an offline run tells `wandb sync`: protocol buffers in a LevelDB log of blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = run.glob("*.wandb")
    content, position, part, found = file.read_bytes(), 7, b"", []
    while position + 7 <= len(content):
        if (left := 32_768 - position % 32_768) < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        part += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or its last part
            found.append(Record.FromString(part))
            part = b""
    return found


def history(run: Path) -> list[dict[str, Any]]:
    """The rows of the curves of a run."""
    return [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for record in records(run)
        if record.WhichOneof("record_type") == "history"
    ]


def artifacts(run: Path, kind: str) -> list[Any]:
    """The artifacts of a kind that a run keeps."""
    return [r.artifact for r in records(run) if r.WhichOneof("record_type") == "artifact" and r.artifact.type == kind]


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[Path]:
    """The folders of an offline run of two epochs, and of its resume for two more."""
    fit("--trainer.max_steps=4")
    fit("--ckpt_path=last")
    return sorted((folder / "wandb").glob("offline-run-*"))


# Weights & Biases


def test_without_a_key_runs_are_offline_and_a_resume_goes_on_with_its_run(runs: list[Path]) -> None:
    run = torch.load("run/last.ckpt", weights_only=True)["wandb_run"]
    for path in runs:
        assert path.name.endswith(f"-{run}")
        (told,) = [record.run for record in records(path) if record.WhichOneof("record_type") == "run"]
        assert (told.run_id, told.project) == (run, "speakers")
    steps = [[row["trainer/global_step"] for row in history(path)] for path in runs]
    assert (steps[0][0], steps[0][-1]) == (0, 3)
    assert steps[1][0] == 4


def test_another_training_is_another_run(
    folder: Path, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(folder / "data")
    fit("--trainer.max_steps=1")
    (other,) = (tmp_path / "wandb").glob("offline-run-*")
    assert other.name.rpartition("-")[2] != runs[0].name.rpartition("-")[2]


def test_a_run_has_the_configuration(runs: list[Path]) -> None:
    updates = [u for r in records(runs[0]) if r.WhichOneof("record_type") == "config" for u in r.config.update]
    config = {update.key or update.nested_key[0]: json.loads(update.value_json) for update in updates}
    assert config["model"]["objective"]["init_args"]["attack"]["init_args"]["steps"] == 2
    assert config["data"]["class_path"] == "sec4sr_pl.data.SpeakerData"
    assert config["trainer"]["max_steps"] == 4


def test_a_run_has_every_curve_that_is_promised(runs: list[Path]) -> None:
    documented = (Path(__file__).parents[1] / "docs" / "wandb.md").read_text()
    for run in runs:
        assert {name for row in history(run) for name in row} >= CURVES
    for name in CURVES - {"lr-Adam"}:
        assert f"`{name}`" in documented


def test_parts_of_the_loss_and_passes_are_those_of_their_rows(runs: list[Path]) -> None:
    rows = [row for row in history(runs[0]) if "train/loss" in row]
    mixed = 0
    for row, size in zip(rows, (4, 2, 4, 2), strict=True):
        attacked = row["train/attack_passes"] / 2  # PGD-2 passes each row twice
        assert attacked in range(size + 1)
        parts = {"benign": size - attacked, "adversarial": attacked}
        for kind, number in parts.items():
            assert math.isnan(row[f"train/loss_{kind}"]) is (number == 0)
        mean = sum(number * row[f"train/loss_{kind}"] for kind, number in parts.items() if number) / size
        assert mean == pytest.approx(row["train/loss"], rel=1e-5)
        mixed += 0 < attacked < size
    assert mixed > 0


def test_checkpoints_are_artifacts_with_aliases(runs: list[Path]) -> None:
    for run in runs:
        models = artifacts(run, "model")
        aliases = [set(model.aliases) for model in models]
        assert aliases in ([{"latest", "best"}, {"latest"}], [{"latest"}])  # the later one takes an alias over
        for model in models:
            (content,) = model.manifest.contents
            assert content.path == "model.ckpt"
            held = Path(content.local_path).read_bytes()
            name = "best" if "best" in model.aliases else "last"
            assert run != runs[-1] or held == Path(f"run/{name}.ckpt").read_bytes()
    assert any("best" in model.aliases for model in artifacts(runs[0], "model"))


def test_the_audio_table_holds_what_was_heard_and_attacked(runs: list[Path]) -> None:
    (table,) = artifacts(runs[0], "run_table")  # of the first validation of two
    files = {content.path: Path(content.local_path) for content in table.manifest.contents}
    content = json.loads(files["development/audio.table.json"].read_text())
    assert tuple(content["columns"]) == AudioTable.columns
    assert len(content["data"]) == 2
    for name, speaker, benign_decision, adversarial_decision, snr, *media in content["data"]:
        assert name.startswith(f"s{speaker[-1]}")
        assert {benign_decision, adversarial_decision} <= {"speaker0", "speaker1", "speaker2"}
        players, images = media[:3], media[3:]
        benign, adversarial, difference = (soundfile.read(files[p["path"]])[0] for p in players)
        source = soundfile.read(f"data/train/{speaker}/{name}.wav")[0]
        starts = np.flatnonzero(np.isclose(source, benign[0], atol=1e-4))
        assert any(np.allclose(source[s : s + len(benign)], benign, atol=1e-4) for s in starts)
        change = adversarial - benign
        assert 0.0015 < np.abs(change).max() <= 0.002 + 2 / 32_768
        assert np.allclose(difference, 100 * change, atol=0.01)  # 16 bits, amplified
        assert snr == pytest.approx(10 * np.log10(np.sum(benign**2) / np.sum((difference / 100) ** 2)), abs=0.1)
        assert [p["caption"] for p in players] == ["benign", "adversarial", "difference, amplified by 40 dB"]
        for image in images:
            assert files[image["path"]].read_bytes().startswith(b"\x89PNG")
            assert image["height"] == 257


def test_a_run_that_began_with_csv_alone_goes_on_as_one_run(folder: Path, tmp_path: Path) -> None:
    """`version: ""` of the shipped CSVLogger is kept by a flag that names another logger."""
    table = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": "csv", "version": ""}}
    own = [f"--trainer.callbacks.dirpath={tmp_path}", f"--ckpt_path={tmp_path / 'last.ckpt'}"]
    fit("--trainer.max_steps=2", "--trainer.callbacks=LastCheckpoint", own[0], logger=table)
    for steps, flag in ((4, "--trainer.logger=WandbLogger"), (6, "--trainer.logger+=WandbLogger")):
        where = f"{flag.partition('=')[0].rstrip('+')}.save_dir={tmp_path}"
        fit(f"--trainer.max_steps={steps}", "--trainer.callbacks=LastCheckpoint", *own, flag, where, logger=table)
    names = {path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")}
    assert names == {torch.load(tmp_path / "last.ckpt", weights_only=True)["wandb_run"]}


# CSV


def rows(path: Path) -> list[tuple[str, ...]]:
    """Of a table: the step, and what is told of it."""
    with path.open(newline="") as file:
        return [(row["step"], *sorted(name for name, value in row.items() if value)) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch,train/loss\n0,1.0\n", "has no column 'step'"),
        ("epoch,step\n0,\n", "row '0,': expected 2 values, of them 'step' a whole number"),
        ("epoch,step\n0,1,2\n", "row '0,1,2': expected 2 values, of them 'step' a whole number"),
        ("epoch,step\n0,1\n\n0,nan\n", "row '0,nan': expected 2 values, of them 'step' a whole number"),
    ],
)
def test_a_table_that_is_no_trainings_is_named_and_left_alone(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=f"metrics.csv.*{said}"):
        AppendingWriter(str(tmp_path))
    assert (tmp_path / "metrics.csv").read_text() == text


def test_a_row_that_a_kill_has_cut_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,loss,step\n0,0.5,1\n0,0.25,2\n0,0.12")
    writer = AppendingWriter(str(tmp_path))
    writer.log_metrics({"epoch": 0, "loss": 0.125}, 3)  # a validation cuts nothing
    writer.save()
    table = (tmp_path / "metrics.csv").read_text().split()
    assert table == ["epoch,loss,step", "0,0.5,1", "0,0.25,2", "0,0.125,3"]
    AppendingWriter(str(tmp_path)).cut(2)
    assert (tmp_path / "metrics.csv").read_text().split() == table[:2]


def test_a_table_is_written_through_no_link_and_read_from_no_pipe(tmp_path: Path) -> None:
    for name, make in (("link", lambda path: path.symlink_to(tmp_path / "other")), ("pipe", os.mkfifo)):
        (tmp_path / name).mkdir()
        make(tmp_path / name / "metrics.csv")
        with pytest.raises(OSError, match="Expected a file or a free name"):
            AppendingWriter(str(tmp_path / name))


def test_a_resume_goes_on_with_the_table_and_no_step_stands_twice(folder: Path, tmp_path: Path) -> None:
    """Stopped in the middle of an epoch, with a row of a step that is done again."""

    def run(name: str, *flags: str) -> Path:
        logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": name, "version": ""}}
        own = ["--trainer.callbacks=LastCheckpoint", f"--trainer.callbacks.dirpath={tmp_path / name}"]
        fit(*own, *flags, logger=logger)
        return tmp_path / name / "metrics.csv"

    whole = rows(run("whole"))
    path = run("stopped", "--trainer.max_steps=3")
    header = path.read_text().splitlines()[0].split(",")
    with path.open("a") as file:
        file.write(",".join("3" if name == "step" else "0.5" for name in header) + "\n")
    resumed = rows(run("stopped", f"--ckpt_path={tmp_path / 'stopped' / 'last.ckpt'}"))
    assert len(resumed) == len(set(resumed))
    assert {row[0] for row in resumed} == {row[0] for row in whole}
    assert [row for row in resumed if "train/loss" in row] == [row for row in whole if "train/loss" in row]


# TensorBoard


def test_tensorboard_is_a_matter_of_configuration(folder: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "board", "name": "run"}}
    fit("--trainer.max_epochs=2", logger=logger)
    events = accumulator.EventAccumulator(str(folder / "board" / "run" / "version_0"), {"audio": 0, "scalars": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) >= CURVES
    kinds = {tag.rpartition("/")[2] for tag in events.Tags()["audio"]}
    assert kinds == {"benign", "adversarial", "difference"}
    assert len(events.Tags()["audio"]) == 6


# The audio table


class Recorder:
    """Stands for a TensorBoard writer: keeps what it is given."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, torch.Tensor]] = []

    def add_audio(self, tag: str, signal: torch.Tensor, step: int, rate: int) -> None:
        assert rate == SAMPLE_RATE
        self.heard.append((tag, step, signal))

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def heard(
    recognizer: Recognizer, batches: Sequence[Batch], table: AudioTable, tmp_path: Path, validations: int = 1
) -> list[list[tuple[str, int, torch.Tensor]]]:
    """What each of some validations shows."""
    shown = []
    for _ in range(validations):
        logger = TensorBoardLogger(tmp_path)
        logger._experiment = Recorder()  # type: ignore[assignment]
        trainer = Trainer(
            accelerator="cpu", logger=logger, callbacks=[table], enable_progress_bar=False, enable_model_summary=False
        )
        loader = DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type, var-annotated]
        trainer.validate(SpeakerModule(recognizer), loader, verbose=False)
        shown.append(logger._experiment.heard)
    return shown


@pytest.fixture
def utterances(speech: tuple[torch.Tensor, torch.Tensor]) -> Batch:
    waveforms, lengths = speech
    return Batch(waveforms, lengths, torch.arange(8), [f"utterance{index}" for index in range(8)])


def part(batch: Batch, rows: Sequence[int]) -> Batch:
    rows = list(rows)
    return Batch(batch.waveforms[rows], batch.lengths[rows], batch.speakers[rows], [batch.names[r] for r in rows])


def test_the_table_chooses_by_name_whatever_the_batches(
    recognizer: Recognizer, utterances: Batch, tmp_path: Path
) -> None:
    expected = set(sorted(utterances.names, key=lambda name: key(name, "audio"))[:3])
    for orders in ([range(8)], [[7, 3], [1], [0, 2, 4], [6, 5]], [[i] for i in range(8)]):
        batches = [part(utterances, rows) for rows in orders]
        (shown,) = heard(recognizer, batches, AudioTable(PGD(steps=1), utterances=3), tmp_path)
        assert {tag.split("/")[2] for tag, _, _ in shown} == expected
        assert len(shown) == 9
        for tag, _, signal in shown:
            row = utterances.names.index(tag.split("/")[2])
            if tag.endswith("/benign"):
                assert torch.equal(signal, utterances.waveforms[row, : int(utterances.lengths[row])])


def test_the_table_is_shown_at_every_nth_validation_and_keeps_nothing(
    recognizer: Recognizer, utterances: Batch, tmp_path: Path
) -> None:
    table = AudioTable(PGD(steps=1), utterances=2, every=3)
    shown = heard(recognizer, [utterances], table, tmp_path, validations=5)
    assert [len(part) for part in shown] == [6, 0, 0, 6, 0]
    assert table.rows == {}


def test_without_a_tracker_nothing_is_attacked(recognizer: Recognizer, utterances: Batch) -> None:
    class Never(PGD):
        def perturb(self, *_: Any, **__: Any) -> Any:
            raise AssertionError

    attack: Attack = Never()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[AudioTable(attack)],
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    loader = DataLoader([utterances], batch_size=None)  # type: ignore[arg-type, var-annotated]
    trainer.validate(SpeakerModule(recognizer), loader, verbose=False)


def test_a_spectrogram_shows_a_tone_at_its_height() -> None:
    time = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
    picture = spectrogram(0.1 * torch.sin(2 * math.pi * 2_000 * time))
    assert picture.shape == (257, 101, 3) and picture.dtype == np.uint8
    brightest = picture.sum((1, 2)).argmax()
    assert brightest == 256 - 64  # 2 of 8 kHz, from below
