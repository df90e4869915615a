"""docs/attacks.md says of the attacks what their classes say."""

import inspect
import math
import runpy
from pathlib import Path
from typing import Any

import pytest

from sec4sr_pl import attacks
from sec4sr_pl.attacks import CW2, FAKEBOB, PGD, Attack, AutoAttack, CWinf, Square

DOCS: dict[str, Any] = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "attacks.py"))
CLASSES: list[type[Attack]] = DOCS["classes"]()


def test_the_table_of_attacks_is_that_of_the_classes() -> None:
    assert DOCS["PAGE"].read_text(encoding="utf-8") == DOCS["page"](), "stale: run python docs/attacks.py"


def test_each_exported_attack_has_one_row_and_a_cell_under_every_title() -> None:
    rows = [line.strip("| \n").split(" | ") for line in DOCS["table"]().splitlines()]
    assert {len(row) for row in rows} == {8}
    names = [name for name in attacks.__all__ if name not in ("Attack", "WorstCase")]
    expected = {f"`{name}`" for name in names if hasattr(getattr(attacks, name), "perturb")}
    assert sorted(row[0] for row in rows[2:]) == sorted(expected)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        (PGD, ["L∞", "gradient", "all", "`draws`", "last iterate", "epsilon=0.002, step_size=0.0004, steps=10, "]),
        (PGD, ["Madry et al., 2018 |"]),
        (CWinf, ["| the margin of Carlini and Wagner, 2017, in the ball |"]),
        (CW2, ["L2, no ball", "smallest success", "Carlini and Wagner, 2017, section VI.A |"]),
        (Square, ["| scores |", "Andriushchenko et al., 2020, algorithm 1; its squares are segments here |"]),
        (FAKEBOB, ["| scores |", "| Chen et al., 2021, algorithm 1 |"]),
        (AutoAttack, ['`version="rand"`', "gradient and scores", "worst of its members"]),
    ],
)
def test_a_row_says_what_is_known_of_the_attack(kind: type[Attack], parts: list[str]) -> None:
    (row,) = [line for line in DOCS["table"]().splitlines() if line.startswith(f"| `{kind.__name__}` |")]
    assert all(part in row for part in parts)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_an_attack_whose_defaults_do_not_fit_says_so(kind: type[Attack]) -> None:
    """Without a gradient source it says what it knows; without an epsilon, what limits it or that nothing does."""
    said = {name for parent in kind.__mro__[: kind.__mro__.index(Attack)] for name in vars(parent)}
    if "source" not in inspect.signature(kind).parameters:
        assert "knowledge" in said
    if getattr(kind, "epsilon", 0.0) == math.inf:
        assert "distance" in said
        assert kind.distance != "L∞"
