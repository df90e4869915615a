"""YAML of command lines is looked over before it is read."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from sec4sr_pl.command import command
from sec4sr_pl.data import SpeakerData
from sec4sr_pl.yaml_files import BYTES, ConfigError, look_over

TENFOLD = "\n".join(
    [
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)),
    ]
)
MERGED = "\n".join(["m0: &m0 {k: v}", *(f"m{n}: &m{n} {{<<: [*m{n - 1}, *m{n - 1}]}}" for n in range(1, 40))])
TEXTS = {
    "aliases": (TENFOLD, "more than 100,000 values"),
    "merged": (MERGED, "more than 100,000 values"),
    "merged in a string": (f"number: |\n  {{{', '.join(MERGED.splitlines())}}}", "more than 100,000 values"),
    "itself": ("things: &a [*a]", "an alias of itself"),
    "deep": ("things: " + 500 * "[" + 500 * "]", "more than 100 levels"),
    "deeper than the stack": ("things: " + 100_000 * "[", "levels|maximum nesting depth"),
    "large": ("things: " + BYTES * "x", "at most 1,048,576 bytes"),
    "no text": (b"things: [\xff]", "0xff"),
    "code": ("things: !!python/object/apply:os.system [touch canary]", "no YAML of plain data: .*apply:os.system"),
    "digits": ("number: " + 5_000 * "9", "5000 digits"),
    "no YAML": ("things: [1,\nnumber: 2\n", "a.yaml is no YAML of plain data: .*line 3"),
    "trust": ("trusted: os", "that is a flag, --trusted"),
}


def take(things: dict[str, Any] | list[Any] | None = None, number: int = 0) -> Any:
    """What came.

    Args:
        things: some.
        number: one.
    """
    return things, number


def hear(data: SpeakerData) -> None:
    """Nothing.

    Args:
        data: from a file of its own.
    """


@pytest.mark.parametrize("case", TEXTS)
@pytest.mark.parametrize("nested", [False, True])
def test_a_hostile_file_ends_a_command_with_one_line(
    case: str, nested: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = TEXTS[case]
    Path("a.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit) as ended:
        command(hear if nested else take, "take", "Take.", ["--data" if nested else "--config", "a.yaml"])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code in (1, 2) and len(lines) == 1
    assert re.search(message, lines[0])
    assert not Path("canary").exists()


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [pipe, Path.mkdir])
@pytest.mark.parametrize("flag", ["--config", "--data"])
def test_what_is_no_file_is_not_waited_for(
    make: Any, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a.yaml")
    with pytest.raises(SystemExit):
        command(hear, "hear", "Hear.", [flag, str(tmp_path / "a.yaml")])
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_files_as_they_are_written_are_read_as_before(tmp_path: Path) -> None:
    text = "things: {a: &a [1, 1.5e-3], b: *a, c: {<<: &d {x: true}, y: null}, d: *d, e: '*', f: a * b}\nnumber: 3\n"
    (tmp_path / "a.yaml").write_text(text)
    a, d = [1, 1.5e-3], {"x": True}
    expected = {"a": a, "b": a, "c": {**d, "y": None}, "d": d, "e": "*", "f": "a * b"}
    assert command(take, "take", "Take.", ["--config", str(tmp_path / "a.yaml")]) == (expected, 3)


def test_aliases_count_as_what_they_stand_for() -> None:
    thousand = "[" + 1_000 * "x," + "]"
    look_over(f"a: &a {thousand}\nb: [{98 * '*a,'}]")
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        look_over(f"a: &a {thousand}\nb: [{99 * '*a,'}]")
