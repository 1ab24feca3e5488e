"""Content codings undone for the record: what is compressed passes as it is, and is read on the side. Pure."""

import zlib
from importlib import import_module
from typing import Any, Protocol


class TooLargeError(ValueError):
    """More comes out than may."""


class Decoding(Protocol):
    """One body being decoded. Raises ValueError for what is not in its coding."""

    def decode(self, data: bytes) -> bytes:
        """What the next piece holds."""


def decoding_of(coding: bytes | None, *, limit_bytes: int) -> Decoding | None:
    """The decoding of a Content-Encoding; None where it is none, and ValueError where no decoder is there."""
    name = (coding or b"").strip().lower().removeprefix(b"x-")
    if name in (b"", b"identity"):
        return None
    if name in (b"gzip", b"deflate"):
        return _Zlib(limit_bytes)
    if name == b"br":
        return _Other(_module("brotli", "brotlicffi").Decompressor(), limit_bytes)
    if name == b"zstd":
        zstd = _module("compression.zstd", "zstandard")
        made = zstd.ZstdDecompressor()
        return _Other(made if zstd.__name__ == "compression.zstd" else made.decompressobj(), limit_bytes)
    raise ValueError(f"no decoder for {name!r}")


def decoded(body: bytes, coding: bytes | None, *, limit_bytes: int) -> bytes:
    """A whole body. Raises ValueError."""
    decoding = decoding_of(coding, limit_bytes=limit_bytes)
    return body if decoding is None else decoding.decode(body)


class Undecodable:
    """A coding that nothing here reads."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def decode(self, data: bytes) -> bytes:
        """Raises ValueError."""
        raise ValueError(self._reason)


class _Zlib:
    """gzip, and deflate with or without zlib's own head (RFC 9110 §8.4.1.2 and what some servers send)."""

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes
        self._decoder: Any = None

    def decode(self, data: bytes) -> bytes:
        out = []
        while data:
            if self._decoder is None:
                is_bare = data[:1] not in (
                    b"\x1f",
                    b"\x78",
                    b"\x58",
                    b"\x38",
                    b"\x18",
                    b"\x08",
                    b"\x28",
                    b"\x48",
                    b"\x68",
                )
                self._decoder = zlib.decompressobj(-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS | 32)
            try:
                piece = self._decoder.decompress(data, self._left + 1)
            except zlib.error as exc:
                raise ValueError(str(exc)) from exc
            self._left -= len(piece)
            if self._left < 0:
                raise TooLargeError("a compressed body is too large")
            out.append(piece)
            data = self._decoder.unused_data  # another member of a gzip file
            if self._decoder.eof:
                self._decoder = None
                if data[:2] != b"\x1f\x8b":
                    break
            else:
                break
        return b"".join(out)


class _Other:
    def __init__(self, decoder: Any, limit_bytes: int) -> None:
        self._decoder = decoder
        self._left = limit_bytes

    def decode(self, data: bytes) -> bytes:
        call = getattr(self._decoder, "decompress", None) or self._decoder.process
        try:
            piece: bytes = call(data)
        except Exception as exc:  # each of these libraries has errors of its own
            raise ValueError(str(exc)) from exc
        self._left -= len(piece)
        if self._left < 0:
            raise TooLargeError("a compressed body is too large")
        return piece


def _module(*names: str) -> Any:
    for name in names:
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ValueError(f"no decoder is installed: {names[0]}")
