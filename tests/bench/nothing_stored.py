"""`python -m tests.bench.nothing_stored serve`: StellarChat whose transactions are empty, a row of the benchmark.

What is left is what recording costs before a statement is run: the exchange and its reply are taken, wait in the queue,
go to the writer's thread and come back, and the end of the reply waits for that.
"""

from typing import Any

from proxy.cli import main
from proxy.storage import exchange_store


def _nothing(*_: Any, **__: Any) -> None:
    """In place of what stores."""


if __name__ == "__main__":
    for name in ("begin", "append_fragment", "delete_fragments", "finish", "finish_begun"):
        assert hasattr(exchange_store, name)
        setattr(exchange_store, name, _nothing)
    main()
