"""Run files: the options of `thresher harvest`, written down once.

A run file is YAML with one key per option, spelled as on the command line with underscores: `text_column` is
`--text-column`, `model` and `prompts` are the arguments. The keys, their types and bounds are those that the command
itself has. Only plain YAML is read: no anchors, no aliases, no tags, no key twice.
"""

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from typer.models import ParameterInfo

from store import InputError

LARGEST_FILE = 1 << 20
LONGEST_VALUE = 4096
# Control characters, and halves of surrogate pairs: no option means anything by them.
_UNWANTED = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")


class Beside(Enum):
    """Marks an option that names a place: in a run file, relative ones are looked for beside that file.

    ALWAYS    a path, whether there is something or not
    IF_THERE  a model: a path if there is something, or if it begins with a dot; otherwise left as it is, a hub id
    """

    ALWAYS = 1
    IF_THERE = 2


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """A key of run files: the field of the options that it sets, and what it may be."""

    field: str
    kind: Any
    least: float | None
    beside: Beside | None


def run_keys(options: type) -> dict[str, RunKey]:
    """Key -> what it sets in `options`, a dataclass annotated as the parameters of typer's commands are."""
    keys = {}
    for name, hint in get_type_hints(options, include_extras=True).items():
        kind, *notes = get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
        option = next((note for note in notes if isinstance(note, ParameterInfo)), None)
        # In an annotation the first name of an option stands where a default would.
        named = (getattr(option, "default", None), *(getattr(option, "param_decls", None) or ()))
        words = [word for word in named if isinstance(word, str) and word.startswith("--")]
        key = words[0].split("/")[0].removeprefix("--").replace("-", "_") if words else name
        beside = next((note for note in notes if isinstance(note, Beside)), None)
        keys[key] = RunKey(field=name, kind=kind, least=getattr(option, "min", None), beside=beside)
    return keys


def is_run_file(word: str) -> bool:
    """True where a word that could name a model names a run file."""
    return word.lower().endswith((".yaml", ".yml"))


def read_run_file(path: Path | str, options: type) -> dict[str, Any]:
    """The fields of `options` that a run file sets.

    Raises InputError, naming the key, for a file that is missing, too large or no plain YAML, a key that is unknown
    or stands twice, and a value of the wrong type.
    """
    keys = run_keys(options)
    given = _mapping(Path(path))
    for key in given:
        if key not in keys:
            raise InputError(f"{path} has an unknown key {key!r}: {_nearest(key, keys)}")
    values = _checked(given, keys, path)
    folder = Path(path).absolute().parent
    return {keys[key].field: _placed(value, keys[key].beside, folder) for key, value in values.items()}


def _nearest(key: str, keys: Mapping[str, RunKey]) -> str:
    near = difflib.get_close_matches(key.lower().replace("-", "_"), keys, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"its keys may be {', '.join(keys)}"


def _checked(given: Mapping[str, Any], keys: Mapping[str, RunKey], path: Path | str) -> dict[str, Any]:
    """The values, each of its option's type and none coerced into it."""
    fields: dict[str, Any] = {name: (key.kind, Field(default=None, ge=key.least)) for name, key in keys.items()}
    model: type[BaseModel] = create_model(
        "RunFile", __config__=ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=()), **fields
    )
    try:
        return model.model_validate(given).model_dump(exclude_unset=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        key = str(first["loc"][0])
        hint = " (put it in quotes)" if first["type"] == "string_type" and not _nested(given[key]) else ""
        raise InputError(f"key {key!r} of {path} cannot be used: {_lower(first['msg'])}{hint}") from error


def _nested(value: Any) -> bool:
    return isinstance(value, (list, dict))


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _placed(value: Any, beside: Beside | None, folder: Path) -> Any:
    if isinstance(value, list):
        return [_placed(each, beside, folder) for each in value]
    if beside is None or not isinstance(value, str) or "://" in value or value.startswith("~"):
        return value
    place = os.path.join(folder, value)
    if beside is Beside.ALWAYS or value.startswith(".") or os.path.exists(place):
        return os.path.normpath(place)
    return value


def _mapping(path: Path) -> dict[str, Any]:
    """The top level of a plain YAML file."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{str(path)!r} cannot be read as a run file: {reason}") from error
    if len(data) > LARGEST_FILE:
        raise InputError(f"{path} has more than {LARGEST_FILE:,} bytes: it is no run file")
    try:
        loaded = _PlainLoader(data.decode("utf-8-sig")).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1} of {path}" if mark else f"{path}"
        raise InputError(f"{where} is no plain YAML: {getattr(error, 'problem', None) or 'unreadable'}") from error
    except (ValueError, OverflowError, RecursionError) as error:
        # A date that does not exist, a number without digits, bytes that are no text, brackets without end.
        raise InputError(f"{path} is no plain YAML: it holds a value that cannot be read") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise InputError(f"{path} should hold 'key: value' lines, such as 'model: NAME'")
    return loaded


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader without what a run file does not need, and what can be told as a few bytes that become gigabytes."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _refused("it has an anchor or alias, which run files do not", event)
        if getattr(event, "tag", None) is not None:
            raise _refused("it has a tag, which run files do not", event)
        text = getattr(event, "value", "")
        if len(text) > LONGEST_VALUE or _UNWANTED.search(text):
            raise _refused("a value is too long or has a line break or control character in it", event)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise _refused("a key is no name", key)
            if key.value in seen:
                raise _refused(f"key {key.value!r} stands twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refused(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)
