"""docs/models.md: its code runs on a model that is not ours, and its tables name what there is."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import soundfile
import torch
from torch import Tensor

from sec4sr_pl import backbones, checkpoint, cli, enrollment, evaluation, normalization, scoring
from sec4sr_pl.attacks import PGD, AttackResult, Objective
from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.data import check
from sec4sr_pl.robustness import universal
from sec4sr_pl.scoring import EnrolledScorer, Scorer

PAGE = (Path(__file__).parents[1] / "docs" / "models.md").read_text()
TEN_LINES, RECOGNIZER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def inputs(recorded_once: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """What the page says that there is: three speakers, enrolled by 0.4 s, who go on for 0.3 to 0.4 s."""
    waveforms, lengths = recorded_once[0][:3, 6_400:12_800].clone(), torch.tensor([6_400, 4_800, 6_400])
    waveforms[1, 4_800:] = 0.0
    enrollment = recorded_once[0][:3, :6_400].clone(), torch.tensor([6_400, 6_400, 6_400])
    return {
        "waveforms": waveforms,
        "lengths": lengths,
        "speakers": torch.arange(3),
        "enrollment": enrollment,
        "threshold": -1.0,
    }


def run(code: str, values: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    space = dict(values)
    exec(compile(code, "docs/models.md", "exec"), space)
    return space


def test_ten_lines_attack_a_model_that_is_not_ours(inputs: dict[str, Any]) -> None:
    assert len(TEN_LINES.replace("\n\n", "\n").replace("\n\n", "\n").splitlines()) == 10
    space = run(TEN_LINES, inputs)
    result = space["result"]
    assert isinstance(result, AttackResult)
    change = (result.waveforms - inputs["waveforms"]).abs()
    assert 0 < change.max() <= 0.002 + 1e-7 and not change[1, 4_800:].any()

    def own_score(waveforms: Tensor) -> Tensor:
        scores = space["embed"](waveforms, inputs["lengths"]) @ space["enrolled"].T
        return scores.diagonal() - scores.masked_fill(torch.eye(3, dtype=torch.bool), -2.0).amax(1)

    with torch.no_grad():
        before, after = own_score(inputs["waveforms"]), own_score(result.waveforms)
    assert bool((after < before).all()) and torch.equal(after < 0, result.achieved)


def test_their_model_as_a_recognizer_minds_no_padding_is_saved_and_attacked(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = TEN_LINES.partition("features, network")[0] + RECOGNIZER
    module = ModuleType("theirs")  # a package of theirs
    monkeypatch.setitem(sys.modules, "theirs", module)
    vars(module).update(run(code, {"__name__": "theirs"}))
    recognizer = module.recognizer
    waveforms, lengths = inputs["waveforms"], inputs["lengths"]
    recognizer.scorer.enroll(recognizer.embed(*inputs["enrollment"]), ["a", "b", "c"])
    scores = recognizer(waveforms, lengths)
    alone = torch.cat([recognizer(row[None, :end]) for row, end in zip(waveforms, lengths.tolist(), strict=True)])
    torch.testing.assert_close(scores, alone, rtol=1e-4, atol=1e-4)
    save_recognizer(recognizer, tmp_path / "theirs.ckpt")
    loaded = load_recognizer(tmp_path / "theirs.ckpt", trusted=["theirs"])
    assert torch.equal(loaded(waveforms, lengths), scores)
    result = PGD(steps=3)(recognizer, waveforms, inputs["speakers"], lengths, Objective(0.5))
    assert torch.equal(recognizer.decide(recognizer(result.waveforms, lengths)) != inputs["speakers"], result.achieved)


SPLITS = "--data.enroll_split enroll --data.test_split test --data.imposter_split others"


def bring(network: str, inputs: dict[str, Any]) -> None:
    """The page's model around a network, in `theirs.py` and `theirs.ckpt`, and voices to enroll and to test."""
    code, _, made = (TEN_LINES.partition("features, network")[0] + RECOGNIZER).partition("recognizer = ")
    Path("theirs.py").write_text(code.replace("ECAPA_TDNN(80)", network))
    save_recognizer(run(f"from theirs import *\nrecognizer = {made}", {})["recognizer"], "theirs.ckpt")
    for split, speakers in (("enroll", "abc"), ("test", "abc"), ("others", "def")):
        for speaker, row in zip(speakers, inputs["waveforms"], strict=True):
            for number in range(2):
                path = Path("voices") / split / speaker / f"{speaker}-{split}-{number}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, row[number * 400 : 4_800], 16_000)


def test_the_pages_commands_enroll_and_attack_their_model(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["theirs"])
    bring("ECAPA_TDNN(80)", inputs)
    ours = f"--data Spk10 --data.root {tmp_path}/voices {SPLITS}"
    enroll, attack = (
        shlex.split(line.replace("--data Spk10", ours))
        for line in re.findall("^python .*--trusted.*$", PAGE, re.MULTILINE)
    )
    attacking = [*attack[2:], "--limit", "2", "--perceptual", "false"]
    for main, flags in ((enrollment.main, enroll[3:]), (evaluation.main, attacking)):
        monkeypatch.delitem(sys.modules, "theirs", raising=False)
        with pytest.raises(SystemExit):
            main([flag for flag in flags if flag not in ("--trusted", "theirs")])
        assert "theirs.Theirs is not among what may be imported: add --trusted theirs" in capsys.readouterr().err
        assert "theirs" not in sys.modules
        main(flags)
    assert Path("runs/theirs/pgd/summary.json").is_file()


SMALL = "ECAPA_TDNN(80, channels=[8, 8, 8, 8, 24], attention_channels=8, se_channels=8, res2net_scale=2)"


@pytest.mark.slow
def test_their_small_ecapa_goes_the_whole_way(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked, trained from its weights, exported, enrolled, and attacked by each kind of attack that needs files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["theirs"])
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    bring(SMALL, inputs)
    data = f"--trusted theirs --data Spk10 --data.root voices {SPLITS}"
    model = "--model.weights theirs.ckpt --model.recognizer Recognizer --model.recognizer.features FrontEnd"
    model += " --model.recognizer.features.stages {} --model.recognizer.backbone theirs.Theirs"
    model += " --model.recognizer.scorer CosineClosedSet --model.recognizer.scorer.embedding_size 192"
    trainer = "--trainer.max_steps 1 --trainer.limit_val_batches 0 --trainer.logger false --trainer.accelerator cpu"
    trainer += " --trainer.callbacks LastCheckpoint --trainer.callbacks.dirpath trained"
    trainer += " --trainer.enable_progress_bar false --data.crop_seconds 0.2 --data.batch_size 2 --data.num_workers 0"
    attacks = (
        "[{class_path: PGD, init_args: {steps: 2}}, {class_path: UniversalPerturbation, init_args: {path: all.wav}}, "
        "{class_path: Transfer, init_args: {attack: FGSM, surrogates: [osi.ckpt]}}]"
    )
    check.main([*data.split(), "--checkpoint", "theirs.ckpt"])
    cli.train(["fit", *data.split(), *model.split(), *trainer.split()])
    checkpoint.main(["--trusted", "theirs", "trained/last.ckpt", "alone.ckpt"])
    enroll = "--checkpoint alone.ckpt --scorer Cosine --output osi.ckpt"
    enrollment.main([*data.split(), *enroll.split()])
    learn = "--checkpoint osi.ckpt --epochs 1 --seconds 0.1 --output all.wav"
    universal.main([*data.split(), *learn.split()])
    flags = "--checkpoint osi.ckpt --output attacked --perceptual false --accelerator cpu --attacks"
    summary = evaluation.main([*data.split(), *flags.split(), attacks])
    assert summary is not None and len(summary.rows) == 3
    assert load_recognizer("osi.ckpt", ["theirs"]).scorer.speakers == ("a", "b", "c")


@pytest.mark.parametrize(
    ("title", "classes"),
    [
        ("Backbones", lambda: set(backbones.__all__)),
        (
            "Scorers",
            lambda: {
                name
                for module in (scoring, normalization)
                for name, kind in vars(module).items()
                if isinstance(kind, type) and issubclass(kind, Scorer) and kind not in (Scorer, EnrolledScorer)
            },
        ),
    ],
)
def test_the_tables_name_every_class(title: str, classes: Callable[[], set[str]]) -> None:
    table = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    assert classes() <= set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
