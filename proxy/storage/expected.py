"""The keys of the rows that a transaction will look up, as far as known beforehand, to read them ahead. Pure."""

from collections.abc import Set
from dataclasses import dataclass, field


@dataclass(slots=True)
class Expected:
    """Each key once."""

    users: set[str] = field(default_factory=set)
    sessions: set[str] = field(default_factory=set)
    named_sessions: set[tuple[str, str]] = field(default_factory=set)  # user and external id
    prefixes: set[tuple[str, bytes]] = field(default_factory=set)  # session, and hashes as `find_prefix` takes them
    nodes: set[tuple[str, bytes]] = field(default_factory=set)  # session, and hash of a system message
    exchanges: set[str] = field(default_factory=set)  # in progress
    parameters: set[bytes] = field(default_factory=set)  # digests
    tools: set[bytes] = field(default_factory=set)  # digests
    upstreams: set[str] = field(default_factory=set)  # names

    def about(self, ids: Set[str]) -> "Expected":
        """The part that concerns some sessions, by any of their ids, and exchanges."""
        return Expected(
            sessions=self.sessions & ids,
            named_sessions={pair for pair in self.named_sessions if pair[1] in ids},
            prefixes={pair for pair in self.prefixes if pair[0] in ids},
            nodes={pair for pair in self.nodes if pair[0] in ids},
            exchanges=self.exchanges & ids,
        )
