"""The command ``graphopt transfer``."""

import click

from graphopt.cli.writing import require_no_weights, require_report, require_writable, write_json
from graphopt.errors import OptionError
from graphopt.graph.matching import Method
from graphopt.model import load, save
from graphopt.transfer import read_mapping
from graphopt.transfer import transfer as copy_parameters


@click.command()
@click.argument("source")
@click.argument("model")
@click.argument("target")
@click.option(
    "--by",
    "method",
    type=click.Choice(["name", "structure", "mapping"]),
    help="How parameters are matched: name of the stored tensor (the default), place in the graph, or --mapping.",
)
@click.option(
    "--mapping", metavar="FILE.json", help="An object of MODEL's names to SOURCE's; one * stands for the same."
)
@click.option("--only", multiple=True, metavar="PATTERN", help="Copy only into parameters whose name matches.")
@click.option("--no-slices", is_flag=True, help="Copy nothing where MODEL is narrower.")
@click.option("--report", metavar="FILE.json", help="Write what was copied, what not and why.")
def transfer(
    source: str,
    model: str,
    target: str,
    method: Method | None,
    mapping: str | None,
    only: tuple[str, ...],
    no_slices: bool,
    report: str | None,
) -> int:
    """Copy parameters of SOURCE into MODEL and write the result to TARGET; status 1 if nothing could be copied."""
    require_writable(target, {"mapping": mapping})
    require_report(report, (".json",), {"target": target, "source": source, "model": model, "mapping": mapping})
    given = None if mapping is None else read_mapping(mapping)
    if given is not None and method not in (None, "mapping"):
        raise OptionError(f"--mapping does not go with --by {method}")
    chosen: Method = "mapping" if given is not None else method or "name"
    giver, taker = load(source), load(model)
    require_no_weights((target, report), giver, taker)
    result, told = copy_parameters(giver, taker, method=chosen, mapping=given, only=only, slices=not no_slices)
    for copied in told.copied:
        click.echo(f"copied   {copied.site}: {copied.detail}")
    for skipped in told.skipped:
        click.echo(f"not      {skipped.site}: {skipped.reason}")
    for name in told.unused:
        click.echo(f"unused   {name} of the source")
    counts = f"{len(told.copied)} parameters copied, {len(told.skipped)} not"
    click.echo(f"{counts}; {len(told.unused)} of the source were not used")
    if report is not None:
        figures = {
            "copied": [vars(each) for each in told.copied],
            "skipped": [vars(each) for each in told.skipped],
            "unused": told.unused,
        }
        write_json(report, figures)
    if not told.copied:
        click.echo(f"graphopt: nothing could be copied, {target} was not written", err=True)
        return 1
    save(result, target)
    return 0
