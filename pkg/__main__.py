"""`python -m pkg`: hands over to the command line.  It holds no logic."""

from __future__ import annotations

from pkg.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
