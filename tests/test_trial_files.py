"""Files of trials: their headers are read once, and what can't be scored is told before training."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from pytorch_lightning import Trainer

from sec4sr_pl import audio
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.callbacks import VerificationEER
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.trials import read_trials
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.training import SpeakerModule


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two speakers of three utterances of 0.5 s, and a list of all pairs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    noise = 0.1 * torch.randn(6, 8_000, generator=torch.Generator().manual_seed(0)).numpy()
    files = [f"test/{speaker}/{speaker}-{number}.wav" for speaker in ("ann", "bob") for number in range(3)]
    for file, row in zip(files, noise, strict=True):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / file, row, 16_000)
    lines = [f"{int(one[:8] == other[:8])} {one} {other}\n" for one, other in combinations(files, 2)]
    (tmp_path / "list.txt").write_text("".join(lines))
    return tmp_path


def test_the_header_of_a_file_in_many_trials_is_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, info = [], audio.info
    monkeypatch.setattr(audio, "info", lambda path: read.append(path) or info(path))  # type: ignore[func-returns-value]
    trials = read_trials(root / "list.txt", root)
    assert len(trials.pairs) == 15 and len(read) == len(set(read)) == 6


def test_a_file_of_two_channels_is_refused(root: Path) -> None:
    soundfile.write(root / "test" / "bob" / "bob-1.wav", torch.zeros(8_000, 2).numpy(), 16_000)
    with pytest.raises(audio.AudioError, match=r"bob-1\.wav has 2 channels, expected 1: mix it down to mono"):
        read_trials(root / "list.txt", root)


@pytest.mark.parametrize("arguments", [{"trials": Path("list.txt")}, {"part": "test"}], ids=["list", "part"])
def test_an_utterance_too_short_for_the_recognizer_is_told_before_training(
    arguments: dict[str, Any], root: Path
) -> None:
    data = SpeakerData(root, "test", num_workers=0, batch_size=2, development_fraction=0.4)
    module = SpeakerModule(Recognizer(LogMel(), AudioNet(), ClosedSet(32, data.speakers)))
    least = module.recognizer.minimum_samples
    for name, size in (("ann-0", least), ("bob-2", least - 1)):
        soundfile.write(root / "test" / name[:3] / f"{name}.wav", torch.full((size,), 0.1).numpy(), 16_000)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, callbacks=[VerificationEER(**arguments)], **options)
    told = rf"bob-2.* has {least - 1} samples, this recognizer needs at least {least}: leave it out"
    with pytest.raises(ValueError, match=told):
        trainer.fit(module, data)
    assert trainer.global_step == 0
