"""The log on stderr, and warnings as one line of it each."""

from __future__ import annotations

import logging
import warnings

from torchimpt.cli.streams import complain


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(self.format(record))


def set_up(*, quiet: bool, verbose: bool) -> None:
    """Send torchimpt's log to stderr: warnings and worse, with `quiet` errors only, with `verbose` everything.

    The logger itself lets all pass from INFO up, so that a run folder's log has what the terminal leaves out.
    """
    logger = logging.getLogger("torchimpt")
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    for handler in [handler for handler in logger.handlers if isinstance(handler, _Stderr)]:
        logger.removeHandler(handler)
    handler = _Stderr(logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S") if verbose else logging.Formatter("torchimpt: %(message)s")
    )
    logger.addHandler(handler)
    warnings.showwarning = _tell


def _tell(message: Warning | str, category: type[Warning], *_: object, **_more: object) -> None:
    """Log a warning; what a library will call otherwise one day is no news to a user."""
    future = issubclass(category, DeprecationWarning | PendingDeprecationWarning)
    logging.getLogger("torchimpt").log(logging.DEBUG if future else logging.WARNING, "%s", message)
