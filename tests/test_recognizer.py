"""The chain from waveform to decision, and the rules that every module of the package keeps."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import MakeRecognizer
from torch import Tensor, nn
from torch.testing import assert_close

import sec4sr_pl
from sec4sr_pl.attacks import PGD
from sec4sr_pl.backbones import AudioNet
from sec4sr_pl.checkpoint import describe, rebuild
from sec4sr_pl.defenses import AverageSmoothing, Defense, FeCo, GaussianNoise, Quantization
from sec4sr_pl.features import LogMel
from sec4sr_pl.recognizer import Ensemble, Recognizer
from sec4sr_pl.scoring import ClosedSet, Scorer
from sec4sr_pl.types import REJECT, full_lengths, valid_mask

Speech = tuple[Tensor, Tensor]


class Affine(Defense):
    """signal * scale + shift: two of them do not commute."""

    def __init__(self, after: str, scale: float, shift: float) -> None:
        super().__init__(after)
        self.scale, self.shift = scale, shift

    def transform(self, signal: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return signal * self.scale + self.shift, lengths


class Enrolled(Scorer):
    """Scores against enrolled embeddings: no head to share."""

    def __init__(self) -> None:
        super().__init__(["ann", "bob"])
        self.register_buffer("centers", torch.zeros(2, 32))

    def forward(self, embeddings: Tensor) -> Tensor:
        return -torch.cdist(embeddings, self.centers)


# decisions


def test_the_best_speaker_is_decided_if_its_score_is_above_the_threshold(recognizer: Recognizer) -> None:
    recognizer.scorer.threshold.fill_(0.5)
    scores = torch.tensor([[0.4, 0.6], [0.7, 0.6], [0.5, 0.1], [0.49, 0.5], [-3.0, 0.50001]])
    assert recognizer.decide(scores).tolist() == [1, 0, REJECT, REJECT, 1]


def test_a_threshold_of_zero_is_a_threshold(recognizer: Recognizer) -> None:
    recognizer.scorer.threshold.fill_(0.0)
    scores = torch.tensor([[-0.1, -0.2], [0.0, -1.0], [1e-6, -1.0]])
    assert recognizer.decide(scores).tolist() == [REJECT, REJECT, 0]


def test_a_closed_set_rejects_nobody(recognizer: Recognizer) -> None:
    scores = torch.tensor([[-1e30, -2e30], [0.0, 5.0]])
    assert recognizer.decide(scores).tolist() == [0, 1]


def test_verification_is_the_decision_with_one_speaker(make_recognizer: MakeRecognizer) -> None:
    recognizer = make_recognizer(["ann"])
    recognizer.scorer.threshold.fill_(1.0)
    assert recognizer.decide(torch.tensor([[1.0], [1.1]])).tolist() == [REJECT, 0]


def test_the_threshold_travels_with_the_weights(make_recognizer: MakeRecognizer) -> None:
    first, second = make_recognizer(seed=0), make_recognizer(seed=1)
    first.scorer.threshold.fill_(0.25)
    second.load_state_dict(first.state_dict())
    assert second.scorer.threshold == 0.25


def test_speakers_have_names_and_each_but_one() -> None:
    assert ClosedSet(32, 3).speakers == ("0", "1", "2")
    assert ClosedSet(32, ["19", "103"]).speakers == ("19", "103")
    assert ClosedSet(32, ["19", "103"])(torch.zeros(5, 32)).shape == (5, 2)
    with pytest.raises(ValueError, match=r"at least one speaker and one dimension, .* got 0"):
        ClosedSet(32, [])
    with pytest.raises(ValueError, match=r"each speaker once, got \['19'\] twice"):
        ClosedSet(32, ["19", "103", "19"])


# the chain


def test_scores_are_those_of_front_end_backbone_and_head(recognizer: Recognizer, speech: Speech) -> None:
    frames, valid = recognizer.features(*speech)
    embeddings = recognizer.backbone(frames, valid)
    assert torch.equal(recognizer.embed(*speech), embeddings)
    assert torch.equal(recognizer(*speech), recognizer.scorer(embeddings))


@pytest.mark.parametrize("defended", [False, True])
def test_scores_in_a_padded_batch_are_those_alone(
    make_recognizer: MakeRecognizer, speech: Speech, device: torch.device, defended: bool
) -> None:
    recognizer = make_recognizer(defenses=[Quantization()] if defended else []).to(device)
    waveforms, lengths = (tensor.to(device) for tensor in speech)
    scores = recognizer(waveforms, lengths)
    assert len(set(recognizer.decide(scores).tolist())) > 1
    for row, waveform, length in zip(scores, waveforms, lengths, strict=True):
        alone = recognizer(waveform[None, :length])[0]
        assert ((row - alone).abs() <= 1e-4 * alone.abs().clamp_min(1.0)).all()


def test_no_lengths_means_full_lengths(recognizer: Recognizer, speech: Speech) -> None:
    for waveforms in (speech[0][:, : int(speech[1].min())], speech[0]):
        assert_close(recognizer(waveforms), recognizer(waveforms, full_lengths(waveforms)), rtol=1e-4, atol=1e-4)


def test_defenses_act_at_their_stage_in_the_order_given(make_recognizer: MakeRecognizer, speech: Speech) -> None:
    late, first, second = Affine("raw", 1.1, 5.0), Affine("waveform", 0.5, 0.1), Affine("waveform", -1.5, 0.01)
    recognizer = make_recognizer(defenses=[late, first, second])
    front_end = recognizer.features.stages["raw"]
    assert list(recognizer.chain()) == [first, second, front_end, late]
    signal, lengths = front_end(*second(*first(*speech)))
    by_hand = recognizer.scorer(recognizer.backbone(*late(signal, lengths)))
    assert torch.equal(recognizer(*speech), by_hand)
    swapped = recognizer.with_defenses([late, second, first])
    assert not torch.allclose(swapped(*speech), by_hand, atol=1e-2)


def test_padding_is_zero_again_after_each_defense(make_recognizer: MakeRecognizer, speech: Speech) -> None:
    recognizer = make_recognizer(defenses=[Affine("waveform", 0.5, 0.1), Affine("raw", 1.0, 5.0)])
    seen: list[tuple[Tensor, Tensor]] = []
    for module in recognizer.chain():
        module.register_forward_hook(lambda _, __, output: seen.append(output))
    recognizer(*speech)
    assert len(seen) == 3
    for signal, lengths in seen:
        assert signal[~valid_mask(lengths, signal.shape[1])].count_nonzero() == 0


def test_a_seed_repeats_the_scores_of_a_randomized_recognizer(make_recognizer: MakeRecognizer, speech: Speech) -> None:
    recognizer = make_recognizer(defenses=[Quantization(), FeCo(0.9), FeCo(0.9)])
    assert recognizer.randomized and not make_recognizer(defenses=[Quantization()]).randomized
    recognizer.seed(1)
    first, second = recognizer(*speech), recognizer(*speech)
    assert not torch.equal(first, second)
    recognizer.seed(1)
    assert torch.equal(recognizer(*speech), first) and torch.equal(recognizer(*speech), second)


def test_two_defenses_of_one_kind_draw_differently(make_recognizer: MakeRecognizer, speech: Speech) -> None:
    recognizer = make_recognizer(defenses=[FeCo(), FeCo()])
    recognizer.seed(1)
    (first, _), (second, _) = (defense(*recognizer.features(*speech)) for defense in recognizer.defenses)
    assert not torch.equal(first, second)


def test_the_minimum_goes_back_through_the_whole_chain(make_recognizer: MakeRecognizer) -> None:
    assert make_recognizer().minimum_samples == 7 * 160 + 1  # 8 frames; pre-emphasis drops a sample
    assert make_recognizer(defenses=[FeCo(0.2)]).minimum_samples == 39 * 160 + 1
    assert make_recognizer(defenses=[FeCo(0.5), FeCo(0.2), Quantization()]).minimum_samples == 79 * 160 + 1


# other defenses on the same weights


def test_with_defenses_shares_front_end_backbone_and_head(make_recognizer: MakeRecognizer, speech: Speech) -> None:
    recognizer = make_recognizer(defenses=[Affine("waveform", 0.5, 0.1)])
    quantized = recognizer.with_defenses([Quantization()])
    assert quantized.features is recognizer.features
    assert quantized.backbone is recognizer.backbone
    assert quantized.scorer is recognizer.scorer
    assert [type(defense) for defense in quantized.defenses] == [Quantization]
    assert [type(defense) for defense in recognizer.defenses] == [Affine]
    plain, quantized_first = quantized.with_defenses([]), Quantization()(*speech)
    assert torch.equal(plain(*quantized_first), quantized(*speech))
    assert not torch.allclose(plain(*speech), quantized(*speech))


def test_with_defenses_copies_an_enrolled_scorer() -> None:
    recognizer = Recognizer(LogMel(), AudioNet(), Enrolled())
    other = recognizer.with_defenses([Quantization()])
    other.scorer.threshold.fill_(3.0)
    other.scorer.centers.fill_(1.0)
    assert recognizer.scorer.threshold == -torch.inf and recognizer.scorer.centers.count_nonzero() == 0
    assert other.backbone is recognizer.backbone and other.scorer.speakers == ("ann", "bob")


@pytest.mark.parametrize("training", [False, True])
def test_with_defenses_has_the_mode_of_the_original_and_leaves_every_flag(
    recognizer: Recognizer, training: bool
) -> None:
    recognizer.train(training)
    recognizer.backbone.prefilter_norm.train(not training)  # one layer on its own, as where a part is frozen
    flags = {name: module.training for name, module in recognizer.named_modules()}
    other = recognizer.with_defenses([FeCo()])
    assert {name: module.training for name, module in recognizer.named_modules()} == flags
    assert other.training == other.defenses[0].training == training


# ensembles


@pytest.fixture
def ensemble(make_recognizer: MakeRecognizer) -> Ensemble:
    """One recognizer behind two defenses, and another one."""
    plain = make_recognizer()
    defended = [plain.with_defenses([defense]) for defense in (AverageSmoothing(3), Quantization(64))]
    return Ensemble([*defended, make_recognizer(seed=1)]).eval()


def test_the_scores_and_the_gradient_of_an_ensemble_are_the_means_of_its_members(
    ensemble: Ensemble, speech: Speech, device: torch.device
) -> None:
    ensemble, leaf, lengths = ensemble.to(device), speech[0].to(device).requires_grad_(), speech[1].to(device)
    scores = ensemble(leaf, lengths)
    (slope,) = torch.autograd.grad(scores.square().sum(), leaf)
    own = [member(leaf, lengths) for member in ensemble.members]
    mean = (own[0] + own[1] + own[2]) / 3
    assert_close(scores, mean)
    (expected,) = torch.autograd.grad(mean.square().sum(), leaf, retain_graph=True)
    assert_close(slope, expected)
    for member in own:  # each has its part: the gradient is not that of the first alone
        (part,) = torch.autograd.grad((mean.detach() * member).sum(), leaf, retain_graph=True)
        assert (slope - 2 * part).norm() > 0.1 * slope.norm() and part.norm() > 0


def test_an_ensemble_is_invariant_to_padding(ensemble: Ensemble, speech: Speech) -> None:
    leaf = speech[0].requires_grad_()
    scores = ensemble(leaf, speech[1])
    for row, waveform, length in zip(scores, speech[0], speech[1], strict=True):
        alone = ensemble(waveform[None, :length])[0]
        assert ((row - alone).abs() <= 1e-4 * alone.abs().clamp_min(1.0)).all()
    (slope,) = torch.autograd.grad(scores.sum(), leaf)
    assert slope[~valid_mask(speech[1], leaf.shape[1])].count_nonzero() == 0


def test_an_ensemble_decides_by_its_own_threshold(make_recognizer: MakeRecognizer) -> None:
    members = [make_recognizer(["ann", "bob"]) for _ in range(2)]
    assert Ensemble(members).decide(torch.tensor([[-9.0, -8.0]])).tolist() == [1]
    for member, threshold in zip(members, (0.5, 1.5), strict=True):
        member.scorer.threshold.fill_(threshold)
    ensemble = Ensemble(members)
    assert ensemble.scorer.speakers == ("ann", "bob") and ensemble.scorer.threshold == 1.0
    assert ensemble.decide(torch.tensor([[0.0, 1.1], [1.0, 0.9]])).tolist() == [1, REJECT]
    ensemble.scorer.threshold.fill_(2.0)
    assert ensemble.decide(torch.tensor([[0.0, 1.1]])).tolist() == [REJECT]


def test_a_seed_repeats_an_ensemble_whose_members_draw_for_themselves(
    make_recognizer: MakeRecognizer, speech: Speech, ensemble: Ensemble
) -> None:
    assert not ensemble.randomized
    noisy = Ensemble([make_recognizer(defenses=[GaussianNoise()]) for _ in range(2)])
    assert noisy.randomized
    noisy.seed(3)
    first, again = noisy(*speech), noisy(*speech)
    noisy.seed(3)
    assert torch.equal(noisy(*speech), first) and not torch.equal(again, first)
    noisy.seed(3)
    (one, _), (other, _) = (member.defenses[0](*speech) for member in noisy.members)
    assert not torch.equal(one, other)


def test_an_ensemble_needs_what_its_strictest_member_needs(make_recognizer: MakeRecognizer) -> None:
    ensemble = Ensemble([make_recognizer(), make_recognizer(defenses=[FeCo(0.2)])])
    minimum = 39 * 160 + 1
    assert ensemble.minimum_samples == minimum
    ensemble.check(torch.zeros(1, minimum))
    with pytest.raises(ValueError, match=rf"Utterance 'a' has {minimum - 1} samples, .* needs at least {minimum}"):
        ensemble.check(torch.zeros(1, minimum - 1), names=["a"])


def test_an_ensemble_of_other_defenses_keeps_weights_threshold_and_mode(ensemble: Ensemble, speech: Speech) -> None:
    ensemble.scorer.threshold.fill_(0.3)
    assert [type(defense) for defense in ensemble.defenses] == [AverageSmoothing, Quantization]
    plain = ensemble.with_defenses([])
    assert plain.defenses == [] and plain.scorer.threshold == 0.3 and not plain.training
    by_hand = torch.stack([member.with_defenses([])(*speech) for member in ensemble.members]).mean(0)
    assert torch.equal(plain(*speech), by_hand)
    drawn = ensemble.with_defenses([FeCo()])
    assert len({id(defense) for defense in drawn.defenses}) == 3
    ensemble.train()
    assert ensemble.with_defenses([]).training


def test_an_ensemble_is_fused_for_an_attack_and_lowers_its_own_loss(ensemble: Ensemble, speech: Speech) -> None:
    assert_close(ensemble.fused()(*speech), ensemble(*speech), rtol=1e-3, atol=1e-3)
    labels = ensemble.decide(ensemble(*speech))
    result = PGD(epsilon=0.01, step_size=0.002, steps=5)(ensemble, speech[0], labels, speech[1])
    assert result.achieved.float().mean() > 0.5
    assert torch.equal(result.achieved, ensemble.decide(ensemble(result.waveforms, speech[1])) != labels)


def test_an_ensemble_can_be_described_and_rebuilt(ensemble: Ensemble, speech: Speech) -> None:
    twin = rebuild(describe(ensemble)).eval()
    twin.load_state_dict(ensemble.state_dict())
    assert torch.equal(twin(*speech), ensemble(*speech))


def test_an_ensemble_of_nobody_or_of_different_speakers_is_refused(make_recognizer: MakeRecognizer) -> None:
    with pytest.raises(ValueError, match=r"at least one member, got none"):
        Ensemble([])
    members = [make_recognizer(["ann", "bob"]), make_recognizer(["bob", "ann"])]
    with pytest.raises(ValueError, match=r"the same speakers, but member 1 has others than member 0"):
        Ensemble(members)


# what is refused


@pytest.mark.parametrize(
    ("waveforms", "told"),
    [
        (torch.zeros(8_000), r"\(8000,\) torch.float32"),
        (torch.zeros(2, 1, 8_000), r"\(2, 1, 8000\) torch.float32"),
        (torch.zeros(2, 8_000, dtype=torch.int16), r"\(2, 8000\) torch.int16"),
    ],
    ids=["no batch", "channels", "16 bit"],
)
def test_waveforms_that_are_no_batch_of_floats_are_refused(
    recognizer: Recognizer, waveforms: Tensor, told: str
) -> None:
    with pytest.raises(ValueError, match=rf"Expected \(batch, time\) floating-point waveforms, got {told}"):
        recognizer(waveforms)


@pytest.mark.parametrize("lengths", [torch.tensor([8_000]), torch.tensor([[8_000], [8_000]]), torch.tensor(8_000)])
def test_lengths_that_are_not_one_a_row_are_refused(recognizer: Recognizer, lengths: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Expected a length for each of 2 waveforms, got lengths of shape"):
        recognizer(torch.zeros(2, 8_000), lengths)


def test_a_length_beyond_the_samples_is_refused(recognizer: Recognizer) -> None:
    with pytest.raises(ValueError, match=r"at most 8000, got 8001"):
        recognizer(torch.zeros(2, 8_000), torch.tensor([8_000, 8_001]))


def test_an_utterance_too_short_is_named(recognizer: Recognizer) -> None:
    minimum = recognizer.minimum_samples
    waveforms, lengths = torch.zeros(3, 8_000), torch.tensor([8_000, minimum, minimum - 1])
    with pytest.raises(ValueError, match=rf"Utterance 'c' has {minimum - 1} samples, .* needs at least {minimum}"):
        recognizer.check(waveforms, lengths, ["a", "b", "c"])
    with pytest.raises(ValueError, match=rf"Utterance row 2 has {minimum - 1} samples"):
        recognizer(waveforms, lengths)
    with pytest.raises(ValueError, match=r"Utterance row 0 has 100 samples"):
        recognizer(waveforms[:, :100])
    with pytest.raises(ValueError, match=r"Utterance 'b' has 90 samples"):  # the shortest, where all are too short
        recognizer.check(waveforms[:, :100], torch.tensor([100, 90, 95]), ["a", "b", "c"])
    recognizer.check(waveforms[:2], lengths[:2], ["a", "b"])


def test_a_defense_at_a_stage_that_is_not_there_is_refused(recognizer: Recognizer) -> None:
    with pytest.raises(ValueError, match=r"FeCo acts after the stage 'final', but LogMel has waveform, raw$"):
        Recognizer(LogMel(), AudioNet(), ClosedSet(32, 2), [Quantization(), FeCo(after="final")])
    with pytest.raises(ValueError, match="'delta'"):
        recognizer.with_defenses([FeCo(after="delta")])


# the house

PACKAGE = Path(sec4sr_pl.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
ORDER = [
    {"types", "files", "audio", "kaldi", "draws", "allocator", "arithmetic", "weights", "processes", "system"}
    | {"yaml_files", "imports", "command"},
    {"features", "backbones", "scoring", "losses", "defenses", "attacks", "metrics"},  # these never import each other
    {"recognizer", "checkpoint", "data", "normalization"},
    {"training", "callbacks", "robustness", "enrollment"},
    {"cli", "evaluation", "torchrun"},
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def name(path: Path) -> str:
    """backbones/audionet.py -> backbones.audionet; backbones/__init__.py -> backbones.__init__"""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room(path: Path) -> str:
    return name(path).partition(".")[0]


def imported_rooms(path: Path) -> Iterator[str]:
    """The rooms that a module imports from, anywhere in its text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ["sec4sr_pl", *name(path).split(".")]
            base = ".".join(package[: -node.level]) if node.level else ""
            source = ".".join(part for part in (base, node.module or "") if part)
            dotted = [f"{source}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (parts[1] for parts in (full.split(".") for full in dotted) if parts[0] == "sec4sr_pl" and parts[1:])


def test_every_module_has_its_place_in_the_order_of_imports() -> None:
    assert len(MODULES) > 20
    assert {room(path) for path in MODULES} - {"__init__"} <= LEVEL.keys()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_one_way(path: Path) -> None:
    own = room(path)
    level = LEVEL.get(own, -1)
    for other in set(imported_rooms(path)) - {own}:
        assert other in LEVEL, f"{name(path)} imports {other}, which has no place in the order"
        assert LEVEL[other] <= level, f"{name(path)} imports {other} from above"
        assert LEVEL[other] < level or level != 1, f"{name(path)} imports its sibling {other}"


def test_no_rooms_import_each_other() -> None:
    above = {own: set[str]() for own in LEVEL}
    for path in MODULES:
        above.setdefault(room(path), set()).update(set(imported_rooms(path)) - {room(path)})
    while above:
        free = {own for own, others in above.items() if not others & above.keys()}
        assert free, f"a circle of imports among {sorted(above)}"
        above = {own: others for own, others in above.items() if own not in free}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_module_prints_asserts_or_moves_itself_to_a_gpu(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{name(path)}, line {getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), f"bare assert in {where}"
        if isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Name) and node.func.id == "print"), f"print in {where}"
            assert not (isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"), f".cuda( in {where}"


def test_modules_are_torch_modules_all_the_way(recognizer: Recognizer) -> None:
    defended = recognizer.with_defenses([Quantization(), FeCo()])
    assert all(isinstance(module, nn.Module) for module in defended.chain())
    moved = defended.to(torch.float64)
    assert {tensor.dtype for tensor in moved.state_dict().values() if tensor.is_floating_point()} == {torch.float64}


def test_a_backbone_that_can_not_be_masked_is_run_once_for_each_length() -> None:
    class Mean(torch.nn.Module):
        masked, minimum_frames = False, 1

        def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
            assert lengths is None
            return frames.mean(1)

    recognizer = Recognizer(LogMel(), Mean(), ClosedSet(32, 3)).eval()
    waveforms, lengths = (
        0.1 * torch.randn(4, 8000, generator=torch.Generator().manual_seed(0)),
        [8000, 5000, 8000, 3000],
    )
    together = recognizer(waveforms, torch.tensor(lengths))
    alone = torch.cat([recognizer(row[None, :n]) for row, n in zip(waveforms, lengths, strict=True)])
    assert torch.allclose(together, alone, atol=1e-4)
