"""For the API reference: sections that say in prose what comes back, while the signature has the types.

Griffe reads the first line of such a section as a type. A line of its own with a colon says that there is none.
"""

from __future__ import annotations

import re
from textwrap import indent
from typing import Any

from griffe import Extension, Object

SECTION = re.compile(
    r"^(?P<head>(?:Returns|Yields)\n-+\n)(?P<prose>.+?)(?=\n\n\S[^\n]*\n-{3,}\n|\Z)", re.MULTILINE | re.DOTALL
)


class ProseReturns(Extension):
    """Marks what is prose."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Of every function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub(
                lambda found: f"{found['head']}:\n{indent(found['prose'], '    ')}", obj.docstring.value
            )
