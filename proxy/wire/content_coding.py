"""Content codings undone for the record: what is compressed passes as it is, and is read on the side. Pure."""

import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

# What stands for none: as the standard has it, and as servers have been seen to write it.
_NO_CODINGS = frozenset({b"", b"identity", b"none", b"utf-8"})
_CODINGS_MAX = 4
_TEXTS = (b'{"', b"{\n", b"{\r", b"{ ", b"data:", b"event:", b"id: ", b"retry:", b": ", b"<html", b"<!DOC", b"<!doc")


class TooLargeError(ValueError):
    """More comes out than may."""


class Decoding(Protocol):
    """One body being decoded. Raises ValueError for what is not in its coding."""

    def decode(self, data: bytes) -> bytes:
        """What the next piece holds."""


def decoding_of(coding: bytes | None, *, limit_bytes: int) -> Decoding | None:
    """The decoding of a Content-Encoding; None where it is none, and ValueError where no decoder is there.

    Several codings are undone in reverse, since each was applied to what the one before had made (RFC 9110 §8.4).
    """
    names = [name.strip().lower().removeprefix(b"x-") for name in (coding or b"").split(b",")]
    names = [name for name in names if name not in _NO_CODINGS]
    if len(names) > _CODINGS_MAX:
        raise ValueError("too many content codings")
    decodings: list[Decoding] = [_Labelled(name, limit_bytes) for name in reversed(names)]
    return _InTurn(decodings) if len(decodings) > 1 else next(iter(decodings), None)


def _decoder_of(name: bytes, limit_bytes: int) -> Decoding:
    if name in (b"gzip", b"deflate"):
        return _Zlib(limit_bytes)
    if name == b"br":
        return _Other(_module("brotli", "brotlicffi").Decompressor, limit_bytes)
    if name == b"zstd":
        zstd = _module("compression.zstd", "zstandard")
        is_of_python = zstd.__name__ == "compression.zstd"
        return _Other(zstd.ZstdDecompressor if is_of_python else zstd.ZstdDecompressor().decompressobj, limit_bytes)
    raise ValueError(f"no decoder for {name!r}")


def decoded(body: bytes, coding: bytes | None, *, limit_bytes: int) -> bytes:
    """A whole body. Raises ValueError."""
    decoding = decoding_of(coding, limit_bytes=limit_bytes)
    return body if decoding is None else decoding.decode(body)


class _InTurn:
    """Several codings, the last applied first."""

    def __init__(self, decodings: list[Decoding]) -> None:
        self._decodings = decodings

    def decode(self, data: bytes) -> bytes:
        for decoding in self._decodings:
            data = decoding.decode(data)
        return data


class _Labelled:
    """One coding as its label says it. Some servers label what is not encoded: such a body is read as it is."""

    def __init__(self, name: bytes, limit_bytes: int) -> None:
        self._name = name
        self._limit_bytes = limit_bytes
        self._begun: bytes | None = b""
        self._decoder: Decoding | None = None

    def decode(self, data: bytes) -> bytes:
        if self._begun is not None:
            self._begun += data
            if (is_text := _is_text(self._begun)) is None:
                return b""  # the next piece tells
            data, self._begun = self._begun, None
            self._decoder = None if is_text else _decoder_of(self._name, self._limit_bytes)
        return data if self._decoder is None else self._decoder.decode(data)


def _is_text(begun: bytes) -> bool | None:
    """Whether a body begins as JSON, HTML or an event stream does, which nothing encoded is likely to; None: too short.

    The first byte alone does not tell: bare deflate may begin with any.
    """
    text = begun.removeprefix(b"\xef\xbb\xbf").lstrip()
    known = [start for start in _TEXTS if start.startswith(text[: len(start)])]
    if any(len(text) >= len(start) for start in known):
        return True
    return None if known else False


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
    """A coding of another library; a body may hold several frames, one after the other."""

    def __init__(self, make: Callable[[], Any], limit_bytes: int) -> None:
        self._make = make
        self._decoder: Any = None
        self._left = limit_bytes

    def decode(self, data: bytes) -> bytes:
        out = []
        while data:
            self._decoder = self._decoder or self._make()
            out.append(self._piece(data))
            if not getattr(self._decoder, "eof", False):
                break
            data, self._decoder = self._decoder.unused_data, None
        return b"".join(out)

    def _piece(self, data: bytes) -> bytes:
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
