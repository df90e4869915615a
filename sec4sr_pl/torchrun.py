"""torchrun that ends with 143 on SIGTERM, as train.py does: `python -m sec4sr_pl.torchrun --nproc-per-node 4 train.py`.

torchrun's own status is 1, whether it was told to stop or its script failed: no job script could tell them apart.
"""

import signal

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def torchrun(args: list[str] | None = None) -> None:
    """Run torchrun, which tells its processes to stop when it is told to.

    Args:
        args: of torchrun; default: those of the process.
    """
    try:
        main(args)
    except SignalException as stop:
        raise SystemExit(128 + stop.sigval) from None
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        stopped = 128 + signal.SIGTERM
        raise SystemExit(stopped if codes == {stopped} else 1) from error


if __name__ == "__main__":
    torchrun()
