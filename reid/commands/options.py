"""Options that have one spelling in every command and are grouped by purpose in `--help`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import click

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


def command(name: str, **attributes: Any) -> Decorator:
    """Return the decorator of a command with grouped help."""
    return click.command(name, cls=Command, **attributes)


def option(group: str, *names: str, **attributes: Any) -> Decorator:
    """Return the decorator of an option that `--help` lists under `group`."""
    return click.option(*names, cls=_Option, group=group, **attributes)


def model_option(**attributes: Any) -> Decorator:
    """Return the `--model` option."""
    text = "Checkpoint, run folder, bundle, .onnx or OpenVINO .xml file."
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
        for group, names in reversed(list(groups.items())):
            for name in reversed(names):
                function = option(group, *_attributes(settings, name)[0], **_attributes(settings, name)[1])(function)
        return function

    return add


def _attributes(settings: type[Settings], name: str) -> tuple[list[str], dict[str, Any]]:
    """Return the names and attributes of the option of a field."""
    field = settings.model_fields[name]
    flag, kind, default = name.replace("_", "-"), field.annotation, field.get_default()
    attributes: dict[str, Any] = {"help": field.description, "required": field.is_required()}
    kinds = [one for one in get_args(kind) if one is not type(None)]
    if get_origin(kind) is not Literal and type(None) in get_args(kind):
        kind = kinds[0]
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if kind is bool:
        names = f"--{flag}/--no-{flag}" if default else f"--{flag}"
        return [names, name], attributes | {"default": default, "is_flag": True, "show_default": default}
    if get_origin(kind) is Literal:
        attributes["type"] = click.Choice(get_args(kind))
    elif get_origin(kind) is tuple:
        return [f"--{flag}", name], attributes | {"multiple": True, "metavar": "LIST"}
    else:
        attributes["type"] = PATH if kind is Path else kind
    if not field.is_required() and default is not None:
        attributes |= {"default": default, "show_default": True}
    return [f"--{flag}", name], attributes
