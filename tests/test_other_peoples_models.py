"""Models and score functions with the faults that other people's have: each is told in one line."""

import math
import runpy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from test_campaign import SPEAKERS, fit, load, write_voices
from torch import Tensor, nn

from sec4sr_pl.attacks import (
    APGD,
    CW2,
    FAKEBOB,
    FGSM,
    FMN,
    L2PGD,
    NES,
    PGD,
    SNRPGD,
    Attack,
    AutoAttack,
    Claim,
    Objective,
    PsychoacousticPGD,
    Square,
    UniformNoise,
)
from sec4sr_pl.attacks.universal import learn
from sec4sr_pl.checkpoint import CheckpointError, rebuild, save_recognizer
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.base import Utterances
from sec4sr_pl.features import FrontEnd
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.robustness import Campaign, summarize
from sec4sr_pl.scoring import ClosedSet, Cosine, Scorer
from sec4sr_pl.training import SpeakerModule
from sec4sr_pl.types import REJECT, Batch

WEIGHT = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))


def linear(waveforms: Tensor, lengths: Tensor) -> Tensor:
    return waveforms @ WEIGHT.T


def speech(batch: int = 3) -> tuple[Tensor, Tensor]:
    waveforms = torch.rand(batch, 100, generator=torch.Generator().manual_seed(1)) - 0.5
    return waveforms, linear(waveforms, torch.full((batch,), 100)).argmax(1)


class Channels(nn.Module):
    """Takes (batch, 1, time), as convolutions do."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, 4, 9)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.convolution(waveforms).mean(-1)


@pytest.mark.parametrize("attack", [PGD(steps=2), Square(steps=2), UniformNoise()], ids=lambda attack: attack.name)
@pytest.mark.parametrize(
    ("score", "told"),
    [
        (lambda w, n: linear(w, n)[:, 0], r"Expected \(batch, speakers\) scores of 1 waveforms.* got \(1,\)"),
        (lambda w, n: linear(w, n).squeeze(), r"Expected \(batch, speakers\) scores of 1 waveforms.* got \(4,\)"),
        (lambda w, n: linear(w, n)[None], r"scores of 1 waveforms.* got \(1, 1, 4\)"),
        (lambda w, n: linear(w, n).tolist(), "scores of 1 waveforms.* got list"),
        (Channels(), r"Expected \(batch, speakers\) scores of 1 waveforms, whatever their number, got \(4,\)"),
        (lambda w: linear(w, w), "it failed: .* positional argument"),
    ],
    ids=["one score", "squeezed", "a dimension more", "no tensor", "channels", "without lengths"],
)
def test_a_score_function_of_another_form_is_told_by_what_it_gave(
    attack: Attack, score: Callable[..., Tensor], told: str
) -> None:
    waveforms, labels = speech()
    with pytest.raises(ValueError, match=told) as error:
        attack(score, waveforms, labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "score",
    [
        torch.no_grad()(linear),
        lambda w, n: linear(w.detach(), n),
        lambda w, n: torch.from_numpy(linear(w, n).detach().numpy()),
        lambda w, n: linear(w.detach(), n) * nn.Parameter(torch.ones(4)),
    ],
    ids=["no_grad", "detached", "another library", "a gradient of its weights alone"],
)
def test_an_attack_by_gradients_says_that_there_is_none(score: Callable[..., Tensor]) -> None:
    waveforms, labels = speech()
    with pytest.raises(ValueError, match=r"no_grad, detached, or by another library\): attack by queries"):
        FGSM()(score, waveforms, labels)
    assert Square(steps=3)(score, waveforms, labels).waveforms.shape == waveforms.shape


def broken_where_changed(clean: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """NaN for the second utterance as soon as anything was changed."""

    def score(waveforms: Tensor, lengths: Tensor) -> Tensor:
        scores = linear(waveforms, lengths)
        if len(waveforms) == len(clean) and not torch.equal(waveforms[1], clean[1]):
            scores = scores + torch.tensor([0.0, torch.nan, 0.0])[: len(waveforms), None]
        return scores

    return score


@pytest.mark.filterwarnings("ignore:PGD-2 met gradients")
@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=2), UniformNoise()], ids=lambda attack: attack.name)
def test_scores_that_are_no_numbers_are_no_success(attack: Attack) -> None:
    waveforms, labels = speech()
    with pytest.raises(ValueError, match=r"Expected finite scores, got others in rows \[1\]"):
        attack(broken_where_changed(waveforms), waveforms, labels)


def numbers_for(clean: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """NaN for whatever is not one of these waveforms, whichever others are in the batch."""

    def score(waveforms: Tensor, lengths: Tensor) -> Tensor:
        near = (waveforms[:, None] - clean).abs().amax(2).amin(1) < 1e-7
        return linear(waveforms, lengths).masked_fill(~near[:, None], torch.nan)

    return score


@pytest.mark.filterwarnings("ignore:.*met gradients that are not finite")
@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=2, restarts=2),
        PGD(steps=2, restarts=2, source=NES(samples=2)),
        Square(steps=3),
        APGD(steps=3),
        CW2(steps=3),
        AutoAttack(steps=2, queries=2),
        FAKEBOB(steps=3),
    ],
    ids=lambda attack: attack.name,
)
def test_an_attack_that_keeps_its_best_point_does_not_pass_over_scores_that_are_no_numbers(attack: Attack) -> None:
    waveforms, labels = speech()
    with pytest.raises(ValueError, match=r"Expected finite scores, got others in rows \[0, 1, 2\]"):
        attack(numbers_for(waveforms), waveforms, labels)


class BrokenBackward(torch.autograd.Function):
    """Its gradient raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise RuntimeError("backward can only be called in training mode")


def test_a_backward_that_fails_is_told_and_attacked_by_queries() -> None:
    waveforms, labels = speech()

    def score(w: Tensor, n: Tensor) -> Tensor:
        return BrokenBackward.apply(linear(w, n))  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match=r"failed \(backward can only .* mode\): mend the model .* attack by queries"):
        PGD(steps=2)(score, waveforms, labels)
    assert Square(steps=3)(score, waveforms, labels).waveforms.shape == waveforms.shape


@pytest.mark.parametrize("way", ["backward", "inference mode"])
def test_a_campaign_by_queries_needs_no_gradient(way: str, voices: Utterances, tmp_path: Path) -> None:
    recognizer = fit(voices)
    forward = recognizer.backbone.forward
    if way == "backward":
        recognizer.backbone.forward = lambda *given: BrokenBackward.apply(forward(*given))  # type: ignore[method-assign]
    else:
        recognizer.backbone.forward = torch.inference_mode()(forward)  # type: ignore[method-assign]
    recognizer.backbone.fused = lambda: recognizer.backbone  # type: ignore[method-assign]
    campaign = Campaign(recognizer, voices, [Square(steps=2)], tmp_path / "out", perceptual=False)
    campaign.run()
    assert "no-gradient" not in {flag.id for flag in summarize(campaign).sentinel.flags}


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_scores_in_half_are_compared_with_thresholds_in_single(half: torch.dtype) -> None:
    scores, labels = torch.tensor([[0.7, 0.1]]).to(half), torch.zeros(1, dtype=torch.int64)
    below = float(scores[0, 0]) - 1e-5
    for scored in (scores, scores.float()):
        assert Objective(below).decide(scored, labels).item() == 0
        assert Objective(below, nonfinite_succeeds=True).loss(scored, labels).item() == pytest.approx(1e-5, rel=0.1)


def test_a_campaign_takes_weights_in_bfloat16(voices: Utterances, tmp_path: Path) -> None:
    marks = []
    for value in (0.0, 1.0):
        recognizer = fit(voices)
        recognizer.backbone.register_buffer("bfloat16_weight", torch.full((2,), value, dtype=torch.bfloat16))
        marks.append(Campaign(recognizer, voices, [FGSM()], tmp_path / "out", perceptual=False).mark)
    assert marks[0] != marks[1]


def test_a_validation_stops_at_scores_that_are_no_numbers(deaf_to_attacks: Recognizer) -> None:
    module = SpeakerModule(deaf_to_attacks.eval())
    batch = Batch(
        0.1 * torch.randn(2, 8_000), torch.tensor([8_000, 8_000]), torch.zeros(2, dtype=torch.int64), ["a", "b"]
    )
    with pytest.raises(ValueError, match="Expected finite scores in the validation, got others of a, b"):
        module.validation_step(batch, 0)


@pytest.mark.parametrize("kind", ["nan", "inf"])
@pytest.mark.parametrize(
    "attack",
    [
        FGSM(),
        L2PGD(0.1),
        SNRPGD(20.0),
        APGD(steps=5),
        CW2(steps=5),
        FMN(steps=5),
        PsychoacousticPGD(steps=4),
        AutoAttack(steps=2, queries=2),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_gradients_that_are_no_numbers_are_told_and_become_no_waveform(attack: Attack, kind: str) -> None:
    waveforms, labels = speech()

    def score(w: Tensor, n: Tensor) -> Tensor:
        nothing = w[:, :1] - w[:, :1].detach()
        root = nothing.sqrt() if kind == "inf" else nothing.square().sqrt()  # 1 * inf and 0 * inf
        return linear(w, n) + root * torch.tensor([0.0, 0.0, 1.0, 0.0])

    with pytest.warns(UserWarning, match=rf"{attack.name} met gradients that are not finite in rows \[0, 1, 2\]"):
        found = attack(score, waveforms, labels).waveforms
    assert found.isfinite().all() and (found != waveforms).any()


class NumbersForSpeech(ClosedSet):
    """NaN as soon as an utterance is not among those that it knows."""

    known: Tensor | None = None

    def forward(self, embeddings: Tensor) -> Tensor:
        scores = super().forward(embeddings)
        if self.known is None:
            return scores
        near = torch.cdist(embeddings, self.known).amin(1) < 1e-3
        return scores.masked_fill(~near[:, None], torch.nan)


@pytest.fixture
def voices(tmp_path: Path) -> Utterances:
    return load(write_voices(tmp_path))


@pytest.fixture
def deaf_to_attacks(voices: Utterances) -> Recognizer:
    recognizer = fit(voices)
    head = NumbersForSpeech(recognizer.scorer.embedding_size, recognizer.scorer.speakers)
    head.load_state_dict(recognizer.scorer.state_dict())
    recognizer.scorer = head
    with torch.no_grad():
        head.known = torch.cat([recognizer.embed(waveform[None]) for waveform, _, _ in voices])
    return recognizer


def test_a_campaign_stops_at_a_recognizer_that_answers_attacks_with_nan(
    deaf_to_attacks: Recognizer, voices: Utterances, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"not finite for .*-0, .* \(attack: .*\)\. Mend it, or count them as"):
        Campaign(deaf_to_attacks, voices, [PGD(steps=1)], tmp_path / "out", perceptual=False).run()


@pytest.mark.filterwarnings("ignore:.*met gradients that are not finite")
def test_by_option_it_counts_against_the_defender_in_every_rate(
    deaf_to_attacks: Recognizer, voices: Utterances, tmp_path: Path
) -> None:
    campaign = Campaign(
        deaf_to_attacks, voices, [PGD(steps=1)], tmp_path / "out", perceptual=False, nonfinite_succeeds=True
    )
    campaign.run()
    summary = summarize(campaign)
    assert summary.benign.value > 0.9
    assert summary.rows[0].accuracy.value == summary.worst.value == 0.0
    assert summary.rows[0].success.value == 1.0
    assert f"counted as errors and as successes: {len(voices)} (PGD-1)" in summary.to_markdown()


@pytest.mark.filterwarnings("ignore:.*met gradients that are not finite")
@pytest.mark.parametrize("attack", [FGSM(), PGD(steps=2), UniformNoise()], ids=lambda attack: attack.name)
def test_by_option_an_attack_that_finds_it_succeeds(attack: Attack) -> None:
    waveforms, labels = speech()
    plain = attack(linear, waveforms, labels, generator=torch.Generator().manual_seed(0))
    result = attack(
        broken_where_changed(waveforms),
        waveforms,
        labels,
        objective=Objective(nonfinite_succeeds=True),
        generator=torch.Generator().manual_seed(0),
    )
    assert result.achieved[1]
    assert torch.equal(result.achieved[[0, 2]], plain.achieved[[0, 2]])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    ("kind", "threshold", "labels"),
    [(Objective, -math.inf, [0, 1, 2]), (Objective, 0.5, [0, REJECT, 2]), (Claim, 0.5, [0, ~1, 2])],
    ids=["closed set", "open set", "claims"],
)
def test_by_option_scores_that_are_not_finite_are_what_the_attack_wants(
    kind: type[Objective], threshold: float, labels: list[int], targeted: bool, bad: float
) -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.4, 0.1], [0.2, 0.7, 0.1]])
    wanted = torch.tensor(labels)
    for row in range(3):
        spoiled = scores.clone()
        spoiled[row, 1] = bad
        plain, judge = kind(threshold, targeted), kind(threshold, targeted, nonfinite_succeeds=True)
        others = [index for index in range(3) if index != row]
        assert judge.achieved(spoiled, wanted)[row]
        assert -math.inf < judge.loss(spoiled, wanted)[row] < -1e5
        assert torch.equal(judge.loss(spoiled, wanted)[others], plain.loss(scores, wanted)[others])
        assert torch.equal(judge.decide(spoiled, wanted)[others], plain.decide(scores, wanted)[others])


class Theirs(nn.Module):
    """A backbone of samples, as somebody else writes it; each fault is a subclass."""

    embedding_size, minimum_frames, masked = 4, 9, False

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, 4, 9)

    def forward(self, samples: Tensor) -> Tensor:
        return self.convolution(samples.unsqueeze(1)).square().mean(-1)


class WithoutDimension(Theirs):
    def forward(self, samples: Tensor) -> Tensor:
        return super().forward(samples)[:, 0]


class Squeezing(Theirs):
    def forward(self, samples: Tensor) -> Tensor:
        return super().forward(samples).squeeze()


class WantsChannels(Theirs):
    def forward(self, samples: Tensor) -> Tensor:
        return self.convolution(samples.flatten()[None, None].expand(1, 2, -1)).mean(-1)


class WithHidden(Theirs):
    def forward(self, samples: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(samples), None


class OtherSize(Theirs):
    embedding_size = 8


class Strict(Theirs):
    masked = True


class Broken(Theirs):
    def forward(self, samples: Tensor) -> Tensor:
        raise KeyError("state")


class WithoutGradient(Theirs):
    @torch.no_grad()
    def forward(self, samples: Tensor) -> Tensor:
        return super().forward(samples)


class Writing(Theirs):
    masked = True

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        samples -= 0.1
        return super().forward(samples)


class Padding(Theirs):
    masked = True

    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        return super().forward(samples)


class Mates(Padding):
    def forward(self, samples: Tensor, lengths: Tensor | None = None) -> Tensor:
        embeddings = super().forward(samples)
        return embeddings - embeddings.mean(0)


class Forgetful(Theirs):
    def __init__(self, size: int = 3) -> None:
        super().__init__()


class Silent(nn.Module):
    """Says nothing of itself."""


def their(backbone: nn.Module, scorer: Scorer | None = None) -> Recognizer:
    return Recognizer(FrontEnd({}), backbone, Cosine() if scorer is None else scorer).eval()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    ("backbone", "told"),
    [
        (WithoutDimension, r"Expected \({0}, 4\) embeddings of {0} .* from WithoutDimension, got \({0},\): mend"),
        (WithHidden, r"Expected \({0}, 4\) embeddings of {0} .* from WithHidden, got tuple"),
        (OtherSize, r"Expected \({0}, 8\) embeddings of {0} .* from OtherSize, got \({0}, 4\)"),
        (WantsChannels, r"a backbone that takes frames of \({0}, 100\), WantsChannels failed: RuntimeError: Given gr"),
        (Strict, r"takes frames of \({0}, 100\), and their lengths, Strict failed: TypeError: .* positional argument"),
        (Broken, r"takes frames of \({0}, 100\), Broken failed: KeyError: 'state'"),
    ],
)
@pytest.mark.parametrize("padded", [False, True])
def test_a_recognizer_tells_what_is_wrong_with_their_backbone(
    backbone: type[nn.Module], told: str, rows: int, padded: bool
) -> None:
    waveforms, _ = speech(rows)
    lengths = torch.full((rows,), 100) if padded else None
    with pytest.raises(ValueError, match=told.format(rows)) as error:
        their(backbone()).embed(waveforms, lengths)
    assert "\n" not in str(error.value)


def test_a_backbone_that_squeezes_fails_on_one_utterance_with_its_name() -> None:
    with pytest.raises(ValueError, match=r"\(1, 4\) embeddings of 1 .*, whatever their number, from Squeezing, got"):
        their(Squeezing()).embed(speech(1)[0])


def test_a_backbone_that_says_nothing_of_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="Silent has no attribute minimum_frames and no masked"):
        their(Silent())


class OneColumn(ClosedSet):
    def forward(self, embeddings: Tensor) -> Tensor:
        return super().forward(embeddings)[:, 0]


class AColumnMore(ClosedSet):
    def forward(self, embeddings: Tensor) -> Tensor:
        return super().forward(embeddings)[:, [0, 1, 2, 0]]


@pytest.mark.parametrize(("scorer", "came"), [(OneColumn, r"\(2,\)"), (AColumnMore, r"\(2, 4\)")])
def test_a_recognizer_tells_what_is_wrong_with_their_scorer(scorer: type[ClosedSet], came: str) -> None:
    with pytest.raises(ValueError, match=rf"Expected \(2, 3\) scores of 2 .* from {scorer.__name__}, got {came}"):
        their(Theirs(), scorer(4, 3))(speech(2)[0])


def test_a_backbone_that_is_not_masked_needs_no_lengths() -> None:
    waveforms, _ = speech()
    recognizer = their(Theirs(), ClosedSet(4, 3))
    assert torch.equal(recognizer(waveforms), recognizer(waveforms, torch.full((3,), 100)))


def test_scores_of_another_precision_or_device_are_taken_and_decisions_refused() -> None:
    waveforms, labels = speech()
    exact = FGSM()(linear, waveforms, labels).waveforms
    for kind in (torch.float64, torch.float16):
        result = FGSM()(lambda w, n, kind=kind: linear(w, n).to(kind), waveforms, labels)
        assert result.waveforms.dtype == torch.float32
        assert (result.waveforms - exact).ne(0).float().mean() < 0.05
    with pytest.raises(ValueError, match=r"Expected floating-point scores, got torch.int64"):
        Square(steps=2)(lambda w, n: linear(w, n).long(), waveforms, labels)


def test_whatever_a_score_function_raises_is_told() -> None:
    waveforms, labels = speech()
    with pytest.raises(ValueError, match=r"called as score\(waveforms, lengths\); it failed: KeyError: 1"):
        PGD(steps=2)(lambda w, n: {}[1], waveforms, labels)


@pytest.mark.parametrize("attack", [FGSM(), Square(steps=3), CW2(steps=2, search_steps=1)], ids=lambda a: a.name)
def test_a_model_that_writes_into_its_input_is_attacked_as_one_that_does_not(attack: Attack) -> None:
    def writing(waveforms: Tensor, lengths: Tensor) -> Tensor:
        waveforms -= 0.1
        return linear(waveforms, lengths)

    waveforms, labels = speech()
    before = waveforms.clone()
    results = [
        attack(score, waveforms, labels, generator=torch.Generator().manual_seed(0)).waveforms
        for score in (writing, lambda w, n: linear(w - 0.1, n))
    ]
    assert torch.equal(*results) and torch.equal(waveforms, before)
    their(Writing()).embed(waveforms)
    assert torch.equal(waveforms, before)


@pytest.mark.parametrize("spoiled", [torch.nan, torch.inf])
def test_nothing_is_learned_from_gradients_that_are_no_numbers(spoiled: float) -> None:
    waveforms, labels = speech()
    batches = [(waveforms, labels, torch.full((3,), 100))]
    with pytest.raises(ValueError, match=r"Expected finite gradients, got others in rows \[0, 1, 2\]"):
        learn(PGD(), lambda w, n: linear(w, n) * spoiled, batches, 50)


@pytest.mark.parametrize("backbone", [Padding, Mates])
def test_a_campaign_warns_of_scores_that_depend_on_what_else_is_in_the_batch(
    backbone: type[Theirs], voices: Utterances, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    recognizer = their(backbone(), ClosedSet(4, SPEAKERS))
    torch.nn.init.zeros_(recognizer.scorer.head.bias)
    with pytest.warns(UserWarning, match=r"The scores of '\w+-\d' change by .* with other utterances in the batch"):
        Campaign(recognizer, voices, [], tmp_path)


def test_a_campaign_does_not_where_they_do_not(voices: Utterances, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Campaign(their(Theirs(), ClosedSet(4, SPEAKERS)), voices, [], tmp_path)
        Campaign(fit(voices), voices, [], tmp_path)
        Campaign(their(Mates(), ClosedSet(4, SPEAKERS)), voices, [], tmp_path, batch_size=1)


def test_scores_that_are_never_numbers_are_not_taken_for_random_ones(voices: Utterances, tmp_path: Path) -> None:
    recognizer = their(Theirs(), ClosedSet(4, SPEAKERS))
    with torch.no_grad():
        recognizer.scorer.head.bias.fill_(torch.nan)
    assert not Campaign(recognizer, voices, [], tmp_path, nonfinite_succeeds=True).randomized


def test_a_file_is_not_written_that_no_other_program_could_read(tmp_path: Path) -> None:
    class Local(Theirs):
        pass

    for module in (__name__, "__main__"):
        Local.__module__ = module
        with pytest.raises(ValueError, match=r"Local, which no other program can import: put it into a module"):
            save_recognizer(their(Local()), tmp_path / "theirs.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (None, "ModuleNotFoundError: No module named 'their_module'"),
        ("class Other: pass", "AttributeError: module 'their_module' has no attribute 'Theirs'"),
        ("import a_package_of_theirs", "ModuleNotFoundError: No module named 'a_package_of_theirs'"),
        ("class Theirs(:", "SyntaxError: invalid syntax"),
        ("open('/nowhere/at/all')", "FileNotFoundError: .*/nowhere/at/all"),
    ],
    ids=["not there", "another class", "its imports", "its syntax", "what it does"],
)
def test_a_class_that_cannot_be_imported_is_told_with_the_reason(
    code: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "their_module", raising=False)
    if code is not None:
        (tmp_path / "their_module.py").write_text(code)
    with pytest.raises(CheckpointError, match=rf"their_module.Theirs, which can't be imported \({told}.*PYTHONPATH"):
        rebuild({"class_path": "their_module.Theirs", "init_args": {}}, ["their_module"])
    sys.modules.pop("their_module", None)


def test_nobody_is_advised_to_trust_the_script_that_runs() -> None:
    with pytest.raises(CheckpointError, match=r"put it into a module of its own, and name it anew$"):
        rebuild({"class_path": "__main__.Theirs", "init_args": {}})


def trained(backbone: nn.Module, root: Path) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = SpeakerData(root, "test", "test", crop_seconds=0.2, batch_size=2, num_workers=0)
    trainer.fit(SpeakerModule(their(backbone, ClosedSet(4, SPEAKERS))), data)
    return trainer


def test_training_warns_of_a_backbone_without_a_gradient(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="The loss has no gradient for the weights of WithoutGradient"):
        trained(WithoutGradient(), write_voices(tmp_path, utterances=2))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The loss has no gradient")
        trained(Theirs(), tmp_path)


def test_training_refuses_before_its_first_step_what_no_checkpoint_could_describe(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"Forgetful must keep its constructor's arguments as attributes, \['size'\]"):
        trained(Forgetful(), write_voices(tmp_path, utterances=2))


@pytest.mark.parametrize(
    ("module", "does"),
    [("sec4sr_pl.evaluation", "sec4sr_pl.command.command"), ("sec4sr_pl.cli", "sec4sr_pl.imports.guarded")],
)
def test_who_installed_the_package_alone_has_both_commands_as_modules(
    module: str, does: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def called(*_: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(does, called)
    monkeypatch.setenv("SEC4SR_TRACEBACK", "1")
    monkeypatch.delitem(sys.modules, module, raising=False)  # else runpy warns
    with pytest.raises(InterruptedError):
        runpy.run_module(module, run_name="__main__")
