"""Logging by structlog and the standard library: coloured lines in development, JSON in production."""

import logging
import logging.config
import sys

import structlog
import structlog.tracebacks

_SHARED: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


_is_json = False


def is_json_logging() -> bool:
    """Whether this process logs JSON. The processes that it starts then do so too."""
    return _is_json


def configure_logging(*, level: str = "INFO", json: bool) -> None:
    """Send all logs to stderr in one format, including those of uvicorn, arq and SQLAlchemy."""
    renderer: list[structlog.typing.Processor]
    # Tracebacks leave out local variables, which hold API keys and tokens.
    if json:
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        renderer = [structlog.processors.ExceptionRenderer(tracebacks), structlog.processors.JSONRenderer()]
    else:
        renderer = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "plain": {
                    "()": structlog.stdlib.ProcessorFormatter,
                    "foreign_pre_chain": _SHARED,
                    "processors": [structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
            "root": {"handlers": ["stderr"], "level": level},
            "loggers": {
                name: {"handlers": [], "propagate": True, "level": floor}
                for name, floor in {
                    "uvicorn": level,
                    "uvicorn.access": "WARNING",
                    "arq": "WARNING",
                    # httpx logs every URL at INFO: feed and webhook addresses are secrets.
                    "httpx": "WARNING",
                    "httpcore": "WARNING",
                }.items()
            },
        }
    )
    global _is_json  # noqa: PLW0603 - logging is configured for the process
    _is_json = json
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
