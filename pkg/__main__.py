"""`python -m pkg` runs the command line in `cli`.  There is no logic here."""

from __future__ import annotations

from pkg.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
