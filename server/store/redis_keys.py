"""All keys in Redis, and how long those live that end by themselves.

What belongs to a session has its id as hash tag, so that one script may touch all of it, also on a cluster.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

STAGED_MILLISECONDS = 60_000
"""A snapshot that nothing points to yet, or not any more."""
WANTED_MILLISECONDS = 60_000
"""What an owner has been told and has not looked at."""
FORK_SECONDS = 30.0
"""A fork that took longer since it read its parent is refused."""
RECHECK_SECONDS = 3_600.0
"""How often a fork that still shares its parent's snapshots is looked at."""


@dataclass(frozen=True)
class Keys:
    """Names of keys. Session ids are letters, digits, `_` and `-`; all other text is hashed."""

    prefix: str

    def session(self, session_id: str) -> str:
        """Hash: the record, the lease, the pointers to snapshots."""
        return self._of(session_id, "session")

    def journal(self, session_id: str) -> str:
        """Stream: sealed tokens, each entry's id is the position it ends at."""
        return self._of(session_id, "journal")

    def operations(self, session_id: str) -> str:
        """Hash: operation id to record."""
        return self._of(session_id, "operations")

    def operation_times(self, session_id: str) -> str:
        """Sorted set: operation ids by the time of their record."""
        return self._of(session_id, "operation-times")

    def generations(self, session_id: str) -> str:
        """Hash: the parts of every generation."""
        return self._of(session_id, "generations")

    def generation_times(self, session_id: str) -> str:
        """Sorted set: generation ids by the time of their last change."""
        return self._of(session_id, "generation-times")

    def sampled(self, session_id: str) -> str:
        """Stream: sealed tokens that generations sampled. It outlives the journal's trimming."""
        return self._of(session_id, "sampled")

    def pins(self, session_id: str) -> str:
        """Sorted set: snapshots of this session that forks point to."""
        return self._of(session_id, "pins")

    def snapshot(self, session_id: str, number: int, nonce: str) -> str:
        """String: a sealed snapshot."""
        return self._of(session_id, f"snapshot:{number}-{nonce}")

    def index(self, tenant: str) -> str:
        """Sorted set: a tenant's sessions by creation time."""
        return f"{self.prefix}:index:{_digest(tenant)}"

    def claim(self, tenant: str, op_id: str) -> str:
        """Hash: what an operation made."""
        return f"{self.prefix}:claim:{_digest(tenant, op_id)}"

    def generation(self, generation_id: str) -> str:
        """String: the session that a generation is of."""
        return f"{self.prefix}:generation:{generation_id}"

    def wanted(self, owner: str) -> str:
        """List: sessions of an owner that others would have."""
        return f"{self.prefix}:wanted:{_digest(owner)}"

    @property
    def expiries(self) -> str:
        """Sorted set: sessions with a lifetime, by when they may have expired."""
        return f"{self.prefix}:expiries"

    @property
    def forks(self) -> str:
        """Sorted set: forks that share snapshots, by when to look at them."""
        return f"{self.prefix}:forks"

    def heartbeat(self, number: int) -> str:
        """String: what `ping` writes. Different numbers fall on different masters of a cluster."""
        return f"{self.prefix}:heartbeat:{number}"

    def _of(self, session_id: str, what: str) -> str:
        return f"{self.prefix}:{{{session_id}}}:{what}"


def _digest(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
