"""Options that have one spelling in every command and are grouped by purpose in `--help`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from reid.config import Settings

PATH = click.Path(path_type=Path)
Decorator = Callable[[Any], Any]


class Command(click.Command):
    """Command whose `--help` lists options under the heading given to `option`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                sections.setdefault(getattr(parameter, "group", "Help"), []).append(record)
        for title, records in sorted(sections.items(), key=lambda section: section[0] == "Help"):
            with formatter.section(title):
                formatter.write_dl(records)


class _Option(click.Option):
    def __init__(self, *names: Any, group: str, **attributes: Any) -> None:
        super().__init__(*names, **attributes)
        self.group = group


def option(group: str, *names: str, **attributes: Any) -> Decorator:
    """Return the decorator of an option that `--help` lists under `group`."""
    return click.option(*names, cls=_Option, group=group, **attributes)


def model_option(**attributes: Any) -> Decorator:
    """Return the `--model` option."""
    text = "Checkpoint, run folder, bundle, .onnx or OpenVINO .xml file, or the name of a published model."
    return option("Input", "--model", **{"required": True, "type": PATH, "metavar": "FILE", "help": text, **attributes})


def out_option(text: str, **attributes: Any) -> Decorator:
    """Return the `--out` option."""
    return option("Output", "--out", type=PATH, help=text, **attributes)


def overrides_argument(function: Any) -> Any:
    """Add the `key=value` arguments that change settings."""
    return click.argument("overrides", nargs=-1, metavar="[key=value]...")(function)


def settings_options(settings: type[Settings], groups: Mapping[str, Sequence[str]]) -> Decorator:
    """Return a decorator that adds one option per field of `settings`: its type, default and help are the field's.

    Args:
        settings: a settings class.
        groups: the fields to add, by the heading for `--help`.
    """

    def add(function: Any) -> Any:
        for group, name in reversed([(group, name) for group, names in groups.items() for name in names]):
            function = _field_option(group, name, settings.model_fields[name])(function)
        return function

    return add


def _field_option(group: str, name: str, field: FieldInfo) -> Decorator:
    kind, default = field.annotation, None if field.is_required() else field.default
    names = [f"--{name.replace('_', '-')}", name]
    if type(None) in get_args(kind):
        kind = get_args(kind)[0]
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    attributes: dict[str, Any] = {"type": PATH if kind is Path else kind}
    literals = [word for part in get_args(kind) if get_origin(part) is Literal for word in get_args(part)]
    if literals:  # a number, or a name
        attributes = {"type": str, "metavar": "|".join(["NUMBER", *literals])}
    if name == "data":
        attributes["metavar"] = "LAYOUT:ROOT"
    if kind is bool:
        attributes = {"is_flag": True}
        names[0] += f"/--no-{names[0][2:]}" if default else ""
    elif get_origin(kind) is Literal:
        attributes = {"type": click.Choice(get_args(kind))}
    elif get_origin(kind) is tuple:
        attributes = {"multiple": True, "metavar": "LIST"}
    attributes |= {"required": True} if field.is_required() else {"default": default}
    return option(group, *names, help=field.description, show_default=default not in (None, False, ()), **attributes)
