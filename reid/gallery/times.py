"""Points in time: UTC milliseconds inside, the gallery's time zone at its borders."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from reid.core.errors import ConfigError

UTC = timezone.utc
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def time_zone(name: str) -> tzinfo:
    """Return the time zone of an IANA name, such as Europe/Berlin.

    Raises:
        ConfigError: there is none of this name.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"There is no time zone {name!r}. Use an IANA name, such as UTC or Europe/Berlin.") from error


def parse_time(text: str | datetime, zone: str = "UTC", what: str = "The time") -> datetime:
    """Return a point in time, in UTC, of an ISO 8601 text.

    Args:
        text: such as 2026-11-28, 2026-11-28T08:00 or 2026-11-28T08:00:00+01:00.
        zone: time zone of a text without an offset.
        what: name of the value, for error messages.

    Raises:
        ConfigError: not a date or time; or a local time that the change to or from summer time skips or repeats.

    Example:
        >>> parse_time("2026-07-01 08:00", "Europe/Berlin").isoformat()
        '2026-07-01T06:00:00+00:00'
    """
    try:
        given = text if isinstance(text, datetime) else datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError as error:
        raise ConfigError(f"{what} is {text!r}. Use ISO 8601, such as 2026-11-28T08:00:00+01:00.") from error
    if given.tzinfo is not None:
        return given.astimezone(UTC)
    first, second = (given.replace(tzinfo=time_zone(zone), fold=fold) for fold in (0, 1))
    if first.utcoffset() != second.utcoffset():
        skipped = first.astimezone(UTC).astimezone(first.tzinfo).replace(tzinfo=None) != given
        reason = "does not exist" if skipped else "exists twice"
        raise ConfigError(f"{what} {text} {reason} in {zone}, because clocks change. Add an offset, such as +01:00.")
    return first.astimezone(UTC)


def to_ms(time: datetime) -> int:
    """Return milliseconds since 1970, UTC."""
    return round((time - _EPOCH) / timedelta(milliseconds=1))


def from_ms(ms: int, zone: str = "UTC") -> datetime:
    """Return the time of milliseconds since 1970, in a time zone."""
    return (_EPOCH + timedelta(milliseconds=ms)).astimezone(time_zone(zone))


def show_time(ms: int | None, zone: str = "UTC") -> str:
    """Return a time for people, to the second and with its offset; "time unknown" for None.

    Example:
        >>> show_time(1_782_885_600_000, "Europe/Berlin")
        '2026-07-01 08:00:00+02:00'
    """
    return "time unknown" if ms is None else from_ms(ms, zone).isoformat(" ", "seconds")


def describe_seconds(seconds: float) -> str:
    """Return a duration for people, to two units.

    Example:
        >>> [describe_seconds(seconds) for seconds in (0.44, 75, 7325, 200_000)]
        ['0.4 s', '1 min 15 s', '2 h 2 min', '2 d 7 h']
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, part, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // part} {small}"
    return f"{whole} s"
