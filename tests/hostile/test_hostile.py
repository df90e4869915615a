"""Whatever is spoiled, a command says what in one line, and leaves no trace."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hostile import checkpoints, flags, folders, lists, sounds, texts
from hostile.good import COMMANDS, INPUTS, make, works
from hostile.place import Case, Command, Place


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unspoiled inputs."""
    return make(tmp_path_factory.mktemp("good"), tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def place(good: Path, tmp_path: Path) -> Place:
    """The folder of a case."""
    return Place(tmp_path / "watched", good)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_unspoiled_every_command_works(command: Command, place: Place) -> None:
    for name in INPUTS:
        place.bring(name)
    works(command, place)


FAMILIES = (sounds, texts, checkpoints, lists, folders, flags)
EVERY = 5
"""Of so many cases one is for the fast tests; all are for the slow ones."""


def all_cases() -> Iterator[Case]:
    """Those of all families."""
    for family in FAMILIES:
        yield from family.cases()


def cases() -> Iterator[Any]:
    """All cases, as parameters."""
    for number, case in enumerate(all_cases()):
        yield pytest.param(case, id=case.name, marks=[pytest.mark.slow] if number % EVERY else [])


@pytest.mark.parametrize("case", cases())
def test_spoiled_it_is_one_line_and_no_trace(case: Case, place: Place) -> None:
    found = case.faults(place)
    assert not found, "\n".join(found)
