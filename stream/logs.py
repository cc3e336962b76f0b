"""Logs to stdout: an event name and fields, JSON outside a terminal."""

import logging
import sys

import structlog
from structlog.typing import Processor

# Without the frames' local variables: they hold session ids and payloads.
_tracebacks = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def configure_logging(level: str) -> None:
    """Write structlog's and the libraries' events to stdout: JSON outside a terminal."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    terminal = sys.stdout.isatty()
    renderer = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([] if terminal else [_tracebacks]),
                renderer,
            ],
        )
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # What an operator needs of these we log ourselves: Faust narrates at info, and aiokafka calls
    # every connection an error that a broker which is away refuses, hundreds a second.
    least = max(logging.WARNING, logging.getLevelName(level.upper()))
    for chatty, at in (("faust", least), ("mode", least), ("aiokafka", logging.CRITICAL)):
        logging.getLogger(chatty).setLevel(at)
