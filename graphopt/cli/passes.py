"""The command ``graphopt passes``."""

import click

from graphopt.cli.chain import explain
from graphopt.errors import OptionError
from graphopt.registry import discover, load


@click.command()
@click.argument("name", required=False)
def passes(name: str | None) -> None:
    """List the installed passes, or explain the pass NAME and its options."""
    if name is not None:
        click.echo(explain(load(name)))
        return
    width = max((len(each) for each in discover()), default=0)
    for each in discover():
        try:
            kind = load(each)
        except OptionError as error:
            click.echo(f"{each:{width}}  {error}")
            continue
        click.echo(f"{each:{width}}  {_summary(kind)} [{kind.contract}]")


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]
