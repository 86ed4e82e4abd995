"""The border of the program: what becomes of an error, an interrupt and the terminal, whichever command runs.

Every error ends here as one line on stderr and an exit status (see `app.py`); an error that nobody foresaw too, with its traceback where
`--verbose` asks for it. This file imports next to nothing, so that an interrupt in the second that the imports take is met as well.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from torchimpt.checks import InputError
from torchimpt.cli.streams import complain, discard, follows, mute, set_up_streams, unmute

if TYPE_CHECKING:
    from typer import Typer

INTERRUPTED = 130


def run(load: Callable[[], Typer]) -> NoReturn:
    """Run the command line that `load` imports, on the program's arguments, and exit with its status."""
    caught: list[int] = []

    def interrupt(number: int, frame: Any) -> NoReturn:
        caught.append(number)
        raise KeyboardInterrupt

    threading.excepthook = _of_a_thread
    mine = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if mine:
        signal.signal(signal.SIGINT, interrupt)
    voice: int | None = None
    try:
        set_up_streams()
        voice = mute() if follows() else None
        status = _run(load, sys.argv[1:])
    except BaseException as error:
        if voice is not None and getattr(error, "speaks", False):  # the process that leads is lost
            unmute(voice)
        # an interrupt within an import or a callback may come out as another error
        status = INTERRUPTED if caught or isinstance(error, KeyboardInterrupt) else _told(error)
    finally:
        if mine:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if status == INTERRUPTED:
        complain("torchimpt: interrupted")
    sys.exit(status)


def _of_a_thread(args: Any) -> None:
    """TensorBoard's thread hands an error of its file to whoever writes next, and need not print a traceback besides."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def _run(load: Callable[[], Typer], arguments: list[str]) -> int:
    """The command's exit status."""
    for argument in arguments:
        if any("\ud800" <= c <= "\udfff" for c in argument):
            raise InputError(f"an argument is not text in UTF-8: {argument}; rename the file, or write it in UTF-8")
    try:
        status = load()(arguments or ["--help"], standalone_mode=False) or 0
    except SystemExit:  # the library's way to say that the reader of stdout has gone
        discard(sys.stdout)
        return 0
    sys.stdout.flush()
    return status


def _told(error: BaseException) -> int:
    """Tell an error in one line; its exit status."""
    if isinstance(error, InputError):
        text = str(error)
    elif hasattr(error, "format_message"):  # a wrong option or argument
        text = error.format_message()
    elif isinstance(error, OSError):
        discard(sys.stdout)  # it may be the cause
        text = f"{error.filename or 'stdout'}: {error.strerror or error}"
    elif "CUDA out of memory" in str(error):
        text = "the GPU is out of memory; with --device auto set dose.gpu_memory_gb to less, or use --device cpu"
    elif isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error):
        text = "out of memory; use a coarser dose.grid_mm, fewer spots or scenarios, dose.engine = matrix_free, or a smaller dose.memory_gb"
    elif isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        text = f"a file's or folder's name is not text in UTF-8: {error.object[:200]}; rename it, or set PYTHONUTF8=1"
    elif "no locator available" in str(error):
        text = "numba finds no folder for its compiled code; set NUMBA_CACHE_DIR to a folder that can be written"
    else:
        import traceback

        if {"-v", "--verbose"} & set(sys.argv):
            traceback.print_exception(error)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}, line {frame.lineno}"
        text = f"this should not happen: {type(error).__name__}: {error} ({where}); --verbose shows more, which helps to mend it"
    if getattr(error, "speaks", True):  # of several processes one tells what ends all
        complain(f"torchimpt: {text}")
    return 2
