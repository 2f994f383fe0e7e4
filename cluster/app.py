"""The command `thresher`: every command registers itself here, and every error of a user becomes one line."""

import importlib
import os
import pkgutil
import signal
import sys
from types import FrameType

import typer

import cluster.commands
from cluster.console import err
from store import ThresherError

app = typer.Typer(
    name="thresher",
    help="Finds out what is going on inside language models, at fleet scale.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


_KEPT = "thresher: {}; what was published is kept, and the same command goes on from there"


@app.callback()
def _program() -> None:
    """Harvest activations, compare weights, fit probes and monitors, and report what was found."""


def _register(words: list[str]) -> None:
    """Registers the command that `words` ask for, or all of them where they name none (help, a wrong word).

    Every command lives in the module of its name. Loading them all would load torch, which a command that only reads
    receipts does not need.
    """
    names = sorted(found.name for found in pkgutil.iter_modules(cluster.commands.__path__))
    asked = next((word for word in words if not word.startswith("-")), "")
    for name in [asked] if asked in names else names:
        importlib.import_module(f"cluster.commands.{name}").register(app)


def main() -> None:
    """Runs the command line. Exit codes: 0 clean, 1 findings, 2 incomplete, 3 nothing to do, 4 input, 75 preempted."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    preempted = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal preempted
        preempted = True
        sys.exit(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        _register(sys.argv[1:])
        code = app(standalone_mode=False)
        if code == 130:  # what typer makes of an interruption
            raise KeyboardInterrupt
    except ThresherError as error:
        err.print(f"thresher: {' '.join(str(error).split())}", markup=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        err.print(_KEPT.format("stopped"), soft_wrap=True)
        sys.exit(130)
    except SystemExit:
        # Not told by its code: Ray makes another of one that is raised while it waits.
        if not preempted:
            raise
        err.print(_KEPT.format("preempted"), soft_wrap=True)
        sys.exit(75)
    except typer.TyperException as error:
        err.print(f"thresher: {error.format_message()} See 'thresher --help'.", markup=False, soft_wrap=True)
        sys.exit(4)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
