"""What this package does on a CUDA card: training steps, attacks, CUDA graphs, models, synchronizations, memory.

Everything runs in one process; what is compared runs in turn, each run between two synchronizations, after two that
warm up. Without TF32, unless a row says otherwise; "exact" is deterministic, as the commands are. Arguments are the
numbers of sections, by default all; a CPU leaves out those that only a card has. Packages that are not installed are
left out.
"""

import os
import platform
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from typing import Any

import torch
import torchaudio
from attacks import SAMPLES, margin, plain_cw2, plain_fakebob
from ivector import gradient, one_by_one, random_model
from naive import NaiveAudioNet, naive_step
from pgd import FromUnitRange
from setting import ARGUMENTS, made, rounds, sized
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchaudio.compliance import kaldi

import sec4sr_pl
from sec4sr_pl import defenses
from sec4sr_pl.attacks import CW2, FAKEBOB, PGD, AutoAttack, Objective, Square
from sec4sr_pl.attacks.base import Attack
from sec4sr_pl.backbones import ECAPA, AudioNet, ResNet, XVector
from sec4sr_pl.draws import key
from sec4sr_pl.features import MFCC, Fbank, LogMel
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import ClosedSet
from sec4sr_pl.training.objectives import AdversarialTraining
from sec4sr_pl.types import SAMPLE_RATE, Batch, full_lengths

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SECONDS, SPEAKERS = sized(5.0, 0.5), 251
UNREACHED = Objective(confidence=10.0)
"""A goal that no attack achieves with its confidence, so that no utterance leaves early."""
MODELS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "AudioNet": lambda: (LogMel(), AudioNet()),
    "XVector": lambda: (MFCC(30, deltas=0), XVector(channels=sized(512, 8), pooled=sized(1500, 8))),
    "ECAPA": lambda: (Fbank(), ECAPA(channels=sized(1024, 8))),
    "ResNet": lambda: (Fbank(), ResNet(channels=sized(128, 4))),
}
Run = Callable[[], Any]
Way = Callable[[Tensor], Tensor]
Note = Callable[[Any], str]
Given = tuple[Recognizer, Tensor, Tensor]
"""What an attack gets: a recognizer, waveforms and what it says of them."""


@contextmanager
def arithmetic(tf32: bool = False, exact: bool = False) -> Iterator[None]:
    """A block, or as a decorator a run, with or without TF32 and deterministic algorithms."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.use_deterministic_algorithms(exact, warn_only=True)
    yield
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(False)


def timed(run: Run) -> tuple[float, float, Any]:
    """Milliseconds, GB that the card held at most beside what was there before, and the result of a run."""
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before, start = torch.cuda.memory_allocated(), time.perf_counter()
    result = run()
    if CUDA:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start), (torch.cuda.max_memory_allocated() - before) / 1e9, result


def compare(title: str, runs: dict[str, Run], turns: int, note: Note = lambda _: "", warmup: int = 2) -> None:
    """Measure runs in turn, and print the median, smallest and largest time, the GB and the note of each."""
    print(f"  {title}, {SECONDS} s each", flush=True)
    found: dict[str, list[tuple[float, float, str]]] = {name: [] for name in runs}
    for turn in range(-warmup, rounds(turns)):
        for name, run in runs.items():
            spent, peak, result = timed(run)
            if turn >= 0:
                found[name].append((spent, peak, note(result)))
    for name, values in found.items():
        times, peaks, notes = zip(*values, strict=True)
        span = f"{statistics.median(times):10.2f} ms ({min(times):.2f} to {max(times):.2f})"
        print(f"    {name:34}{span}, {max(peaks):.2f} GB  {notes[-1]}", flush=True)


@torch.no_grad()
def given(name: str, batch: int) -> Given:
    """A recognizer with random weights, in eval mode, and noise as it hears it."""
    torch.manual_seed(0)
    features, backbone = MODELS[name]()
    recognizer = Recognizer(features, backbone, ClosedSet(backbone.embedding_size, SPEAKERS)).eval().to(DEVICE)
    waveforms = (0.05 * torch.randn(batch, round(SAMPLE_RATE * SECONDS))).to(DEVICE)
    return recognizer, waveforms, recognizer(waveforms).argmax(1)


def ours(attack: Attack, to: Given, **options: Any) -> Run:
    """An attack of this package, which gives the waveforms."""
    return lambda: attack(*to, **options).waveforms


@torch.no_grad()
def strength(to: Given, adversarial: Tensor) -> str:
    """The loss, margin and success that adversarial waveforms reach."""
    recognizer, _, labels = to
    scores = recognizer(adversarial)
    loss, left = cross_entropy(scores, labels), margin(scores, labels)
    return f"loss {loss:.4f}, margin {left.mean():.4f}, success {(left < 0.0).float().mean():.0%}"


def training_step(size: int, attack: PGD, bf16: bool = False) -> Run:
    """This package's step of adversarial training, which attacks the first half of the rows and gives the loss."""
    recognizer, waveforms, _ = given("AudioNet", size)
    optimizer = torch.optim.Adam(recognizer.train().parameters())
    objective = AdversarialTraining(attack, fraction=0.5)
    speakers = torch.arange(size, device=DEVICE) % SPEAKERS
    batch = Batch(waveforms, full_lengths(waveforms), speakers, [str(index) for index in range(size)])
    keys = sorted(range(20 * size), key=lambda k: key(k, "adversarial"))  # the smaller half of them is attacked
    keys = keys[: size // 2] + keys[-(size - size // 2) :]

    def step() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            outcome = objective(recognizer, batch, keys)
        outcome.loss.backward()
        optimizer.step()
        return outcome.loss.detach()

    return step


def training() -> None:
    """A step of adversarial training."""
    for size in sized((32, 128), (4,)):
        recognizer, waveforms, _ = given("AudioNet", size)
        naive, speakers = NaiveAudioNet(recognizer).to(DEVICE).train(), torch.arange(size, device=DEVICE) % SPEAKERS
        plain = partial(naive_step, naive, torch.optim.Adam(naive.parameters()), waveforms, speakers, size // 2)
        runs = {
            "ours": training_step(size, PGD()),
            "ours, exact": arithmetic(exact=True)(training_step(size, PGD())),
            "ours, TF32": arithmetic(tf32=True)(training_step(size, PGD())),
            "ours, bf16": training_step(size, PGD(), bf16=True),
            "naive": plain,
            "naive, TF32": arithmetic(tf32=True)(plain),
        }
        compare(f"AudioNet, {size} utterances, PGD-10 on half", runs, 11, lambda loss: f"loss {float(loss):.3f}")


def by_torchattacks(to: Given, steps: int) -> Run:
    """Torchattacks' PGD on a model with torch.stft."""
    import torchattacks

    recognizer, waveforms, labels = to
    model = FromUnitRange(NaiveAudioNet(recognizer)).eval().to(DEVICE)
    attack = torchattacks.PGD(model, eps=0.001, alpha=0.0002, steps=steps, random_start=False)
    images = (waveforms[:, None, None] + 1.0) / 2.0
    return lambda: 2.0 * attack(images, labels)[:, 0, 0] - 1.0


def descents() -> None:
    """PGD, on AudioNet against torchattacks'."""
    size = sized(64, 2)
    usual = (("AudioNet", 10, 7), ("AudioNet", 100, 3), ("ECAPA", 10, 7))
    for name, steps, turns in sized(usual, (("AudioNet", 2, 1), ("ECAPA", 2, 1))):
        to = given(name, size)
        run = ours(PGD(steps=steps), to)
        runs = {"ours": run, "ours, exact": arithmetic(exact=True)(run), "ours, TF32": arithmetic(tf32=True)(run)}
        if name == "AudioNet" and (other := made(partial(by_torchattacks, to, steps))):
            runs["torchattacks"] = other
        compare(f"PGD-{steps}, {name}, {size} utterances", runs, turns, partial(strength, to))


def suite() -> None:
    """Other attacks; the plain ones on a model with torch.stft."""
    size, steps, queries, few = sized((16, 100, 1000, 10), (2, 2, 4, 2))
    to = recognizer, waveforms, labels = given("AudioNet", size)
    plain, note = NaiveAudioNet(recognizer).eval().to(DEVICE), partial(strength, to)
    fakebob, auto = FAKEBOB(steps=few, samples=SAMPLES), AutoAttack(steps=steps, queries=queries)
    on_device = [torch.Generator(DEVICE).manual_seed(seed) for seed in range(size)]

    def plain_fakebob_here() -> Tensor:
        with DEVICE:  # it draws where tensors are made
            return plain_fakebob(plain, waveforms, labels, few)

    runs = {
        "CW2": ours(CW2(confidence=0.0, steps=steps, search_steps=1, initial_const=1.0), to),
        "CW2, plain": lambda: plain_cw2(plain, waveforms, labels, steps),
        "FAKEBOB": ours(fakebob, to, objective=UNREACHED),
        "FAKEBOB, generators on the device": ours(fakebob, to, objective=UNREACHED, generator=on_device),
        "FAKEBOB, plain": plain_fakebob_here,
        "Square": ours(Square(steps=steps), to, objective=UNREACHED),
    }
    compare(f"{size} utterances, {steps} steps, FAKEBOB's {few} of {SAMPLES} samples", runs, 3, note)
    runs = {"nobody leaves": ours(auto, to, objective=UNREACHED), "those who fall leave": ours(auto, to)}
    compare(f"AutoAttack, {size} utterances, {steps} steps, {queries} queries", runs, 1, note, warmup=0)


def captured(way: Way, waveforms: Tensor) -> Run:
    """A run as one CUDA graph, which replays on a copy of the waveforms."""
    static, stream, graph = waveforms.clone(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            way(static)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        result = way(static)

    def replay() -> Tensor:
        static.copy_(waveforms)
        graph.replay()
        return result

    return replay


def difference(expected: Tensor, found: Tensor) -> str:
    """How far a result is off."""
    return f"differs by {(found - expected).norm() / expected.norm():.0e}"


def graphs() -> None:
    """One forward and backward pass of an attack: as it is, and as a CUDA graph."""
    for name in ("AudioNet", "ECAPA"):
        for size in sized((16, 64), (2,)):
            recognizer, waveforms, labels = given(name, size)
            fast = recognizer.requires_grad_(False).fused()
            eager = partial(gradient, lambda x, f=fast, y=labels: cross_entropy(f(x), y, reduction="sum"))
            runs = {"eager": partial(eager, waveforms), "torch.cuda.graph": captured(eager, waveforms)}
            note = partial(difference, eager(waveforms))
            compare(f"forward + backward, {name}, {size} utterances", runs, 21, note)


def models(size: int) -> None:
    """i-vectors and x-vectors from ready frames."""
    ivector, few = random_model().to(DEVICE), sized(2, 1)
    xvector = MODELS["XVector"]()[1].eval().requires_grad_(False).to(DEVICE)
    frames = torch.randn(size, round(100 * SECONDS), 72, device=DEVICE)
    short = frames[..., :30].contiguous()
    runs: dict[str, Run] = {
        "i-vector": torch.no_grad()(partial(ivector, frames)),
        "i-vector + backward": partial(gradient, ivector, frames),
        f"i-vector, one by one, {few} of them": partial(one_by_one, ivector, frames[:few]),
        "x-vector": torch.no_grad()(partial(xvector, short)),
        "x-vector + backward": partial(gradient, xvector, short),
    }
    with DEVICE:  # the plain one makes tensors
        compare(f"models from frames, {size} utterances", runs, 7)


def front_ends(waveforms: Tensor) -> None:
    """Front ends against torchaudio's."""
    slaney = {"n_mels": 32, "norm": "slaney", "mel_scale": "slaney"}
    mel = torchaudio.transforms.MelSpectrogram(SAMPLE_RATE, 1024, 800, 160, **slaney).to(DEVICE)
    options = {"num_ceps": 24, "num_mel_bins": 30, "high_freq": 7600.0, "snip_edges": False, "use_energy": True}
    log_mel, mfcc, fbank = LogMel().to(DEVICE), MFCC().to(DEVICE), Fbank().to(DEVICE)
    fronts: dict[str, Way] = {
        "LogMel": lambda x: log_mel(x)[0],
        "MelSpectrogram": lambda x: 10.0 * mel(x[:, 1:] - 0.97 * x[:, :-1]).clamp_min(1e-16).log10(),
        "MFCC, cepstra alone": lambda x: mfcc.stages["raw"](x, full_lengths(x))[0],
        "kaldi.mfcc, a loop": lambda x: torch.stack([kaldi.mfcc(32768.0 * own[None], **options) for own in x]),
        "MFCC, all stages": lambda x: mfcc(x)[0],
        "Fbank": lambda x: fbank(x)[0],
    }
    runs = {name: partial(gradient, front, waveforms) for name, front in fronts.items()}
    compare(f"front ends, forward + backward, {len(waveforms)} utterances", runs, 7)


def packaged_kmeans(frames: Tensor, ratio: float) -> Run:
    """K-means of one utterance after the other by kmeans-pytorch."""
    import kmeans_pytorch
    import numpy as np

    def distance(points: Tensor, centers: Tensor) -> Tensor:  # theirs would be computed on the CPU
        if centers.isnan().any():  # it would never end
            raise ArithmeticError("A cluster is empty")
        return (points.unsqueeze(1) - centers.unsqueeze(0)).square().sum(2)

    def run() -> None:
        np.random.seed(0)
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            for own in frames:
                kmeans_pytorch.kmeans(own, int(len(own) * ratio + 1e-9), device=own.device)

    kmeans_pytorch.pairwise_distance = distance
    return run


def parts() -> None:
    """Models, front ends, k-means and defenses by themselves."""
    torch.manual_seed(0)
    size, few = sized((32, 4), (2, 1))
    loudness = torch.rand(size, round(10 * SECONDS)).repeat_interleave(SAMPLE_RATE // 10, 1)  # so that frames differ
    waveforms = (0.2 * loudness * torch.randn(loudness.shape)).clamp(-1.0, 1.0).to(DEVICE)
    frames = LogMel().to(DEVICE)(waveforms)[0]
    models(size)
    front_ends(waveforms)
    names = "Quantization BitDepthReduction GaussianNoise MedianSmoothing AverageSmoothing Downsampling LowPass Shuffle"
    each = {name: getattr(defenses, name)() for name in [*names.split(), "BandPass", "WarpedFeCo"]}
    for ratio in (0.2, 0.5):
        feco = each[f"FeCo {ratio}"] = defenses.FeCo(ratio).to(DEVICE)
        runs = {f"FeCo of {rows}": torch.no_grad()(partial(feco, frames[:rows])) for rows in (few, size)}
        if other := made(partial(packaged_kmeans, frames[:few], ratio)):
            runs[f"kmeans-pytorch of {few}"] = other
        compare(f"k-means, ratio {ratio}", runs, 3)
    runs = {}
    for name, defense in each.items():
        signal = waveforms if defense.to(DEVICE).after == "waveform" else frames
        runs[name] = partial(gradient, lambda x, d=defense: d(x)[0], signal)
    compare(f"defenses, forward + backward, {size} utterances", runs, 7)


def synchronizations_of(run: Run) -> list[str]:
    """The innermost line of this package in each synchronization of a run, after a run that warms up."""
    run()
    package, lines = os.path.dirname(sec4sr_pl.__file__) + os.sep, list[str]()

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):
            stack = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()]
            own = [line.removeprefix(package) for line in stack if line.startswith(package)]
            lines.append(own[-1] if own else "elsewhere")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        run()
        torch.cuda.set_sync_debug_mode("default")
    return lines


def synchronizations() -> None:
    """How often the host waits for the card at 2 and at 6 steps, and the first line that makes it."""
    size = sized(8, 2)
    to = given("AudioNet", size)
    draws = {"generator": [torch.Generator().manual_seed(seed) for seed in range(size)]}
    goal = draws | {"objective": UNREACHED}
    attacks: dict[str, Callable[[int], Run]] = {
        "PGD": lambda n: ours(PGD(steps=n), to),
        "PGD, not measured": lambda n: ours(PGD(steps=n), to, measure=False),
        "PGD, random start": lambda n: ours(PGD(steps=n, restarts=1), to, measure=False, **draws),
        "training step": lambda n: training_step(size, PGD(steps=n)),
        "CW2": lambda n: ours(CW2(10.0, n, search_steps=1), to, **draws),
        "FAKEBOB": lambda n: ours(FAKEBOB(steps=n, samples=4), to, **goal),
        "Square": lambda n: ours(Square(steps=n), to, **goal),
        "AutoAttack": lambda n: ours(AutoAttack(steps=n, queries=n), to, **goal),
    }
    for name, make in attacks.items():
        few, many = (synchronizations_of(make(steps)) for steps in (2, 6))
        print(f"  {name:20}{len(few):6}{len(many):6}  first {next(iter(many), 'none')}", flush=True)


def memory() -> None:
    """What PGD takes at most; its steps take no more, so that two tell as much as ten."""
    for name in MODELS:
        for size in sized((16, 64, 256), (2,)):
            try:
                run = ours(PGD(steps=2), given(name, size), measure=False)
                run()
                spent, peak, _ = timed(run)
                told = f"{peak:7.2f} GB, {spent / 2:.2f} ms a step"
            except torch.OutOfMemoryError:
                told = "out of memory"
            print(f"  {name:10} {size:4} x {SECONDS} s {told}", flush=True)


SECTIONS = (training, descents, suite, graphs, parts, synchronizations, memory)
OF_A_CARD = (graphs, synchronizations, memory)


def main() -> None:
    """Print the machine and the sections asked for."""
    warnings.filterwarnings("ignore", message=".*not have a deterministic implementation.*")  # "exact" would tell each
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product; "exact" needs it
    name = torch.cuda.get_device_name() if CUDA else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    for number, section in enumerate(SECTIONS, 1):
        if (CUDA or section not in OF_A_CARD) and (not ARGUMENTS or str(number) in ARGUMENTS):
            print(f"{number}. {section.__doc__}", flush=True)
            with arithmetic():
                section()


if __name__ == "__main__":
    main()
