"""Decodes compressed bodies for the record; the caller gets the encoded bytes unchanged. Pure.

A few bytes may decode to gigabytes. So decoders return pieces of bounded size, and raise beyond a limit for the body.
"""

import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Protocol

# Values that mean "not encoded": those of RFC 9110, and others that servers have been seen to send.
_NO_CODINGS = frozenset({b"", b"identity", b"none", b"utf-8"})
# Each coding can multiply the size again; real servers apply one, proxies behind them perhaps a second.
_CODINGS_MAX = 4
# Decoded at once; other streams continue between two pieces.
_PIECE_BYTES = 64 * 2**10
_ZLIB_INPUT_BYTES = 16 * 2**10  # the rest of the input is copied after each piece
# A block of 4 bytes may decode to 128 KiB (RFC 8878 §3.1.1.2), and zstandard's decoder cannot be stopped in between.
_ZSTD_INPUT_BYTES = 128
_ZSTD_WINDOW_BYTES = 8 * 2**20  # the largest window for HTTP (RFC 9659)
# First bytes of gzip (RFC 1952 §2.3.1) and of zlib with each window size (RFC 1950 §2.2).
_ZLIB_STARTS = (b"\x1f", b"\x78", b"\x58", b"\x38", b"\x18", b"\x08", b"\x28", b"\x48", b"\x68")
# Some servers label replies as encoded that are plain text.
_TEXTS = (b'{"', b"{\n", b"{\r", b"{ ", b"data:", b"event:", b"id: ", b"retry:", b": ", b"<html", b"<!DOC", b"<!doc")


class TooLargeError(ValueError):
    """The decoded body exceeds the limit."""


class Decoding(Protocol):
    """A streaming decoder for one body. Raises ValueError on invalid data."""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Decodes the next bytes, in pieces that may be empty. All must be taken before the next call."""


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
        return _Brotli(limit_bytes)
    if name == b"zstd":
        return _Zstd(_zstd_maker(), limit_bytes)
    raise ValueError(f"no decoder for {name!r}")


def _zstd_maker() -> Callable[[], Any]:
    zstd = _module("compression.zstd", "zstandard")
    if zstd.__name__ == "compression.zstd":
        options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_BYTES.bit_length() - 1}
        return lambda: zstd.ZstdDecompressor(options=options)
    return lambda: zstd.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()


def decoded(body: bytes, coding: bytes | None, *, limit_bytes: int) -> bytes:
    """Decodes a whole body. Raises ValueError."""
    decoding = decoding_of(coding, limit_bytes=limit_bytes)
    return body if decoding is None else b"".join(decoding.pieces(body))


class _InTurn:
    """Several codings; the one applied last is decoded first."""

    def __init__(self, decodings: list[Decoding]) -> None:
        self._decodings = decodings

    def pieces(self, data: bytes) -> Iterator[bytes]:
        return self._from(0, data)

    def _from(self, place: int, data: bytes) -> Iterator[bytes]:
        if place == len(self._decodings):
            yield data
            return
        for piece in self._decodings[place].pieces(data):
            yield from self._from(place + 1, piece)


class _Labelled:
    """One coding, as named by the header. Some servers name a coding but send plain text: that is passed through."""

    def __init__(self, name: bytes, limit_bytes: int) -> None:
        self._name = name
        self._limit_bytes = limit_bytes
        self._begun: bytes | None = b""
        self._decoder: Decoding | None = None

    def pieces(self, data: bytes) -> Iterator[bytes]:
        if self._begun is not None:
            self._begun += data
            if (is_text := _is_text(self._begun)) is None:
                return iter(())  # too short; decide with the next piece
            data, self._begun = self._begun, None
            self._decoder = None if is_text else _decoder_of(self._name, self._limit_bytes)
        return iter((data,)) if self._decoder is None else self._decoder.pieces(data)


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

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """Raises ValueError."""
        raise ValueError(self._reason)


class _Limited:
    """Counts the decoded bytes of one body."""

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes

    def _counted(self, piece: bytes) -> bytes:
        self._left -= len(piece)
        if self._left < 0:
            raise TooLargeError("a compressed body is too large")
        return piece


class _Zlib(_Limited):
    """gzip, and deflate with or without the zlib header (RFC 9110 §8.4.1.2; some servers leave it out)."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self._decoder: Any = None
        self._has_ended = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZLIB_INPUT_BYTES):
            left = data[start : start + _ZLIB_INPUT_BYTES]
            is_full = False  # then the decoder may hold back output although it has taken all input
            while (left or is_full) and not self._has_ended:
                piece, left = self._decode(left)
                is_full = len(piece) == _PIECE_BYTES
                yield self._counted(piece)

    def _decode(self, data: bytes) -> tuple[bytes, bytes]:
        """Returns decoded bytes, and the input that is left."""
        if self._decoder is None:
            is_bare = data[:1] not in _ZLIB_STARTS
            self._decoder = zlib.decompressobj(-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS | 32)
        try:
            piece: bytes = self._decoder.decompress(data, _PIECE_BYTES)
        except zlib.error as exc:
            raise ValueError(str(exc)) from exc
        if not self._decoder.eof:
            return piece, self._decoder.unconsumed_tail
        left: bytes = self._decoder.unused_data  # a gzip file may have several members (RFC 1952 §2.2)
        self._decoder = None
        self._has_ended = bool(left) and not left.startswith(b"\x1f\x8b"[: len(left)])
        return piece, left


class _Zstd(_Limited):
    """Zstandard; a body may hold several frames in sequence."""

    def __init__(self, make: Callable[[], Any], limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self._make = make
        self._decoder: Any = None

    def pieces(self, data: bytes) -> Iterator[bytes]:
        for start in range(0, len(data), _ZSTD_INPUT_BYTES):
            left = data[start : start + _ZSTD_INPUT_BYTES]
            while left:
                self._decoder = self._decoder or self._make()
                try:
                    piece: bytes = self._decoder.decompress(left)
                except Exception as exc:  # each of the two libraries raises its own exception type
                    raise ValueError(str(exc)) from exc
                left = b""
                if self._decoder.eof:
                    left, self._decoder = self._decoder.unused_data, None
                yield self._counted(piece)


class _Brotli(_Limited):
    """Brotli. Raises ValueError if the installed library cannot limit its output: one byte may decode to 16 MiB."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self._decoder = _module("brotli", "brotlicffi").Decompressor()
        if not hasattr(self._decoder, "can_accept_more_data"):
            raise ValueError("the installed brotli decoder is too old: it cannot limit its output")

    def pieces(self, data: bytes) -> Iterator[bytes]:
        while data or not self._decoder.can_accept_more_data():
            try:
                piece: bytes = self._decoder.process(data, output_buffer_limit=_PIECE_BYTES)
            except Exception as exc:  # each of the two libraries raises its own exception type
                raise ValueError(str(exc)) from exc
            data = b""
            yield self._counted(piece)


def _module(*names: str) -> Any:
    for name in names:
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ValueError(f"no decoder is installed: {names[0]}")
