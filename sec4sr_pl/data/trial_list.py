"""Write a list of trials, e.g. to set a threshold: `python -m sec4sr_pl.data.trial_list --data VoxCeleb ...`."""

from pathlib import Path, PurePath

from rich.console import Console

from sec4sr_pl import audio
from sec4sr_pl.command import command
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.manifest import DataError
from sec4sr_pl.data.trials import all_pairs
from sec4sr_pl.files import check_output, whole


def write(data: SpeakerData, output: Path, trials: int = 20_000, seed: int = 0) -> None:
    """Pair the utterances of folders, all or a sample, half of it of one speaker.

    Args:
        data: whose --data.trial_splits are the folders, e.g. '[vox1_dev/wav]': of speakers who are neither trained on
            nor tested.
        output: the list to write, lines `label path path`, paths in the folders.
        trials: at most.
        seed: of the sample.

    Raises:
        ValueError: folders that can't be used, a path with a space, which no list can hold, or pairs of one kind only.
    """
    check_output(output, *data.inputs)
    files = {}
    for split in data.trial_splits:
        for utterance in data.scan(split):
            path = utterance.path
            place = PurePath(path.name) if isinstance(path, audio.Member) else path.relative_to(data.root / split)
            files[utterance] = place.as_posix()
    if spaced := sorted(name for name in files.values() if name.split() != [name]):
        raise DataError(f"'{spaced[0]}' has a space, expected none in a list of lines 'label path path': rename it")
    found = all_pairs([*files], trials, seed)
    named = [files[utterance] for utterance in found.utterances]
    pairs = zip(found.target.tolist(), found.pairs.tolist(), strict=True)
    with whole(output) as partial:
        partial.write_text("".join(f"{int(label)} {named[one]} {named[other]}\n" for label, (one, other) in pairs))
    Console().print(f"{len(found.pairs)} trials in {output}", markup=False, soft_wrap=True)


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: default: those of the process.
    """
    command(write, "python -m sec4sr_pl.data.trial_list", "Write a list of trials.", args, resumes=False)


if __name__ == "__main__":
    main()
