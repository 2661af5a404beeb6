"""The command ``graphopt validate``."""

import click

from graphopt import api
from graphopt.cli.writing import require_report, write_json
from graphopt.contract import Contract, FloatExact, Lossy
from graphopt.report import Check
from graphopt.report.outputs import output_figures, output_line
from graphopt.report.report import SCHEMA
from graphopt.report.text import printable


@click.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--data", metavar="FILE", help="An .npz keyed by input names (first axis = samples), or a test data folder."
)
@click.option("--report", metavar="FILE.json", help="Write the figures of every output.")
@click.option("--rtol", type=click.FloatRange(min=0), default=1e-4, show_default=True, help="Relative tolerance.")
@click.option("--atol", type=click.FloatRange(min=0), default=1e-5, show_default=True, help="Absolute tolerance.")
@click.option(
    "--min-sqnr", type=float, help="Instead: the ratio of spread to noise, in dB, that every output must keep."
)
@click.option("--custom-ops", metavar="PATH", multiple=True, help="A library with operators of your own (repeatable).")
def validate(
    a: str,
    b: str,
    data: str | None,
    report: str | None,
    rtol: float,
    atol: float,
    min_sqnr: float | None,
    custom_ops: tuple[str, ...],
) -> int:
    """Compare the outputs of model B with those of model A on the same inputs; status 1 if they differ."""
    contract: Contract = FloatExact(rtol, atol) if min_sqnr is None else Lossy(min_sqnr)
    require_report(report, (".json",), {"model A": a, "model B": b, "data": data})
    comparison = api.validate(a, b, data, contract, custom_ops=custom_ops)
    for output in comparison.outputs:
        click.echo(printable(output_line(output)))
    outcome = "holds" if comparison.holds else f"broken: {comparison.problem}"
    click.echo(printable(f"{comparison.contract}: {outcome}"))
    blind = (f"{name!r}: the data cannot tell a good model from a constant" for name in comparison.blind)
    for note in (*comparison.notes, *blind):
        click.echo(printable(f"note: {note}"))
    if report is not None:
        figures = {
            "schema": SCHEMA,
            "a": a,
            "b": b,
            "check": vars(Check.of(comparison)),
            "outputs": [output_figures(output) for output in comparison.outputs],
        }
        write_json(report, figures)
    return 0 if comparison.holds else 1
