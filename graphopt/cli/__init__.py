"""The command line; one file per command."""

import sys
from collections.abc import Sequence

import click

from graphopt.cli.lazy import LazyGroup
from graphopt.errors import GraphoptError


@click.group(
    cls=LazyGroup,
    commands_in={
        "optimize": ("graphopt.cli.optimize", "Run passes over a model, prove each, and write the result."),
        "validate": ("graphopt.cli.validate", "Compare the outputs of two models on the same inputs."),
        "inspect": ("graphopt.cli.inspect", "Show what a model holds."),
        "distill": ("graphopt.cli.distill", "Train a compressed or smaller model to answer as the original does."),
        "transfer": ("graphopt.cli.transfer", "Copy parameters from one model into another."),
        "passes": ("graphopt.cli.passes", "List the installed passes, or explain one."),
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="graphopt")
def graphopt() -> None:
    """A verified post-training optimizer for ONNX models.

    Exit status: 0 done and verified; 1 a check failed, or a compressing pass could do nothing; 2 the input or the
    arguments are unusable.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; whatever is unusable is said in one line on standard error, with status 2."""
    try:
        status = graphopt.main(args=None if arguments is None else list(arguments), standalone_mode=False)
    except click.ClickException as error:
        fail(error.format_message())
    except GraphoptError as error:
        fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("graphopt: interrupted", err=True)
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


def fail(message: str) -> None:
    """Say in one line why nothing can be done, and leave with status 2."""
    click.echo("graphopt: error: " + " ".join(message.split()), err=True)
    sys.exit(2)
