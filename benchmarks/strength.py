"""What attacks leave standing of 50 real utterances: this package beside foolbox, ART and torchattacks, same budgets.

Every result is judged by the recognizer. Needs SEC4SR_DATA. `python benchmarks/strength.py natural` for one of the two
checkpoints, `... natural CW2` for the rows with that in their names.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from pgd import FromUnitRange
from setting import ARGUMENTS, beginnings, sized
from torch import Tensor, nn

from sec4sr_pl import audio
from sec4sr_pl.allocator import keep_large_blocks
from sec4sr_pl.attacks import CW2, PGD, Attack, AutoAttack
from sec4sr_pl.checkpoint import load_recognizer
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.types import SAMPLE_RATE

UTTERANCES, TIME = sized((50, 3 * SAMPLE_RATE), (2, SAMPLE_RATE))
EPSILON, STEP = 0.002, 0.0004
CW2_STEPS, SEARCHES, RATE = *sized((200, 5), (5, 1)), 0.0005
Attacker = Callable[[Tensor, Tensor], Tensor]


def speech(speakers: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """(50, time) beginnings of test utterances, and their speakers."""
    chosen = beginnings(UTTERANCES, TIME)
    labels = torch.tensor([speakers.index(path.parent.name) for path in chosen])
    return torch.stack([audio.read(path, 0, TIME) for path in chosen]), labels


def ours(attack: Attack, recognizer: Recognizer) -> Attacker:
    """This package."""
    return lambda x, y: attack(recognizer, x, y, generator=torch.Generator().manual_seed(0)).waveforms


def by_foolbox(recognizer: Recognizer, steps: int | None) -> Attacker:
    """LinfPGD, or without steps L2CarliniWagnerAttack."""
    import foolbox

    model = foolbox.PyTorchModel(recognizer, bounds=(-1, 1), device="cpu")
    if steps is not None:
        attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=steps, random_start=False)
        return lambda x, y: attack.run(model, x, y, epsilon=EPSILON)
    closest = foolbox.attacks.L2CarliniWagnerAttack(SEARCHES, CW2_STEPS, stepsize=RATE, confidence=0.0)
    return lambda x, y: closest.run(model, x, y)


def by_art(recognizer: Recognizer, steps: int | None) -> Attacker:
    """ProjectedGradientDescentPyTorch, or without steps CarliniL2Method."""
    from art.attacks.evasion import CarliniL2Method, ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classes = len(recognizer.scorer.speakers)
    model = PyTorchClassifier(
        recognizer, nn.CrossEntropyLoss(), (TIME,), classes, clip_values=(-1.0, 1.0), device_type="cpu"
    )
    if steps is not None:
        attack = ProjectedGradientDescentPyTorch(
            model, eps=EPSILON, eps_step=STEP, max_iter=steps, batch_size=25, verbose=False
        )
    else:
        attack = CarliniL2Method(
            model,
            learning_rate=RATE,
            max_iter=CW2_STEPS // 5,  # each of its steps asks five times or more, to find its own length
            binary_search_steps=SEARCHES,
            initial_const=1e-3,
            batch_size=1,  # a larger one goes back once a class
            verbose=False,
        )
    return lambda x, y: torch.from_numpy(attack.generate(x.numpy(), y.numpy()))


def by_torchattacks(recognizer: Recognizer, name: str, **settings: float) -> Attacker:
    """An attack on audio shifted into [0, 1], where the ball is half as large."""
    import torchattacks

    attack = getattr(torchattacks, name)(FromUnitRange(recognizer).eval(), **settings)
    return lambda x, y: 2.0 * attack((x[:, None, None] + 1.0) / 2.0, y)[:, 0, 0] - 1.0


def attackers(model: Recognizer) -> dict[str, Callable[[], Attacker]]:
    """Everything that is compared."""
    fixed = {"c": 1.0, "steps": CW2_STEPS * SEARCHES, "lr": RATE}
    half = {"eps": EPSILON / 2, "n_classes": len(model.scorer.speakers)}
    table: dict[str, Callable[[], Attacker]] = {}
    for steps in sized((10, 100), (2, 3)):
        pgd = {"eps": EPSILON / 2, "alpha": STEP / 2, "steps": steps, "random_start": False}
        table[f"PGD-{steps}, ours"] = lambda n=steps: ours(PGD(EPSILON, STEP, n), model)  # type: ignore[misc]
        table[f"PGD-{steps}, foolbox"] = lambda n=steps: by_foolbox(model, n)  # type: ignore[misc]
        table[f"PGD-{steps}, ART"] = lambda n=steps: by_art(model, n)  # type: ignore[misc]
        table[f"PGD-{steps}, torchattacks"] = lambda p=pgd: by_torchattacks(model, "PGD", **p)  # type: ignore[misc]
    return table | {
        "CW2 200 x 5, ours": lambda: ours(CW2(0.0, CW2_STEPS, SEARCHES, RATE), model),
        "CW2 200 x 5, foolbox": lambda: by_foolbox(model, None),
        "CW2 40 x 5, line search, ART": lambda: by_art(model, None),
        "CW2 1000, c = 1, torchattacks": lambda: by_torchattacks(model, "CW", **fixed),
        "PGD-100 of 10 starts, ours": lambda: ours(PGD(EPSILON, STEP, 100, restarts=10), model),
        "AutoAttack, ours": lambda: ours(AutoAttack(EPSILON), model),
        "AutoAttack, torchattacks": lambda: by_torchattacks(model, "AutoAttack", **half),
    }


def beside(sizes: Tensor, others: Tensor) -> str:
    """The median of the ratios of two attacks' changes, over what falls to both; inf is a change that was not found."""
    both = sizes.isfinite() & others.isfinite()
    if not bool(both.any()):
        return "nothing falls to it and to the first row's"
    ratios = sizes[both] / others[both]
    return f"of ratios to the first row's {ratios.median():.3f}, over {len(ratios)}"


def main(name: str, wanted: str = "") -> None:
    """Print a line for each attack."""
    keep_large_blocks()
    recognizer = load_recognizer(Path(f"checkpoints/audionet_mini_{name}.ckpt")).requires_grad_(False)
    waveforms, labels = speech(recognizer.scorer.speakers)
    with torch.no_grad():
        right = recognizer(waveforms).argmax(1) == labels
    print(
        f"{name}: {int(right.sum())} of {UTTERANCES} utterances of {TIME / SAMPLE_RATE} s are right before", flush=True
    )
    closest = None
    for shown, make in attackers(recognizer).items():
        if wanted not in shown:
            continue
        start = time.perf_counter()
        adversarial = waveforms.clone()  # only what is right is attacked
        adversarial[right] = make()(waveforms[right], labels[right]).detach()
        assert not any(module.training for module in recognizer.modules())  # libraries may leave another mode behind
        with torch.no_grad():
            left = recognizer(adversarial).argmax(1) == labels
        change, size = adversarial - waveforms, (adversarial - waveforms).norm(dim=1)
        size = size.masked_fill(left, torch.inf)[right]
        closest = size if closest is None else closest
        print(
            f"  {shown:32} {int(left.sum()):3} left, median L2 {size.median():.4f} ({beside(size, closest)}), "
            f"largest change {change.abs().max():.5f}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    if ARGUMENTS:
        main(*ARGUMENTS)
    else:
        for checkpoint in sized(("natural", "adversarial"), ("natural",)):
            main(checkpoint)
