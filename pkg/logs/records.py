"""Renders log records as JSON and as text.

It writes nothing: `sink` decides which thread renders a record and where the line goes.

JSON lines are pure ASCII, so that a line remains valid JSON on one line whatever bytes a client or application sends.
The names of fields are those of a schema, by default OpenTelemetry's.
"""

from __future__ import annotations

import logging
import time
import traceback
from contextlib import suppress
from json import dumps
from json.encoder import encode_basestring_ascii
from math import isfinite
from typing import Any, NamedTuple

from pkg.logs.schemas import OTEL, Schema

# Limits of one record, in characters.
MAX_MESSAGE = 32768
MAX_STACKTRACE = 65536
MAX_FIELD = 8192

# at, method, target, status, duration, request size, response size, client, user agent, trace id, span id, request id,
# listener ("" if there is one only)
Access = tuple[float, str, str, int, float, int, int, str, str | None, str | None, str | None, str | None, str]
Ids = tuple[str, str, str]  # trace id, span id, request id; "" if unknown


def _repair(text: str) -> str:
    """Text without lone surrogates, which are not characters and which strict JSON parsers refuse."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _quote(text: str) -> str:
    """A JSON string in ASCII.  It also escapes DEL, which JSON does not require."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            text = _repair(text)
    quoted = encode_basestring_ascii(text)
    return quoted.replace("\x7f", "\\u007f") if "\x7f" in quoted else quoted


def _header_text(text: str) -> str:
    """Text of a request's head, decoded as UTF-8 if possible; PEP 3333 represents its bytes as Latin-1."""
    if text.isascii():
        return text
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _clip(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[:limit]}... ({len(text) - limit} more)"


def _clip_middle(text: str, limit: int) -> str:
    """The first and the last part, as the ends of a stack are most useful, and the middle of a recursion is not."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n... ({len(text) - limit} more) ...\n{text[-(limit // 2) :]}"


def printable(text: str) -> str:
    """Text with control characters, C1 and bidi overrides escaped, safe for one line of a terminal."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def printable_lines(text: str) -> str:
    """The same for text of several lines."""
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


def printable_json(document: str) -> str:
    """A JSON document with everything escaped that a terminal would interpret.  Lone surrogates stay unchanged."""
    if document.isascii():
        return document.replace("\x7f", "\\u007f")
    return "".join(map(_as_in_json, document))


def _as_in_json(character: str) -> str:
    if character == "\n" or character.isprintable() or "\ud800" <= character <= "\udfff":
        return character
    return _quote(character)[1:-1]


def _json_value(value: Any) -> str:
    """Any value as JSON.  It never raises, since a value that cannot be rendered must not cost the record."""
    try:
        kind = type(value)
        if kind is str:
            return _quote(_clip(value, MAX_FIELD))
        if kind is bool or value is None or (kind is float and isfinite(value)):
            return dumps(value)
        if kind is int and -(1 << 63) <= value < 1 << 64:
            return str(value)
        if kind in (dict, list, tuple):
            with suppress(TypeError, ValueError, RecursionError):
                encoded = dumps(value, default=str, allow_nan=False).replace("\x7f", "\\u007f")
                if "\\ud" in encoded:  # an emoji, or a lone surrogate, which is a ValueError here
                    dumps(value, default=str, ensure_ascii=False).encode()
                if len(encoded) <= MAX_FIELD:
                    return encoded
        return _quote(_clip(str(value), MAX_FIELD))
    except Exception as error:
        return _quote(f"<{type(value).__name__}: {type(error).__name__} in str()>")


_second = (0, "")


def _timestamp(at: float) -> str:
    """RFC 3339, UTC, microseconds."""
    global _second
    whole = int(at)
    cached, text = _second
    if cached != whole:
        text = "%04d-%02d-%02dT%02d:%02d:%02d" % time.gmtime(whole)[:6]  # noqa: UP031 - takes the tuple as it is
        _second = (whole, text)
    return f"{text}.{int((at - whole) * 1e6):06d}Z"


class _Fields(NamedTuple):
    """The parts of a record of `logging`, extracted in the thread that logs it."""

    at: float
    severity: str
    logger: str
    message: str
    stacktrace: str
    fields: dict[str, Any]


_NO_IDS = ("", "", "")
# Not from makeLogRecord(): the factory of an agent adds its own fields, which must be shown.
_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


def _take_apart(record: logging.LogRecord, ids: Ids, schema: Schema = OTEL) -> _Fields:
    fields: dict[str, Any] = {}
    try:
        message = record.getMessage()
    except Exception as error:  # a wrong number of arguments, a broken __str__
        fields["logging.error"] = f"{type(error).__name__}: {error}"
        message = f"{record.msg if isinstance(record.msg, str) else type(record.msg).__name__}"
    for name, value in zip(("trace_id", "span_id", "request_id"), ids, strict=True):
        if value:
            fields[schema.name(name)] = f"{schema.trace_prefix}{value}" if name == "trace_id" else value
    stacktrace = ""
    if record.exc_info and record.exc_info[0] is not None:
        kind, error_value, trace = record.exc_info
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        fields[schema.name("exception.type")] = name
        try:
            fields[schema.name("exception.message")] = str(error_value)
        except Exception as error:  # the stack is more important than the message
            fields["logging.error"] = f"{type(error).__name__} in str() of the exception"
        try:
            stacktrace = "".join(traceback.format_exception(kind, error_value, trace)).rstrip("\n")
        except Exception as error:
            fields["logging.error"] = f"{type(error).__name__} while the exception was rendered"
            with suppress(Exception):
                stacktrace = "".join(traceback.format_tb(trace)).rstrip("\n")
    elif record.stack_info:
        stacktrace = record.stack_info
    for name, value in vars(record).items():
        if name not in _STANDARD:
            fields[f"extra.{name}" if name in schema.first else name] = value
    return _Fields(record.created, record.levelname, record.name, message, stacktrace, fields)


def _begin(schema: Schema, at: float, severity: str, message: str, logger: str) -> str:
    level = severity.lower() if schema.lowers else severity
    return schema.begin.format(
        at=_timestamp(at), severity=_quote(level), message=_quote(message), logger=_quote(logger)
    )


def json_record(record: logging.LogRecord, ids: Ids = _NO_IDS, schema: Schema = OTEL) -> bytes:
    at, severity, logger, message, stacktrace, fields = _take_apart(record, ids, schema)
    key = schema.name("exception.stacktrace" if schema.name("exception.type") in fields else "code.stacktrace")
    if stacktrace and key in fields:  # a name may occur only once; it belongs to the stack
        fields[f"extra.{key}"] = fields.pop(key)
    parts = [_begin(schema, at, severity, _clip(message, MAX_MESSAGE), logger)]
    parts += [f"{_quote(str(name))}:{_json_value(value)}" for name, value in fields.items()]
    if stacktrace:
        parts.append(f'"{key}":{_quote(_clip_middle(stacktrace, MAX_STACKTRACE))}')
    return (",".join(parts) + "}\n").encode("ascii")


def text_record(record: logging.LogRecord, ids: Ids = _NO_IDS) -> bytes:
    at, severity, logger, message, stacktrace, fields = _take_apart(record, ids)
    parts = [
        _timestamp(at),
        f"{printable(severity):<8}",
        f"{printable(logger)}:",
        printable(_clip(message, MAX_MESSAGE)),
    ]
    # The last line of the stack already contains type and message.
    hidden = ("exception.type", "exception.message") if stacktrace else ()
    parts += [f"{printable(str(name))}={_text_value(value)}" for name, value in fields.items() if name not in hidden]
    line = " ".join(parts)
    for row in _clip_middle(stacktrace, MAX_STACKTRACE).splitlines() if stacktrace else ():
        line += "\n    " + printable(row)
    return (line + "\n").encode("utf-8", "backslashreplace")


def _text_value(value: Any) -> str:
    if type(value) is str and value.isprintable() and value and " " not in value and '"' not in value:
        return _clip(value, MAX_FIELD)
    return _json_value(value)


def json_access(item: Access, schema: Schema = OTEL) -> bytes:
    at, method, target, status, duration, received, sent, client, agent, trace_id, span_id, request_id, listener = item
    path = _header_text(target.partition("?")[0])  # a query may contain secrets
    line = _begin(schema, at, "ERROR" if status >= 500 else "INFO", f"{method} {path} {status}", "pkg.access")
    line += schema.access.format(
        method=_quote(method), path=_quote(path), status=status, duration=duration, nanoseconds=round(duration * 1e9),
        received=received, sent=sent, client=_quote(client),
        agent=f',"{schema.agent}":{_quote(_header_text(agent))}' if agent else "",
    )  # fmt: skip
    if listener:
        line += f',"listener":{_quote(listener)}'
    if trace_id:
        line += f',"{schema.name("trace_id")}":{_quote(schema.trace_prefix + trace_id)}'
    if span_id:
        line += f',"{schema.name("span_id")}":{_quote(span_id)}'
    if request_id:
        line += f',"{schema.name("request_id")}":{_quote(request_id)}'
    return (line + "}\n").encode("ascii")


def text_access(item: Access) -> bytes:
    at, method, target, status, duration, _, sent, client, agent, _, _, request_id, listener = item
    path = printable(_header_text(target.partition("?")[0]))
    return (
        f"{_timestamp(at)} {'ERROR' if status >= 500 else 'INFO':<8} pkg.access: {printable(method)} {path} {status} "
        f"{duration * 1000:.1f}ms {sent}B {printable(client)} {_text_value(_header_text(agent or ''))} "
        f"{_text_value(request_id or '')}{f' {printable(listener)}' if listener else ''}\n"
    ).encode("utf-8", "backslashreplace")
