"""The command ``graphopt optimize``."""

import sys
from collections.abc import Sequence

import click

from graphopt import api
from graphopt.base import Pass
from graphopt.cli.chain import ChainedCommand
from graphopt.cli.progress import progress_bar
from graphopt.cli.writing import require_no_weights, require_report, require_writable, write_text
from graphopt.errors import OptionError
from graphopt.model import load, save
from graphopt.model.save import ExternalPolicy
from graphopt.presets import PRESETS, preset_passes
from graphopt.recipe import read_recipe
from graphopt.report import Report
from graphopt.report.html import to_html
from graphopt.report.text import print_report


@click.command(cls=ChainedCommand)
@click.argument("source")
@click.argument("target")
@click.option(
    "--data", metavar="FILE", help="An .npz keyed by input names (first axis = samples), or a test data folder."
)
@click.option("--recipe", metavar="FILE.toml", help="Take the passes and their options from a recipe.")
@click.option("--preset", metavar="NAME", help=f"Take a named list of passes: {', '.join(PRESETS)}.")
@click.option("--report", metavar="FILE", help="Write the report, as .json or .html.")
@click.option("--no-check", is_flag=True, help="Do not prove anything: faster, on your own risk.")
@click.option("--latency", is_flag=True, hidden=True, expose_value=False, help="Kept from before it was the default.")
@click.option("--no-latency", is_flag=True, help="Do not time source and target (one thread, default session).")
@click.option(
    "--custom-ops", multiple=True, metavar="PATH", help="A library of custom operators to load; may be repeated."
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="POINTS",
    help="How many points of top-1 a run that compresses may lose, where the data have labels.",
)
@click.option("--max-opset", type=click.IntRange(min=1), metavar="N", help="The opset beyond which no pass may go.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Before PASS: what every pass may rewrite.")
@click.option("--skip", multiple=True, metavar="PATTERN", help="Before PASS: what no pass may rewrite.")
@click.option("--keep-going", is_flag=True, help="Go on after a failed pass, and write the target all the same.")
@click.option(
    "--external-data",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Whether weights go to a file beside the target; auto: above 2 GB.",
)
def optimize(
    source: str,
    target: str,
    data: str | None,
    recipe: str | None,
    preset: str | None,
    report: str | None,
    no_check: bool,
    no_latency: bool,
    custom_ops: tuple[str, ...],
    max_drop: float,
    max_opset: int | None,
    only: tuple[str, ...],
    skip: tuple[str, ...],
    keep_going: bool,
    external_data: ExternalPolicy,
    passes: list[Pass],
) -> int:
    """Run passes over SOURCE, prove each against ONNX Runtime, and write TARGET.

    With no PASS, cleans up until nothing changes (preset clean), then runs prune-channels and quantize-weights.
    `graphopt passes` lists what is installed, and --help behind a PASS, or `graphopt passes PASS`, explains one and its
    options.
    """
    chosen, fixed_point = _choose(passes, recipe, preset)
    read = {"data": data, "recipe": recipe, **{f"library {each}": each for each in custom_ops}}
    require_writable(target, read)
    require_report(report, (".json", ".html"), {"target": target, "source": source, **read})
    model = load(source)
    require_no_weights((target, report), model)
    with progress_bar() as progress:
        result = api.optimize(
            model,
            chosen,
            data,
            check=not no_check,
            keep_going=keep_going,
            fixed_point=fixed_point,
            latency=not no_latency,
            custom_ops=custom_ops,
            max_drop=max_drop,
            max_opset=max_opset,
            only=only,
            skip=skip,
            progress=progress,
        )
    written = result.ok or keep_going
    size = save(result.optimized, target, external_data) if written else None
    told = api.with_target(result.report, target, size)
    if report is not None:
        _write_report(told, report)
    print_report(told, sys.stdout)
    for failure in told.failures:
        click.echo(f"graphopt: {failure}", err=True)
    if not told.ok:
        outcome = "was written all the same" if written else "was not written"
        click.echo(f"graphopt: {target} {outcome}", err=True)
    return 0 if told.ok else 1


def _choose(passes: Sequence[Pass], recipe: str | None, preset: str | None) -> tuple[Sequence[Pass] | None, bool | int]:
    """Return the passes to run, None if none is named, and how many to repeat; they come from one place only."""
    given = [name for name, there in (("PASS", passes), ("--recipe", recipe), ("--preset", preset)) if there]
    if len(given) > 1:
        raise OptionError(f"{given[0]} and {given[1]} cannot be used together")
    if recipe is not None:
        return read_recipe(recipe), False
    if preset is not None:
        return preset_passes(preset)
    return passes or None, False


def _write_report(report: Report, path: str) -> None:
    """Write the report in the form its name asks for."""
    write_text(path, to_html(report) if path.endswith(".html") else report.to_json())
