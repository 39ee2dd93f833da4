"""Logging for wrappers and mains, with known secrets blanked out."""

import logging
import os
import re
import sys

# Names under which API keys and tokens usually travel; their values never reach a log
SECRET_NAME = re.compile(r"(API_?KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?$", re.IGNORECASE)
_SHORTEST_SECRET = 6
_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module."""
    return logging.getLogger(name)


class RedactingFilter(logging.Filter):
    """Replaces secret values taken from the environment by `***` in every message."""

    def __init__(self) -> None:
        super().__init__()
        values = {v for k, v in os.environ.items() if SECRET_NAME.search(k) and len(v) >= _SHORTEST_SECRET}
        ordered = sorted(values, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def filter(self, record: logging.LogRecord) -> bool:
        """Blank out secrets; never drops a record."""
        if self._pattern is not None:
            record.msg = self._pattern.sub("***", record.getMessage())
            record.args = None
            if record.exc_info and not record.exc_text:
                record.exc_text = logging.Formatter().formatException(record.exc_info)
            if record.exc_text:
                record.exc_text = self._pattern.sub("***", record.exc_text)
        return True


def setup_logging(level: str = "INFO") -> None:
    """Send log lines of `level` and above to stderr, replacing whatever was configured before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%H:%M:%S"))
    handler.addFilter(RedactingFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
