"""Every benchmark runs, at its smallest size, on a machine with Python alone and no data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_background_runs import folder as folder
from test_background_runs import run

ROOT = Path(__file__).parent.parent
HELPERS = {"naive", "setting", "turns"}
BENCHMARKS = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - HELPERS)
QUICKEST = ("power_spectrum",)


@pytest.mark.parametrize(
    "name", [name if name in QUICKEST else pytest.param(name, marks=pytest.mark.slow) for name in BENCHMARKS]
)
def test_a_benchmark_runs_at_its_smallest_size(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    arguments = []
    if name == "plda":  # on a system that is there
        folder = request.getfixturevalue("folder")
        run(folder)
        arguments.append(str(folder / "models"))
    variables = {key: value for key, value in os.environ.items() if key != "SEC4SR_DATA"}
    subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{name}.py", *arguments, "--smallest"],
        cwd=ROOT,
        env=variables | {"SEC4SR_BARE": "1", "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        check=True,
    )


def test_make_bench_names_benchmarks_that_there_are() -> None:
    named = {Path(word).stem for word in (ROOT / "Makefile").read_text().split() if word.startswith("benchmarks/")}
    assert named and named <= set(BENCHMARKS)
