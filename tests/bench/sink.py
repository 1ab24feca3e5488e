"""Stands for a collector of logs: `python -m tests.bench.sink PORT FILE` appends what is posted to it, a line each.

It ends soon after the process that started it, so that it outlives a `kill -9` of that just long enough to take what
was on its way.
"""

import asyncio
import os
import sys
from asyncio import StreamReader, StreamWriter
from pathlib import Path
from typing import BinaryIO

from tests.bench import wire

_LOOK_S = 0.5
_REPLY = wire.plain_reply("200 OK", {})


async def serve(port: int, path: Path) -> None:
    parent = os.getppid()
    with path.open("ab", buffering=0) as file:

        async def take(reader: StreamReader, writer: StreamWriter) -> None:
            await _take(reader, writer, file)

        server = await asyncio.start_server(take, "127.0.0.1", port)
        while os.getppid() == parent:
            await asyncio.sleep(_LOOK_S)
        server.close()


async def _take(reader: StreamReader, writer: StreamWriter, file: BinaryIO) -> None:
    """Read one request after the other off a connection; a sender that is killed leaves its last one incomplete."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(wire.content_length(head) or 0)
            file.write(body + b"\n")
            writer.write(_REPLY)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
