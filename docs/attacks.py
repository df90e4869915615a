"""Write the table of docs/attacks.md from the attack classes: python docs/attacks.py."""

import inspect
import re
from pathlib import Path

from sec4sr_pl import attacks
from sec4sr_pl.attacks import Attack

PAGE = Path(__file__).with_suffix(".md")
BEGIN, END = "<!-- table: written by docs/attacks.py -->\n", "<!-- end of table -->\n"


def classes() -> list[type[Attack]]:
    """All attacks that the package exports, by name."""
    exported = [getattr(attacks, name) for name in attacks.__all__]
    found = [kind for kind in exported if inspect.isclass(kind) and issubclass(kind, Attack)]
    return sorted((kind for kind in found if not inspect.isabstract(kind)), key=lambda kind: kind.__name__.lower())


def paper(kind: type[Attack]) -> str:
    """What the docstring says after `Source:`, without titles; empty where it says nothing."""
    _, _, source = inspect.cleandoc(kind.__doc__ or "").partition("Source: ")
    return re.sub(r' ?"[^"]*",?', "", " ".join(source.split())).removesuffix(".")


def cells(kind: type[Attack]) -> list[str]:
    """What the table says of a class."""
    parameters = inspect.signature(kind).parameters.values()
    return [
        f"`{kind.__name__}`",
        kind.distance + ("" if kind.bounded else ", no ball"),
        kind.knowledge,
        kind.tasks,
        kind.randomized or ("`draws`" if any(p.name == "draws" for p in parameters) else "-"),
        kind.returns,
        ", ".join(p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters) or "-",
        paper(kind) or "-",
    ]


def table() -> str:
    """The table, Markdown."""
    titles = ["attack", "norm", "knowledge", "tasks", "randomized recognizers", "returns", "parameters", "paper"]
    lines = [titles, ["---"] * len(titles), *map(cells, classes())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page() -> str:
    """docs/attacks.md with the table as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
