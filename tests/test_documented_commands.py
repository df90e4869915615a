"""Every command that the README and the pages show is one that the command lines understand."""

import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sec4sr_pl import evaluation
from sec4sr_pl.cli import train

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHER_PARSERS = ("sec4sr_pl.checkpoint", "sec4sr_pl.data.librispeech", "sec4sr_pl.data.download")


def documented() -> list[str]:
    """The commands of our own parsers in the pages' blocks of code, each on one line."""
    blocks = [block for page in PAGES for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL)]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    commands = {shlex.join(shlex.split(line, comments=True)) for line in lines if line.startswith("python ")}
    ours = ("python train.py ", "python evaluate.py ", "python -m sec4sr_pl.")
    return sorted(c for c in commands if c.startswith(ours) and "..." not in c and c.split()[2] not in OTHER_PARSERS)


def test_the_pages_show_commands() -> None:
    assert len(documented()) > 20


@pytest.mark.parametrize("command", documented())
def test_a_documented_command_is_understood(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["train.py"])
    _, script, *args = shlex.split(command)
    main: Callable[[list[str]], Any]
    if script == "-m":
        module, *args = args
        found = importlib.import_module(module)
        main = found.main if hasattr(found, "main") else importlib.import_module(f"{module}.__main__").main
    else:
        main = {"train.py": train, "evaluate.py": evaluation.main}[script]
    with pytest.raises(SystemExit) as stopped:
        main([*args, "--print_config"])  # parses everything and stops
    assert not stopped.value.code, capsys.readouterr().err
    assert capsys.readouterr().out
