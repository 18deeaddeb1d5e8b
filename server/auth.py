"""Who is asking: API keys and their tenants."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from pydantic import SecretStr
from starlette.requests import HTTPConnection

from server.errors import Unauthenticated

DEFAULT_TENANT = "default"
KEY_SUBPROTOCOL = "palimpsest.key."


def tenant_of(connection: HTTPConnection, keys: Mapping[SecretStr, str]) -> str:
    """The tenant of a request or WebSocket; without any keys everybody is `default`.

    Raises `Unauthenticated`.
    """
    if not keys:
        return DEFAULT_TENANT
    given = _given_key(connection)
    if given is None:
        raise Unauthenticated("send an API key as Authorization: Bearer <key>")
    found = None
    for key, tenant in keys.items():
        # Every key is compared, in constant time: the answer's delay tells nothing about them.
        if hmac.compare_digest(key.get_secret_value().encode(), given.encode()):
            found = tenant
    if found is None:
        raise Unauthenticated("this API key is not known; check it for typing errors")
    return found


def _given_key(connection: HTTPConnection) -> str | None:
    scheme, _, key = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    # A browser cannot set headers on a WebSocket, but it can name subprotocols.
    for subprotocol in connection.scope.get("subprotocols", []):
        if subprotocol.startswith(KEY_SUBPROTOCOL):
            return str(subprotocol.removeprefix(KEY_SUBPROTOCOL))
    return None
