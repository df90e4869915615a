"""The lines of trial lists, in the forms in which they are handed around."""

import re
import shlex
import warnings
from pathlib import Path
from typing import NamedTuple

from sec4sr_pl.data.manifest import DataError
from sec4sr_pl.files import read_text

LABELS = {
    **dict.fromkeys(("1", "1.0", "target", "tgt", "true"), True),
    **dict.fromkeys(("0", "0.0", "-1", "nontarget", "non-target", "imp", "impostor", "imposter", "false"), False),
}
"""Words for trials of one speaker, and of two, in small letters."""
SEPARATORS = {None: "", "\t": r"-F'\t' ", ",": "-F' *, *' ", ";": "-F' *; *' "}
"""What stands between fields (None: white space), and how awk is told."""
FORMS = (
    "expected 'label path path' or 'path path label', with labels 1 or 0, target or nontarget, tgt or imp, between "
    "spaces, tabs, commas or semicolons"
)


class Form(NamedTuple):
    """How the lines of a list are written."""

    separator: str | None
    label: int
    """The field of the label, 0 or 2."""

    def read(self, line: str) -> tuple[bool, str, str] | None:
        """The (label, enroll, test) of a line; None where it has another form."""
        fields = split(line, self.separator)
        label = LABELS.get(fields[self.label].lower()) if len(fields) == 3 else None
        if label is None:
            return None
        return (label, fields[1], fields[2]) if self.label == 0 else (label, fields[0], fields[1])

    def without_self(self, path: Path) -> str:
        """The command that leaves out trials of a file against itself."""
        one, other = (field + 1 for field in range(3) if field != self.label)
        return awk(self.separator, f"${one} != ${other}", path)


def split(line: str, separator: str | None) -> list[str]:
    """The fields of a line, without white space around them."""
    return line.split() if separator is None else [field.strip() for field in line.split(separator)]


def awk(separator: str | None, program: str, path: Path) -> str:
    """A command that makes another list of one."""
    return f"awk {SEPARATORS[separator]}'{program}' {shlex.quote(str(path))} > converted.txt"


def find_form(line: str) -> Form | None:
    """The form of a line; None: it has no label at an end, or one at both, or not two other fields."""
    for separator in SEPARATORS:
        fields = split(line, separator)
        ends = [place for place in (0, 2) if len(fields) == 3 and fields[place].lower() in LABELS]
        if len(ends) == 1:
            return Form(separator, ends[0])
    return None


def how_to_convert(line: str, path: Path) -> str:
    """A command that makes a list in a form that is read of one of such lines, to end a sentence; or nothing."""
    separator = next((mark for mark in (",", "\t", ";") if line.count(mark) > 1), None)
    fields = split(line, separator)
    labels = [place + 1 for place, field in enumerate(fields) if field.lower() in LABELS]
    if len(fields) < 3:
        return ""
    if len(fields) == 3 and labels == [1, 3]:
        first, last = (awk(separator, f"{{print {what}}}", path) for what in ('$1, $2, "./" $3', '$3, "./" $1, $2'))
        return f"; if the first of them is the label, convert it by {first}, else by {last}"
    if len(labels) == 1:
        one, other, *more = [place for place in range(1, len(fields) + 1) if place not in labels]
        sure = "" if not more else f"if {fields[one - 1]} and {fields[other - 1]} are the files, "
        return f"; {sure}convert it by " + awk(separator, f"{{print ${labels[0]}, ${one}, ${other}}}", path)
    if not labels and re.fullmatch(r"[\w.+-]+", word := fields[-1]):
        made = awk(separator, f'{{print (${len(fields)} == "{word}"), $1, $2}}', path)
        return f"; if '{word}' is said of one speaker, convert it by {made}"
    return ""


def read_list(path: Path) -> list[tuple[bool, str, str]]:
    """The (label, enroll, test) of each line of a list; the first line shows the form of all.

    Trials that stand twice are kept, for the figures of others count them twice, and so are those of a file against
    itself, both with a warning.

    Args:
        path: of lines in one of the `FORMS`; empty lines do not count.

    Raises:
        DataError: no such file, no trial in it, lines in another form, a pair with both labels, or a file that shall be
            of another speaker than itself.
    """
    if not path.is_file():
        raise DataError(f"There is no trial list {path}: {FORMS}")
    form: Form | None = None
    labels: dict[tuple[str, str], bool] = {}
    names: dict[str, str] = {}  # of one text each in memory, though a list names most of them often
    trials = []
    alone = 0
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        form = find_form(line) if form is None else form
        trial = None if form is None else form.read(line)
        if trial is None:
            header = number == 1 and len(lines) > 1 and find_form(lines[1]) is not None
            way = f"; if it is a header, sed 1d {shlex.quote(str(path))} > converted.txt" if header else None
            raise DataError(f"Line {number} of {path} is '{line}': {FORMS}{way or how_to_convert(line, path)}")
        label, enroll, test = trial
        enroll, test = names.setdefault(enroll, enroll), names.setdefault(test, test)
        if enroll == test and not label:
            raise DataError(f"Line {number} of {path} says that {enroll} is of another speaker than itself")
        if labels.setdefault((enroll, test), label) != label:
            raise DataError(f"Line {number} of {path} gives '{enroll} {test}' the other label than before")
        alone += enroll == test
        trials.append((label, enroll, test))
    if not trials or form is None:
        raise DataError(f"{path} holds no trial: {FORMS}")
    if alone:
        warnings.warn(
            f"{alone} of the {len(trials)} trials of {path} try a file against itself, which any recognizer accepts: "
            f"figures on them are too good; leave them out by {form.without_self(path)}",
            stacklevel=2,
        )
    if len(labels) < len(trials):
        warnings.warn(f"{len(trials) - len(labels)} of the {len(trials)} trials of {path} repeat another", stacklevel=2)
    return trials
