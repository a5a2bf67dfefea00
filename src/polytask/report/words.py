"""Numbers and names as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from polytask.report.palette import VERDICTS

NOTHING = "–"
"""What stands where there is no number."""

Found = Mapping[str, Any]
"""A finding: ``mean``, ``low``, ``high``, and a ``verdict`` where it was tested."""


def number(value: float | None, decimals: int, sign: bool = False) -> str:
    """A number with a true minus sign and separated thousands.

    >>> number(-1234.567, 1)
    '−1,234.6'
    """
    if value is None:
        return NOTHING
    text = f"{value:{'+' if sign else ''},.{decimals}f}"
    if text[0] in "+-" and not any(c in "123456789" for c in text):
        text = text[1:]  # a rounded zero has no sign
    return text.replace("-", "−")


def percent(fraction: float | None, decimals: int = 1, sign: bool = True) -> str:
    """A fraction as a percentage.

    >>> percent(0.0123)
    '+1.2\xa0%'
    """
    return NOTHING if fraction is None else f"{number(100 * fraction, decimals, sign)}\xa0%"


def percent_interval(found: Found, decimals: int = 1) -> str:
    """The bounds of a finding that is a fraction, in percent: ``[+0.4, +2.0]``."""
    return f"[{', '.join(number(100 * found[key], decimals, sign=True) for key in ('low', 'high'))}]"


def half(found: Found) -> float:
    """Half the width of a finding's interval."""
    return float(found["high"] - found["low"]) / 2


def decimals_for(findings: Iterable[Found], least: int = 0, most: int = 6) -> int:
    """Decimals that show two digits of the typical half-interval, so that a column shows what is known and no more."""
    halves = sorted(h for h in map(half, findings) if h > 0)
    if not halves:
        return max(least, min(most, 4))
    return max(least, min(most, 1 - math.floor(math.log10(halves[len(halves) // 2]))))


def plus_minus(found: Found | None, decimals: int, sign: bool = False) -> str:
    """The mean and half its interval: ``0.962 ± 0.004``."""
    return NOTHING if found is None else f"{number(found['mean'], decimals, sign)} ± {number(half(found), decimals)}"


def mark(found: Found | None) -> str:
    """▲ better, ▼ worse, · undecided; nothing for what was not tested."""
    return VERDICTS.get(verdict(found), "")


def verdict(found: Found | None) -> str:
    """``better``, ``worse``, ``undecided``, or nothing for what was not tested."""
    return str((found or {}).get("verdict") or "")


def duration(seconds: float | None) -> str:
    """Seconds in the unit that suits them.

    >>> [duration(s) for s in (0.042, 3.21, 75, 7300)]
    ['42 ms', '3.2 s', '1.2 min', '2.0 h']
    """
    if seconds is None:
        return NOTHING
    for least, unit, scale in ((3600.0, "h", 3600.0), (60.0, "min", 60.0), (1.0, "s", 1.0)):
        if seconds >= least:
            return f"{seconds / scale:.1f} {unit}"
    return f"{1000 * seconds:.0f} ms"


def count(value: float | None) -> str:
    """A large count with a suffix: ``35.2 k``, ``1.20 M``."""
    if value is None:
        return NOTHING
    for least, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= least:
            return f"{value / (1e3 if unit == 'k' else least):.{2 if unit != 'k' else 1}f} {unit}"
    return f"{value:,.0f}"


def plural(amount: int, noun: str) -> str:
    """``1 seed``, ``5 seeds``."""
    return f"{amount} {noun}{'' if amount == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence: ``a, b and c``."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def clean(text: object) -> str:
    """Text without control characters and lone surrogates, which neither HTML, SVG nor a terminal should be given."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def sentence(text: object) -> str:
    """Clean text with true minus signs, whose percentages do not break from their numbers."""
    return re.sub(r"(?<![\w.)])-(?=\d)", "−", clean(text)).replace(" %", "\xa0%")


def shorten(text: str, most: int) -> str:
    """Text of at most ``most`` characters, its middle left out: beginnings and ends are what names differ in.

    >>> shorten("a_rather_long_name_2", 12)
    'a_rath…ame_2'
    """
    text = clean(text)
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"
