"""Read settings from a YAML file, and say in which line a mistake stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pgqrs_core.config_sources import Given, Level, Settings, plugin_level, quote, refuse_unknown
from pgqrs_core.config_trust import read_found_file
from pgqrs_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["read_file"]


def read_file(path: str, settings: Settings, *, named: bool = True) -> Level:
    """Read a YAML file of sections. Values stay nodes until checked, so that errors know their line.

    One that was not ``named`` but found is read only if no other user can have written it.
    """
    root, loader = _compose(path, _read(path, named=named))
    level: Level = {}
    owners = {key: section for section, keys in settings.items() for key in keys}
    for section, section_node, line in _pairs(root, path, "the file"):
        if section not in settings:
            owner = f" (it belongs under {owners[section]!r})" if section in owners else ""
            refuse_unknown(f"{path}, line {line}", section, settings, what="section", note=owner)
        for key, node, key_line in _pairs(section_node, path, section):
            source, label = f"{path}, line {key_line}", f"{section}.{key}"
            if section == "plugins" and key not in settings[section] and isinstance(node, yaml.MappingNode):
                level.update(plugin_level(key, _inner(node, loader, path, label)))
                continue
            if key not in settings[section]:
                refuse_unknown(source, label, [f"{section}.{known}" for known in settings[section]])
            value = settings[section][key].check(label, _scalar(node, loader, label, source), source)
            if value is not None:
                level[section, key] = Given(value, source)
    return level


def _read(path: str, *, named: bool) -> str:
    try:
        return (Path(path).read_bytes() if named else read_found_file(path)).decode("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror}", source=path) from error
    except UnicodeDecodeError as error:
        # The original error carries the whole file: its line is all that may leave.
        problem = ConfigurationError(
            "is not UTF-8 text", source=f"{path}, line {error.object.count(10, 0, error.start) + 1}"
        )
    except ValueError as error:
        raise ConfigurationError("is not a file name", source=repr(path)) from error
    raise problem


def _compose(path: str, text: str) -> tuple[yaml.Node | None, yaml.SafeLoader]:
    """Parse the file into nodes. Only a line and a reason leave here: YAML's snippets may hold a password."""
    line: int | None = None
    try:
        loader = yaml.SafeLoader(text)
        return loader.get_single_node(), loader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        # An unquoted password may begin with "*" or "!", and is then the unknown alias or tag of the message.
        # Names of tokens and single characters are harmless.
        reason = re.sub(
            r"""('<[\w ]+>'|(['"])\\?.\2)|(['"]).*\3""",
            lambda quoted: quoted[1] or "'…'",
            error.problem or "it cannot be parsed",
        )
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reason = "it holds a control character"
    except (ValueError, OverflowError):
        # PyYAML calls chr() on whatever follows a "\U".
        reason = "a \\U escape is beyond Unicode"
    except RecursionError:
        reason = "it is nested too deeply"
    where = path if line is None else f"{path}, line {line}"
    raise ConfigurationError(f"not valid YAML: {reason}", source=where)


def _pairs(node: yaml.Node | None, path: str, owner: str) -> Iterator[tuple[str, yaml.Node, int]]:
    """Give the key, value and line of each entry; an absent or null mapping is an empty one."""
    if node is None or node.tag == "tag:yaml.org,2002:null":
        return
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        where = f"{path}, line {node.start_mark.line + 1}"
        raise ConfigurationError(f"{owner} must be a mapping of keys, not {kind}", source=where)
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigurationError(f"a key of {owner} must be plain text", source=f"{path}, line {line}")
        key = key_node.value
        if key in seen:
            raise ConfigurationError(
                f"key {quote(key)} of {owner} was already given in line {seen[key]}",
                key=quote(key)[1:-1],
                source=f"{path}, line {line}",
            )
        seen[key] = line
        yield key, value_node, line


def _inner(node: yaml.Node, loader: yaml.SafeLoader, path: str, owner: str) -> dict[str, tuple[object, str]]:
    """Give the values of one plugin's section, each with its place."""
    found: dict[str, tuple[object, str]] = {}
    for key, value, line in _pairs(node, path, owner):
        source = f"{path}, line {line}"
        found[key] = _scalar(value, loader, f"{owner}.{key}", source), source
    return found


def _scalar(node: yaml.Node, loader: yaml.SafeLoader, label: str, source: str) -> object:
    """Construct one value: a scalar or a flat list; anything deeper is only good for an error."""
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if isinstance(node, yaml.MappingNode) or not all(isinstance(item, yaml.ScalarNode) for item in nodes):
        return {} if isinstance(node, yaml.MappingNode) else [None]
    try:
        values = [loader.construct_object(item) for item in nodes]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, yaml.YAMLError):
        # `!tag`, `!!int x`, a date that does not exist, a number of thousands of digits: PyYAML raises
        # whatever it stumbles over. The value may be a secret, so that error stays here.
        values = None
    if values is None:
        raise ConfigurationError(f"{label} is no value that YAML can read; put it in quotes", key=label, source=source)
    return values if isinstance(node, yaml.SequenceNode) else values[0]
