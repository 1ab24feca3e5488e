"""The named queries of `sql/queries`, one module per file, one typed function per query.

Each function takes a connection; the caller manages the transaction. Columns are mapped to fields by name.
"""

from proxy.storage.queries import (
    check,
    completions,
    durable,
    exchanges,
    export,
    fragments,
    imports,
    jumps,
    keys,
    messages,
    prune,
    responses,
    search,
    sessions,
    stats,
    tombstones,
    tree,
    usage,
    users,
    web,
)

__all__ = (
    "check",
    "completions",
    "durable",
    "exchanges",
    "export",
    "fragments",
    "imports",
    "jumps",
    "keys",
    "messages",
    "prune",
    "responses",
    "search",
    "sessions",
    "stats",
    "tombstones",
    "tree",
    "usage",
    "users",
    "web",
)
