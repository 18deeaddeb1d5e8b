"""Which heads of a model retrieve: the file that `calibrate` writes and the `slots` memory reads."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

from models.errors import ConfigError

FORMAT = 1
MEMORY_LAYERS = 8
"""Layers that get a memory of whole layers by default: those with the strongest retrieval heads."""


@dataclass(frozen=True)
class Calibration:
    """Retrieval heads of one model, best first.

    `heads` are (layer, key/value head, score): the mean attention mass that an answer lays on the needle it repeats.
    `measured` says how: command, probes, lengths, seed.
    """

    model: str
    fingerprint: str
    heads: tuple[tuple[int, int, float], ...]
    keep: int
    measured: dict[str, str]

    @property
    def chosen(self) -> tuple[tuple[int, int], ...]:
        """The `keep` best heads as (layer, key/value head)."""
        return tuple((layer, head) for layer, head, _ in self.heads[: self.keep])

    def write(self, path: Path) -> None:
        """Save as JSON."""
        path.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")


def read_calibration(text: str, source: str) -> Calibration:
    """Parse a calibration file. Raises `ConfigError` naming `source` when it is none."""
    try:
        fields = json.loads(text)
        if fields.pop("format") != FORMAT:
            raise ConfigError(f"{source} has another format than {FORMAT}: run calibrate again")
        heads = tuple((int(layer), int(head), float(score)) for layer, head, score in fields.pop("heads"))
        if not isinstance(fields["keep"], int) or not 1 <= fields["keep"] <= len(heads):
            raise ConfigError(f"{source} keeps {fields['keep']!r} of {len(heads)} heads: run calibrate again")
        return Calibration(heads=heads, **fields)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{source} is no calibration file: {error}") from error


def read_heads(fingerprint: str, path: Path | None = None) -> tuple[tuple[int, int], ...]:
    """Retrieval heads for the model with this fingerprint: from `path`, else from the package.

    Raises `ConfigError` when there is none, or when `path` was measured on another model.
    """
    calibration = find_calibration(fingerprint, path)
    if calibration is None:
        raise ConfigError(
            "this model's retrieval heads are not known: run `palimpsest-server calibrate MODEL --out FILE` and set "
            "PALIMPSEST_CALIBRATION=FILE, or serve it with PALIMPSEST_MEMORY=window"
        )
    return calibration.chosen


def read_layers(fingerprint: str, path: Path | None = None) -> tuple[int, ...]:
    """The layers whose heads retrieve most, in order; none for a model that was never calibrated."""
    calibration = find_calibration(fingerprint, path)
    if calibration is None:
        return ()
    best = dict.fromkeys(layer for layer, _, _ in calibration.heads)
    return tuple(sorted(list(best)[:MEMORY_LAYERS]))


def find_calibration(fingerprint: str, path: Path | None = None) -> Calibration | None:
    """The calibration of the model with this fingerprint: from `path`, else from the package; None if it has none.

    Raises `ConfigError` for a file that is none, or of another model.
    """
    if path is not None:
        try:
            calibration = read_calibration(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise ConfigError(f"cannot read the calibration file {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is no calibration file: {error}") from error
        if calibration.fingerprint != fingerprint:
            raise ConfigError(
                f"{path} was measured on {calibration.model}, which is not the model being loaded: calibrate this one"
            )
        return calibration
    packaged = resources.files("models") / "calibrated" / f"{fingerprint}.json"
    if not packaged.is_file():
        return None
    return read_calibration(packaged.read_text(encoding="utf-8"), packaged.name)
