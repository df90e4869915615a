"""A checkpoint goes on with the training that wrote it: what differs is said before the first step, in one line."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_resume import CONFIG, error_of, fit
from test_resume import config as config  # fixtures
from test_resume import somewhere_else as somewhere_else

from sec4sr_pl import cli
from sec4sr_pl.training.resume import changed_speakers

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "audionet_mini_natural.ckpt"


@pytest.fixture(scope="module")
def trained(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a checkpoint of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        fit(config, folder, "--trainer.max_epochs=2")
    return folder


@pytest.fixture
def plain(config: Path, tmp_path: Path) -> Path:
    """A configuration without any schedule, beside the same data."""
    content = yaml.safe_load(CONFIG)
    del content["model"]["scheduler"]
    content["trainer"]["callbacks"] = [c for c in content["trainer"]["callbacks"] if "Schedule" not in c["class_path"]]
    content["data"]["init_args"]["root"] = str(config.parent)
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "plain.yaml"


def refused(config: Path, trained: Path, *flags: str) -> str:
    """What a resume from the checkpoint says; it took no step."""
    before = (trained / "last.ckpt").read_bytes()
    text = error_of(config, trained, "--trainer.max_epochs=2", "--ckpt_path=last", *flags)
    assert text.startswith(f"train.py: error: {trained / 'last.ckpt'} does not go on with this training")
    assert (trained / "last.ckpt").read_bytes() == before
    return text


SGD = "--model.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.005}}"
DEFENSES = "--model.recognizer.init_args.defenses=[{class_path: FeCo, init_args: {ratio: 0.25}}]"


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        (SGD, "model.optimizer: Adam then, SGD now"),
        ("--model.optimizer.init_args.lr=0.1", "model.optimizer.lr: 0.005 then, 0.1 now"),
        pytest.param(
            "--model.scheduler.init_args.max_lr=0.1",
            "model.scheduler.max_lr: 0.005 then, 0.1 now",
            marks=pytest.mark.slow,
        ),
        pytest.param("--model.scheduler=null", "model.scheduler: OneCycle then, None now", marks=pytest.mark.slow),
        (DEFENSES, "model.recognizer.defenses[0].ratio: 0.5 then, 0.25 now"),
        pytest.param(
            "--model.recognizer.init_args.defenses=[]",
            "model.recognizer.defenses: [FeCo] then, [] now",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "--model.objective=Standard",
            "model.objective: AdversarialTraining then, Standard now",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "--model.objective.attack.steps=2", "model.objective.attack.steps: 1 then, 2 now", marks=pytest.mark.slow
        ),
        pytest.param("--model.seed=1", "model.seed: 0 then, 1 now", marks=pytest.mark.slow),
        pytest.param("--data.seed=1", "data.seed: 0 then, 1 now", marks=pytest.mark.slow),
        pytest.param("--data.crop_seconds=0.3", "data.crop_seconds: 0.4 then, 0.3 now", marks=pytest.mark.slow),
        pytest.param(
            "--data.development_fraction=0.2", "data.development_fraction: 0.1 then, 0.2 now", marks=pytest.mark.slow
        ),
        ("--data.batch_size=4", "the utterances of a batch over all processes: 5 then, 4 now"),
        ("--trainer.max_epochs=3", "the steps of the whole training, over which its schedule is laid: 8 then, 12 now"),
        pytest.param(
            "--trainer.accumulate_grad_batches=2",
            "over which its schedule is laid: 8 then, 4 now",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_another_training_is_refused_and_the_difference_said(flag: str, said: str, config: Path, trained: Path) -> None:
    assert said in refused(config, trained, flag)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "speaker1").rename(root / "bob"), "1 new ('bob'), 1 gone ('speaker1')"),
        (lambda root: shutil.copytree(root / "speaker0", root / "zoe"), "1 new ('zoe')"),
        (lambda root: shutil.rmtree(root / "speaker2"), "1 gone ('speaker2')"),
    ],
    ids=["renamed", "added", "gone"],
)
@pytest.mark.parametrize("command", ["fit", pytest.param("validate", marks=pytest.mark.slow)])
def test_other_speakers_are_refused_and_named(
    command: str,
    change: Any,
    said: str,
    config: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(config.parent / "train", tmp_path / "train")
    change(tmp_path / "train")
    for path in (tmp_path / "train" / "zoe").glob("*"):
        path.rename(path.with_name(f"zoe-{path.name}"))
    flags = [f"--config={config}", f"--data.root={tmp_path}", f"--ckpt_path={trained / 'last.ckpt'}"]
    with pytest.raises(SystemExit):
        cli.train([command, *flags, "--trainer.callbacks=null"])
    assert f"differs in the speakers of the data: {said}" in capsys.readouterr().err


FEATURES = ("--model.recognizer.init_args.features=LogMel", "--model.recognizer.init_args.features.hop=80")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "Expected --ckpt_path, the checkpoint to validate"),
        (("--ckpt_path=last", "--trainer.callbacks.init_args.dirpath={empty}"), "There is no last checkpoint to"),
        (("--ckpt_path={last}", *FEATURES), "not of this recognizer, which differs in model.recognizer.features.hop"),
        (("--ckpt_path={shipped}",), "holds a recognizer alone, expected a training's checkpoint: --model.weights"),
    ],
    ids=["none", "no last", "another front end", "a recognizer"],
)
def test_a_validation_is_of_what_was_trained(
    flags: tuple[str, ...], said: str, config: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"empty": tmp_path, "last": trained / "last.ckpt", "shipped": SHIPPED}
    given = [f"--data.root={config.parent}", "--trainer.callbacks=LastCheckpoint", *(f.format(**places) for f in flags)]
    with pytest.raises(SystemExit):
        cli.train(["validate", f"--config={config}", *given])
    assert said in capsys.readouterr().err


def test_a_validation_may_be_behind_a_defense(config: Path, trained: Path) -> None:
    flags = [f"--data.root={config.parent}", f"--ckpt_path={trained / 'last.ckpt'}", "--trainer.callbacks=null"]
    cli.train(["validate", f"--config={config}", *flags, "--trainer.logger=false", DEFENSES])


@pytest.mark.parametrize(
    "change",
    [
        {"training": {"lengths": "x", "configuration": None}},
        {"SpeakerData": {"taken": "x"}},
        *(
            pytest.param(change, marks=pytest.mark.slow)
            for change in (
                {"training": [1]},
                {"training": {"lengths": {}, "configuration": {"model": 5}}, "optimizer_states": [5]},
                {"recognizer": 5},
                {"SpeakerData": {}},
            )
        ),
    ],
    ids=str,
)
def test_what_tells_its_training_in_another_form_is_one_line(
    change: dict[str, Any], config: Path, trained: Path, tmp_path: Path
) -> None:
    content = torch.load(trained / "last.ckpt", weights_only=True)
    torch.save(content | change, tmp_path / "last.ckpt")
    text = error_of(config, tmp_path, "--trainer.max_epochs=3", "--ckpt_path=last")
    assert "SEC4SR_TRACEBACK" not in text and text.count("\n") <= 1


def test_without_a_schedule_as_many_utterances_make_a_step(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_plain(plain, tmp_path, 1)
    with pytest.raises(SystemExit):
        train_plain(plain, tmp_path, 2, "--trainer.accumulate_grad_batches=2")
    assert "the batches of a step: 1 then, 2 now" in capsys.readouterr().err


def test_a_file_more_is_another_epoch(config: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(config.parent / "train", tmp_path / "train")
    shutil.copy(tmp_path / "train" / "speaker0" / "s0u0.wav", tmp_path / "train" / "speaker0" / "s0u9.wav")
    assert "the utterances of an epoch: 18 then, 20 now" in refused(config, trained, f"--data.root={tmp_path}")


def test_paths_loggers_workers_and_watching_callbacks_may_change(config: Path, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(config.parent / "train", tmp_path / "train")
    flags = [
        *(f"--data.root={tmp_path}", "--data.num_workers=1", "--data.eval_batch_size=2"),
        f"--trainer.logger={{class_path: CSVLogger, init_args: {{save_dir: {tmp_path}}}}}",
        "--trainer.callbacks+=Throughput",
        "--trainer.callbacks+=LearningRateMonitor",
    ]
    arguments = [f"--config={config}", "--trainer.max_epochs=2", f"--ckpt_path={trained / 'last.ckpt'}", *flags]
    assert cli.train(["fit", *arguments]).trainer.global_step == 8


def test_steps_of_more_batches_in_later_epochs_go_on(config: Path, tmp_path: Path) -> None:
    accumulates = "{class_path: GradientAccumulationScheduler, init_args: {scheduling: {1: 2}}}"
    flags = ["--trainer.max_epochs=2", f"--trainer.callbacks+={accumulates}"]
    assert fit(config, tmp_path, *flags).trainer.global_step == 6
    assert fit(config, tmp_path, *flags, "--ckpt_path=last").trainer.global_step == 6


def test_many_speakers_are_compared_at_once() -> None:
    class Counted(list[str]):
        passes = 0

        def __iter__(self) -> Iterator[str]:
            self.passes += 1
            return super().__iter__()

    then, now = (Counted(map(str, range(first, first + 100))) for first in (0, 1))
    assert changed_speakers(then, now) == "the speakers of the data: 1 new ('100'), 1 gone ('0')"
    assert max(then.passes, now.passes) < 4


def test_without_a_schedule_more_epochs_are_welcome_and_the_same(plain: Path, tmp_path: Path) -> None:
    weights = []
    for epochs in ([4], [3, 4]):
        folder = tmp_path / str(len(epochs))
        for number in epochs:
            trained = train_plain(plain, folder, number)
        weights.append(torch.load(folder / "last.ckpt", weights_only=True)["state_dict"])
    assert trained.trainer.global_step == 16
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def train_plain(plain: Path, folder: Path, epochs: int, *flags: str) -> cli.SpeakerCLI:
    """Start, or go on, for some epochs; validations are after every second."""
    where = ["--ckpt_path=last", f"--trainer.callbacks.dirpath={folder}"]
    return cli.train(["fit", f"--config={plain}", *where, f"--trainer.max_epochs={epochs}", *flags])


def test_a_checkpoint_of_before_is_compared_as_far_as_it_tells(config: Path, trained: Path, tmp_path: Path) -> None:
    content = torch.load(trained / "last.ckpt", weights_only=True)
    del content["training"]
    torch.save(content, tmp_path / "last.ckpt")
    assert "model.optimizer: another class then, SGD now" in refused(config, tmp_path, SGD)
    assert "its schedule is laid: 8 then, 12 now" in refused(config, tmp_path, "--trainer.max_epochs=3")
    assert fit(config, tmp_path, "--trainer.max_epochs=2", "--ckpt_path=last").trainer.global_step == 8
