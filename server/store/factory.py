"""Makes the store that the settings name."""

from __future__ import annotations

from server.settings import Settings
from server.store.base import Store
from server.store.embedded import EmbeddedStore
from server.store.redis import RedisOptions, RedisStore
from server.store.sealing import create_sealer


def create_store(settings: Settings) -> Store:
    """A store, not yet open. Raises `InvalidSettingsError` for a Redis URL or for keys that cannot be used."""
    sealer = create_sealer(settings)
    if settings.store == "embedded":
        return EmbeddedStore(
            settings.data_dir,
            sealer=sealer,
            operation_ttl_seconds=settings.operation_ttl_seconds,
            generations=settings.snapshot_generations,
        )
    options = RedisOptions.of(settings)
    options.address  # noqa: B018 a URL that names nothing is found out here
    return RedisStore(
        options,
        sealer=sealer,
        operation_ttl_seconds=settings.operation_ttl_seconds,
        generations=settings.snapshot_generations,
    )
