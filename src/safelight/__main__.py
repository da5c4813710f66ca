"""The program: ``safelight``, or ``python -m safelight``."""

from __future__ import annotations

import gc


def main() -> None:
    """Run the command line; jobs turn the collector on again."""
    gc.disable()  # imports leave no garbage, and looking for it takes a twelfth of the time of --help
    from safelight import cli

    cli.main()


if __name__ == "__main__":
    main()
