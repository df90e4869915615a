"""What a user tries first: it works, or says in one line why it can't, and warns of nothing that is right."""

import warnings
from pathlib import Path

import pytest
import yaml
from test_resume import CONFIG, REPOSITORY, error_of, fit
from test_resume import config as config  # fixtures
from test_resume import somewhere_else as somewhere_else

from sec4sr_pl import cli

SHORT = "--trainer.max_epochs=2"


def test_overfitting_meets_the_same_crops_again(config: Path, tmp_path: Path) -> None:
    trainer = fit(config, tmp_path, SHORT, "--trainer.overfit_batches=2", "--trainer.limit_val_batches=1").trainer
    assert trainer.global_step == 4
    crops = trainer.train_dataloader.dataset
    assert (crops[3][0] == crops[0, 3][0]).all() and crops[3][2] == crops[0, 3][2]


@pytest.mark.parametrize("monitor", ["LearningRateMonitor", pytest.param("DeviceStatsMonitor", marks=pytest.mark.slow)])
def test_a_monitor_without_a_logger_is_left_out(monitor: str, config: Path, tmp_path: Path) -> None:
    trainer = fit(config, tmp_path, SHORT, f"--trainer.callbacks+={monitor}").trainer
    assert trainer.global_step == 8
    assert monitor not in {type(callback).__name__ for callback in trainer.callbacks}


@pytest.mark.parametrize("finder", ["LearningRateFinder", "BatchSizeFinder"])
def test_a_search_of_what_the_configuration_tells_is_refused(finder: str, config: Path, tmp_path: Path) -> None:
    text = error_of(config, tmp_path, f"--trainer.callbacks+={finder}")
    assert text.startswith(f"train.py: error: {finder} can't be used: ")


def test_a_first_run_warns_of_nothing_and_a_second_in_its_place_of_what_it_writes_over(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the callbacks and loggers of a shipped configuration."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    shipped = yaml.safe_load((REPOSITORY / "configs" / "train" / "mini_adversarial.yaml").read_text())["trainer"]
    own = yaml.safe_load(CONFIG)
    own["trainer"] |= {"callbacks": shipped["callbacks"], "logger": shipped["logger"], "max_epochs": 2}
    own["data"]["init_args"]["root"] = str(config.parent)
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(own))

    def warned() -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            cli.train(["fit", f"--config={tmp_path / 'train.yaml'}"])
        wandb.finish()
        return [str(w.message) for w in caught if issubclass(w.category, UserWarning)]

    assert warned() == []
    told = warned()
    assert any("runs/mini_adversarial holds checkpoints, which are written over" in text for text in told)
    assert any("metrics.csv held" in text and "it begins anew" in text for text in told)
    wandb.teardown()  # its service keeps the environment of this test
