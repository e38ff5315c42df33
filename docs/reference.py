"""python docs/reference.py: write docs/reference.md, all commands, groups, options and keys, as the code has them.

What a key allows comes from its field in `lora_exp/config`, its default from the composed config, and its meaning from
the comment beside it in `conf/`. What an option is comes from the comments at the head of its file.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lora_exp.commands import COMMANDS
from lora_exp.config.compose import compose_values, config_folder
from lora_exp.config.hydra_rules import OPEN, OPTIONS
from lora_exp.config.methods import METHODS
from lora_exp.config.models import MODELS
from lora_exp.config.names import GROUPS
from lora_exp.config.settings import EXECUTORS
from lora_exp.config.spec import DIGITS

PAGE = Path(__file__).with_name("reference.md")
INTRODUCTION = """\
<!-- Written by docs/reference.py from the code and from conf/; `make docs` writes it again. -->
# Reference

Everything that can be typed. [index.md](index.md) shows examples, [glossary.md](glossary.md) explains the terms.

## Runs and sweeps

`lora-exp OVERRIDES` starts a run, `lora-exp -m OVERRIDES` a sweep. An override `group=option` chooses an option of a
group, and `group.key=value` sets a key. In a sweep each may have several values: `1,2,4` or `range(0,10)`; all
combinations run. A value that is not allowed ends the command before anything runs, with one line and exit code 2.

| option | meaning |
| --- | --- |
| `-m`, `--multirun` | run every combination of the values: a sweep |
| `--plan` | print what would run and how long it would take, and run nothing |
| `--config-dir=FOLDER` | presets and options of your own, such as `FOLDER/experiment/mine.yaml` |
| `--cfg job` | print the config, and run nothing |
| `--help` | print all groups and keys |
| `--version` | print the version |
"""
# Key that an option sets -> the keys that each of its values uses.
USED = {
    "model": ("kind", MODELS),
    "adapter": ("method", {name: method.keys for name, method in METHODS.items()}),
    "executor": ("kind", EXECUTORS),
}


@dataclasses.dataclass(frozen=True)
class Option:
    """A file of `conf/`: the command at its head, what its head says, its values, and what it says of each key."""

    name: str
    command: str
    meaning: str
    values: Mapping[str, Any]
    comments: Mapping[str, str]

    @classmethod
    def of(cls, path: Path) -> Option:
        """Read a file."""
        text = path.read_text(encoding="utf-8")
        head = [line.removeprefix("#").strip() for line in text.split("\n\n")[0].splitlines() if line.startswith("# ")]
        [command] = [line for line in head if line.startswith(("lora-exp ", "import "))]
        said = text.partition(command)[2].splitlines()[1:]
        meaning = []
        while said and said[0].startswith("# "):
            meaning.append(said.pop(0).removeprefix("# "))
        return cls(path.stem, command, " ".join(meaning), yaml.safe_load(text) or {}, _comments(text))


def _comments(text: str) -> dict[str, str]:
    """The comment beside each key of a YAML file, by the key's name in full: `store.folder`."""
    found, parents = {}, []
    for line in text.splitlines():
        if parsed := re.match(r"( *)(\w+):[^#]*(?:# (.*))?$", line):
            parents[len(parsed[1]) // 2 :] = [parsed[2]]
            if parsed[3]:
                found[".".join(parents)] = parsed[3]
    return found


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *commands(), *groups(), *presets(), *hydra()])


def commands() -> Iterator[str]:
    """A section for each sub-command, from its parser."""
    yield "## Commands\n"
    yield from table(("command", "meaning"), [(f"`{name}`", _text(own.line)) for name, own in COMMANDS.items()])
    for name in COMMANDS:
        for own in parsers(name):
            yield from _command(own)


def parsers(name: str) -> list[argparse.ArgumentParser]:
    """The parser of a sub-command, which prints the help that is asked of it; none where it takes no arguments."""
    found: list[argparse.ArgumentParser] = []
    original = argparse.ArgumentParser.print_help
    argparse.ArgumentParser.print_help = lambda self, file=None: found.append(self)  # type: ignore[method-assign]
    try:
        with contextlib.suppress(SystemExit):
            COMMANDS[name].run(["--help"])
    finally:
        argparse.ArgumentParser.print_help = original  # type: ignore[method-assign]
    return found


def _command(own: argparse.ArgumentParser, meaning: str | None = None) -> Iterator[str]:
    yield f"### `{own.prog}`\n"
    yield f"{_sentence(own.description or meaning or '')}\n"
    rows, inner = [], []
    for action in own._actions:
        if isinstance(action, argparse._SubParsersAction):
            meanings = {choice.dest: choice.help for choice in action._choices_actions}
            inner += [line for name, one in action.choices.items() for line in _command(one, meanings[name])]
        elif not isinstance(action, argparse._HelpAction):
            rows.append((_argument(action), _text(action.help or "")))
    yield from table(("argument", "meaning"), rows)
    yield from inner


def _argument(action: argparse.Action) -> str:
    value = "|".join(map(str, action.choices)) if action.choices else str(action.metavar or action.dest.upper())
    if not action.option_strings:
        return f"`{value}`" + (", any number" if action.nargs == "*" else ", one or several" if action.nargs else "")
    return ", ".join(f"`{name}{'' if action.nargs == 0 else f' {value}'}`" for name in action.option_strings)


def groups() -> Iterator[str]:
    """A section for each config group: its options and its keys."""
    defaults = compose_values([])
    text = (config_folder() / "config.yaml").read_text(encoding="utf-8")
    main = _comments(text)
    named = [own for own in yaml.safe_load(text)["defaults"] if isinstance(own, dict)]
    choices = {group: name for own in named for group, name in own.items()}
    yield "## Groups and keys\n"
    for group, classes in GROUPS.items():
        yield f"### `{group}`\n"
        said, _, _ = (classes[0].__doc__ or "").partition("\n\n")
        yield f"{_text(said)}\n"
        options = options_of(group)
        options.sort(key=lambda own: own.name != choices[group])
        rows = [(f"`{own.name}`", _text(own.meaning), _sets(own, options[0])) for own in options]
        if rows:
            rows[0] = (f"{rows[0][0]} (default)", *rows[0][1:])
        yield from table(("option", "what it is", "sets"), rows)
        yield from keys(group, classes, defaults[group], options, main)


def options_of(group: str) -> list[Option]:
    """The files of a group, by name."""
    return [Option.of(path) for path in sorted((config_folder() / group).glob("*.yaml"))]


def _sets(own: Option, chosen: Option) -> str:
    """What an option sets otherwise than the default one."""
    others = {key: value for key, value in own.values.items() if value not in (None, own.name, chosen.values.get(key))}
    return ", ".join(f"`{key}={shown(value)}`" for key, value in others.items() if key != "defaults")


def keys(
    group: str, classes: Sequence[type], defaults: Mapping[str, Any], options: Sequence[Option], main: Mapping[str, str]
) -> Iterator[str]:
    """The table of a group's keys."""
    allowed = {own.name: own.metadata["allowed"] for cls in classes for own in dataclasses.fields(cls)}
    allowed |= {digits: text for (its, _), (digits, text) in DIGITS.items() if its == group}
    _, used = USED.get(group, ("", {}))
    rows = []
    for key, text in allowed.items():
        users = [name for name, own in used.items() if key in own]
        said = main.get(f"{group}.{key}") or meaning(key, options)
        if users and len(users) < len(used):
            said += f" (used by {', '.join(users)})"
        rows.append((f"`{group}.{key}`", _text(text), f"`{shown(defaults[key])}`", _text(said)))
    yield from table(("key", "allowed", "default", "meaning"), rows)


def meaning(key: str, options: Sequence[Option]) -> str:
    """What the options say of a key: the first one that says something, and those that say something else."""
    said: dict[str, str] = {}
    for own in options:
        if key in own.comments and own.comments[key] not in said:
            said[own.comments[key]] = own.name
    return ". ".join(text if at == 0 else f"With {said[text]}: {text}" for at, text in enumerate(said))


def presets() -> Iterator[str]:
    """The presets and what they are for."""
    yield "### `experiment`\n"
    yield "A preset: options and keys of all groups, and often a sweep. Overrides beside it take precedence.\n"
    rows = [(f"`{own.name}`", _text(own.meaning)) for own in options_of("experiment")]
    yield from table(("preset", "what it is"), rows)


def hydra() -> Iterator[str]:
    """What may be set of Hydra's own keys."""
    yield "### `hydra`\n"
    yield "Of [Hydra](https://hydra.cc/docs/1.3/intro/)'s own keys and groups these may be set, and no others.\n"
    yield from table(("key", "meaning"), [(f"`{key}`", _text(text)) for key, text in OPEN.items()])
    chosen = {group: next(iter(options)) for group, options in OPTIONS.items()}
    rows = [
        (f"`{group}={option}`{' (default)' if option == chosen[group] else ''}", _text(text))
        for group, options in OPTIONS.items()
        for option, text in options.items()
    ]
    yield from table(("option", "meaning"), rows)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table and an empty line, without a last column that is empty; nothing without rows."""
    if rows and not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    if rows:
        for row in (header, ["---"] * len(header), *rows):
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
        yield ""


def shown(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _text(text: str) -> str:
    """Plain text as Markdown, in which a document of docs/ is a link."""
    escaped = re.sub(r"([*\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", escaped)


def _sentence(text: str) -> str:
    return _text(text[:1].upper() + text[1:].rstrip(".") + ".")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
