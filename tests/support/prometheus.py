"""A real Prometheus that scrapes services of a test."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.support.client import wait_for
from tests.support.ports import free_port

__all__ = ["Prometheus"]


class Prometheus:
    """Scrapes `/metrics` of the targets, as the job `pkg`, until the block ends; its data are in the folder."""

    def __init__(
        self,
        folder: Path,
        targets: Sequence[tuple[str, int]],
        *,
        interval: str = "0.5s",
        rules: Iterable[Path] = (),
        token: str = "",
        features: str = "",
    ) -> None:
        self.port = free_port()
        self._folder = folder
        self._features = [f"--enable-feature={features}"] if features else []
        interval = _milliseconds(interval)
        job: dict[str, Any] = {
            "job_name": "pkg",
            "static_configs": [{"targets": [f"{host}:{port}" for host, port in targets]}],
        }
        if token:
            job["authorization"] = {"credentials": token}
        every = {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
        files = [str(path.resolve()) for path in rules]
        # JSON is YAML.
        config = {"global": every, "rule_files": files, "scrape_configs": [job]}
        (folder / "prometheus.yml").write_text(json.dumps(config))

    def __enter__(self) -> Prometheus:
        command = [
            "prometheus",
            f"--config.file={self._folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            *self._features,
        ]
        with open(self._folder / "prometheus.log", "wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(self._is_ready, 15.0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def query(self, text: str) -> list[dict[str, Any]]:
        """The series that the query has now."""
        found: list[dict[str, Any]] = self._get("/api/v1/query?" + urlencode({"query": text}))["result"]
        return found

    def over_time(self, text: str, begin: float, end: float, step: float) -> list[dict[str, Any]]:
        """The series that the query had, with their values, each a time and a text."""
        times = {"start": begin, "end": end, "step": step}
        found: list[dict[str, Any]] = self._get("/api/v1/query_range?" + urlencode({"query": text, **times}))["result"]
        return found

    def exemplars(self, text: str) -> list[dict[str, Any]]:
        """Those of the series of the query, of the last minute."""
        now = time.time()
        times = {"start": now - 60, "end": now + 60}
        found: list[dict[str, Any]] = self._get("/api/v1/query_exemplars?" + urlencode({"query": text, **times}))
        return found

    def targets(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._get("/api/v1/targets")["activeTargets"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("/api/v1/rules")["groups"] for rule in group["rules"]]

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as response:
            return json.load(response)["data"]

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=10).close()
            return True
        return False


def _milliseconds(interval: str) -> str:
    """Prometheus knows no fractions: 0.5s is 500ms."""
    return f"{round(float(interval.removesuffix('s')) * 1000)}ms"
