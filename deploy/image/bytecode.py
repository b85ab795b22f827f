"""Compiles everything that the service imports, on the base image.  It writes only byte code, to a separate folder.

Debian compiles its standard library when the package is configured.  Distroless unpacks packages without configuring
them, so its Python has no byte code, and a process that cannot write files would compile all imports at every start.
This script runs in a temporary stage on the same base and writes `__pycache__` folders below OUT, for a COPY.

The files use unchecked hashes: nothing is compared at start, and file times do not matter.  They cannot become stale,
since sources and byte code are in the same image.

Docstrings of functions are left out, a tenth of the byte code, on disk and in memory: in production nobody reads those
of the standard library and of psycopg, and the sources still have them.  An application's own byte code is its own
affair.

    python3 bytecode.py OUT PACKAGE      compiles everything that the sources of PACKAGE import, also inside functions
"""

import ast
import contextlib
import importlib
import importlib.util
import marshal
import os
import sys
from pathlib import Path

# Imported by the interpreter on demand, so that no source names them.
UNNAMED = ["encodings.ascii", "encodings.idna", "encodings.latin_1", "encodings.utf_8", "psycopg_c", "runpy"]

# More of the standard library that web frameworks use: 75 KB, so that a user's application starts faster.
COMMON = [
    "contextvars",
    "copy",
    "http.cookies",
    "pkgutil",
    "secrets",
    "urllib.request",
    "uuid",
    "zoneinfo",
]

# Only needed for a misspelt setting and for /debug/memory: 200 KB that would not make any start faster.
RARE = {"difflib", "tracemalloc"}


def named(package):
    """The modules of a package, and those that its sources import anywhere."""
    folder = Path(importlib.util.find_spec(package).origin).parent
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        if path.stem != "__main__":
            yield ".".join(parts[:-1] if path.stem == "__init__" else parts)
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield node.module


def sources(package):
    """The source files of all modules that are loaded after importing these."""
    for name in {*UNNAMED, *COMMON, *named(package)} - RARE:
        with contextlib.suppress(ImportError):  # an optional extra
            importlib.import_module(name)
    # Without frozen modules (os, codecs ...), whose code is in the interpreter.
    specs = [module.__spec__ for module in list(sys.modules.values()) if module.__spec__ is not None]
    files = {spec.origin for spec in specs if spec.has_location}
    own = Path(importlib.util.find_spec(package).origin).parent
    files |= {str(path) for path in own.rglob("*.py")}  # also what needs a library that is not in the image
    files -= {importlib.util.find_spec(name).origin for name in RARE}  # which another one may have imported
    return sorted(file for file in files if file.endswith(".py"))


def apart(function, *arguments):
    """Calls the function in a child process and returns its result, a list of strings."""
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


def without_docstrings(source):
    """Its tree.  Classes keep theirs: a dataclass without one spells out its signature at import instead."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if is_function and ast.get_docstring(node, clean=False) is not None:
            node.body[0] = ast.copy_location(ast.Pass(), node.body[0])
    return tree


def compiled(out, path):
    cache = out + importlib.util.cache_from_source(path)
    os.makedirs(os.path.dirname(cache), exist_ok=True)
    source = Path(path).read_bytes()
    code = compile(without_docstrings(source), path, "exec", dont_inherit=True)
    # PEP 552: the flag 1 is a hash that is not checked.
    head = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source)
    Path(cache).write_bytes(head + marshal.dumps(code))
    return [cache]


def main(out, package):
    # Some meaningless bits of byte code depend on how often an object is referenced elsewhere in the process.  A
    # separate child for each file makes the result depend on the source alone.
    files = apart(sources, package)
    for path in files:
        apart(compiled, out, path)
    when = float(os.environ["FILE_TIME"])
    for folder, _, names in os.walk(out):
        for path in (folder, *(os.path.join(folder, name) for name in names)):
            os.utime(path, (when, when))
    print(len(files), "modules compiled")


main(*sys.argv[1:])
