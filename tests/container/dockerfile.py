"""Reads a Dockerfile: the instructions that ours has, and an error for any other."""
import dataclasses
import json
import pathlib
import re
import shlex


@dataclasses.dataclass
class Instruction:
    line: int
    name: str
    rest: str


@dataclasses.dataclass
class Stage:
    base: str
    name: str
    instructions: list[Instruction]


KNOWN = {"ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE", "CMD"}


class Invalid(Exception):
    """The Dockerfile has something that is not understood here."""


def instructions(text: str) -> list[Instruction]:
    found, line, start = [], "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        if raw.lstrip().startswith("#") or not raw.strip():
            continue  # between continued lines, too
        start = start or number
        line += raw
        if line.endswith("\\"):
            line = line[:-1]
            continue
        name, _, rest = line.strip().partition(" ")
        found.append(Instruction(start, name.upper(), rest.strip()))
        line, start = "", 0
    if line:
        raise Invalid(f"line {start}: ends with a backslash at the end of the file")
    return found


def stages(path: pathlib.Path) -> list[Stage]:
    found: list[Stage] = []
    for one in instructions(path.read_text()):
        if one.name == "FROM":
            words = one.rest.split()
            if len(words) not in (1, 3) or len(words) == 3 and words[1].upper() != "AS":
                raise Invalid(f"{path}:{one.line}: FROM {one.rest}")
            found.append(Stage(words[0], words[2] if len(words) == 3 else str(len(found)), []))
        elif one.name not in KNOWN:
            raise Invalid(f"{path}:{one.line}: {one.name} is not understood here")
        elif not found:
            raise Invalid(f"{path}:{one.line}: {one.name} before FROM")
        else:
            found[-1].instructions.append(one)
    return found


def expand(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", lambda m: values.get(m[1] or m[2], ""), text)


def assignments(rest: str) -> dict[str, str]:
    """Of ENV and ARG, in the form NAME=VALUE ...; ARG NAME has no value."""
    return dict(word.partition("=")[::2] for word in shlex.split(rest))


def command(rest: str) -> list[str]:
    """Of CMD in the form of a list, and of RUN."""
    return json.loads(rest) if rest.startswith("[") else ["/bin/sh", "-c", rest]
