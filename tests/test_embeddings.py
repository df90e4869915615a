"""Models that are trained for their embeddings: SpeechBrain's networks and weights, margins, what their data needs."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from conftest import MakeRecognizer
from huggingface_hub import constants
from jsonargparse import ArgumentParser
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from speechbrain.inference.classifiers import EncoderClassifier
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD
from torch.testing import assert_close
from torch.utils.data import DataLoader

from sec4sr_pl.attacks import PGD, Channel
from sec4sr_pl.backbones import ECAPA, GE2E, HubXVector, ResNet, XVector
from sec4sr_pl.callbacks import MarginSchedule
from sec4sr_pl.checkpoint import CheckpointError, load_recognizer, save_recognizer
from sec4sr_pl.data import Background, SpeakerData
from sec4sr_pl.data.augment import RandomRoom, RandomSpeed
from sec4sr_pl.data.manifest import DataError, scan
from sec4sr_pl.defenses import GaussianNoise
from sec4sr_pl.features import Fbank
from sec4sr_pl.losses import AdditiveAngularMargin, AdditiveMargin, Margin
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet, CosineClosedSet
from sec4sr_pl.training import AWP, AdversarialTraining, SpeakerModule, Standard, TrainingObjective
from sec4sr_pl.types import SAMPLE_RATE, Batch

Speech = tuple[Tensor, Tensor]

# SpeechBrain's models

HYPERPARAMETERS = """
sample_rate: 16000
compute_features: !new:speechbrain.lobes.features.Fbank
  n_mels: {mels}
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
  norm_type: sentence
  std_norm: False
embedding_model: !new:speechbrain.lobes.models.{network}
classifier: !new:torch.nn.Identity
modules:
  compute_features: !ref <compute_features>
  mean_var_norm: !ref <mean_var_norm>
  embedding_model: !ref <embedding_model>
  classifier: !ref <classifier>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
  loadables:
    embedding_model: !ref <embedding_model>
"""
NETWORKS = {
    "ECAPA": "ECAPA_TDNN.ECAPA_TDNN\n  input_size: 80\n  channels: [64, 64, 64, 64, 192]\n  lin_neurons: 24",
    "ResNet": "ResNet.ResNet\n  input_size: 80\n  channels: [8, 8, 16, 16]\n  lin_neurons: 24",
    "HubXVector": "Xvector.Xvector\n  in_channels: 24\n  tdnn_channels: [32, 32, 32, 32, 48]\n  lin_neurons: 24",
}
SMALL: dict[str, Callable[[], Any]] = {
    "ECAPA": partial(ECAPA, 80, 64, 24),
    "ResNet": partial(ResNet, 80, 8, 24),
    "HubXVector": partial(HubXVector, 24, 32, 48, 24),
}
BACKBONES: dict[str, Any] = {"ECAPA": ECAPA, "ResNet": ResNet, "HubXVector": HubXVector}


@pytest.fixture
def hub_folder(request: pytest.FixtureRequest, tmp_path: Path, speech: Speech) -> Path:
    """A model in the layout of the hub: `hyperparams.yaml`, and weights that SpeechBrain's own network holds."""
    torch.manual_seed(0)
    backbone = SMALL[request.param]().train()
    frames, lengths = Fbank(backbone.inputs)(*speech)
    for _ in range(20):
        backbone(frames[:, : lengths.min()])  # batch norms that know the frames
    network = backbone.network
    torch.save(network.state_dict(), tmp_path / "embedding_model.ckpt")
    (tmp_path / "hyperparams.yaml").write_text(
        HYPERPARAMETERS.format(mels=backbone.inputs, network=NETWORKS[request.param])
    )
    return tmp_path


@pytest.mark.parametrize(("hub_folder", "name"), [(name, name) for name in BACKBONES], indirect=["hub_folder"])
def test_a_folder_of_the_hub_gives_the_embeddings_that_speechbrain_computes(
    name: str, hub_folder: Path, speech: Speech
) -> None:
    waveforms, lengths = speech
    folders = {"source": str(hub_folder), "savedir": str(hub_folder / "loaded")}
    reference = EncoderClassifier.from_hparams(**folders, run_opts={"device": "cpu"})
    backbone = BACKBONES[name].pretrained(hub_folder)
    recognizer = Recognizer(Fbank(backbone.inputs), backbone, ClosedSet(backbone.embedding_size, 2)).eval()
    embeddings = recognizer.embed(waveforms, lengths)
    expected = torch.cat(
        [reference.encode_batch(row[None, :n]).flatten(1) for row, n in zip(waveforms, lengths, strict=True)]
    )
    assert expected.std(0).mean() > 0.03
    assert_close(embeddings, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("hub_folder", "name"), [(name, name) for name in BACKBONES], indirect=["hub_folder"])
def test_weights_of_the_hub_travel_in_a_checkpoint_without_their_folder(
    name: str, hub_folder: Path, speech: Speech
) -> None:
    parser = ArgumentParser()
    parser.add_argument("--backbone", type=nn.Module)
    path = f"sec4sr_pl.backbones.{name}.pretrained"
    config = parser.parse_args([f"--backbone={path}", f"--backbone.source={hub_folder}"])
    backbone = parser.instantiate(config).backbone
    recognizer = Recognizer(Fbank(backbone.inputs), backbone, ClosedSet(24, 2)).eval()
    save_recognizer(recognizer, hub_folder / "made.ckpt")
    (hub_folder / "embedding_model.ckpt").unlink()
    assert torch.equal(load_recognizer(hub_folder / "made.ckpt")(*speech), recognizer(*speech))


@pytest.mark.parametrize("hub_folder", ["ECAPA"], indirect=True)
def test_weights_in_the_cache_of_the_hub_are_found_without_a_network(
    hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_folder / "cache"))
    with pytest.raises(FileNotFoundError, match=r"no folder someone/model, and embedding_model.ckpt of https://hugg"):
        ECAPA.pretrained("someone/model")
    commit = 40 * "a"
    snapshot = hub_folder / "cache" / "models--someone--model" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    (hub_folder / "embedding_model.ckpt").rename(snapshot / "embedding_model.ckpt")
    assert ECAPA.pretrained("someone/model").channels == 64
    with pytest.raises(FileNotFoundError, match=r"holds no embedding_model\.ckpt"):
        ECAPA.pretrained(hub_folder)
    with pytest.raises(FileNotFoundError, match=r"no folder \./not/a/folder"):
        ResNet.pretrained("./not/a/folder")


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.mkdir, (self.place,))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: ECAPA.pretrained(path.parent),
        lambda path: ResNet.pretrained(path.parent),
        lambda path: HubXVector.pretrained(path.parent),
        XVector.pretrained,
        GE2E.pretrained,
    ],
    ids=["ECAPA", "ResNet", "HubXVector", "XVector", "GE2E"],
)
def test_a_file_that_is_not_of_the_network_is_refused_by_its_name(make: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "embedding_model.ckpt"
    contents: dict[str, Any] = {
        "code": {"blocks": Code(tmp_path / "was here")},
        "module": nn.Linear(2, 2),
        "another network": nn.Linear(2, 2).state_dict(),
        "words": {
            "blocks.0.conv.conv.weight": "a",
            "blocks.0.conv.weight": "b",
            "conv1.weight": "c",
            "tdnn1.weight": 1,
        },
        "list": [torch.zeros(3)],
    }
    for content in contents.values():
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"embedding_model\.ckpt (was refused|are not those of)"):
            make(path)
    for damaged in (b"", b"<html>", path.read_bytes()[:-100]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"embedding_model\.ckpt (was refused|is damaged)"):
            make(path)
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize(("hub_folder", "name"), [(name, name) for name in BACKBONES], indirect=["hub_folder"])
def test_weights_with_another_layer_are_refused(name: str, hub_folder: Path) -> None:
    path = hub_folder / "embedding_model.ckpt"
    torch.save({**torch.load(path), "extra": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=rf"(?s)ckpt are not those of {name}: .*Unexpected.*extra"):
        BACKBONES[name].pretrained(hub_folder)


def test_x_vectors_draw_nothing_and_silence_has_a_gradient() -> None:
    """SpeechBrain's pooling adds noise in eval mode too, and divides by a deviation of zero."""
    backbone = HubXVector(24, 16, 16, 8).eval()
    frames = torch.zeros(3, 20, 24, requires_grad=True)
    before = torch.get_rng_state()
    embeddings = backbone(frames)
    (slope,) = torch.autograd.grad(embeddings.sum(), frames)
    assert torch.equal(before, torch.get_rng_state()) and slope.isfinite().all()
    assert_close(embeddings[:1], backbone(frames[:1]))


def test_the_published_sizes_are_the_defaults() -> None:
    """Counts of parameters of the published spkrec-ecapa-, spkrec-resnet- and spkrec-xvect-voxceleb."""
    sizes = {name: sum(p.numel() for p in backbone().parameters()) for name, backbone in BACKBONES.items()}
    assert sizes == {"ECAPA": 20_767_552, "ResNet": 15_438_336, "HubXVector": 4_211_604}


@pytest.mark.parametrize(
    "wrong", [partial(ECAPA, 80, 60), partial(ECAPA, 80, 0), partial(ResNet, 80, 0), partial(HubXVector, 24, 0)]
)
def test_sizes_that_can_not_be_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        wrong()


def test_the_gradient_of_fbank_passes_finite_differences(speech: Speech) -> None:
    waveforms, lengths = speech[0][:2, 4_000:7_000].double().requires_grad_(), torch.tensor([3_000, 2_111])
    features = Fbank().double()

    def loss(signal: Tensor) -> Tensor:
        frames, _ = features(signal, lengths)
        return (frames * torch.linspace(-1, 1, frames.shape[2])).square().sum()

    (slope,) = torch.autograd.grad(loss(waveforms), waveforms)
    direction = torch.randn(waveforms.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = 1e-8
    with torch.no_grad():
        difference = (loss(waveforms + step * direction) - loss(waveforms - step * direction)) / (2 * step)
    assert float((slope * direction).sum()) == pytest.approx(float(difference), rel=1e-4)


def test_silence_is_finite_and_so_is_its_gradient() -> None:
    waveforms = torch.zeros(1, 4_000, requires_grad=True)
    frames, _ = Fbank()(waveforms)
    (slope,) = torch.autograd.grad(frames.square().sum(), waveforms)
    assert frames.count_nonzero() == 0
    assert slope.isfinite().all()


def test_a_row_behind_a_defense_draws_the_same_in_any_batch(speech: Speech) -> None:
    """Also where the backbone is run length by length, the shortest first."""
    waveforms, lengths = speech
    backbone = ECAPA(channels=16)
    recognizer = Recognizer(Fbank(), backbone, ClosedSet(192, 2), [GaussianNoise()]).eval()
    calls: list[int] = []
    backbone.register_forward_hook(lambda module, frames, out: calls.append(len(frames[0])))
    recognizer.seed(3)
    alone = recognizer.embed(waveforms[:1], lengths[:1])
    recognizer.seed(3)
    lengths[4:6] = lengths[4] - lengths[4] % 160 - torch.tensor([0, 1])  # of one number of frames, or of the next
    lengths[6] = lengths[5]
    together = recognizer.embed(waveforms, lengths)
    assert_close(together[:1], alone, atol=1e-4, rtol=1e-4)
    assert sorted(calls[1:]) == [1, 1, 1, 1, 1, 1, 2]


# Cosines and margins


def test_scores_of_the_head_are_scaled_cosines_whatever_the_norms() -> None:
    torch.manual_seed(0)
    head, embeddings = CosineClosedSet(5, ["a", "b", "c"], scale=20.0), torch.randn(4, 5)
    expected = 20.0 * functional.cosine_similarity(embeddings.unsqueeze(1), head.head.weight.unsqueeze(0), dim=2)
    assert_close(head(embeddings), expected)
    assert_close(head(100.0 * embeddings), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(head(embeddings), expected, atol=1e-4, rtol=1e-4)
    assert sum(p.numel() for p in head.parameters()) == 15
    with pytest.raises(ValueError, match="Expected a finite scale above 0, got 0"):
        CosineClosedSet(5, 3, scale=0)


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_logits_of_aam_are_cosines_of_a_wider_angle(strength: float) -> None:
    angles = torch.linspace(0.01, math.pi - 0.01, 50, dtype=torch.float64)
    scores = 30.0 * torch.stack([angles.cos(), torch.full_like(angles, 0.3)], 1)
    loss = AdditiveAngularMargin(0.4)
    loss.strength = strength
    margin = 0.4 * strength
    logits = loss(scores, torch.zeros(50, dtype=torch.int64), 30.0).double()
    wider = torch.where(angles < math.pi - margin, (angles + margin).cos(), angles.cos() - margin * math.sin(margin))
    assert_close(logits[:, 0], 30.0 * wider, atol=1e-4, rtol=1e-4)
    assert_close(logits[:, 1], scores[:, 1], atol=1e-5, rtol=1e-5)


def test_am_takes_the_margin_from_the_true_speaker_alone() -> None:
    scores, speakers = 30.0 * torch.tensor([[0.5, 0.1], [0.2, -0.3]]), torch.tensor([0, 1])
    expected = 30.0 * torch.tensor([[0.3, 0.1], [0.2, -0.5]])
    assert_close(AdditiveMargin(0.2)(scores, speakers, 30.0), expected)


@pytest.mark.parametrize("cosine", [1.0, -1.0])
@pytest.mark.parametrize("tilt", [0.0, 1e-5, 1e-4, 1e-3])
def test_the_gradient_of_aam_is_bounded_where_the_angle_vanishes(cosine: float, tilt: float) -> None:
    """An arc cosine, or an unclamped square root, has an infinite gradient there."""
    torch.manual_seed(0)
    head = CosineClosedSet(8, 3)
    weight = functional.normalize(head.head.weight[:1].detach())
    across = functional.normalize(torch.randn(1, 8))
    embeddings = (cosine * weight + tilt * across).requires_grad_()
    logits = AdditiveAngularMargin(0.2)(head(embeddings), torch.tensor([0]), head.scale)
    slope = torch.autograd.grad(logits[0, 0], [embeddings, head.head.weight])
    assert all(part.isfinite().all() and part.norm() < 2 * head.scale / 0.3 for part in slope)


@pytest.mark.parametrize("cosine", [1.0, -1.0])
def test_the_loss_at_a_cosine_of_one_trains_the_other_speakers(cosine: float) -> None:
    scores = torch.tensor([[30.0 * cosine, 29.0, 0.0]], requires_grad=True)
    loss = functional.cross_entropy(AdditiveAngularMargin(0.2)(scores, torch.tensor([0]), 30.0), torch.tensor([0]))
    (slope,) = torch.autograd.grad(loss, scores)
    assert slope.isfinite().all()
    assert slope[0, 1] > 0.1


@pytest.mark.parametrize("margin", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("kind", [AdditiveMargin, AdditiveAngularMargin])
def test_a_margin_outside_its_range_is_refused(kind: type[Margin], margin: float) -> None:
    with pytest.raises(ValueError, match=r"Expected a margin in \[0, 1\]"):
        kind(margin)


# training


@pytest.fixture
def crops(speech: Speech) -> Batch:
    """Eight crops of half a second."""
    waveforms = speech[0][:, 2_000:10_000]
    return Batch(waveforms, torch.full((8,), 8_000), torch.arange(8), [f"utterance{i}" for i in range(8)])


def cosine_recognizer(make_recognizer: MakeRecognizer) -> Recognizer:
    settled = make_recognizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Recognizer(settled.features, settled.backbone, CosineClosedSet(32, 10)).eval()


@pytest.mark.parametrize(
    "objective",
    [
        partial(Standard, 0.0, 0.1),
        partial(AdversarialTraining, PGD(steps=2), 1.0, 0.1),
        partial(AWP, PGD(steps=2), 1.0, 0.1, 0.0),
    ],
    ids=["Standard", "AdversarialTraining", "AWP"],
)
def test_the_margin_is_in_the_loss_and_not_in_what_the_adversary_attacks(
    objective: Callable[..., TrainingObjective], make_recognizer: MakeRecognizer, crops: Batch
) -> None:
    recognizer, keys = cosine_recognizer(make_recognizer), list(range(8))
    margin = AdditiveAngularMargin(0.3)
    plain, wide = (objective(margin=one)(recognizer, crops, keys) for one in (None, margin))
    assert torch.equal(plain.scores, wide.scores)  # of the same adversarial examples, and without the margin
    assert_close(plain.loss, functional.cross_entropy(plain.scores, crops.speakers, label_smoothing=0.1))
    logits = margin(plain.scores, crops.speakers, 30.0)
    assert_close(wide.loss, functional.cross_entropy(logits, crops.speakers, label_smoothing=0.1))
    assert wide.loss > plain.loss + 0.5


def test_a_margin_needs_cosines(recognizer: Recognizer) -> None:
    with pytest.raises(ValueError, match="Expected the scorer CosineClosedSet for a margin, got ClosedSet"):
        SpeakerModule(recognizer, Standard(margin=AdditiveMargin()))


class Watch(Callback):
    """The margin of each step."""

    def __init__(self) -> None:
        self.margins: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        self.margins.append(float(trainer.callback_metrics["train/margin"]))


def fit(module: SpeakerModule, crops: Batch, folder: Path, checkpoint: Path | None = None) -> list[float]:
    """Five epochs of two steps; margins of the steps taken."""
    watch = Watch()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=5,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[MarginSchedule(0.8), watch, ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
    )
    loader = DataLoader([crops, crops], batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    return watch.margins


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_margin_rises_by_the_step_and_a_resume_goes_on_exactly(
    make_recognizer: MakeRecognizer, crops: Batch, tmp_path: Path
) -> None:
    def module() -> SpeakerModule:
        objective = Standard(0.0, margin=AdditiveAngularMargin(0.4))
        return SpeakerModule(cosine_recognizer(make_recognizer), objective, optimizer=lambda p: SGD(p, 0.01))

    whole, resumed = module(), module()
    margins = fit(whole, crops, tmp_path)
    assert margins == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.4, 0.4])
    assert fit(resumed, crops, tmp_path / "again", tmp_path / "epoch=1.ckpt") == margins[4:]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_margin_schedule_without_a_margin_is_refused(recognizer: Recognizer, crops: Batch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Expected an objective with a margin, got Standard without"):
        fit(SpeakerModule(recognizer), crops, tmp_path)


# data


def test_another_speed_changes_the_pitch_and_keeps_the_length() -> None:
    time = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
    tone = 0.5 * torch.sin(2 * math.pi * 1_000 * time).repeat(3, 1)
    for speed in (80, 100, 105):
        changed = RandomSpeed([speed])(tone)
        assert changed.shape == tone.shape
        peak = torch.fft.rfft(changed[0, : SAMPLE_RATE // 2] * torch.hann_window(SAMPLE_RATE // 2)).abs().argmax()
        assert 2 * int(peak) == pytest.approx(10 * speed, abs=2)
    assert torch.equal(RandomSpeed([100])(tone), tone)


def test_each_row_has_its_own_speed() -> None:
    torch.manual_seed(0)
    noise = torch.randn(1, 4_000).repeat(30, 1)
    changed = RandomSpeed((90, 100, 110))(noise)
    assert len({tuple(row[:5].tolist()) for row in changed}) == 3


def test_a_room_is_that_of_the_channel_for_the_chosen_rows(speech: Speech) -> None:
    waveforms = speech[0][:, :8_000]
    torch.manual_seed(0)
    assert torch.equal(RandomRoom(0.0)(waveforms), waveforms)
    some = (RandomRoom(0.5)(waveforms) != waveforms).any(1)
    assert 0 < some.sum() < 8
    torch.manual_seed(1)
    heard = RandomRoom(1.0, Channel(gain=0.0))(waveforms)
    torch.manual_seed(1)
    torch.rand(8, 1)
    expected = Channel(gain=0.0).draw(waveforms, torch.full((8,), 8_000), None)(waveforms)
    assert_close(heard, expected / expected.abs().amax(1, keepdim=True).clamp_min(1.0))
    assert heard.abs().max() <= 1.0


@pytest.mark.parametrize(
    "wrong", [partial(RandomSpeed, ()), partial(RandomSpeed, (100, 300)), partial(RandomRoom, 1.5)]
)
def test_an_augmentation_outside_its_range_is_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        wrong()


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Three speakers of one utterance of 10.5, 7 and 2 s, two of whom are listed."""
    generator = torch.Generator().manual_seed(0)
    for split in ("Spk251_train", "Spk251_test"):
        for speaker, seconds in (("a", 10.5), ("b", 7.0), ("c", 2.0)):
            folder = tmp_path / split / speaker
            folder.mkdir(parents=True)
            wave = 0.1 * torch.randn(int(seconds * SAMPLE_RATE), generator=generator)
            soundfile.write(folder / f"{speaker}-{split[-2:]}.wav", wave.numpy(), SAMPLE_RATE, subtype="PCM_16")
    (tmp_path / "background201.txt").write_text("a\nc\n")
    return tmp_path


def test_background_speakers_are_the_listed_ones_in_segments(few: Path) -> None:
    data = Background(few, development_fraction=0.1)
    train, development = data.utterances("train"), data.utterances("development")
    assert data.speakers == ("a", "c")
    assert {u.speaker for u in data.utterances("test")} == {"a", "c"}
    whole = {u.speaker: u for u in scan(few, "Spk251_train")}
    for speaker, count in (("a", 3), ("c", 1)):
        own = [u for u in train if u.speaker == speaker]
        (held_out,) = (u for u in development if u.speaker == speaker)
        assert len(own) == count
        assert len({u.frames for u in own}) == 1 and own[0].frames >= min(3 * SAMPLE_RATE, 1.4 * SAMPLE_RATE)
        ends = [u.start + u.frames for u in own]
        assert [u.start for u in own] == [0, *ends[:-1]]
        assert held_out.start - ends[-1] in range(count)  # what does not divide
        assert held_out.start + held_out.frames == whole[speaker].frames
    assert len({u.name for u in train + development}) == 6


def test_a_list_that_can_not_be_used_is_refused(few: Path) -> None:
    (few / "background201.txt").write_text("a\nsomeone\n")
    with pytest.raises(DataError, match=r"1 speakers of .*background201.txt have no utterance: someone"):
        Background(few).utterances("train")
    with pytest.raises(DataError, match=r"There is no .*nobody.txt: expected a file with a speaker a line"):
        Background(few, listed=Path("nobody.txt")).utterances("train")
    with pytest.raises(ValueError, match="segment_seconds above 0"):
        Background(few, segment_seconds=0)


def test_augmented_crops_come_from_seed_epoch_and_utterance(few: Path) -> None:
    def crop(epoch: int, seed: int = 0) -> Tensor:
        augmentations = [RandomSpeed(), RandomRoom(1.0)]
        data: SpeakerData = Background(few, augmentations=augmentations, num_workers=0, seed=seed)
        return data.train_dataloader().dataset[(epoch, 1)][0]  # type: ignore[index]

    assert torch.equal(crop(0), crop(0))
    assert not torch.equal(crop(0), crop(1))
    assert not torch.equal(crop(0), crop(0, seed=1))


def test_an_ecapa_can_be_attacked_through_a_padded_batch(speech: Speech) -> None:
    waveforms, lengths = speech
    torch.manual_seed(0)
    recognizer = Recognizer(Fbank(), ECAPA(channels=16), CosineClosedSet(192, 5)).eval()
    labels = recognizer(waveforms, lengths).argmax(1)
    result = PGD(steps=5)(recognizer, waveforms, labels, lengths)
    assert result.achieved.any()
