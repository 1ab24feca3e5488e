"""`python -m proxy` is the command `stellarchat`."""

from proxy.cli import main

main()
