"""A command of several processes, one of which ended as it was told to, ends alike."""

import os
import signal
from pathlib import Path

import pytest
from forked import Forked

SCRIPT = """
import os, subprocess, sys, time
from sec4sr_pl import processes
processes.GRACE = 0

class Late(subprocess.Popen):  # ends between the first look at it and the second
    looks = 0

    def poll(self):
        self.looks += 1
        return None if self.looks == 1 else self.wait()

child = Late([sys.executable, "-c", "import os; os._exit({code})"])
observer = processes.subprocess_script._ChildProcessObserver(os.getpid(), [child], sleep_period=0)
if {heard}:
    observer._child_processes = []
observer.start()
time.sleep(2 if {heard} else 60)
"""


@pytest.mark.parametrize(
    ("code", "heard", "status"),
    [
        (143, False, 143),
        pytest.param(130, False, 130, marks=pytest.mark.slow),
        pytest.param(1, False, -signal.SIGKILL, marks=pytest.mark.slow),  # as Lightning does
        pytest.param(143, True, 0, marks=pytest.mark.slow),
    ],
)
def test_a_process_that_waits_for_one_that_was_stopped_ends_with_its_status(
    code: int, heard: bool, status: int, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(code=code, heard=heard))
    process = Forked([str(tmp_path / "script.py")], tmp_path, os.environ)
    assert process.wait(120) == status
