"""A finding of `stellarchat doctor`: one line of its report."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """If it is a problem, `advice` says how to fix it."""

    about: str
    is_well: bool
    message: str
    advice: str = ""


def well(about: str, message: str) -> Finding:
    """Nothing needs to be done."""
    return Finding(about, is_well=True, message=message)


def wrong(about: str, message: str, advice: str) -> Finding:
    """A problem that keeps the proxy from working, or soon will."""
    return Finding(about, is_well=False, message=message, advice=advice)
