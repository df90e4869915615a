"""Trial lists as they are handed around: read where their form is plain, else refused with a command that converts."""

import re
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from conftest import MakeRecognizer
from test_trial_files import root as root  # fixture

from sec4sr_pl.data import SpeakerData
from sec4sr_pl.data.manifest import DataError
from sec4sr_pl.data.trials import read_trials
from sec4sr_pl.enrollment import enroll
from sec4sr_pl.recognizer import Recognizer
from sec4sr_pl.scoring import Cosine

TRIALS = [(True, "a/1.wav", "a/2.wav"), (False, "a/1.wav", "b/1.wav"), (False, "a/2.wav", "b/1.wav")]


def read(path: Path) -> list[tuple[bool, str, str]]:
    from sec4sr_pl.data.trial_lines import read_list

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_list(path)


def converted(message: str, which: int = 0) -> list[tuple[bool, str, str]]:
    """The list that a command in a message makes."""
    command = re.findall(r"(?:awk|sed) .*? > converted\.txt", message)[which]
    subprocess.run(command, shell=True, check=True)
    return read(Path("converted.txt"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def listed(form: str, one: str, two: str) -> Path:
    """A list whose name a shell would split."""
    path = Path("a list.txt")
    path.write_text("".join(form.format(label=one if same else two, a=a, b=b) + "\n" for same, a, b in TRIALS))
    return path


@pytest.mark.parametrize(
    "form", ["{label} {a} {b}", "{a} {b} {label}", "{label}\t{a}\t{b}", "{a},{b}, {label}", "{a};{b};{label}"]
)
@pytest.mark.parametrize(
    "words",
    [("1", "0"), ("target", "nontarget"), ("tgt", "imp"), ("TARGET", "Imposter"), ("True", "False"), ("1", "-1")],
)
def test_a_list_is_read_whose_label_is_plain(form: str, words: tuple[str, str]) -> None:
    assert read(listed(form, *words)) == TRIALS


def test_a_mark_of_the_order_of_bytes_is_no_part_of_the_first_line() -> None:
    path = listed("{label} {a} {b}", "1", "0")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(path) == TRIALS


def test_between_tabs_and_commas_a_path_may_have_a_space() -> None:
    Path("list.txt").write_text("a 1.wav\ta 2.wav\ttarget\n")
    assert read(Path("list.txt")) == [(True, "a 1.wav", "a 2.wav")]
    Path("list.txt").write_text("imp, a 1.wav, b, \n")
    with pytest.raises(DataError):
        read(Path("list.txt"))


@pytest.mark.parametrize(
    ("form", "one", "two"),
    [
        ("{a} {label} {b}", "target", "nontarget"),
        ("{a}\t{b}\tleft\t{label}", "target", "nontarget"),
        ("{label},{a},{b},left", "tgt", "imp"),
        ("{a} {b} {label}", "yes", "no"),
        ("{a} , {b} , {label}", "positive", "negative"),
        ("{a} {b} male {label}", "T", "F"),
    ],
)
def test_another_form_is_refused_with_a_command_that_converts_it(form: str, one: str, two: str) -> None:
    path = listed(form, one, two)
    with pytest.raises(DataError, match=r"^Line 1 of a list\.txt is '.*': expected 'label path path' or ") as refused:
        read(path)
    assert converted(str(refused.value)) == TRIALS


def test_a_header_is_refused_with_a_command_that_removes_it() -> None:
    path = listed("{a},{b},{label}", "1", "0")
    path.write_text("enroll,test,label\n" + path.read_text())
    with pytest.raises(
        DataError, match=r"^Line 1 .*; if it is a header, sed 1d 'a list\.txt' > converted\.txt$"
    ) as refused:
        read(path)
    assert converted(str(refused.value)) == TRIALS


@pytest.mark.parametrize(("first", "expected"), [(True, (True, "a", "./0")), (False, (False, "./1", "a"))])
def test_a_label_at_both_ends_is_refused_with_a_command_for_each_meaning(
    first: bool, expected: tuple[bool, str, str]
) -> None:
    Path("list.txt").write_text("1 a 0\n")
    with pytest.raises(DataError, match=r"if the first of them is the label, convert it by awk .*, else by") as refused:
        read(Path("list.txt"))
    assert converted(str(refused.value), which=0 if first else 1) == [expected]


@pytest.mark.parametrize("line", ["a.wav", "a.wav b.wav", "1 a b 0", "a b '$(touch x)'"])
def test_a_line_that_no_command_can_mend_is_refused_without_one(line: str) -> None:
    Path("list.txt").write_text(line)
    with pytest.raises(DataError, match=r"tabs, commas or semicolons$"):
        read(Path("list.txt"))


@pytest.mark.parametrize("form", ["{label} {a} {b}", "{a},{b},{label}"])
def test_a_file_against_itself_is_told_with_a_command_that_leaves_it_out(form: str) -> None:
    from sec4sr_pl.data.trial_lines import read_list

    path = listed(form, "1", "0")
    path.write_text(path.read_text() + form.format(label=1, a="b/1.wav", b="b/1.wav"))
    with pytest.warns(UserWarning, match=r"^1 of the 4 trials of .* try a file against itself") as told:
        assert len(read_list(path)) == 4
    assert converted(str(told[0].message)) == TRIALS


def test_a_file_is_of_no_other_speaker_than_itself() -> None:
    Path("list.txt").write_text("1 a b\n0 b b\n")
    with pytest.raises(DataError, match=r"Line 2 of list\.txt says that b is of another speaker than itself"):
        read(Path("list.txt"))


def test_a_list_in_the_manner_of_kaldi_without_extensions_names_the_files(root: Path) -> None:
    lines = (line.split() for line in (root / "list.txt").read_text().splitlines())
    kaldi = [f"{a[:-4]} {b[:-4]} {'target' if label == '1' else 'nontarget'}\n" for label, a, b in lines]
    (root / "kaldi.txt").write_text("".join(kaldi))
    data = SpeakerData(root, "test", trials=Path("kaldi.txt"))
    plain, other = (read_trials(root / name, root) for name in ("list.txt", "kaldi.txt"))
    assert torch.equal(plain.pairs, other.pairs) and torch.equal(plain.target, other.target)
    assert torch.equal(data.trials().pairs, plain.pairs)


def test_a_dot_in_a_name_is_no_extension(root: Path) -> None:
    for path in (root / "test").rglob("*.wav"):
        path.rename(path.with_name(f"v1.{path.name}"))
    lines = re.sub(r"(\w+-\d)\.wav", r"v1.\1", (root / "list.txt").read_text())
    (root / "list.txt").write_text(lines)
    assert len(SpeakerData(root, "test", trials=Path("list.txt")).trials().pairs) == 15


def test_verification_is_enrolled_by_such_a_list(root: Path, make_recognizer: MakeRecognizer) -> None:
    made = make_recognizer()
    thresholds = []
    for form in ("{0} {1} {2}", "{1},{2},{0}"):
        lines = [form.format(*line.split()) for line in (root / "list.txt").read_text().splitlines()]
        (root / "other.txt").write_text("\n".join(lines))
        recognizer = Recognizer(made.features, made.backbone, Cosine())
        enroll(recognizer, SpeakerData(root, "test", trials=Path("other.txt")), task="SV")
        thresholds.append(float(recognizer.scorer.threshold))
    assert thresholds[0] == thresholds[1]
