"""How much may be read beside running generations: as much as makes a step no longer than a few steps without it."""

from __future__ import annotations

_STRETCH = 2.0
"""How many times as long as without reading a step may take."""
_LEAST = 8
"""Tokens that are read beside generations however slow that is: nobody is to wait for ever."""
_FIRST = 64
"""As many as are read before there is anything to go by."""
_ALONE = 32
"""Steps after which one is run without reading, to see how long that takes by now."""
_WEIGHT = 0.2
"""Of the newest step in the running means."""


class Pace:
    """Watches steps: seconds of those that only decode, by the number of sessions, and seconds a token read beside them."""

    def __init__(self) -> None:
        self._decode: dict[int, float] = {}
        self._token = 0.0
        self._since = 0

    def budget(self, decoding: int, most: int) -> int:
        """Tokens, up to `most`, that may be read beside so many decoding sessions; 0 where the step is to be one without."""
        if self._since >= _ALONE:
            return 0
        alone = self._alone(decoding)
        if alone is None or not self._token:
            return min(_FIRST, most)
        return min(most, max(_LEAST, int((_STRETCH - 1) * alone / self._token)))

    def note(self, decoding: int, read: int, seconds: float) -> None:
        """A step is over in which so many sessions decoded, and so many tokens were read."""
        if not decoding:
            return
        if not read:
            self._decode[decoding] = _mixed(self._decode.get(decoding), seconds)
            self._since = 0
            return
        self._since += 1
        alone = self._alone(decoding)
        if alone is not None:
            self._token = _mixed(self._token or None, max(0.0, seconds - alone) / read)

    def _alone(self, decoding: int) -> float | None:
        """Seconds of a step without reading, of as many sessions or of the number nearest to it."""
        if not self._decode:
            return None
        return self._decode[min(self._decode, key=lambda known: abs(known - decoding))]


def _mixed(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + _WEIGHT * (newest - mean)
