"""The console script, and `python -m proxy`: no traceback on Ctrl-C, even while the program is still being loaded."""

import os
import sys


def main() -> None:
    """Run the command `stellarchat`."""
    try:
        from proxy import cli  # takes most of a second

        cli.main()
    except KeyboardInterrupt:
        os.write(sys.stderr.fileno(), b"stellarchat: interrupted\n")
        os._exit(130)


if __name__ == "__main__":
    main()
