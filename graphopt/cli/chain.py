"""Splits ``SOURCE TARGET [OPTIONS] [PASS [OPTIONS]]...`` and makes each pass's options from its dataclass."""

import dataclasses
from collections.abc import Iterator, Sequence
from inspect import cleandoc
from typing import Any

import click
from click.core import ParameterSource

from graphopt.base import Pass
from graphopt.options import Kind, is_common, options
from graphopt.registry import create, load

Options = dict[str, click.Option]


class PassHelp(Exception):  # noqa: N818
    """Raised where help on a pass is asked for in the place of its options."""

    def __init__(self, kind: type[Pass]) -> None:
        """Keep the pass."""
        super().__init__(kind.name)
        self.kind = kind


def explain(kind: type[Pass]) -> str:
    """Return a pass's contract, docstring and options."""
    command = pass_command(kind)
    formatter = click.HelpFormatter(width=100)
    command.format_options(click.Context(command), formatter)
    return f"{kind.name} [{kind.contract}]\n\n{cleandoc(kind.__doc__ or '')}\n\n{formatter.getvalue().rstrip()}"


def split_passes(command: click.Command, arguments: Sequence[str]) -> tuple[list[str], list[Pass]]:
    """Split the arguments of ``optimize`` into its own and the chained passes.

    The third bare word names the first pass, and each bare word after it the next one. An option that a pass does not
    have but ``optimize`` does is taken as the latter's, so that ``--report`` may also stand at the end. Behind ``--``
    every word is a bare one, whatever it begins with.

    Raises:
        PassHelp: ``--help`` stands behind a pass.
        OptionError: A pass is unknown or an option's value is out of range.
        click.UsageError: An option is unknown or has no value.
    """
    own: list[str] = []
    files: list[str] = []
    chained: list[tuple[str, list[str]]] = []
    only_bare = False
    known = own_options = _options(command)
    kinds: dict[str, type[Pass]] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--" and not only_bare:
            only_bare = True
            continue
        if only_bare or not word.startswith("-") or word == "-":
            if len(files) < 2:
                files.append(word)
            else:
                kinds[word] = load(word)
                chained.append((word, []))
                known = _options(pass_command(kinds[word]))
            continue
        name = word.partition("=")[0]
        if name in ("-h", "--help") and name not in known:
            if not chained:
                return [name], []
            raise PassHelp(kinds[chained[-1][0]])
        if name not in known and name not in own_options:
            label = f"{chained[-1][0]}: " if chained else ""
            raise click.UsageError(f"{label}no such option: {name}")
        home = chained[-1][1] if chained and name in known else own
        home.append(word)
        option = (own_options if home is own else known)[name]
        if not option.is_flag and "=" not in word and rest:
            home.append(rest.pop(0))
    if any(word.startswith("-") for word in files):
        files.insert(0, "--")
    return [*own, *files], [_parse(kinds[name], words) for name, words in chained]


def pass_command(kind: type[Pass]) -> click.Command:
    """Return a command whose options are the fields of a pass's dataclass."""
    summary = (kind.__doc__ or "").strip().partition("\n")[0]
    return click.Command(kind.name, params=list(_pass_options(kind)), help=summary, add_help_option=False)


def _pass_options(kind: type[Pass]) -> Iterator[click.Option]:
    for field, hint in options(kind):
        if is_common(field) and field.name == "override":
            continue  # a table, which a recipe has and a command line has not
        flag = f"--{field.name.replace('_', '-')}"
        text = field.metadata.get("help", "")
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        declared = Kind.of(str if is_common(field) else hint)
        if is_common(field):
            yield click.Option([flag, field.name], metavar="PATTERN", multiple=True, help=text)
        elif declared.base is bool and not declared.repeated and not declared.choices:
            yield click.Option([f"{flag}/--no-{flag[2:]}", field.name], default=default, help=text, show_default=True)
        else:
            yield click.Option(
                [flag, field.name],
                type=_click_type(declared),
                default=default,
                multiple=declared.repeated,
                help=text,
                show_default=True,
            )


class _Choice(click.Choice[Any]):
    """Choices of any type, which a command line writes as text."""

    def __init__(self, choices: tuple[Any, ...]) -> None:
        super().__init__([str(choice) for choice in choices])
        self.values = {str(choice): choice for choice in choices}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the choice that a text stands for."""
        return self.values[super().convert(str(value), param, ctx)]


def _click_type(declared: Kind) -> click.ParamType[Any]:
    """Return click's type for an option's declared type."""
    if declared.choices:
        return _Choice(declared.choices)
    plain: dict[Any, click.ParamType[Any]] = {int: click.INT, float: click.FLOAT, bool: click.BOOL}
    return plain.get(declared.base, click.STRING)


def _options(command: click.Command) -> Options:
    """Return every spelling of a command's options."""
    return {
        spelling: parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for spelling in [*parameter.opts, *parameter.secondary_opts]
    }


def _parse(kind: type[Pass], words: list[str]) -> Pass:
    """Create one pass from its words on the command line."""
    try:
        with pass_command(kind).make_context(kind.name, list(words)) as context:
            given = {
                name: value
                for name, value in context.params.items()
                if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
            }
            return create(kind.name, **given)
    except click.UsageError as error:
        raise click.UsageError(f"{kind.name}: {error.format_message()}") from error


class ChainedCommand(click.Command):
    """A command that takes passes after its own arguments; its callback gets them as ``passes``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the passes out of the arguments, then parse what is left as usual."""
        try:
            own, passes = split_passes(self, args)
        except PassHelp as asked:
            click.echo(explain(asked.kind))
            ctx.exit()
        left = super().parse_args(ctx, own)
        ctx.params["passes"] = passes
        return left

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Show the passes in the usage line."""
        return [*super().collect_usage_pieces(ctx), "[PASS [OPTIONS]]..."]
