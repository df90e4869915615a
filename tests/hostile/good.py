"""Inputs with which every command works, tiny: voices, checkpoints, a campaign, the state of a background training."""

from pathlib import Path

import numpy as np
import soundfile
import torch

from hostile.place import OUTPUT, Command, Place, run
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.checkpoint import save_recognizer
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet

SPEAKERS = ("ann", "bob")
TRAINING = """\
trainer:
  max_steps: 1
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  num_sanity_val_steps: 0
  limit_val_batches: 0
  default_root_dir: out
  callbacks: [{class_path: LastCheckpoint, init_args: {dirpath: out, every_n_train_steps: 1}}]
model:
  recognizer:
    class_path: sec4sr_pl.recognizer.Recognizer
    init_args:
      features: {class_path: LogMel}
      backbone: {class_path: AudioNet}
      scorer: {class_path: ClosedSet, init_args: {embedding_size: 32}}
  objective: {class_path: Standard}
  optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.001}}
data:
  class_path: SpeakerData
  init_args: {root: data, batch_size: 2, crop_seconds: 0.2, num_workers: 0}
"""
DATA = {"data": "SpeakerData", "data.root": "data"}
CHECKPOINT = {"checkpoint": "given.ckpt"}
TINY = {"components": 2, "embedding_size": 2, "lda_size": 2, "gmm_iterations": 1, "extractor_iterations": 1}
WHOLE = {"data.development_fraction": 1e-6, "data.development_seconds": 0.0}
MODULE = "python -m sec4sr_pl."

EVALUATE = Command(
    "evaluate.py",
    "sec4sr_pl.evaluation:main",
    {**CHECKPOINT, **DATA, "attacks": "[FGSM]", "output": "out", "accelerator": "cpu", "perceptual": "false"},
    "summary.json",
)
ENROLL = Command(
    MODULE + "enrollment",
    "sec4sr_pl.enrollment:main",
    {**CHECKPOINT, "scorer": "Cosine", "data": "Spk10", "data.root": "data", "output": "out/made.ckpt"},
    "made.ckpt",
)
EXPORT = Command(
    MODULE + "checkpoint", "sec4sr_pl.checkpoint:main", {}, "made.ckpt", before=("given.ckpt", "out/made.ckpt")
)
UNIVERSAL = Command(
    MODULE + "robustness.universal",
    "sec4sr_pl.robustness.universal:main",
    {**CHECKPOINT, **DATA, "output": "out/made.wav", "epochs": 1, "seconds": 0.2},
    "made.wav",
)
BACKGROUND = Command(
    MODULE + "training.background",
    "sec4sr_pl.training.background.__main__:main",
    {
        "data": "Background",
        "data.root": "data",
        "data.train_split": "strangers",
        "data.listed": "listed.txt",
        "data.segment_seconds": 0.2,
        **WHOLE,
        "output": "out",
        **TINY,
    },
    "recognizer.ckpt",
)
BACKEND = Command(
    MODULE + "training.background.backend",
    "sec4sr_pl.training.background.backend:main",
    {
        **CHECKPOINT,
        "data": "VoxCeleb",
        "data.root": "data",
        "data.train_split": "nested",
        "output": "out",
        "lda_size": 2,
        "shrinkage": 0.5,
        "plda_iterations": 1,
    },
    "recognizer.ckpt",
)
SHARDS = Command(MODULE + "data.shards", "sec4sr_pl.data.shards:main", {**DATA, "output": "out/sharded"}, "")
TRIAL_LIST = Command(
    MODULE + "data.trial_list",
    "sec4sr_pl.data.trial_list:main",
    {"data": "VoxCeleb", "data.root": "data", "data.trial_splits": "[nested]", "output": "out/made.txt"},
    "made.txt",
)
FIT = Command("train.py", "sec4sr_pl.cli:train", {"config": "training.yaml"}, "", before=("fit",))
VALIDATE = Command(
    "train.py",
    "sec4sr_pl.cli:train",
    {"config": "training.yaml", "ckpt_path": "trained/last.ckpt"},
    "",
    before=("validate",),
)
TRIED = {
    "data": "VoxCeleb",
    "data.test_split": "nested",
    "data.trial_splits": "[nested]",
    "data.trials": "trials.txt",
}
VERIFY = Command(ENROLL.prog, ENROLL.entry, {**ENROLL.flags, **TRIED, "task": "SV"}, ENROLL.made)
KALDI = Command(
    ENROLL.prog, ENROLL.entry, {"config": "kaldi.yaml", **DATA, "data": "Spk10", "output": "out/made.ckpt"}, "made.ckpt"
)
COMMANDS = {
    "evaluate": EVALUATE,
    "enroll": ENROLL,
    "export": EXPORT,
    "universal": UNIVERSAL,
    "background": BACKGROUND,
    "backend": BACKEND,
    "shards": SHARDS,
    "trial_list": TRIAL_LIST,
    "fit": FIT,
    "validate": VALIDATE,
    "verify": VERIFY,
    "kaldi": KALDI,
}
INPUTS = ("data", "given.ckpt", "verify.ckpt", "training.yaml", "kaldi.yaml", "models", "trained")


def voice(path: Path, speaker: int, index: int, seconds: float = 0.4) -> None:
    """A speaker's pitch and some noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(16_000 * seconds) + 16 * index) / 16_000
    noise = np.random.default_rng([speaker, index]).standard_normal(len(time))
    samples = 0.2 * np.sign(np.sin(6.2832 * (90 + 37 * speaker) * time)) + 0.02 * noise
    soundfile.write(path, samples, 16_000, "PCM_16")


def voices(root: Path) -> None:
    """Speakers in the forms of all data modules."""
    parts = {"train": 0, "test": 2, "Spk10_enroll": 4, "Spk10_test": 6}
    places = [(f"{part}/{name}", who, start) for part, start in parts.items() for who, name in enumerate(SPEAKERS)]
    places += [(f"Spk10_imposter/{name}", 2 + who, 0) for who, name in enumerate(("101", "102"))]
    places += [(f"nested/id{who}/video", 4 + who, 0) for who in range(3)]
    places += [(f"strangers/{name}", 7 + who, 0) for who, name in enumerate("xyz")]
    for place, speaker, start in places:
        for index in range(3 if place.startswith(("train", "nested", "strangers")) else 2):
            path = root / place / f"{place.split('/')[1]}-{start + index}.wav"
            voice(path, speaker, start + index, 1.2 if place.startswith("strangers") else 0.4)
    (root / "listed.txt").write_text("x\ny\nz\n")
    files = [f"id{who}/video/id{who}-{index}.wav" for who in range(3) for index in range(3)]
    pairs = [(one, other) for place, one in enumerate(files) for other in files[place + 1 :]]
    (root / "trials.txt").write_text("".join(f"{int(one[:3] == other[:3])} {one} {other}\n" for one, other in pairs))


KALDI_CONFIG = """\
recognizer:
  class_path: sec4sr_pl.recognizer.Recognizer
  init_args:
    features: {class_path: MFCC}
    backbone:
      class_path: sec4sr_pl.backbones.IVector.from_kaldi
      init_args: {ubm: models/final_ubm.txt, extractor: models/final_ie.txt}
    scorer:
      class_path: sec4sr_pl.scoring.PLDA.from_kaldi
      init_args: {mean: models/mean.vec, transform: models/transform.txt, plda: models/plda.txt}
"""


def make(folder: Path, scratch: Path) -> Path:
    """Fill a folder with good inputs; the commands make some of them."""
    voices(folder / "data")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        recognizer = Recognizer(LogMel(), AudioNet(), ClosedSet(32, SPEAKERS)).eval()
    save_recognizer(recognizer, folder / "given.ckpt")
    (folder / "training.yaml").write_text(TRAINING)
    (folder / "kaldi.yaml").write_text(KALDI_CONFIG)
    made = {"verify.ckpt": VERIFY, "models": BACKGROUND, "campaign": EVALUATE, "sharded": SHARDS, "trained": FIT}
    for name, command in made.items():
        place = Place(scratch / name, folder)
        for given in INPUTS:
            if (folder / given).exists():
                place.bring(given)
        works(command, place)
        (place.folder / OUTPUT / {"sharded": "sharded", "verify.ckpt": "made.ckpt"}.get(name, "")).rename(folder / name)
    return folder


def works(command: Command, place: Place) -> None:
    """Run a command that must end well."""
    status, text = run(command, place, command.arguments())
    if status != 0:
        raise RuntimeError(f"Expected {command.prog} to work, it ended with {status}: {text}")
