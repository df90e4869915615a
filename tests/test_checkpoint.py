"""Checkpoints: they hold a whole recognizer and no code, and are refused by name where anything is wrong."""

import errno
import hashlib
import json
import os
import pickle
import random
import resource
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.testing import assert_close

from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.callbacks import EpsilonSchedule
from sec4sr_pl.checkpoint import (
    CheckpointError,
    describe,
    export,
    load_recognizer,
    read_checksums,
    rebuild,
    save_recognizer,
)
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.defenses import FeCo, Quantization
from sec4sr_pl.features import LogMel, SpecMask
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.training import OneCycle, SpeakerModule

SPEAKERS = ["zoe", "Ada Lovelace", "böb", "7"]
MakeRecognizer = Callable[..., Recognizer]


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What `saved` copies."""
    path = tmp_path_factory.mktemp("saved") / "saved.ckpt"
    save_recognizer(Recognizer(LogMel(), AudioNet(), ClosedSet(AudioNet.embedding_size, SPEAKERS)), path)
    return path.read_bytes()


@pytest.fixture
def saved(saved_once: bytes, tmp_path: Path) -> Path:
    """The file of an undefended recognizer of four speakers, for each test its own."""
    path = tmp_path / "saved.ckpt"
    path.write_bytes(saved_once)
    return path


def content_of(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


@torch.no_grad()
def scores_of(recognizer: Recognizer, waveforms: Tensor, lengths: Tensor) -> Tensor:
    recognizer.seed(17)
    scores: Tensor = recognizer(waveforms, lengths)
    return scores


# There and back


@pytest.mark.parametrize("defended", [False, True])
def test_a_loaded_recognizer_gives_equal_scores(
    make_recognizer: MakeRecognizer, speech: tuple[Tensor, Tensor], tmp_path: Path, defended: bool
) -> None:
    original = make_recognizer(SPEAKERS, [Quantization(64), FeCo(0.5)] if defended else [])
    save_recognizer(original.train(), tmp_path / "a.ckpt")
    loaded = load_recognizer(tmp_path / "a.ckpt")
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(scores_of(loaded, *speech), scores_of(original.eval(), *speech))
    other = make_recognizer(SPEAKERS, seed=1)
    assert not torch.allclose(scores_of(loaded, *speech), scores_of(other, *speech))


def test_the_names_of_the_speakers_travel(saved: Path) -> None:
    assert load_recognizer(saved).scorer.speakers == tuple(SPEAKERS)


def test_the_threshold_travels(make_recognizer: MakeRecognizer, tmp_path: Path) -> None:
    recognizer = make_recognizer(SPEAKERS)
    recognizer.scorer.threshold.fill_(0.25)
    save_recognizer(recognizer, tmp_path / "a.ckpt")
    assert load_recognizer(tmp_path / "a.ckpt").scorer.threshold == 0.25


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["scorer.threshold", "scorer.head.weight", "running_var"])
def test_a_checkpoint_of_nan_or_infinity_is_refused_with_the_name_of_the_tensor(
    name: str, value: float, saved: Path
) -> None:
    content = content_of(saved)
    name = next(own for own in content["state_dict"] if own.endswith(name))
    content["state_dict"][name].view(-1)[-1] = value
    torch.save(content, saved)
    if name == "scorer.threshold" and value == -torch.inf:  # a closed set's: every score exceeds it
        assert load_recognizer(saved).scorer.threshold == value
    else:
        with pytest.raises(CheckpointError, match=f"{saved} can't be used: '{name}' holds NaN or an infinity"):
            load_recognizer(saved)


def test_a_path_may_be_a_string(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_recognizer(load_recognizer("saved.ckpt"), "again.ckpt")
    export("again.ckpt", "exported.ckpt")
    assert load_recognizer("exported.ckpt").scorer.speakers == tuple(SPEAKERS)
    assert read_checksums(".").keys() == {"exported.ckpt"}


def test_a_description_is_plain_data_that_rebuilds_every_argument() -> None:
    recognizer = Recognizer(
        LogMel(mels=24, hop=200, n_fft=2048, pre_emphasis=0.9, mask=SpecMask(3, 7)),
        AudioNet(24),
        ClosedSet(32, ["b", "a"]),
        [Quantization(256), FeCo(0.5, "raw", 7, 1e-3)],
    )
    description = describe(recognizer)
    assert description["class_path"] == "sec4sr_pl.recognizer.Recognizer"
    assert json.loads(json.dumps(description)) == description
    again = rebuild(description)
    assert describe(again) == description
    assert (again.features.mels, again.features.hop, again.features.pre_emphasis) == (24, 200, 0.9)
    assert isinstance(again.features.mask, SpecMask) and (again.features.mask.bands, again.features.mask.frames) == (
        3,
        7,
    )
    assert again.scorer.speakers == ("b", "a")
    quantization, feco = again.defenses
    assert isinstance(quantization, Quantization) and quantization.step == 256
    assert isinstance(feco, FeCo) and (feco.ratio, feco.after, feco.iterations, feco.tolerance) == (0.5, "raw", 7, 1e-3)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in recognizer.state_dict().items()
    }


def test_a_number_of_speakers_becomes_their_names() -> None:
    assert describe(ClosedSet(32, 3))["init_args"]["speakers"] == ["0", "1", "2"]


def test_a_module_that_forgets_its_arguments_cannot_be_described() -> None:
    class Forgetful(nn.Module):
        def __init__(self, size: int, kept: int = 0) -> None:
            super().__init__()
            self.kept = kept

    with pytest.raises(TypeError, match=r"Forgetful must keep .*\['size'\] are missing"):
        describe(Forgetful(3))


@pytest.mark.parametrize(
    "value", [{"a": 1}, torch.zeros(1), object(), Path("x"), np.float64], ids=lambda value: type(value).__name__
)
def test_an_argument_that_is_no_plain_data_cannot_be_described(value: object) -> None:
    with pytest.raises(TypeError, match="Expected modules, numbers, strings"):
        describe([value])


def test_a_checkpoint_holds_nothing_but_the_description_and_the_weights(saved: Path) -> None:
    content = content_of(saved)
    assert content.keys() == {"recognizer", "state_dict"}
    assert all(isinstance(value, Tensor) and value.device.type == "cpu" for value in content["state_dict"].values())


# Code


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("place", ["recognizer", "state_dict", "callbacks"])
@pytest.mark.parametrize("form", ["torch", "legacy", "pickle"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
def test_code_in_a_checkpoint_is_refused_and_does_not_run(saved: Path, tmp_path: Path, place: str, form: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.ckpt"
    content = content_of(saved)
    content[place] = Payload(marker)
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt was refused: .*could run code"):
        load_recognizer(path)
    with pytest.raises(CheckpointError):
        export(path, tmp_path / "out" / "a.ckpt")
    assert not marker.exists() and not (tmp_path / "out" / "a.ckpt").exists()
    if form != "pickle":
        torch.load(path, weights_only=False)
        assert marker.exists()  # it would have run


PLUGIN = """
from sec4sr_pl.scoring import ClosedSet

class Doubled(ClosedSet):
    def forward(self, embeddings):
        return 2.0 * super().forward(embeddings)
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of somebody else's module, that has not been imported."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "foreign_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.delitem(sys.modules, "foreign_plugin", raising=False)
    return "foreign_plugin"


def test_a_class_of_another_package_is_imported_only_if_trusted(
    saved: Path, tmp_path: Path, speech: tuple[Tensor, Tensor], plugin: str
) -> None:
    content = content_of(saved)
    content["recognizer"]["init_args"]["scorer"]["class_path"] = f"{plugin}.Doubled"
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"class foreign_plugin\.Doubled, but .*add --trusted foreign_plugin"):
        load_recognizer(tmp_path / "a.ckpt")
    assert plugin not in sys.modules
    try:
        loaded = load_recognizer(tmp_path / "a.ckpt", trusted=[plugin])
        assert type(loaded.scorer).__name__ == "Doubled"
        assert_close(scores_of(loaded, *speech), 2.0 * scores_of(load_recognizer(saved), *speech))
    finally:
        sys.modules.pop(plugin, None)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"class_path": "torch.nn.Identity", "init_args": {}}, "torch.nn.Identity is not among what may be imported"),
        ({"class_path": "sec4sr_plus.Evil", "init_args": {}}, "add --trusted sec4sr_plus"),
        ({"class_path": "sec4sr_pl.callbacks.validation.Metric", "init_args": {}}, "Metric is not among"),
        ({"class_path": "sec4sr_pl.scoring.NoSuchClass", "init_args": {}}, "NoSuchClass is not among"),
        ({"class_path": "sec4sr_pl.no_such_module.A", "init_args": {}}, "no_such_module.A is not among"),
        ({"class_path": "sec4sr_pl", "init_args": {}}, "sec4sr_pl is not among"),
        (
            {"class_path": "sec4sr_pl.audio.info", "init_args": {"path": "/"}},
            "audio.info is not among",
        ),
        ({"class_path": "sec4sr_pl.audio.AudioError", "init_args": {}}, "AudioError is not among"),
        ({"class_path": "sec4sr_pl.scoring.ClosedSet"}, "ClosedSet without init_args"),
        ({"class_path": "sec4sr_pl.scoring.ClosedSet", "init_args": {}}, "do not fit the class .*ClosedSet: .*missing"),
        (
            {"class_path": "sec4sr_pl.defenses.FeCo", "init_args": {"ratio": 3.0}},
            r"do not fit the class .*FeCo: Expected a ratio in \(0, 1\], got 3.0",
        ),
        ({"class_path": "sec4sr_pl.defenses.Defense", "init_args": {"after": "raw"}}, "do not fit the class .*Defense"),
        ({"init_args": {}}, "wants the class None"),
        ({}, "do not fit the class .*Quantization"),  # no stages, of which a front end may be made
    ],
    ids=lambda value: str(value.get("class_path")) if isinstance(value, dict) else "",
)
def test_a_class_that_cannot_be_built_is_named(description: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        rebuild([{"class_path": "sec4sr_pl.defenses.Quantization", "init_args": {"step": description}}])


# Damage


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(CheckpointError, match=f"There is no checkpoint {path}"):
            load_recognizer(path)


@pytest.mark.parametrize("keep", [0.0, 0.0001, 0.01, 0.5, 0.99, 0.99999])
def test_a_truncated_checkpoint_is_refused(saved: Path, keep: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(CheckpointError, match=r"saved\.ckpt (is damaged|was refused)"):
        load_recognizer(saved)


@pytest.mark.parametrize(
    "text", ["<!DOCTYPE html><title>404</title>", "version https://git-lfs.github.com/spec/v1\noid sha256:0", "hello"]
)
def test_a_web_page_or_a_pointer_is_no_checkpoint(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.ckpt").write_text(text)
    with pytest.raises(CheckpointError, match=r"a\.ckpt (is damaged|was refused)"):
        load_recognizer(tmp_path / "a.ckpt")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whatever_is_wrong_with_the_bytes_is_a_checkpoint_error(saved: Path) -> None:
    whole, draw, refused = saved.read_bytes(), random.Random(0), 0
    described = whole.find(b"sec4sr_pl") - 200
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(2):
            damaged[draw.randrange(described, described + 3_000)] = draw.randrange(256)
        saved.write_bytes(damaged)
        try:
            load_recognizer(saved)
        except CheckpointError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {}, {"state_dict": {}}, {"recognizer": {}}, None], ids=str)
def test_content_that_describes_no_recognizer_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt describes no recognizer: expected one written by train\.py"):
        load_recognizer(tmp_path / "a.ckpt")


def test_something_else_than_a_recognizer_is_refused(saved: Path) -> None:
    content = content_of(saved)
    for part, name in ((content["recognizer"]["init_args"]["backbone"], "AudioNet"), (3, "int"), ([], "list")):
        torch.save({**content, "recognizer": part}, saved)
        with pytest.raises(CheckpointError, match=f"describes a {name}, expected a Recognizer"):
            load_recognizer(saved)


def fewer(weights: dict[str, Any]) -> Any:
    return {name: value for name, value in weights.items() if name != "scorer.head.bias"}


def more(weights: dict[str, Any]) -> Any:
    return {**weights, "scorer.extra": torch.zeros(1)}


def another_shape(weights: dict[str, Any]) -> Any:
    return {**weights, "scorer.head.bias": torch.zeros(5)}


def numbers(weights: dict[str, Any]) -> Any:
    return dict.fromkeys(weights, 1.0)


def unnamed(weights: dict[str, Any]) -> Any:
    return list(weights.values())


@pytest.mark.parametrize("change", [fewer, more, another_shape, numbers, unnamed])
@pytest.mark.parametrize("lightning", [False, True])
def test_weights_that_do_not_fit_are_refused(
    saved: Path, change: Callable[[dict[str, Any]], Any], lightning: bool
) -> None:
    content = content_of(saved)
    weights = change(content["state_dict"])
    if lightning:
        content["pytorch-lightning_version"] = "2.6.0"
        if isinstance(weights, dict):
            weights = {f"recognizer.{name}": value for name, value in weights.items()}
    torch.save({**content, "state_dict": weights}, saved)
    with pytest.raises(CheckpointError, match=r"weights of .*saved\.ckpt do not fit its own description"):
        load_recognizer(saved)


# Checksums


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("form", ["{}  {}", "{} *{}", "{}  ./{}", "# a file of ours\n{}  {}"])
def test_a_file_that_differs_from_its_checksum_is_refused(saved: Path, form: str) -> None:
    sums = saved.parent / "SHA256SUMS"
    comment = form.startswith("#")
    sums.write_text(form.format(digest(saved), saved.name) + "\n")
    if comment:
        with pytest.raises(CheckpointError, match="has the line '# a file of ours', expected '<64 hex"):
            load_recognizer(saved)
        return
    load_recognizer(saved)
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1  # a weight: nothing else would tell
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"saved\.ckpt does not have the SHA-256 [0-9a-f]{64} of SHA256SUMS"):
        load_recognizer(saved)


def test_checksums_may_be_in_capitals_and_of_other_files(saved: Path) -> None:
    sums = saved.parent / "SHA256SUMS"
    sums.write_text(f"{'0' * 64}  other.ckpt\n\n{digest(saved).upper()}  {saved.name}\n")
    load_recognizer(saved)
    sums.write_text(f"{'0' * 64}  other.ckpt\n")
    load_recognizer(saved)
    sums.write_text(f"{'0' * 64}  {saved.name}\n")
    with pytest.raises(CheckpointError, match="fetch it again"):
        load_recognizer(saved)


# Failed writes


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_write_leaves_the_old_file_whole_and_no_other(
    make_recognizer: MakeRecognizer, tmp_path: Path, existing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    if existing:
        save_recognizer(make_recognizer(2), path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full_disk(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size > 0
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_recognizer(make_recognizer(3), path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_write_past_the_limit_of_the_file_system_leaves_nothing(
    make_recognizer: MakeRecognizer, tmp_path: Path
) -> None:
    recognizer = make_recognizer(2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        with pytest.raises((OSError, RuntimeError)):
            save_recognizer(recognizer, tmp_path / "a.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_saving_makes_the_folder_and_leaves_one_file(make_recognizer: MakeRecognizer, tmp_path: Path) -> None:
    save_recognizer(make_recognizer(2), tmp_path / "a" / "b" / "c.ckpt")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["c.ckpt"]


# Training


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recognizer]:
    """The checkpoint that one step of training left, and the recognizer that was trained."""
    folder = tmp_path_factory.mktemp("trained")
    for number, pitch in enumerate((200.0, 300.0)):
        for split, utterance in (("train", 0), ("train", 1), ("test", 2)):
            path = folder / "data" / split / f"speaker {number}" / f"s{number}-{utterance}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            time = np.arange(8_000) / 16_000
            soundfile.write(str(path), 0.3 * np.sin(2 * np.pi * (pitch + utterance) * time), 16_000)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        torch.manual_seed(0)
        data = SpeakerData(folder / "data", batch_size=2, crop_seconds=0.4, num_workers=0)
        recognizer = Recognizer(
            LogMel(mask=SpecMask()), AudioNet(), ClosedSet(32, data.speakers), [Quantization(2), FeCo(0.9)]
        )
        module = SpeakerModule(recognizer, scheduler=lambda optimizer, steps: OneCycle(optimizer, steps, 0.01))
        keep = ModelCheckpoint(folder / "run", "step", monitor="development/accuracy", save_on_train_epoch_end=False)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            callbacks=[keep, EpsilonSchedule()],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            default_root_dir=folder,
        )
        trainer.fit(module, datamodule=data)
    assert trainer.global_step == 1
    return Path(keep.best_model_path), recognizer.eval()


def test_a_checkpoint_of_training_holds_only_plain_data(trained: tuple[Path, Recognizer]) -> None:
    content = torch.load(trained[0], weights_only=True)
    assert {"recognizer", "state_dict", "optimizer_states", "lr_schedulers", "callbacks"} <= content.keys()
    assert content["recognizer"] == describe(trained[1])


def test_a_checkpoint_of_training_loads_with_equal_scores(
    trained: tuple[Path, Recognizer], speech: tuple[Tensor, Tensor]
) -> None:
    path, recognizer = trained
    loaded = load_recognizer(path)
    assert loaded.scorer.speakers == ("speaker 0", "speaker 1")
    assert torch.equal(scores_of(loaded, *speech), scores_of(recognizer, *speech))


def test_weights_beside_the_recognizer_are_left_out(
    trained: tuple[Path, Recognizer], speech: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    content = content_of(trained[0])
    content["state_dict"] |= {"objective.teacher.backbone.inputs": torch.ones(2), "average.total": torch.zeros(())}
    torch.save(content, tmp_path / "a.ckpt")
    assert torch.equal(scores_of(load_recognizer(tmp_path / "a.ckpt"), *speech), scores_of(trained[1], *speech))


def test_an_export_has_equal_scores_and_a_checksum_that_verifies(
    trained: tuple[Path, Recognizer], speech: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    path, recognizer = trained
    destination = tmp_path / "checkpoints" / "exported.pt"
    export(path, destination)
    assert sorted(file.name for file in destination.parent.iterdir()) == ["SHA256SUMS", "exported.pt"]
    assert (destination.parent / "SHA256SUMS").read_text() == f"{digest(destination)}  exported.pt\n"
    loaded = load_recognizer(destination)
    assert torch.equal(scores_of(loaded, *speech), scores_of(recognizer, *speech))
    assert describe(loaded) == describe(recognizer)
    assert content_of(destination).keys() == {"recognizer", "state_dict"}
    assert destination.stat().st_size < 0.6 * path.stat().st_size  # no optimizer


def test_exports_share_a_checksum_file_and_replace_their_own_line(
    trained: tuple[Path, Recognizer], make_recognizer: MakeRecognizer, tmp_path: Path
) -> None:
    save_recognizer(make_recognizer(SPEAKERS), tmp_path / "source.ckpt")
    for source, name in ((trained[0], "b.pt"), (trained[0], "a.pt"), (tmp_path / "source.ckpt", "b.pt")):
        export(source, tmp_path / "out" / name)
    folder = tmp_path / "out"
    lines = [f"{digest(folder / name)}  {name}" for name in ("a.pt", "b.pt")]
    assert (folder / "SHA256SUMS").read_text().splitlines() == lines
    assert load_recognizer(folder / "b.pt").scorer.speakers == tuple(SPEAKERS)


def test_a_failed_export_leaves_what_was_there(
    trained: tuple[Path, Recognizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(trained[0], tmp_path / "a.pt")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full_disk(self: Path, text: str) -> None:
        self.write_bytes(text.encode()[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export(trained[0], tmp_path / "a.pt")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.filterwarnings("ignore:'sec4sr_pl.checkpoint' found in sys.modules:RuntimeWarning")
def test_export_is_a_command(trained: tuple[Path, Recognizer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["checkpoint.py", str(trained[0]), str(tmp_path / "a.pt")])
    runpy.run_module("sec4sr_pl.checkpoint", run_name="__main__")
    assert (tmp_path / "SHA256SUMS").read_text() == f"{digest(tmp_path / 'a.pt')}  a.pt\n"


def test_an_export_does_not_write_over_its_checkpoint(tmp_path: Path, recognizer: Recognizer) -> None:
    save_recognizer(recognizer, tmp_path / "a.ckpt")
    before = (tmp_path / "a.ckpt").read_bytes()
    with pytest.raises(ValueError, match=r"a\.ckpt, an input, which would be written over"):
        export(tmp_path / "a.ckpt", tmp_path / "." / "a.ckpt")
    assert (tmp_path / "a.ckpt").read_bytes() == before


@pytest.mark.parametrize("name", ["SHA256SUMS", "a\nb.ckpt"])
def test_an_export_has_a_name_that_a_list_of_checksums_can_hold(
    name: str, tmp_path: Path, recognizer: Recognizer
) -> None:
    save_recognizer(recognizer, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="Expected a destination that SHA256SUMS can name"):
        export(tmp_path / "a.ckpt", tmp_path / "new" / name)
    assert not (tmp_path / "new").exists()


def test_an_export_beside_checksums_that_cannot_be_read_leaves_nothing(tmp_path: Path, recognizer: Recognizer) -> None:
    save_recognizer(recognizer, tmp_path / "a.ckpt")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "SHA256SUMS").write_text("a bad line\n")
    with pytest.raises(CheckpointError, match="'a bad line'"):
        export(tmp_path / "a.ckpt", tmp_path / "new" / "b.ckpt")
    (tmp_path / "new" / "SHA256SUMS").unlink()
    (tmp_path / "new" / "SHA256SUMS").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="got a symbolic link"):
        export(tmp_path / "a.ckpt", tmp_path / "new" / "b.ckpt")
    assert not (tmp_path / "new" / "b.ckpt").exists()
