"""Imports the application that APP names.

It does not care what kind of application it is; `service` does.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from typing import Any

from pkg.errors import StartupError, one_line
from pkg.logs import sink

__all__ = ["load"]

USUAL = ("application", "app")

_log = logging.getLogger("pkg.loader")


def load(spec: str) -> Any:
    """The application that `module:attribute` names; `module:factory()` calls the factory.

    `package.module` alone means its `application`, or else its `app`, the names that Django and others use.

    Raises StartupError if there is no such application, or if importing it raises; then the traceback is logged, or
    printed if there is no log yet.
    """
    module_name, _, attribute = spec.partition(":")
    call = attribute.endswith("()")
    attribute = attribute.removesuffix("()")
    if not module_name or (":" in spec and not attribute):
        raise StartupError(f"APP {spec!r} is not of the form module:attribute")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise StartupError(f"APP {spec!r}: no module named {error.name!r}") from None
        raise _import_failed(spec, error) from error
    except (
        Exception,
        SystemExit,
    ) as error:  # an application that exits during the import cannot be served, whatever its exit code is
        raise _import_failed(spec, error) from error
    app: Any = module
    try:
        if not attribute:
            attribute = next((name for name in USUAL if hasattr(module, name)), "")
            if not attribute:
                raise StartupError(
                    f"APP {spec!r}: the module has neither {' nor '.join(USUAL)}; write {spec}:attribute"
                )
        for part in attribute.split("."):
            if not hasattr(app, part):
                raise StartupError(f"APP {spec!r}: module {module_name!r} has no attribute {attribute!r}")
            app = getattr(app, part)
        if call:
            app = app()
    except StartupError:
        raise
    except (Exception, SystemExit) as error:
        raise _import_failed(spec, error) from error
    if not callable(app):
        raise StartupError(f"APP {spec!r} is neither a WSGI or ASGI callable nor a handler class")
    return app


def _import_failed(spec: str, error: BaseException) -> StartupError:
    frames = error.__traceback__
    # Frames of this package and of the import machinery do not help the application's author.
    while frames is not None and (
        frames.tb_frame.f_code.co_filename == __file__ or "importlib" in frames.tb_frame.f_code.co_filename
    ):
        frames = frames.tb_next
    if sink.is_open():
        _log.critical("APP %r cannot be imported", spec, exc_info=(type(error), error, frames))
    else:
        import traceback

        traceback.print_exception(type(error), error, frames)
    return StartupError(f"APP {spec!r} cannot be imported: {one_line(error)}")
