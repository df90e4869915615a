"""What files, flags and checkpoints name is imported only where its exact name is listed or its package is trusted."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from sec4sr_pl import enrollment, evaluation
from sec4sr_pl.checkpoint import CheckpointError, describe, load_recognizer, rebuild
from sec4sr_pl.cli import train
from sec4sr_pl.imports import LISTED, UntrustedError, check, listed

REPOSITORY = Path(__file__).parents[1]
SHIPPED = REPOSITORY / "checkpoints" / "audionet_mini_natural.ckpt"
CANARY = """
from pathlib import Path
Path({marker!r}).touch()
from torch.nn import Identity, Module
class Thing(Module): pass
def run(*arguments, **others): pass
"""


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is there once somebody imports the module `canary`."""
    marker = tmp_path / "imported"
    (tmp_path / "canary.py").write_text(CANARY.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield marker
    sys.modules.pop("canary", None)


def arguments(**changes: Any) -> dict[str, Any]:
    """Arguments of a training, which ends for lack of data; a change is named by its place, __ for each dot."""
    found: dict[str, Any] = {
        "model": {
            "recognizer": {
                "class_path": "sec4sr_pl.recognizer.Recognizer",
                "init_args": {
                    "features": "LogMel",
                    "backbone": "AudioNet",
                    "scorer": {"class_path": "ClosedSet", "init_args": {"embedding_size": 32}},
                },
            }
        },
        "data": {"class_path": "SpeakerData", "init_args": {"root": "no such folder"}},
        "trainer": {"logger": False, "enable_progress_bar": False},
    }
    for place, value in changes.items():
        *path, name = place.split("__")
        part = found
        for step in path:
            part = part.setdefault(step, {})
        part[name] = value
    return found


def refused(capsys: pytest.CaptureFixture[str], *flags: str, command: Any = train) -> str:
    """What a command says in its one line, when it ends."""
    with pytest.raises(SystemExit) as ended:
        command(list(flags))
    text = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code not in (0, None)
    return text[-1]


def spec(path: str, **others: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": others}


LOGGERS, CALLBACKS, SCHEDULES = (
    "pytorch_lightning.loggers.",
    "pytorch_lightning.callbacks.",
    "torch.optim.lr_scheduler.",
)
WAYS = {
    "function": {"model__optimizer": "canary.run"},
    "class path of a function": {"model__optimizer": spec("canary.run")},
    "class": {"model__recognizer__init_args__backbone": "canary.Thing"},
    "class in a list": {"model__recognizer__init_args__defenses": ["canary.Thing"]},
    "class in a class": {"model__objective": spec("AdversarialTraining", attack=spec("canary.Thing"))},
    "lambda": {"model__scheduler": spec(SCHEDULES + "LambdaLR", lr_lambda="canary.run")},
    "function of a schedule": {
        "model__scheduler": spec(SCHEDULES + "CyclicLR", base_lr=0, max_lr=1, scale_fn="canary.run")
    },
    "logger": {"trainer__logger": "canary.Thing"},
    "list of loggers": {"trainer__logger": [spec("canary.Thing")]},
    "any argument": {"trainer__logger": spec(LOGGERS + "WandbLogger", experiment=spec("canary.Thing"))},
    "further arguments": {
        "trainer__logger": {"class_path": LOGGERS + "WandbLogger", "dict_kwargs": {"config": spec("canary.Thing")}}
    },
    "callback": {"trainer__callbacks": ["canary.Thing"]},
    "callback of functions": {"trainer__callbacks": [spec(CALLBACKS + "LambdaCallback", on_fit_start="canary.run")]},
    "function of a callback": {
        "trainer__callbacks": [spec(CALLBACKS + "ThroughputMonitor", batch_size_fn="canary.run")]
    },
    "strategy": {"trainer__strategy": "canary.Thing"},
    "function of a strategy": {
        "trainer__strategy": spec("pytorch_lightning.strategies.DDPStrategy", ddp_comm_hook="canary.run")
    },
    "plugin": {"trainer__plugins": ["canary.Thing"]},
    "profiler": {"trainer__profiler": "canary.Thing"},
    "accelerator": {"trainer__accelerator": "canary.Thing"},
    "data": {"data": spec("canary.Thing")},
    "augmentation": {
        "data__init_args__augmentations": [spec("sec4sr_pl.data.augment.OneOf", augmentations=["canary.Thing"])]
    },
    "path of paths": {"model__weights": spec("canary.Thing")},
    "instantiator": {"_instantiator": "canary.run"},
    "its own settings": {
        "trainer__logger": spec("jsonargparse.set_parsing_settings", import_path_allowlist=["canary"])
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_no_file_of_arguments_imports_what_is_not_listed(
    way: str, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.yaml").write_text(yaml.safe_dump(arguments(**WAYS[way])))
    refused(capsys, "fit", "--config", "a.yaml")
    assert not canary.exists() and "canary" not in sys.modules


@pytest.mark.parametrize(
    "flag",
    [
        "--trainer.logger=canary.Thing",
        "--trainer.logger.class_path=canary.Thing",
        "--trainer.callbacks+=canary.Thing",
        "--trainer.callbacks.help=canary.Thing",
        "--model.optimizer.help=canary.run",
        "--model.optimizer=canary.run",
        '--config={"trainer": {"logger": "canary.Thing"}}',
        "--trainer=nested.yaml",
    ],
)
def test_a_refusal_is_one_line_that_names_the_flag(flag: str, canary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text(yaml.safe_dump(arguments()))
    Path("nested.yaml").write_text("logger: canary.Thing")
    line = refused(capsys, "fit", "--config=a.yaml", flag)
    assert re.search(r"canary\.\w+ is not among what may be imported: add --trusted canary", line)
    assert not canary.exists()


@pytest.mark.parametrize("method", ["mro", "perturb", "__call__", "__subclasses__", "__reduce_ex__"])
def test_methods_of_a_listed_class_are_not_listed(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = f"sec4sr_pl.attacks.PGD.{method}"
    Path("a.yaml").write_text(
        yaml.safe_dump(arguments(trainer__callbacks=[spec(CALLBACKS + "ThroughputMonitor", batch_size_fn=path)]))
    )
    assert f"{path} is not among" in refused(capsys, "fit", "--config", "a.yaml")


def test_variables_are_no_other_way(
    canary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    monkeypatch.setenv("PL_FIT__TRAINER__LOGGER", "canary.Thing")
    Path("a.yaml").write_text(yaml.safe_dump(arguments()))
    refused(capsys, "fit", "--config", "a.yaml")
    assert not canary.exists()


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "builtins.exec",
        "torch.hub.load",
        "torch.fx.GraphModule",
        "torch.optim",
        "torch.optim.Adam2",
        "torch.optim.adam.torch.load",
        "torch.optim.Adam.step",
        "torch.optim.lr_scheduler.LambdaLR",
        "torch.optim.lr_scheduler.ExponentialLR",
        "pytorch_lightning.callbacks.LambdaCallback",
        "pytorch_lightning.strategies.FSDPStrategy",
        "pytorch_lightning.Trainer",
        "sec4sr_pl.checkpoint.import_module",
        "sec4sr_pl.attacks.PGD.__init__",
        "sec4sr_pl.backbones.AudioNet.forward",
        "sec4sr_pl.backbones.GE2E.of",
        "sec4sr_pl.backbones.audionet.torch",
        "sec4sr_pl.attacks",
        "speechbrain.inference.classifiers.EncoderClassifier.from_hparams",
        "PGD",
        "",
    ],
)
def test_lists_hold_exact_names(path: str) -> None:
    with pytest.raises(UntrustedError, match="is not among what may be imported"):
        check(path)


@pytest.mark.parametrize(
    "path",
    [
        "torch.optim.Adam",
        "torch.optim.adamw.AdamW",
        "sec4sr_pl.attacks.PGD",
        "sec4sr_pl.attacks.gradient.PGD",
        "sec4sr_pl.backbones.GE2E.pretrained",
        "sec4sr_pl.scoring.PLDA.from_kaldi",
        "sec4sr_pl.data.augment.Noise",
        "pytorch_lightning.loggers.CSVLogger",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        "speechbrain.augment.time_domain.DropFreq",
    ],
)
def test_both_names_of_a_listed_class_may_be_given(path: str) -> None:
    check(path)


def test_listed_modules_that_recognizers_are_made_of_can_be_rebuilt() -> None:
    """Each that is made without arguments, so none is described by a name that is not listed."""
    rebuilt = 0
    for module in LISTED:
        for cls in listed(module).values() if module.startswith("sec4sr_pl.") else ():
            if isinstance(cls, type) and issubclass(cls, nn.Module):
                try:
                    description = describe(cls())
                except (TypeError, ImportError):  # it takes arguments, is abstract or lacks a library
                    continue
                assert type(rebuild(description)) is cls
                rebuilt += 1
    assert rebuilt > 40


@pytest.mark.parametrize("augmentation", sorted(set(listed("speechbrain.augment.time_domain").values()), key=str))
def test_augmentations_of_a_library_that_are_listed_keep_the_length_of_a_crop(augmentation: type[nn.Module]) -> None:
    crop = torch.rand(1, 32_000) * 0.1
    assert augmentation()(crop).shape == crop.shape


@pytest.mark.parametrize("name", LISTED["torch.optim.lr_scheduler"].split())
def test_schedules_that_are_listed_fall_over_the_whole_training(name: str) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = getattr(torch.optim.lr_scheduler, name)(optimizer, 7)  # as SpeakerModule calls it
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == sorted(set(rates), reverse=True)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


# Checkpoints


@pytest.mark.parametrize(
    ("subcommand", "named"),
    [
        ("fit", "last"),
        ("validate", "a.ckpt"),
        pytest.param("fit", "a.ckpt", marks=pytest.mark.slow),
        pytest.param("validate", "last", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "hyper_parameters",
    [
        {
            "recognizer": spec(
                "sec4sr_pl.recognizer.Recognizer", features="LogMel", backbone="canary.Thing", scorer="Cosine"
            )
        },
        {"optimizer": spec("canary.run")},
        {"_class_path": "canary.Thing", "optimizer": "canary.run"},
        {"_instantiator": "canary.run", "optimizer": "canary.run"},
    ],
    ids=["class", "function", "class path", "instantiator"],
)
def test_nothing_in_a_checkpoint_configures_a_training(
    subcommand: str, named: str, hyper_parameters: dict[str, Any], canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(SHIPPED, weights_only=True)
    Path("run").mkdir()
    for path in ("a.ckpt", "run/last.ckpt"):
        torch.save({**content, "pytorch-lightning_version": "2.6", "hyper_parameters": hyper_parameters}, path)
    keep = spec(CALLBACKS + "ModelCheckpoint", dirpath="run")
    Path("a.yaml").write_text(yaml.safe_dump(arguments(trainer__callbacks=[keep])))
    line = refused(capsys, subcommand, "--config", "a.yaml", "--ckpt_path", named)
    assert "no such folder" in line  # the data: it came so far
    assert not canary.exists()


def test_no_sharded_checkpoint_is_read(canary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They hold pickles, which nothing checks."""
    Path("run").mkdir()
    Path("a.yaml").write_text(yaml.safe_dump(arguments()))
    assert "a file, got run" in refused(capsys, "fit", "--config", "a.yaml", "--ckpt_path", "run")


def test_a_checkpoint_of_a_foreign_class_says_which_flag_is_missing(
    canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(SHIPPED, weights_only=True)
    content["recognizer"]["init_args"]["backbone"]["class_path"] = "canary.Thing"
    torch.save(content, "a.ckpt")
    for command in (evaluation.main, enrollment.main):
        flags = ["--checkpoint", "a.ckpt", "--data", "SpeakerData", "--output", "out"]
        more = ["--attacks", "[]"] if command is evaluation.main else []
        assert "add --trusted canary" in refused(capsys, *flags, *more, command=command)
    assert not canary.exists()
    with pytest.raises(CheckpointError, match=r"add --trusted canary"):
        load_recognizer(Path("a.ckpt"))


# Trust


def test_one_trusted_package_may_be_given_as_a_text() -> None:
    check("canary.Thing", "canary")
    with pytest.raises(UntrustedError):
        check("c.Thing", "canary")


@pytest.mark.parametrize("text", ["trusted: canary", "fit: {trusted: [canary]}", '{"trusted": "canary"}'])
def test_no_file_can_say_what_is_trusted(text: str, canary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text(yaml.safe_dump(arguments(trainer__logger="canary.Thing")))
    Path("b.yaml").write_text(text)
    before = ["--config", "b.yaml"] if "fit" in text else []
    after = ["--config", "a.yaml"] if before else ["--config", "b.yaml", "--config", "a.yaml"]
    assert "that is a flag, --trusted" in refused(capsys, *before, "fit", *after)
    assert not canary.exists()


@pytest.mark.parametrize("flags", [["--trusted", "canary"], ["--trusted=other,canary"]])
def test_a_flag_trusts_a_package_for_one_command(
    flags: list[str], canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.yaml").write_text(yaml.safe_dump(arguments(model__recognizer__init_args__backbone="canary.Thing")))
    refused(capsys, "fit", "--config", "a.yaml", *flags)
    assert canary.exists()
    line = refused(capsys, "fit", "--config", "a.yaml")
    assert "canary.Thing is not among" in line


def test_a_variable_trusts_a_package(
    canary: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEC4SR_TRUSTED", "other,canary")
    check("canary.Thing")
    Path("a.yaml").write_text(yaml.safe_dump(arguments(model__recognizer__init_args__backbone="canary.Thing")))
    refused(capsys, "fit", "--config", "a.yaml")
    assert canary.exists()


@pytest.mark.parametrize("package", ["*", "", "a b", "canary.Thing", "../canary"])
def test_only_a_package_can_be_trusted(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "trusted" in refused(capsys, "fit", "--trusted", package)


@pytest.mark.parametrize("path", ["torch.hub.load", "torch.optim.lr_scheduler.ChainedScheduler", "os.system"])
def test_nobody_is_advised_to_trust_a_package_that_runs_anything(path: str) -> None:
    with pytest.raises(UntrustedError, match=r"is not among what may be imported$"):
        check(path)


def test_what_a_trusted_package_imported_from_elsewhere_is_not_trusted(
    canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.yaml").write_text(yaml.safe_dump(arguments(model__recognizer__init_args__backbone="canary.Identity")))
    assert "torch.nn.modules.linear.Identity is not among" in refused(
        capsys, "fit", "--config", "a.yaml", "--trusted", "canary"
    )
    with pytest.raises(CheckpointError, match="is not trusted"):
        rebuild({"class_path": "canary.Identity", "init_args": {}}, ["canary"])


def test_json_is_yaml(canary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.json").write_text(json.dumps(arguments(trainer__logger="canary.Thing")))
    assert "add --trusted canary" in refused(capsys, "fit", "--config", "a.json")
