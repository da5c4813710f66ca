"""The program: ``safelight``, or ``python -m safelight``."""

from __future__ import annotations

import gc
import signal


def main() -> None:
    """Run the command line; jobs turn the collector on again, and heed Ctrl-C."""
    gc.disable()  # imports leave no garbage, and looking for it takes a twelfth of the time of --help
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # while modules load, nothing is to be kept, nor to be said
    from safelight import cli

    cli.main()


if __name__ == "__main__":
    main()
