"""The entry point: gathers the groups of commands and turns polytask's errors into one line and exit code 2."""

from __future__ import annotations

import gc
import sys

import typer

from polytask.cli import compare, interference, merge, papers, serve, shrink, train, use
from polytask.errors import PolytaskError

app = typer.Typer(
    help="polytask: one model, many tasks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (compare, train, use, shrink, merge, interference, serve, papers):
    group.register(app)


def main() -> None:
    """Run the command line; `PolytaskError` becomes one line on standard error and exit code 2, Ctrl-C becomes 130."""
    # Loading torch makes a million objects that stay: the collector would walk them time and again, and at the end.
    gc.set_threshold(100_000, 50, 100)
    try:
        app()
    except PolytaskError as error:
        print(f"polytask: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:
            print("polytask: stopped; finished work is kept", file=sys.stderr)
        raise
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
