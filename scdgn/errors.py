"""What a user can get wrong, as exceptions that say how to put it right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class ScdgnError(Exception):
    """An error that the user can mend.

    Bugs are never of this type: the command line prints a `ScdgnError` in one line, without a traceback, and exits with
    status 2.

    Parameters
    ----------
    *faults
        One sentence per fault, each naming the offending key and value and ending with the remedy. All the faults that
        can be found together are reported together.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class DataError(ScdgnError):
    """The cells, genes, labels or batches do not allow what was asked."""


class SettingsError(ScdgnError):
    """A setting is unknown, out of range or contradicts another one."""


class BundleError(ScdgnError):
    """A saved model is damaged, incomplete or of another version."""


class DeviceError(ScdgnError):
    """The device asked for is not there."""


class TrainingError(ScdgnError):
    """Training did not come to a usable model."""


class OutputError(ScdgnError):
    """A result cannot be written where it should go."""


def first_line(error: BaseException) -> str:
    """What a library's error says, without what follows; its type where it says nothing. At most 300 characters."""
    return shortened((str(error).strip() or type(error).__name__).partition("\n")[0], 300)


def shortened(text: str, most: int) -> str:
    """A text of so many characters at most, its end cut off."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def count(number: int, word: str) -> str:
    """A number of things, as it is said: 1 trial, 2 trials."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names as they are said in a sentence, the first ones where there are many.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def nearest(name: str, known: Iterable[object]) -> str:
    """The known names most like `name`, as the end of an error sentence; all of them when they are few.

    >>> nearest("cell_type", ["celltype", "tech"])
    'did you mean celltype? (found: celltype, tech)'
    """
    found = [str(other) for other in known]
    if not found:
        return "there are none"
    close = difflib.get_close_matches(name, found, n=3, cutoff=0.5)
    shown = ", ".join(found[:12]) + (f", and {len(found) - 12} more" if len(found) > 12 else "")
    listing = f"(found: {shown})"
    return f"did you mean {' or '.join(close)}? {listing}" if close else f"choose one that exists {listing}"
