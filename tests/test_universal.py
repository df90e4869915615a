"""One change for every utterance: the closed form, the file, the command, and the shipped recognizer."""

import inspect
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from jsonargparse import auto_cli
from test_strong_attacks import seeded
from torch import Tensor

from sec4sr_pl import audio
from sec4sr_pl.attacks import L2PGD, NES, PGD, Objective, UniversalPerturbation
from sec4sr_pl.attacks.universal import laid_over, learn
from sec4sr_pl.checkpoint import load_recognizer, save_recognizer
from sec4sr_pl.data import SpeakerData, Spk251
from sec4sr_pl.data.base import collate
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.robustness.universal import train
from sec4sr_pl.types import REJECT, SAMPLE_RATE

NATURAL = Path(__file__).parent.parent / "checkpoints" / "audionet_mini_natural.ckpt"


def batches(size: int, lengths: list[int], label: int, count: int = 6) -> list[tuple[Tensor, Tensor, Tensor]]:
    rows = [0.2 * torch.rand(len(lengths), size, generator=seeded(seed)) for seed in range(count)]
    return [(row, torch.full((len(lengths),), label), torch.tensor(lengths)) for row in rows]


TASKS = {  # speakers, threshold, targeted, label, whether the first speaker's score rises
    "CSI": (2, -torch.inf, False, 0, False),
    "CSI, targeted": (2, -torch.inf, True, 0, True),
    "SV, accepted": (1, 0.0, True, 0, True),
    "SV, rejected": (1, 0.0, False, 0, False),
    "OSI, from nobody": (1, 0.0, False, REJECT, True),
}


@pytest.mark.parametrize("source", [None, NES(40, 0.01)], ids=["gradient", "NES"])
@pytest.mark.parametrize("case", TASKS.values(), ids=TASKS)
def test_on_a_linear_scorer_it_is_the_sign_of_the_folded_weight(case: tuple[Any, ...], source: NES | None) -> None:
    speakers, threshold, targeted, label, rises = case
    weight = torch.randn(30, generator=seeded(1))

    def score(w: Tensor, _: Tensor) -> Tensor:
        one = w @ weight
        return torch.stack([one, -one], 1)[:, :speakers]

    objective = Objective(threshold, targeted)
    attack = PGD(0.01, 0.004, source=source)
    found = learn(attack, score, batches(30, [30] * 8, label), 12, objective, seeded())
    folded = weight[:12] + weight[12:24] + torch.cat([weight[24:], torch.zeros(6)])
    expected = 0.01 * folded.sign() * (1.0 if rises else -1.0)
    clear = folded.abs() > (1.0 if source else 1e-6)
    assert clear.sum() > 4
    torch.testing.assert_close(found[clear], expected[clear], rtol=0, atol=1e-6)
    assert found.abs().max() <= 0.01 + 1e-9


def test_padding_teaches_nothing() -> None:
    weight = torch.ones(30)
    found = learn(PGD(0.01, 0.002), lambda w, _: torch.stack([w @ weight, -w @ weight], 1), batches(30, [10, 7], 0), 30)
    assert (found[:10] < 0.0).all()
    assert torch.equal(found[10:], torch.zeros(20))


def test_a_ball_of_energy_is_kept_as_well() -> None:
    weight = torch.randn(20, generator=seeded(1))
    score: Callable[..., Tensor] = lambda w, _: torch.stack([w @ weight, -w @ weight], 1)  # noqa: E731
    found = learn(L2PGD(0.05), score, batches(20, [20] * 4, 1, 10), 20)
    torch.testing.assert_close(found, 0.05 * weight / weight.norm(), rtol=0, atol=1e-4)


def test_it_is_repeated_and_cut() -> None:
    change = laid_over(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(2, 7))
    assert change.tolist() == [[1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0]] * 2
    assert laid_over(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(1, 2)).tolist() == [[1.0, 2.0]]


def written(path: Path, perturbation: Tensor, epsilon: float = 0.002) -> Path:
    audio.write_adversarial(path, perturbation, torch.zeros_like(perturbation), epsilon)
    return path


def test_the_attack_adds_the_sound_in_the_file_and_asks_nothing(tmp_path: Path) -> None:
    perturbation = 0.004 * torch.rand(50, generator=seeded()) - 0.002
    path = written(tmp_path / "hiss.wav", perturbation)
    attack = UniversalPerturbation(path)
    assert (attack.read() - perturbation).abs().max() <= 0.5 / 32_768 + 1e-4  # rounded inside the ball
    waveforms, lengths = torch.tensor([[0.999, -0.2] * 40, [0.5] * 80]), torch.tensor([80, 33])
    waveforms[1, 33:] = 0.0
    result = attack(lambda w, _: w[:, :3], waveforms, torch.tensor([0, 1]), lengths)
    expected = (waveforms + attack.read().repeat(2)[:80]).clamp(-1.0, 1.0)
    expected[1, 33:] = 0.0
    torch.testing.assert_close(result.waveforms, expected)
    assert result.queries.tolist() == [1, 1]
    assert attack.name == "Universal-hiss"
    before = attack.identity
    written(path, -perturbation)
    assert attack.identity != before


def test_a_file_that_is_missing_or_outside_the_ball_is_refused(tmp_path: Path) -> None:
    arguments = (lambda w, _: w[:, :2], torch.zeros(1, 9), torch.tensor([0]))
    with pytest.raises(ValueError, match="There is no perturbation"):
        UniversalPerturbation(tmp_path / "none.wav")(*arguments)
    loud = written(tmp_path / "loud.wav", torch.full((9,), 0.01), 0.01)
    with pytest.raises(ValueError, match=r"at most 0\.002"):
        UniversalPerturbation(loud)(*arguments)
    assert UniversalPerturbation(loud, 0.01)(*arguments).waveforms.max() > 0.009
    with pytest.raises(ValueError, match="Expected epsilon"):
        UniversalPerturbation(loud, -1.0)
    with pytest.raises(ValueError, match="Expected samples"):
        learn(PGD(), arguments[0], [], 0)


@pytest.fixture
def voices(tmp_path: Path) -> Path:
    """Two speakers of three short training utterances."""
    for speaker in range(2):
        for utterance in range(3):
            time = torch.arange(8_000 + 1_000 * utterance) / SAMPLE_RATE
            wave = 0.2 * torch.sin(700.0 * (speaker + 1) * time) + 0.01 * torch.randn(len(time), generator=seeded())
            folder = tmp_path / "voices" / "train" / f"speaker{speaker}"
            folder.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / f"s{speaker}u{utterance}.wav", wave.numpy(), SAMPLE_RATE, subtype="PCM_16")
    return tmp_path / "voices"


def test_the_command_writes_the_same_sound_for_the_same_seed(
    voices: Path, make_recognizer: Callable[..., Recognizer], tmp_path: Path
) -> None:
    save_recognizer(make_recognizer(["speaker0", "speaker1"]), tmp_path / "victim.ckpt")
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        flags = [f"--checkpoint={tmp_path / 'victim.ckpt'}", "--data=SpeakerData", f"--data.root={voices}"]
        flags += [f"--output={tmp_path / name}.wav", f"--seed={seed}", "--seconds=0.25", "--epochs=2", "--batch_size=2"]
        flags += ["--attack=PGD", "--attack.source=NES", "--attack.source.samples=2"]
        auto_cli(train, args=flags, as_positional=False)
    first, again, other = ((tmp_path / f"{name}.wav").read_bytes() for name in ("first", "again", "other"))
    assert first == again != other
    assert UniversalPerturbation(tmp_path / "first.wav").read().shape == (4_000,)
    with pytest.raises(ValueError, match="Expected a target among 2 speakers, got 'nobody'"):
        train(tmp_path / "victim.ckpt", SpeakerData(root=voices), tmp_path / "x.wav", target="nobody")


@pytest.mark.parametrize(
    ("checkpoint", "flags", "told"),
    [
        ("victim.ckpt", ["--target=nobody"], "Expected a target among 2 speakers, got 'nobody'"),
        ("absent.ckpt", [], "absent.ckpt"),
        ("victim.ckpt", ["--attack=PGD", "--attack.step_size=0", "--epochs=1"], "is silence in 16 bits"),
        ("victim.ckpt", ["--attack=PGD", "--attack.epsilon=2e-5", "--epochs=1"], "is silence in 16 bits"),
        ("x.wav", [], "x.wav, an input, which would be written over"),
    ],
    ids=["target", "checkpoint", "step", "ball", "output"],
)
def test_what_its_user_can_mend_ends_the_command_with_one_line(
    checkpoint: str,
    flags: list[str],
    told: str,
    voices: Path,
    make_recognizer: Callable[..., Recognizer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_recognizer(make_recognizer(["speaker0", "speaker1"]), tmp_path / "victim.ckpt")
    where = [f"--checkpoint={tmp_path / checkpoint}", "--data=SpeakerData", f"--data.root={voices}"]
    monkeypatch.setattr("sys.argv", ["universal.py", *where, f"--output={tmp_path / 'x.wav'}", *flags])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(inspect.getfile(train), run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 1 and told in line
    assert line.startswith("python -m sec4sr_pl.robustness.universal: error: ")


@pytest.mark.slow
def test_on_the_shipped_recognizer_it_fools_more_unseen_utterances_than_noise(corpus: Path) -> None:
    recognizer = load_recognizer(NATURAL)
    data = Spk251(root=corpus)
    data.connect(recognizer.scorer.speakers)

    def beginnings(part: str, every: int) -> tuple[Tensor, Tensor, Tensor]:
        dataset = data.dataset(part)
        batch = collate([dataset[index] for index in range(0, len(dataset), every)])
        return batch.waveforms[:, :32_000].contiguous(), batch.speakers, batch.lengths.clamp_max(32_000)

    seen = [part.split(16) for part in beginnings("train", 1)]
    perturbation = learn(PGD(step_size=0.0002), recognizer, list(zip(*seen, strict=True)) * 3, SAMPLE_RATE)
    waveforms, labels, lengths = beginnings("test", 4)
    noise = 0.002 * (2.0 * torch.randint(0, 2, (SAMPLE_RATE,), generator=seeded()) - 1.0)
    with torch.no_grad():
        right = recognizer(waveforms, lengths).argmax(1) == labels
        assert right.sum() >= 20
        changed = [laid_over(change, waveforms).clamp(-1.0, 1.0) for change in (perturbation, noise)]
        left = [recognizer(one, lengths).argmax(1) != labels for one in changed]
        fooled = [float(rows[right].float().mean()) for rows in left]
    assert fooled[0] > fooled[1] + 0.1
