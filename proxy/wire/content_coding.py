"""Decodes compressed bodies for the record; the caller gets the encoded bytes unchanged. Pure."""

import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

# Values that mean "not encoded": those of RFC 9110, and others that servers have been seen to send.
_NO_CODINGS = frozenset({b"", b"identity", b"none", b"utf-8"})
_CODINGS_MAX = 4
_TEXTS = (b'{"', b"{\n", b"{\r", b"{ ", b"data:", b"event:", b"id: ", b"retry:", b": ", b"<html", b"<!DOC", b"<!doc")


class TooLargeError(ValueError):
    """The decoded body exceeds the limit."""


class Decoding(Protocol):
    """A streaming decoder for one body. Raises ValueError on invalid data."""

    def decode(self, data: bytes) -> bytes:
        """Decodes the next piece."""


def decoding_of(coding: bytes | None, *, limit_bytes: int) -> Decoding | None:
    """A decoder for a Content-Encoding; None if there is no coding, ValueError if no decoder is available.

    Several codings are decoded in reverse order, because each was applied to the output of the one before it
    (RFC 9110 §8.4).
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
    """Decodes a whole body. Raises ValueError."""
    decoding = decoding_of(coding, limit_bytes=limit_bytes)
    return body if decoding is None else decoding.decode(body)


class _InTurn:
    """Several codings; the one applied last is decoded first."""

    def __init__(self, decodings: list[Decoding]) -> None:
        self._decodings = decodings

    def decode(self, data: bytes) -> bytes:
        for decoding in self._decodings:
            data = decoding.decode(data)
        return data


class _Labelled:
    """One coding, as named by the header. Some servers name a coding but send plain text: that is passed through."""

    def __init__(self, name: bytes, limit_bytes: int) -> None:
        self._name = name
        self._limit_bytes = limit_bytes
        self._begun: bytes | None = b""
        self._decoder: Decoding | None = None

    def decode(self, data: bytes) -> bytes:
        if self._begun is not None:
            self._begun += data
            if (is_text := _is_text(self._begun)) is None:
                return b""  # too short; decide with the next piece
            data, self._begun = self._begun, None
            self._decoder = None if is_text else _decoder_of(self._name, self._limit_bytes)
        return data if self._decoder is None else self._decoder.decode(data)


def _is_text(begun: bytes) -> bool | None:
    """Whether a body starts like JSON, HTML or an event stream, which encoded data hardly ever does; None: too short.

    The first byte is not enough: raw deflate may start with any byte.
    """
    text = begun.removeprefix(b"\xef\xbb\xbf").lstrip()
    known = [start for start in _TEXTS if start.startswith(text[: len(start)])]
    if any(len(text) >= len(start) for start in known):
        return True
    return None if known else False


class Undecodable:
    """A coding that cannot be decoded."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def decode(self, data: bytes) -> bytes:
        """Raises ValueError."""
        raise ValueError(self._reason)


class _Zlib:
    """gzip, and deflate with or without the zlib header (RFC 9110 §8.4.1.2; some servers leave it out)."""

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
            data = self._decoder.unused_data  # a gzip file may have several members (RFC 1952 §2.2)
            if self._decoder.eof:
                self._decoder = None
                if data[:2] != b"\x1f\x8b":
                    break
            else:
                break
        return b"".join(out)


class _Other:
    """A coding decoded by an optional library; a body may hold several frames in sequence."""

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
        except Exception as exc:  # each of these libraries raises its own exception types
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
