"""Load whose every request is accounted for, from a pod of its own:  python -m tests.kind.counted HOST PORT

It runs until SIGTERM, then prints what became of the requests, one JSON object, and exits with 1 if one was lost.
Python's standard library only: it runs on the service's own image.
"""

from __future__ import annotations

import json
import signal
import sys
import threading

from tests.support.load import Load


def main(host: str, port: str) -> int:
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: over.set())
    load = Load((host, int(port)))
    print(f"loading {host}:{port}", flush=True)
    over.wait()
    kinds = [
        {
            "kind": f"{method} {'keep-alive' if keep else 'one-shot'}",
            "sent": tally.sent,
            "answered": tally.answered,
            "lost": dict(tally.lost),
            "p99_seconds": round(tally.quantile(0.99), 4),
        }
        for (method, keep), tally in load.finish().items()
    ]
    lost = sum(sum(kind["lost"].values()) for kind in kinds)  # type: ignore[attr-defined]
    print(json.dumps({"lost": lost, "kinds": kinds}, indent=1), flush=True)
    return 1 if lost or not all(kind["answered"] for kind in kinds) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
