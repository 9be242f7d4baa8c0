"""Durations as people write them: `1h30m`, `45s`, `2d`."""

import re

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse(text: str) -> int:
    """Seconds of a duration such as `1h30m`."""
    if not re.fullmatch(r"(\d+[dhms])+", text):
        raise ValueError(f"{text!r} is not a duration; write it like 1h30m")
    parts = re.findall(r"(\d+)([dhms])", text)
    units = [unit for _, unit in parts]
    if units != sorted(set(units), key=list(UNITS).index):
        raise ValueError(f"{text!r} names a unit twice, or a smaller one first")
    return sum(int(number) * UNITS[unit] for number, unit in parts)


def render(seconds: int) -> str:
    """The shortest text that `parse` reads as so many seconds."""
    if seconds < 0:
        raise ValueError(f"{seconds} seconds is less than nothing")
    text = ""
    for unit, length in UNITS.items():
        number, seconds = divmod(seconds, length)
        text += f"{number}{unit}" if number else ""
    return text or "0s"
