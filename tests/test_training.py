"""What a training step does to weights, statistics and draws; schedules, validation under attack, configs."""

import copy
import inspect
import math
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD
from torch.utils.data import DataLoader

from sec4sr_pl import evaluation, metrics
from sec4sr_pl.attacks import PGD, Objective
from sec4sr_pl.backbones import GE2E, AudioNet
from sec4sr_pl.callbacks import EpsilonSchedule, RobustValidation
from sec4sr_pl.checkpoint import CheckpointError, load_recognizer, save_recognizer
from sec4sr_pl.cli import SpeakerCLI, train
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.defenses import FeCo
from sec4sr_pl.draws import key
from sec4sr_pl.features import LogMel, Mel, SpecMask
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.training import (
    AWP,
    AdversarialTraining,
    OneCycle,
    SpeakerModule,
    Standard,
    Step,
    TrainingObjective,
)
from sec4sr_pl.types import SAMPLE_RATE, Batch

MakeRecognizer = Callable[..., Recognizer]
Speech = tuple[Tensor, Tensor]
CONFIGS = Path(__file__).parents[1] / "configs"
ADVERSARIAL = AdversarialTraining(PGD(steps=2), fraction=1.0)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches.*"),
    pytest.mark.filterwarnings("ignore:.*sync_dist=True.*"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
    pytest.mark.filterwarnings("ignore:.*was called before the ``update`` method.*"),
]


def keys_of(names: Sequence[str]) -> list[int]:
    return [key(0, 0, name) for name in names]


@pytest.fixture
def crops(speech: Speech) -> Batch:
    """Eight crops of half a second."""
    waveforms = speech[0][:, 2_000:10_000]
    return Batch(waveforms, torch.full((8,), 8_000), torch.arange(8), [f"utterance{i}" for i in range(8)])


def part_of(batch: Batch, rows: Sequence[int]) -> Batch:
    index = list(rows)
    return Batch(batch.waveforms[index], batch.lengths[index], batch.speakers[index], [batch.names[i] for i in index])


class Stub(nn.Module):
    """A linear recognizer of ten speakers that keeps what the loss was computed on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        if not waveforms.requires_grad:
            self.seen.append(waveforms)
        return waveforms.unfold(1, 800, 800).sum(2)


def run(objective: TrainingObjective, batch: Batch, names: Sequence[str] | None = None) -> tuple[Tensor, Step]:
    """What the loss is computed on, and the step."""
    stub: Any = Stub()
    step = objective(stub, batch, keys_of(batch.names if names is None else names))
    return stub.seen[-1], step


# Objectives


def test_the_adversary_leaves_the_recognizer_alone_and_the_loss_makes_one_training_pass(
    recognizer: Recognizer, crops: Batch
) -> None:
    attack = PGD(steps=2)
    objective = AdversarialTraining(attack, fraction=1.0)
    recognizer.train()
    recognizer.backbone.blocks[1].norm.eval()  # type: ignore[union-attr, index]
    recognizer.scorer.head.bias.requires_grad_(False)
    reference, deployed = copy.deepcopy(recognizer), copy.deepcopy(recognizer).eval()
    flags = [module.training for module in recognizer.modules()]
    for parameter in recognizer.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)

    step = objective(recognizer, crops, keys_of(crops.names))

    assert all(bool((parameter.grad == 0.5).all()) for parameter in recognizer.parameters())
    assert [module.training for module in recognizer.modules()] == flags
    assert [parameter.requires_grad for parameter in recognizer.parameters()].count(False) == 1
    crafted = attack(deployed, crops.waveforms, crops.speakers, measure=False).waveforms
    scores = reference(crafted)  # the one pass in train mode
    loss = functional.cross_entropy(scores, crops.speakers)
    assert torch.equal(step.loss, loss)
    assert torch.equal(step.scores, scores)
    assert step.adversarial.all()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, recognizer.state_dict()[name]), name
    for parameter in recognizer.parameters():
        parameter.grad = None
    step.loss.backward()
    loss.backward()
    for (name, ours), theirs in zip(recognizer.named_parameters(), reference.parameters(), strict=True):
        assert (ours.grad is None) is (name == "scorer.head.bias")
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad), name


def test_the_adversary_sees_the_recognizer_as_deployed(recognizer: Recognizer, crops: Batch) -> None:
    modes = []
    recognizer.train().register_forward_hook(lambda module, _, __: modes.append(module.training))
    ADVERSARIAL(recognizer, crops, keys_of(crops.names))
    assert modes == [False, False, True]


def test_the_loss_counts_every_row_and_smooths_its_labels(recognizer: Recognizer, crops: Batch) -> None:
    recognizer.eval()
    with torch.no_grad():
        for objective, waveforms in (
            (Standard(noise=0.0, label_smoothing=0.1), crops.waveforms),
            (AdversarialTraining(PGD(steps=1), 1.0, label_smoothing=0.1), None),
        ):
            step = objective(recognizer, crops, keys_of(crops.names))
            scores = step.scores if waveforms is None else recognizer(waveforms)
            log_probabilities = scores.log_softmax(1)
            target = torch.full_like(scores, 0.01)
            target[torch.arange(8), crops.speakers] = 0.91
            assert float(step.loss) == pytest.approx(float(-(target * log_probabilities).sum(1).mean()), rel=1e-5)


def test_the_worst_weights_are_up_the_loss_at_their_distance_and_change_nothing(
    recognizer: Recognizer, crops: Batch
) -> None:
    recognizer.train().scorer.head.bias.requires_grad_(False)
    before = copy.deepcopy(recognizer.state_dict())
    objective = AWP(PGD(), 1.0, radius=0.01)
    worst = objective.worst_weights(recognizer, crops.waveforms, crops.speakers)
    assert "scorer.head.bias" not in worst
    for name, weight in recognizer.named_parameters():
        assert weight.grad is None
        if name in worst:
            moved = (worst[name] - weight).detach().norm()
            assert float(moved) == pytest.approx(0.01 * float(weight.detach().norm()), rel=1e-3, abs=1e-9), name
    state = recognizer.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())  # batch-norm statistics, too

    def loss(weights: dict[str, Tensor]) -> float:
        scores = torch.func.functional_call(copy.deepcopy(recognizer), weights, crops.waveforms)
        return functional.cross_entropy(scores, crops.speakers).item()

    there, here = {name: weight.detach() for name, weight in worst.items()}, dict(recognizer.named_parameters())
    assert loss(there) > loss({}) > loss({name: 2 * here[name].detach() - weight for name, weight in there.items()})


def test_the_worst_weights_are_sought_and_used_under_the_same_draws(
    crops: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognizer = Recognizer(LogMel(mask=SpecMask()), AudioNet(), ClosedSet(32, 10), [FeCo(0.5)]).train()
    losses = []

    def seek(self: AWP, recognizer: Recognizer, waveforms: Tensor, speakers: Tensor) -> dict[str, Tensor]:
        losses.append(functional.cross_entropy(recognizer(waveforms), speakers).item())
        return {}

    monkeypatch.setattr(AWP, "worst_weights", seek)
    step = AWP(PGD(steps=1), 1.0)(recognizer, crops, keys_of(crops.names))
    assert losses == [pytest.approx(step.loss.item(), rel=1e-5)]


def test_the_step_at_the_worst_weights_is_taken_from_the_weights_themselves(
    recognizer: Recognizer, crops: Batch
) -> None:
    objective = AWP(PGD(steps=1), 1.0, radius=0.05)
    moved = copy.deepcopy(recognizer.train())
    step = objective(recognizer, crops, keys_of(crops.names))
    step.loss.backward()
    attacked = PGD(steps=1)(moved, crops.waveforms, crops.speakers, measure=False).waveforms
    worst = objective.worst_weights(moved, attacked, crops.speakers)
    with torch.no_grad():
        for name, weight in moved.named_parameters():
            weight.copy_(worst[name])
    loss = functional.cross_entropy(moved(attacked), crops.speakers)
    loss.backward()
    assert step.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for (name, weight), other in zip(recognizer.named_parameters(), moved.parameters(), strict=True):
        assert weight.grad is not None and other.grad is not None
        torch.testing.assert_close(weight.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_rows_are_attacked_by_their_keys_alone(crops: Batch) -> None:
    objective = AdversarialTraining(PGD(steps=1), fraction=0.5)
    waveforms, step = run(objective, crops)
    changed = (waveforms != crops.waveforms).any(1)
    assert torch.equal(changed, step.adversarial)
    assert 0 < int(changed.sum()) < 8
    for rows in ([3, 1, 7], [0], list(range(7, -1, -1))):
        again, partial = run(objective, part_of(crops, rows))
        assert torch.equal(partial.adversarial, step.adversarial[rows])
        torch.testing.assert_close(again, waveforms[rows], rtol=0, atol=1e-7)
    _, other = run(objective, crops, names=[f"epoch 1, {name}" for name in crops.names])
    assert not torch.equal(other.adversarial, step.adversarial)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_the_attacked_fraction_is_the_one_asked_for(fraction: float) -> None:
    size = 4_000
    names = [str(index) for index in range(size)]
    batch = Batch(torch.zeros(size, 8_000), torch.full((size,), 8_000), torch.zeros(size, dtype=torch.int64), names)
    batch = batch._replace(waveforms=batch.waveforms[:, :1].expand(size, 8_000).contiguous()[:, ::100])

    class Tiny(nn.Module):
        def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
            return waveforms[:, :2]

    recognizer: Any = Tiny()
    step = AdversarialTraining(PGD(steps=1), fraction)(recognizer, batch, keys_of(names))
    deviation = math.sqrt(fraction * (1 - fraction) / size)
    assert abs(float(step.adversarial.float().mean()) - fraction) <= 4 * deviation


def test_a_batch_without_a_chosen_row_is_trained_on_as_it_is(recognizer: Recognizer, crops: Batch) -> None:
    objective = AdversarialTraining(PGD(steps=1), fraction=1e-9)
    step = objective(recognizer.train(), crops, keys_of(crops.names))
    assert not step.adversarial.any()
    step.loss.backward()
    assert recognizer.scorer.head.weight.grad is not None


def test_random_starts_are_drawn_from_each_row_key(crops: Batch) -> None:
    objective = AdversarialTraining(PGD(step_size=1e-5, steps=1, restarts=1), fraction=1.0)
    waveforms, _ = run(objective, crops)
    deltas = waveforms - crops.waveforms
    assert deltas.abs().max() > 0.0015  # the start is seen in the result
    assert (deltas[0] - deltas[1]).abs().max() > 0.0015
    rows = [5, 2, 0, 7]
    again, _ = run(objective, part_of(crops, rows))
    torch.testing.assert_close(again, waveforms[rows], rtol=0, atol=1e-7)


def test_strength_scales_the_ball_and_the_steps_and_not_the_adversary(crops: Batch) -> None:
    attack = PGD(epsilon=0.004, step_size=0.001, steps=2)
    objective = AdversarialTraining(attack, fraction=1.0)
    for strength, change in ((1.0, 0.002), (0.25, 0.0005), (0.0, 0.0)):
        objective.strength = strength
        waveforms, _ = run(objective, crops)
        assert float((waveforms - crops.waveforms).abs().max()) == pytest.approx(change, abs=1e-6)
    assert (attack.epsilon, attack.step_size) == (0.004, 0.001)
    assert AdversarialTraining.strength == 1.0


def test_standard_training_adds_a_copy_with_noise_drawn_from_each_row_key(crops: Batch) -> None:
    waveforms, step = run(Standard(noise=0.01), crops)
    assert torch.equal(waveforms[:8], crops.waveforms)
    assert torch.equal(step.speakers, crops.speakers.repeat(2))
    assert not step.adversarial.any()
    noise = waveforms[8:] - crops.waveforms
    amplitudes = noise.abs().amax(1)
    assert (amplitudes <= 0.01 + 1e-7).all()
    assert amplitudes.max() > 2.0 * amplitudes.min()  # an amplitude for each row
    shape = noise / amplitudes.unsqueeze(1)
    assert ((shape.std(1) - 1 / math.sqrt(3)).abs() < 0.02).all()  # uniform
    assert (shape @ shape.T / 8_000 - torch.eye(8) / 3).abs().max() < 0.05  # rows of their own
    rows = [6, 1]
    again, _ = run(Standard(noise=0.01), part_of(crops, rows))
    assert torch.equal(again[2:], waveforms[8:][rows])
    plain, step = run(Standard(noise=0.0), crops)
    assert torch.equal(plain, crops.waveforms)
    assert len(step.scores) == 8


@pytest.mark.parametrize(
    "make",
    [
        lambda: Standard(noise=-0.1),
        lambda: Standard(label_smoothing=1.0),
        lambda: AdversarialTraining(PGD(), fraction=0.0),
        lambda: AdversarialTraining(PGD(), fraction=1.5),
        lambda: AdversarialTraining(PGD(), label_smoothing=1.0),
        lambda: AWP(PGD(), radius=-0.1),
        lambda: EpsilonSchedule(warmup=1.5),
        lambda: RobustValidation(fraction=0.0),
        lambda: RobustValidation(pesq=-0.1),
        lambda: RobustValidation(pesq=1.5),
    ],
)
def test_a_parameter_outside_its_range_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        make()


# Training with Lightning


def trainer(**arguments: Any) -> Trainer:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**defaults, **arguments})


def loader(batches: Sequence[Batch]) -> DataLoader[Any]:
    return DataLoader(list(batches), batch_size=None)  # type: ignore[arg-type]


def batches_of(batch: Batch, size: int) -> list[Batch]:
    return [part_of(batch, range(start, start + size)) for start in range(0, len(batch.names), size)]


def sgd(parameters: Any) -> SGD:
    return SGD(parameters, lr=2e-4)


def frozen_norms(recognizer: Recognizer) -> Recognizer:
    """In train mode but for the batch norms, whose statistics then neither move nor mix rows."""
    recognizer.train()
    for module in recognizer.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return recognizer


def distance(first: nn.Module, second: nn.Module) -> float:
    return max(
        float((a - b).detach().abs().max()) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_accumulated_micro_batches_train_like_the_batch_they_make_up(recognizer: Recognizer, crops: Batch) -> None:
    """In double precision, in which rounding flips no sign of an adversary's gradient."""
    start = copy.deepcopy(recognizer)
    whole, accumulated = frozen_norms(copy.deepcopy(recognizer)), frozen_norms(recognizer)
    objective = AdversarialTraining(PGD(steps=2), fraction=0.9)
    for model, size, every in ((whole, 8, 1), (accumulated, 4, 2)):
        trainer(max_epochs=3, accumulate_grad_batches=every, precision="64-true").fit(
            SpeakerModule(model, objective, optimizer=sgd), loader(batches_of(crops, size))
        )
    assert distance(whole, start.double()) > 1e-3
    assert distance(whole, accumulated) < 1e-9


@pytest.mark.parametrize("objective", [Standard(), ADVERSARIAL], ids=["standard", "adversarial"])
def test_bf16_training_is_that_of_a_plain_loop_under_autocast(
    objective: TrainingObjective, recognizer: Recognizer, crops: Batch
) -> None:
    start, by_hand, single = (copy.deepcopy(recognizer).train() for _ in range(3))
    batches = batches_of(crops, 4)
    optimizer = sgd(by_hand.parameters())
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            step = objective(by_hand, batch, keys_of(batch.names))
        step.loss.backward()
        assert all(parameter.grad is not None for parameter in by_hand.parameters())
        optimizer.step()
        optimizer.zero_grad()
    trainer(precision="bf16-mixed").fit(SpeakerModule(recognizer.train(), objective, optimizer=sgd), loader(batches))
    trainer().fit(SpeakerModule(single, objective, optimizer=sgd), loader(batches))
    assert all(parameter.dtype == torch.float32 for parameter in recognizer.parameters())
    assert distance(recognizer, by_hand) == 0.0
    assert distance(recognizer, single) > 0.0
    if isinstance(objective, Standard):  # against an adversary the roundings part too far
        updates = [
            parameters_to_vector(m.parameters()) - parameters_to_vector(start.parameters())
            for m in (recognizer, single)
        ]
        assert functional.cosine_similarity(*updates, 0) > 0.8


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_precision_that_rounds_the_waveform_is_refused(precision: Any, recognizer: Recognizer, crops: Batch) -> None:
    with pytest.raises(ValueError, match=rf"{precision} rounds the waveform .*bf16-mixed"):
        trainer(precision=precision).fit(SpeakerModule(recognizer, optimizer=sgd), loader([crops]))


def test_draws_of_training_are_those_of_seed_epoch_and_name(crops: Batch) -> None:
    class Keys(TrainingObjective):
        def __init__(self) -> None:
            self.keys: list[list[int]] = []

        def __call__(self, recognizer: Recognizer, batch: Batch, keys: Sequence[int]) -> Step:
            self.keys.append(list(keys))
            scores = recognizer(batch.waveforms)
            return Step(scores.sum(), scores.detach(), batch.speakers, torch.zeros(len(keys), dtype=torch.bool))

    class Recognized(Stub):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Identity()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
            return self.weight * super().forward(waveforms, lengths)

        def seed(self, seed: int) -> None: ...

        def decide(self, scores: Tensor) -> Tensor:
            return scores.argmax(1)

    objective, recognizer = Keys(), Recognized()
    module: Any = SpeakerModule(recognizer, objective, optimizer=sgd, seed=5)  # type: ignore[arg-type]
    module.on_save_checkpoint = lambda _: None
    trainer(max_epochs=2).fit(module, loader(batches_of(crops, 4)))
    assert objective.keys == [
        [key(5, epoch, name) for name in crops.names[start : start + 4]] for epoch in (0, 1) for start in (0, 4)
    ]


def test_a_randomized_defense_trains_the_same_every_time(make_recognizer: MakeRecognizer, crops: Batch) -> None:
    models = [make_recognizer(defenses=[FeCo(0.5)]).train() for _ in range(2)]
    models[1](crops.waveforms)  # draws before training change nothing
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        trainer(max_epochs=2).fit(SpeakerModule(model, ADVERSARIAL, optimizer=sgd), loader([crops]))
    assert distance(*models) == 0.0


class Watch(Callback):
    """Notes the strength and the learning rate of each batch."""

    def __init__(self) -> None:
        self.strengths: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        objective: Any = pl_module.objective
        self.strengths.append(objective.strength)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


def schedules(recognizer: Recognizer, crops: Batch, warmup: float = 0.3, **arguments: Any) -> Watch:
    watch = Watch()
    module = SpeakerModule(
        recognizer,
        Standard(noise=0.0),
        optimizer=sgd,
        scheduler=lambda optimizer, steps: OneCycle(optimizer, steps, max_lr=1e-4, rise=0.5),
    )
    batches = [part_of(crops, [row]) for row in range(4)]
    trainer(callbacks=[EpsilonSchedule(warmup), watch], **arguments).fit(module, loader(batches))
    return watch


def test_the_budget_rises_linearly_to_its_full_size(recognizer: Recognizer, crops: Batch) -> None:
    watch = schedules(recognizer, crops, warmup=0.5, max_epochs=2)
    assert watch.strengths == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0])
    watch = schedules(recognizer, crops, warmup=0.5, max_epochs=2, accumulate_grad_batches=2)
    assert watch.strengths == pytest.approx([0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert schedules(recognizer, crops, warmup=0.0).strengths == [1.0] * 4


@pytest.mark.parametrize("accumulated", [1, 2])
def test_one_cycle_spans_the_training(accumulated: int, recognizer: Recognizer, crops: Batch) -> None:
    rates = schedules(recognizer, crops, max_epochs=4, accumulate_grad_batches=accumulated).rates
    assert len(rates) == 16 // accumulated
    assert rates[0] == pytest.approx(1e-4 / 25)
    peak = len(rates) // 2 - 1
    assert rates[peak] == pytest.approx(1e-4)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-4 / 25 / 1_000


def test_without_a_scheduler_the_learning_rate_is_constant(
    recognizer: Recognizer, crops: Batch, tmp_path: Path
) -> None:
    monitor = LearningRateMonitor()
    logger = CSVLogger(tmp_path, name="", version="")
    trainer(callbacks=[monitor], logger=logger, log_every_n_steps=1, max_epochs=3).fit(
        SpeakerModule(recognizer, Standard(), optimizer=sgd), loader([crops])
    )
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert {"lr-SGD", "train/loss", "train/benign_accuracy"} <= set(rows[0].split(","))
    column = rows[0].split(",").index("lr-SGD")
    assert {row.split(",")[column] for row in rows[1:]} <= {"0.0002", ""}


def test_training_accuracies_are_those_of_their_rows(recognizer: Recognizer, crops: Batch) -> None:
    decisions, untrained = recognizer(crops.waveforms).argmax(1), copy.deepcopy(recognizer)
    batch = crops._replace(speakers=torch.where(torch.arange(8) < 3, decisions, (decisions + 1) % 10))
    fit = trainer()
    fit.fit(SpeakerModule(frozen_norms(recognizer), Standard(noise=0.0), optimizer=sgd), loader([batch]))
    assert float(fit.callback_metrics["train/benign_accuracy"]) == pytest.approx(3 / 8)
    fit = trainer()
    fit.fit(SpeakerModule(frozen_norms(recognizer), ADVERSARIAL, optimizer=sgd), loader([batch]))
    assert 0.0 <= float(fit.callback_metrics["train/adversarial_accuracy"]) < 3 / 8

    weak = AdversarialTraining(PGD(epsilon=0.0), fraction=0.5)  # changes nothing, so that decisions are known
    attacked = torch.tensor([key(k, "adversarial") < 2**62 for k in keys_of(batch.names)])
    right = decisions == batch.speakers
    fit = trainer()
    fit.fit(SpeakerModule(frozen_norms(untrained), weak, optimizer=lambda p: SGD(p, lr=0.0)), loader([batch]))
    for kind, rows in (("benign", ~attacked), ("adversarial", attacked)):
        assert float(fit.callback_metrics[f"train/{kind}_accuracy"]) == pytest.approx(float(right[rows].float().mean()))


def test_fine_tuning_starts_from_the_weights(make_recognizer: MakeRecognizer, crops: Batch, tmp_path: Path) -> None:
    trained, fresh = make_recognizer(seed=1), make_recognizer(seed=2)
    save_recognizer(trained, tmp_path / "trained.ckpt")
    assert distance(trained, fresh) > 0.01
    module = SpeakerModule(frozen_norms(fresh), optimizer=lambda p: SGD(p, lr=0.0), weights=tmp_path / "trained.ckpt")
    trainer().fit(module, loader([crops]))
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name


def test_a_training_checkpoint_holds_what_was_trained(recognizer: Recognizer, crops: Batch, tmp_path: Path) -> None:
    fit = trainer()
    fit.fit(SpeakerModule(recognizer.train(), ADVERSARIAL, optimizer=sgd), loader([crops]))
    fit.save_checkpoint(tmp_path / "last.ckpt")
    again = load_recognizer(tmp_path / "last.ckpt")
    with torch.no_grad():
        assert torch.equal(again(crops.waveforms), recognizer.eval()(crops.waveforms))
    other = SpeakerModule(copy.deepcopy(recognizer), optimizer=lambda p: SGD(p, lr=0.0), weights=tmp_path / "last.ckpt")
    trainer().fit(other, loader([crops]))


def test_weights_of_speakers_in_another_order_are_refused(
    make_recognizer: MakeRecognizer, crops: Batch, tmp_path: Path
) -> None:
    save_recognizer(make_recognizer(speakers=["a", "b", "c"]), tmp_path / "abc.ckpt")
    module = SpeakerModule(make_recognizer(speakers=["b", "a", "c"]), optimizer=sgd, weights=tmp_path / "abc.ckpt")
    with pytest.raises(CheckpointError, match=r"abc\.ckpt knows the speakers of the data in another order"):
        trainer().fit(module, loader([crops]))


def test_of_weights_of_other_speakers_the_backbone_is_taken(
    make_recognizer: MakeRecognizer, crops: Batch, tmp_path: Path
) -> None:
    trained = make_recognizer(speakers=["a", "b", "c"], seed=1)
    save_recognizer(trained, tmp_path / "abc.ckpt")
    fresh = make_recognizer(speakers=[str(number) for number in range(10)], seed=2)
    head = copy.deepcopy(fresh.scorer.state_dict())
    module = SpeakerModule(frozen_norms(fresh), optimizer=lambda p: SGD(p, lr=0.0), weights=tmp_path / "abc.ckpt")
    with pytest.warns(UserWarning, match=r"abc\.ckpt knows 3 speakers, the data have 10 others: .* starts anew"):
        trainer().fit(module, loader([crops]))
    for name, tensor in fresh.state_dict().items():
        expected = head[name.removeprefix("scorer.")] if name.startswith("scorer.") else trained.state_dict()[name]
        assert torch.equal(tensor, expected), name


def test_weights_of_another_backbone_are_refused(make_recognizer: MakeRecognizer, crops: Batch, tmp_path: Path) -> None:
    save_recognizer(make_recognizer(speakers=["a", "b", "c"]), tmp_path / "abc.ckpt")
    other = Recognizer(Mel(), GE2E(), ClosedSet(256, 10))
    module = SpeakerModule(other, optimizer=sgd, weights=tmp_path / "abc.ckpt")
    with pytest.raises(CheckpointError, match=r"abc\.ckpt is of another front end, backbone or scorer: ") as error:
        trainer().fit(module, loader([crops]))
    assert "\n" not in str(error.value)


# Validation under attack


@pytest.fixture
def development(speech: Speech) -> list[Batch]:
    """Eight padded utterances of up to a second in batches of 3, 4 and 1."""
    lengths = speech[1].clamp_max(16_000) - 400 * torch.arange(8)
    mask = torch.arange(16_000) < lengths.unsqueeze(1)
    whole = Batch(speech[0][:, :16_000] * mask, lengths, torch.arange(8), [f"utterance{i}" for i in range(8)])
    return [part_of(whole, rows) for rows in (range(3), range(3, 7), range(7, 8))]


def by_hand(
    recognizer: Recognizer, batches: Sequence[Batch], attack: PGD, chosen: Callable[[str], bool], pesq: float
) -> dict[str, float]:
    """The values of RobustValidation, utterance by utterance."""
    right, held, snr, qualities = [], [], [], []
    for batch in batches:
        rows = [index for index, name in enumerate(batch.names) if chosen(name)]
        if not rows:
            continue
        some = part_of(batch, rows)
        result = attack(recognizer, some.waveforms, some.speakers, some.lengths)
        for i, length in enumerate(some.lengths.tolist()):
            clean, changed = some.waveforms[i, :length], result.waveforms[i, :length]
            right.append(int(recognizer(clean[None])[0].argmax()) == int(some.speakers[i]))
            held.append(int(recognizer(changed[None])[0].argmax()) == int(some.speakers[i]))
            snr.append(
                10 * math.log10(float(clean.double().square().sum() / (changed - clean).double().square().sum()))
            )
            if key(some.names[i], "pesq") < pesq * 2**63:
                qualities.append(metrics.perceptual_evaluation_of_speech_quality(changed, clean))
    benign, adversarial = sum(right) / len(right), sum(held) / len(held)
    broken = [not h for r, h in zip(right, held, strict=True) if r]
    return {
        "robust/benign_accuracy": benign,
        "robust/adversarial_accuracy": adversarial,
        "robust/r1": 2 * benign * adversarial / (benign + adversarial) if benign + adversarial else 0.0,
        "robust/attack_success": sum(broken) / len(broken),
        "robust/snr": sum(snr) / len(snr),
        **({"robust/pesq": sum(qualities) / len(qualities)} if pesq else {}),
    }


@pytest.mark.parametrize(("fraction", "pesq"), [(1.0, 0.4), (0.5, 0.0)])
def test_robust_validation_logs_what_is_computed_by_hand(
    fraction: float, pesq: float, recognizer: Recognizer, development: list[Batch]
) -> None:
    labels = iter(torch.cat([recognizer(b.waveforms, b.lengths).argmax(1) for b in development]).tolist())
    batches = [b._replace(speakers=torch.tensor([next(labels) for _ in b.names])) for b in development]
    batches[1] = batches[1]._replace(speakers=(batches[1].speakers + torch.tensor([0, 1, 0, 1])) % 10)  # two errors
    chosen = {name for b in batches for name in b.names if key(name, "robust") < fraction * 2**63}
    assert len(chosen) == 8 if fraction == 1.0 else 0 < len(chosen) < 8
    before = copy.deepcopy(recognizer)
    for epsilon in (1e-4, 3e-5, 1e-5, 3e-6, 1e-6):  # until the attack succeeds for some only
        attack = PGD(epsilon, epsilon / 2, steps=2)
        expected = by_hand(before, batches, attack, chosen.__contains__, pesq)
        if 0.0 < expected["robust/attack_success"] < 1.0:
            break
    assert fraction < 1.0 or 0.0 < expected["robust/adversarial_accuracy"] < expected["robust/benign_accuracy"] < 1.0

    module = SpeakerModule(recognizer, optimizer=sgd)
    validate = trainer(callbacks=[RobustValidation(attack, fraction, pesq)])
    validate.validate(module, loader(batches[:1]), verbose=False)
    (logged,) = validate.validate(module, loader(batches), verbose=False)  # counts start anew
    robust = {name: value for name, value in logged.items() if name.startswith("robust/")}
    assert robust == pytest.approx(expected, rel=1e-3)
    assert logged["development/accuracy"] == pytest.approx(6 / 8)
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, recognizer.state_dict()[name]), name
    assert all(parameter.grad is None and parameter.requires_grad for parameter in recognizer.parameters())


def test_robust_validation_is_the_same_within_training(
    recognizer: Recognizer, development: list[Batch], crops: Batch
) -> None:
    validation = RobustValidation(PGD(steps=1), pesq=0)
    fit = trainer(callbacks=[validation])
    module = SpeakerModule(recognizer.train(), ADVERSARIAL, optimizer=sgd)
    fit.fit(module, loader([crops]), loader(development))
    assert recognizer.training
    within = {name: float(value) for name, value in fit.callback_metrics.items() if name.startswith("robust/")}
    (after,) = trainer(callbacks=[RobustValidation(PGD(steps=1), pesq=0)]).validate(
        module, loader(development), verbose=False
    )
    assert within == pytest.approx({name: after[name] for name in within}, nan_ok=True)
    assert len(within) == 5


def test_a_randomized_recognizer_is_validated_with_the_same_draws_every_time(
    make_recognizer: MakeRecognizer, development: list[Batch]
) -> None:
    recognizer = make_recognizer(defenses=[FeCo(0.5)])
    module = SpeakerModule(recognizer, optimizer=sgd)
    validate = trainer(callbacks=[RobustValidation(PGD(steps=1, restarts=1), pesq=0)])
    first, second = (validate.validate(module, loader(development), verbose=False)[0] for _ in range(2))
    assert first == pytest.approx(second, nan_ok=True, abs=0)


def test_robust_validation_attacks_the_recognizer_it_validates(
    recognizer: Recognizer, development: list[Batch]
) -> None:
    batches = [b._replace(speakers=recognizer(b.waveforms, b.lengths).argmax(1)) for b in development]
    attack = PGD()
    module = SpeakerModule(recognizer, optimizer=sgd)
    (logged,) = trainer(callbacks=[RobustValidation(attack, pesq=0)]).validate(module, loader(batches), verbose=False)
    assert logged["robust/benign_accuracy"] == 1.0
    result = [attack(recognizer, b.waveforms, b.speakers, b.lengths, Objective()) for b in batches]
    assert logged["robust/attack_success"] == pytest.approx(
        float(torch.cat([r.achieved for r in result]).float().mean())
    )


# Configs


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three speakers of three training utterances and one test utterance, under every name that a split has."""
    root = tmp_path_factory.mktemp("tiny")
    generator = torch.Generator().manual_seed(0)
    for speaker in range(3):
        for utterance in range(4):
            time = torch.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
            voice = sum(torch.sin(2 * math.pi * 110 * (speaker + 1) * h * time) / h for h in range(1, 8))
            wave = 0.1 * voice + 0.01 * torch.randn(len(time), generator=generator)
            folder = root / ("test" if utterance == 3 else "train") / f"speaker{speaker}"
            folder.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / f"s{speaker}u{utterance}.wav", wave.numpy(), SAMPLE_RATE, subtype="PCM_16")
    shutil.copytree(root / "train", root / "Spk251_train")
    shutil.copytree(root / "test", root / "Spk251_test")
    shutil.copytree(root / "train", root / "Spk10_enroll")
    for folder in ("vox1_dev/wav", "vox2_dev/wav", "vox1_test/wav", "train-clean-360"):
        for speaker in (root / "train").iterdir():
            shutil.copytree(speaker, root / folder / speaker.name / "session")
    (root / "background201.txt").write_text("speaker0\nspeaker1\nspeaker2\n")
    first, *others = (f"test/speaker{speaker}/s{speaker}u3.wav" for speaker in range(3))
    lines = [f"1 {first} train/speaker0/s0u0.wav", *(f"0 {first} {other}" for other in others)]
    (root / "trials.txt").write_text("\n".join(lines))
    return root


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are written under a folder that is thrown away, W&B sends nothing, usage fits a line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["train.py"])


def of(group: str) -> list[Any]:
    return [pytest.param(path, id=path.name) for path in sorted((CONFIGS / group).glob("*.yaml"))]


def small(root: Path, config: Path) -> list[str]:
    """Flags that put tiny data and one processor under a training config."""
    content = yaml.safe_load(config.read_text())
    data = content["data"]
    if isinstance(data, str):
        data = yaml.safe_load((config.parent / data).read_text())
    flags = [f"--data.init_args.root={root}", "--data.init_args.num_workers=0", "--data.init_args.crop_seconds=0.4"]
    if data["class_path"].endswith("SyntheticVoices"):
        pytest.importorskip("espeakng_loader", reason="eSpeak NG is not installed")
        flags[0] = f"--data.init_args.root={root / 'synthetic-voices'}"
        flags += [f"--data.init_args.{name}" for name in ("voices=3", "train_utterances=2", "test_utterances=1")]
    if "part: development" in config.read_text():  # trials need two utterances a speaker
        flags.append("--data.init_args.development_fraction=0.7")
    if "weights" in content["model"]:
        flags.append("--model.weights=null")
    return [
        *flags,
        "--trainer.accelerator=cpu",
        "--trainer.devices=1",
        "--trainer.num_nodes=1",
        "--trainer.strategy=auto",
        "--trainer.enable_model_summary=false",
    ]


def assemble(*args: str) -> SpeakerCLI:
    """The objects of a training command, without training."""

    class Assembly(SpeakerCLI):
        def before_instantiate_classes(self) -> None: ...

    return Assembly(
        SpeakerModule,
        SpeakerData,
        subclass_mode_data=True,
        parser_kwargs={"parser_mode": "yaml"},
        seed_everything_default=0,
        save_config_callback=None,
        run=False,
        args=[*args, "--trainer.accelerator=cpu", "--trainer.logger=false"],
    )


QUICK = ("demo", "mini_quick", "mini_adversarial", "ecapa_mini", "xvector_mini")
"""The configurations that README.md and docs/results.md begin with."""


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(*each.values, id=each.id, marks=[pytest.mark.slow] * (each.values[0].stem not in QUICK))
        for each in of("train")
    ],
)
def test_every_training_config_trains(config: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEC4SR_DATA", str(tiny_data))
    cli = train(["fit", f"--config={config}", *small(tiny_data, config), "--trainer.fast_dev_run=1"])
    assert cli.trainer.global_step == 1
    assert len(cli.model.recognizer.scorer.speakers) == 3
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])


@pytest.mark.parametrize("config", of("cluster"))
def test_every_cluster_config_goes_on_top_of_a_training_config(config: Path, tiny_data: Path) -> None:
    base = CONFIGS / "train" / "mini_natural.yaml"
    cli = train(["fit", f"--config={base}", f"--config={config}", *small(tiny_data, base), "--trainer.fast_dev_run=1"])
    assert cli.trainer.global_step == 1


@pytest.mark.parametrize("script", [pytest.param(p, id=p.name) for p in sorted((CONFIGS / "cluster").glob("*.s*h"))])
def test_every_cluster_script_is_shell_and_names_configs_that_exist(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    for name in re.findall(r"configs/[\w/.-]+\.yaml", script.read_text()):
        assert (CONFIGS.parent / name).is_file(), name


BASE = [
    "--model.recognizer=sec4sr_pl.recognizer.Recognizer",
    "--model.recognizer.features=LogMel",
    "--model.recognizer.backbone=AudioNet",
    "--model.recognizer.scorer=ClosedSet",
    "--model.recognizer.scorer.embedding_size=32",
]


@pytest.mark.parametrize("config", of("model"))
def test_every_model_config_is_a_recognizer(config: Path, tiny_data: Path) -> None:
    cli = assemble(f"--model.recognizer={config}", "--data=SpeakerData", f"--data.root={tiny_data}")
    recognizer = cli.model.recognizer.eval()
    assert recognizer.scorer.speakers == ("speaker0", "speaker1", "speaker2")
    assert recognizer(torch.zeros(2, 16_000)).shape == (2, 3)


@pytest.mark.parametrize("config", of("data"))
def test_every_data_config_is_a_data_module(config: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEC4SR_DATA", str(tiny_data))
    cli = assemble(*BASE, f"--data={config}", f"--data.root={tiny_data}")
    assert isinstance(cli.datamodule, SpeakerData)
    assert len(cli.model.recognizer.scorer.speakers) == 3


@pytest.mark.parametrize("config", of("adversary"))
def test_every_adversary_config_is_an_attack_to_train_against(config: Path, tiny_data: Path) -> None:
    objective = ["--model.objective=AdversarialTraining", f"--model.objective.attack={config}"]
    cli = assemble(*BASE, *objective, "--data=SpeakerData", f"--data.root={tiny_data}")
    assert isinstance(cli.model.objective.attack, PGD)


@pytest.mark.parametrize("config", of("evaluate"))
def test_every_evaluation_config_gives_the_arguments_of_an_evaluation(
    config: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, received = evaluation.evaluate, {}
    signature = inspect.signature(real)

    def noted(**arguments: Any) -> None:
        received.update(signature.bind(**arguments).arguments)

    noted.__signature__, noted.__annotations__, noted.__doc__ = signature, real.__annotations__, real.__doc__  # type: ignore[attr-defined]
    monkeypatch.setattr(evaluation, "evaluate", noted)
    evaluation.main([f"--config={config}"])
    assert isinstance(received["data"], SpeakerData)
    names = [attack.name for attack in received["attacks"]]
    assert names and len(set(names)) == len(names)
    assert all(isinstance(received[name], Path) for name in ("checkpoint", "output"))


def test_every_config_is_tested() -> None:
    tested = {"train", "cluster", "model", "data", "adversary", "evaluate", "enroll"}
    assert {path.relative_to(CONFIGS).parts[0] for path in CONFIGS.rglob("*.yaml")} <= tested
    assert all(len(path.relative_to(CONFIGS).parts) == 2 for path in CONFIGS.rglob("*.yaml"))


TYPOS = {
    "of an attack's argument": ("{steps: 5", "{stepps: 5", "stepps"),
    "of the trainer": ("max_epochs:", "max_epoch:", "trainer.max_epoch"),
    "of the data": ("{batch_size:", "{batch_sice:", "batch_sice"),
    "of a section": ("  objective:", "  objectiv:", "model.objectiv"),
    "of a class": ("class_path: RobustValidation", "class_path: RobustValidaton", "RobustValidaton"),
    "of a value": ("max_lr: 0.005", "max_lr: fast", "max_lr"),
}


@pytest.mark.parametrize(("right", "wrong", "named"), TYPOS.values(), ids=TYPOS)
def test_a_typo_in_a_training_config_is_one_error_that_names_it(
    right: str, wrong: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (CONFIGS / "train" / "demo.yaml").read_text()
    assert text.count(right) == 1
    (tmp_path / "typo.yaml").write_text(text.replace(right, wrong))
    with pytest.raises(SystemExit) as stop:
        train(["fit", f"--config={tmp_path / 'typo.yaml'}"])
    shown = capsys.readouterr().err
    assert stop.value.code == 2
    assert shown.count("error:") == 1
    assert named in shown[shown.index("error:") :]
    assert "Traceback" not in shown


def test_a_typo_in_an_evaluation_config_is_one_error_that_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (CONFIGS / "evaluate" / "demo.yaml").read_text()
    (tmp_path / "typo.yaml").write_text(text + "batch_sice: 4\n")
    with pytest.raises(SystemExit) as stop:
        evaluation.main([f"--config={tmp_path / 'typo.yaml'}"])
    shown = capsys.readouterr().err
    assert stop.value.code != 0
    assert shown.count("error:") == 1 and "batch_sice" in shown


def test_a_module_is_copied_for_weight_averaging_without_what_its_factories_reach() -> None:
    """On several processes the command line's factories reach launched processes, which can't be copied."""

    class Factory:
        def __init__(self) -> None:
            self.launched = threading.Lock()

        def __call__(self, parameters: Any) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, 0.1)

    recognizer = Recognizer(LogMel(), AudioNet(), ClosedSet(32, 2))
    module = SpeakerModule(recognizer, optimizer=Factory())
    averaged = copy.deepcopy(module)
    assert averaged.optimizer is module.optimizer
    weights = zip(module.parameters(), averaged.parameters(), strict=True)
    assert all(a is not b and a.equal(b) for a, b in weights)
