"""The command line; one file per command."""

import contextlib
import os
import sys
from collections.abc import Sequence

import click

from graphopt.cli.lazy import LazyGroup
from graphopt.errors import GraphoptError
from graphopt.runtime.memory import keep_large_blocks_apart


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
    """Run the command line; whatever is unusable is reported in one line on standard error, with status 2."""
    occupy_standard_streams()
    keep_large_blocks_apart()
    try:
        status = graphopt.main(args=None if arguments is None else list(arguments), standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:  # its text is the help page, in lines of its own
        click.echo(error.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as error:
        fail(error.format_message())
    except GraphoptError as error:
        fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("graphopt: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has read enough
        drop_output()
        sys.exit(1)
    except OSError as error:
        name = f"{error.filename}: " if error.filename is not None else ""
        drop_output()
        fail(f"{name}{error.strerror or error or type(error).__name__}")
    except MemoryError as error:
        fail(f"out of memory: {error}" if str(error) else "out of memory")
    except RecursionError:
        fail("the input is nested too deeply")
    sys.exit(status if isinstance(status, int) else 0)


def occupy_standard_streams() -> None:
    """Put the null device in the place of standard streams that are closed.

    Else the next file that is opened, such as the target, would get the stream's number, and with it what is printed.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def drop_output() -> None:
    """Let what is still to be written to standard output go nowhere, as Python would try again at its end."""
    with contextlib.suppress(OSError, ValueError):  # it may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: str) -> None:
    """Report in one line why nothing can be done, and leave with status 2."""
    click.echo("graphopt: error: " + " ".join(message.split()), err=True)
    sys.exit(2)
