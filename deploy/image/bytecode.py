"""Compiles what the service imports, on the base image itself.  It writes only byte code, below a folder of its own.

Debian compiles its standard library when the package is configured.  Distroless unpacks packages without configuring
them, so its Python has no byte code at all, and a process that may write nothing would compile all it imports at every
start.  This runs in a throw-away stage on that very base and writes `__pycache__` folders below OUT, for a COPY.

The files are of the unchecked-hash kind: nothing is compared at start, and no file's time matters.  They cannot go
stale, since sources and byte code are of one image.

    python3 bytecode.py OUT PACKAGE      PACKAGE: all that its sources import counts, also inside functions
"""

import ast
import contextlib
import importlib
import importlib.util
import os
import py_compile
import sys
from pathlib import Path

# Imported by the interpreter itself when the need arises, so that no source names them.
UNNAMED = ["encodings.ascii", "encodings.idna", "encodings.latin_1", "encodings.utf_8", "psycopg_c", "runpy"]

# What web frameworks use of the standard library beyond that: 90 KB for a user's application that starts faster.
COMMON = [
    "contextvars",
    "copy",
    "csv",
    "http.cookies",
    "pkgutil",
    "pprint",
    "secrets",
    "urllib.request",
    "uuid",
    "zoneinfo",
]

# Needed when a setting is misspelt, and for /debug/memory: 200 KB that no start has to read.
RARE = {"difflib", "tracemalloc"}


def named(package):
    """The modules that a package's sources import anywhere, and its own."""
    folder = Path(importlib.util.find_spec(package).origin).parent
    for path in sorted(folder.glob("*.py")):
        if path.stem != "__main__":
            yield f"{package}.{path.stem}"
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield node.module


def sources(package):
    """The source files of all modules that are in use once those are imported."""
    for name in {*UNNAMED, *COMMON, *named(package)} - RARE:
        with contextlib.suppress(ImportError):  # an optional extra
            importlib.import_module(name)
    # Not the frozen ones (os, codecs ...): their code is in the interpreter, and no file of theirs is read.
    specs = [module.__spec__ for module in list(sys.modules.values()) if module.__spec__ is not None]
    files = {spec.origin for spec in specs if spec.has_location}
    files |= {importlib.util.find_spec(f"{package}.__main__").origin}
    return sorted(file for file in files if file.endswith(".py"))


def apart(function, *arguments):
    """What the function returns, a list of strings, when a child process calls it."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with os.fdopen(write, "w") as pipe:
            pipe.write("\n".join(function(*arguments)))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    if os.waitpid(pid, 0)[1] != 0:
        sys.exit(f"{function.__name__}{arguments} failed")
    return text.splitlines()


def compiled(out, path):
    cache = out + importlib.util.cache_from_source(path)
    os.makedirs(os.path.dirname(cache), exist_ok=True)
    py_compile.compile(path, cache, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    return [cache]


def main(out, package):
    # How byte code is written depends, in bits that mean nothing, on how often an object is referred to elsewhere in
    # the process.  A child for each file makes it a function of the source alone.
    files = apart(sources, package)
    for path in files:
        apart(compiled, out, path)
    when = float(os.environ["FILE_TIME"])
    for folder, _, names in os.walk(out):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            os.utime(path, (when, when))
    print(len(files), "modules compiled")


main(*sys.argv[1:])
