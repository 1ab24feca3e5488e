"""Checks the Host and Origin of requests to a server without keys, against DNS rebinding and other sites' pages. Pure.

Every page in a developer's browser can send requests to a server on localhost. The browser states the page
(`Origin`, https://www.w3.org/TR/fetch-metadata/) and the name by which it reached the server (`Host`).
"""

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from proxy.errors import APIError
from proxy.settings import Settings
from proxy.wire.headers import Headers, value_of

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
# `none`: the user typed the address or used a bookmark (W3C Fetch Metadata).
_OWN_SITE = frozenset({b"same-origin", b"same-site", b"none"})
# Methods without side effects; a route that relays them must raise `foreign_origin`.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class Origins:
    """The allowed names and origins of one process."""

    names: frozenset[str]  # names of this server, in lower case
    cors_origins: frozenset[str]

    @classmethod
    def of(cls, settings: Settings) -> "Origins":
        """Builds the rules from the settings."""
        host = settings.host.lower()
        own = f"[{host}]" if ":" in host else host
        return cls(_LOOPBACK | {own, *settings.allowed_hosts}, frozenset(settings.cors_origins))

    def check_host(self, headers: Headers) -> None:
        """Raises APIError 403 if the caller used a name that is not this server's."""
        host = value_of(headers, b"host")
        if name_of(host or b"") not in self.names:
            raise APIError(
                f"This server does not answer to the name in Host ({(host or b'')[:100].decode('latin-1')!r}). "
                "STELLARCHAT_ALLOWED_HOSTS can add the name.",
                status=403,
                type_="invalid_request_error",
                code="host_not_allowed",
            )

    def is_foreign(self, headers: Headers) -> bool:
        """Whether the request comes from another site's page without CORS permission."""
        origin = site = None
        for name, value in headers:
            if name == b"origin":
                origin = value if origin is None else b""  # two Origin headers count as foreign
            elif name == b"sec-fetch-site":
                site = value.lower() if site is None else b""
        if origin is None and site is None:
            return False
        if origin is not None and self._is_allowed_by_cors(origin):
            return False
        return (site is not None and site not in _OWN_SITE) or (
            origin is not None and not self._is_ours(origin, headers)
        )

    def _is_allowed_by_cors(self, origin: bytes) -> bool:
        return "*" in self.cors_origins or origin.decode("latin-1") in self.cors_origins

    def _is_ours(self, origin: bytes, headers: Headers) -> bool:
        """Pages under any name of this machine, on any port, are trusted."""
        try:
            parts = urlsplit(origin.decode("ascii"))
        except (UnicodeDecodeError, ValueError):
            return False
        if parts.scheme not in ("http", "https") or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
            return False
        name = name_of(parts.netloc.encode())
        return bool(name) and (name in self.names or name == name_of(value_of(headers, b"host") or b""))


def foreign_origin() -> APIError:
    """403: a request of another site's page that would change or relay something."""
    return APIError(
        "Another site's page has sent this request to a server that requires no key. STELLARCHAT_CORS_ORIGINS can "
        "allow its origin.",
        status=403,
        type_="invalid_request_error",
        code="origin_not_allowed",
    )


@lru_cache(maxsize=64)  # each connection sends the same Host with every request
def name_of(host: bytes) -> str:
    """The name in `name:port`, in lower case."""
    text = host.decode("latin-1").lower()
    return text.partition("]")[0] + "]" if text.startswith("[") else text.partition(":")[0]
