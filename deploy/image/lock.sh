#!/bin/sh
# Updates the two lock files beside this script within the bounds of pyproject.toml, for the Python of the base image.
# Needs uv (pip install uv).
set -eu
cd "$(dirname "$0")/../.."

section() {  # the array of one key in pyproject.toml, one requirement per line
    python3 - "$@" <<'PYTHON'
import sys, tomllib
value = tomllib.load(open("pyproject.toml", "rb"))
for key in sys.argv[1:]:
    value = value[key]
print(*value, sep="\n")
PYTHON
}
renew() {  # FILE, requirements on standard input
    file=deploy/image/$1
    grep '^#' "$file" >"$file.new"
    # typing-extensions: psycopg-pool imports it on older Pythons only, although its metadata always require it.
    uv pip compile -q --upgrade --python-version 3.13 --python-platform linux --generate-hashes \
        --no-annotate --no-header --no-emit-package typing-extensions - >>"$file.new"
    mv "$file.new" "$file"
}
{ section project dependencies; section project optional-dependencies c; } | renew runtime.lock
section build-system requires | renew build.lock
