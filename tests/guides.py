"""The guides in docs/ as tests read them: what they have somebody type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from scdgn.cli import app

DOCS = Path(__file__).resolve().parents[1] / "docs"


@dataclass(frozen=True)
class Fragment:
    """A fence: what follows its three signs, what it holds, and the section that it stands in."""

    heading: str
    language: str
    text: str


def fences(guide: Path) -> Iterator[Fragment]:
    """All of a guide, in their order."""
    heading, language, lines = "", None, list[str]()
    for line in guide.read_text().splitlines():
        if line.startswith("```"):
            if language is None:
                language, lines = line.removeprefix("```"), []
            else:
                yield Fragment(heading, language, "".join(f"{one}\n" for one in lines))
                language = None
        elif language is not None:
            lines.append(line)
        elif line.startswith("## "):
            heading = line.removeprefix("## ")


def fragments(guide: Path, language: str) -> dict[str, str]:
    """The guide's fences of a language, those of a section joined, by its heading."""
    found: dict[str, str] = {}
    for one in fences(guide):
        if one.language == language:
            found[one.heading] = found.get(one.heading, "") + one.text
    return found


def commands() -> dict[str, Any]:
    """The command line's, by name; of click, which typer brings along in a copy of its own."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def commands_of(path: Path) -> list[str]:
    """Everything in a file that is said to be given to scdgn."""
    text = re.sub(r"^# ?", "", path.read_text(), flags=re.MULTILINE)
    text = re.sub(r"\s*\\\n\s*", " ", text)
    if path.suffix == ".yaml":
        text = re.sub(r"\n\s*--", " --", text)  # folded
    return re.findall(rf"scdgn ((?:{'|'.join(commands())})\b[^\n`|;&#]*)", text)


def check_command(words: str) -> None:
    """Fail where an option, or a value of one, is not as the command line wants it."""
    command = commands()[words.split()[0]]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", words))
    assert options <= known, f"scdgn {words}"
    words = words.replace("$address", "auto").replace("$method", "nn")
    if " " in words and not re.search(r"\$|\.\.\.", words):  # a word by itself is spoken of, not given
        command.make_context(command.name, shlex.split(words)[1:])
