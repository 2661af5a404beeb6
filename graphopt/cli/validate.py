"""The command ``graphopt validate``."""

import click

from graphopt import api
from graphopt.cli.writing import write_json
from graphopt.contract import Contract, FloatExact, Lossy
from graphopt.report import Check


@click.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--data", metavar="FILE", help="An .npz keyed by input names (first axis = samples), or a test data folder."
)
@click.option("--report", metavar="FILE.json", help="Write the figures of every output.")
@click.option("--rtol", type=click.FloatRange(min=0), default=1e-4, show_default=True, help="Relative tolerance.")
@click.option("--atol", type=click.FloatRange(min=0), default=1e-5, show_default=True, help="Absolute tolerance.")
@click.option("--min-sqnr", type=float, help="Instead: the signal-to-noise ratio, in dB, that every output must keep.")
def validate(
    a: str, b: str, data: str | None, report: str | None, rtol: float, atol: float, min_sqnr: float | None
) -> int:
    """Compare the outputs of model B with those of model A on the same inputs; status 1 if they differ."""
    contract: Contract = FloatExact(rtol, atol) if min_sqnr is None else Lossy(min_sqnr)
    comparison = api.validate(a, b, data, contract)
    for output in comparison.outputs:
        sqnr = "" if output.sqnr_db is None else f", SQNR {output.sqnr_db:.1f} dB"
        click.echo(f"{output.name}: largest difference {output.max_abs:.3g} (relative {output.max_rel:.3g}){sqnr}")
    click.echo(f"{comparison.contract}: {'holds' if comparison.holds else 'broken: ' + comparison.problem}")
    for note in comparison.notes:
        click.echo(f"note: {note}")
    if report is not None:
        figures = {
            "a": a,
            "b": b,
            "check": vars(Check.of(comparison)),
            "outputs": [vars(o) for o in comparison.outputs],
        }
        write_json(report, figures)
    return 0 if comparison.holds else 1
