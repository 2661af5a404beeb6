"""The command ``graphopt passes``."""

import inspect

import click

from graphopt.cli.chain import pass_command
from graphopt.errors import OptionError
from graphopt.registry import discover, load


@click.command()
@click.argument("name", required=False)
def passes(name: str | None) -> None:
    """List the installed passes, or explain the pass NAME and its options."""
    if name is not None:
        _explain(name)
        return
    width = max((len(each) for each in discover()), default=0)
    for each in discover():
        try:
            kind = load(each)
        except OptionError as error:
            click.echo(f"{each:{width}}  {error}")
            continue
        click.echo(f"{each:{width}}  {_summary(kind)} [{kind.contract}]")


def _explain(name: str) -> None:
    """Print a pass's docstring, contract and options."""
    kind = load(name)
    click.echo(f"{name} [{kind.contract}]\n\n{inspect.cleandoc(kind.__doc__ or '')}\n")
    command = pass_command(kind)
    formatter = click.HelpFormatter(width=100)
    command.format_options(click.Context(command), formatter)
    click.echo(formatter.getvalue().rstrip())


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]
