"""Whether a checkpoint goes on with this training: compared before the first step, not trusted."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.trainer.states import TrainerFn

from sec4sr_pl.checkpoint import CheckpointError, describe
from sec4sr_pl.data.base import ResumableLoader

KEY = "training"
"""In a checkpoint: what it was trained by, beside the description of its recognizer."""
STEPS = "the steps of the whole training, over which its schedule is laid"
FREE = {"root", "folder", "num_workers", "batch_size", "eval_batch_size", "test_split", "trials", "trial_splits"}
"""Arguments of the data that a resume may change; the batches of all processes together are compared by themselves."""
APART = {"class_path", "speakers"} | FREE
"""Names that `differences` passes over: speakers and classes are compared by themselves."""
SCHEDULES = ("EpsilonSchedule", "MarginSchedule")
AVERAGES = ("EMAWeightAveraging", "WeightAveraging", "StochasticWeightAveraging")
"""Callbacks that have a part in the weights; all others may come and go."""
ADDED = {"initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"}
"""What schedules write into the groups of an optimizer."""


def compared(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a command line's configuration, as plain data, that a resume must share."""
    model = {name: value for name, value in configuration["model"].items() if name not in ("recognizer", "weights")}
    named = {short(item): item.get("init_args") for item in callbacks(configuration)}
    shared = {name: named.get(name, "none") for name in (*SCHEDULES, *AVERAGES)}
    return {"model": model, "data": configuration["data"], "callbacks": shared}


def callbacks(configuration: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those of the trainer: one, several or none."""
    found = configuration["trainer"].get("callbacks") or []
    return found if isinstance(found, list) else [found]


def short(item: Mapping[str, Any]) -> str:
    """The name of a class without its module."""
    return str(item.get("class_path")).rpartition(".")[2]


def facts(module: Any) -> dict[str, Any]:
    """What a checkpoint keeps of its training, as plain data."""
    return {"configuration": configured(module), "lengths": module.lengths}


def configured(module: Any) -> dict[str, Any] | None:
    """What of its configuration a resume must share; None without a command line."""
    return None if module.configuration is None else compared(module.configuration)


def lengths(trainer: Trainer) -> dict[str, int | None]:
    """What follows from data, batch size, processes and epochs together; None: without end."""
    steps, loader = trainer.estimated_stepping_batches, trainer.train_dataloader
    found = {STEPS: int(steps) if steps != float("inf") else None}
    if isinstance(loader, ResumableLoader):
        found["the utterances of an epoch"] = len(loader.dataset)  # type: ignore[arg-type]
        found["the utterances of a batch over all processes"] = int(loader.batch_size or 1) * trainer.world_size
        found["the batches of a step"] = trainer.accumulate_grad_batches
    return found


def differences(then: Any, now: Any, path: str = "") -> Iterator[str]:
    """Where two plain descriptions differ; what only one of them mentions is another version's."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        if short(then) != short(now):
            yield f"{path or 'class'}: {short(then)} then, {short(now)} now"
            return
        for name in sorted((then.keys() & now.keys()) - APART):
            within = path if name == "init_args" else f"{path}.{name}".lstrip(".")
            yield from differences(then[name], now[name], within)
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for index, pair in enumerate(zip(then, now, strict=True)):
            yield from differences(*pair, f"{path}[{index}]")
    elif then != now:
        yield f"{path}: {told(then)} then, {told(now)} now"


def told(value: Any) -> str:
    """A plain value in a few words."""
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return f"[{', '.join(told(item) for item in value)}]"
    return short(value) if isinstance(value, Mapping) and "class_path" in value else str(value)


def changed_speakers(then: Sequence[str], now: Sequence[str]) -> str | None:
    """How two lists of speakers, which labels index, differ."""
    before, after = set(then), set(now)
    new = [name for name in now if name not in before]
    gone = [name for name in then if name not in after]
    parts = [f"{len(names)} {what} ('{names[0]}')" for names, what in ((new, "new"), (gone, "gone")) if names]
    if not parts and list(then) != list(now):
        parts.append("in another order")
    return f"the speakers of the data: {', '.join(parts)}" if parts else None


def check_resume(module: Any, checkpoint: Mapping[str, Any]) -> None:
    """Compare a checkpoint with the training, or validation, that is to go on with it.

    Checkpoints of before have less to compare. A validation shares the recognizer, its defenses aside.

    Raises:
        CheckpointError: what differs, in one line.
    """
    with readable(module.trainer):
        described = checkpoint.get("recognizer", {})
        speakers = described.get("init_args", {}).get("scorer", {}).get("init_args", {}).get("speakers")
        found = []
        if isinstance(speakers, list) and (changed := changed_speakers(speakers, module.recognizer.scorer.speakers)):
            found.append(changed)
        found += differences(described, describe(module.recognizer), "model.recognizer")
        if module.trainer.state.fn == TrainerFn.FITTING:
            then, now = checkpoint.get(KEY, {}).get("configuration"), configured(module)
            found += differences(then, now) if then and now else state_differences(module, checkpoint)
        else:
            found = [difference for difference in found if not difference.startswith("model.recognizer.defenses")]
    refuse(module.trainer, found)


def check_training_lengths(module: Any, checkpoint: Mapping[str, Any]) -> None:
    """Compare `module.lengths`, known only when the data and its processes are.

    Raises:
        CheckpointError: what differs, in one line.
    """
    with readable(module.trainer):
        then = checkpoint.get(KEY, {}).get("lengths")
        if then is None:  # of before
            then = {STEPS: next((state.get("total_steps") for state in checkpoint.get("lr_schedulers", [])), None)}
        then = dict(then)
    scheduled = module.scheduler is not None or any(type(c).__name__ in SCHEDULES for c in module.trainer.callbacks)
    refuse(
        module.trainer,
        [
            f"{name}: {then[name]} then, {value} now"
            for name, value in module.lengths.items()
            if then.get(name) not in (None, value) and (scheduled or name != STEPS)
        ],
    )


@contextmanager
def readable(trainer: Trainer) -> Iterator[None]:
    """What a training wrote has one form; what somebody changed may have any.

    Raises:
        CheckpointError: it has another.
    """
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{trainer.ckpt_path} does not tell its training as train.py writes it: it was changed, or is of another "
            f"version ({type(error).__name__}: {error})"
        ) from error


def refuse(trainer: Trainer, found: Sequence[str]) -> None:
    """Tell what differs, if something does."""
    if found and trainer.state.fn != TrainerFn.FITTING:
        raise CheckpointError(
            f"{trainer.ckpt_path} is not of this recognizer, which differs in {'; '.join(found)}. Validate it with the "
            "configuration that it was trained with"
        )
    if found:
        raise CheckpointError(
            f"{trainer.ckpt_path} does not go on with this training, which differs in {'; '.join(found)}. Resume with "
            "what it was trained with, or leave --ckpt_path out: a new training may begin from its weights "
            "(--model.weights) where the speakers are the same"
        )


def state_differences(module: Any, checkpoint: Mapping[str, Any]) -> Iterator[str]:
    """What the states of optimizer and schedule alone tell of another one."""
    groups = [group for state in checkpoint.get("optimizer_states", []) for group in state["param_groups"]]
    own = module.optimizer(module.parameters())
    names = set(own.param_groups[0])
    if groups and not (names <= set(groups[0]) or names >= set(groups[0]) - ADDED):
        yield f"model.optimizer: another class then, {type(own).__name__} now"
    if bool(checkpoint.get("lr_schedulers")) != (module.scheduler is not None):
        yield f"model.scheduler: {'one then, none now' if module.scheduler is None else 'none then, one now'}"
