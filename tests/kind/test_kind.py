"""The rolling test on a kind cluster, as far as it can be tested without one: that its parts fit each other."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.image.conftest import needed, unavailable
from tests.support.client import wait_for
from tests.support.pages import ROOT
from tests.support.processes import running

yaml = needed("yaml")

HERE = ROOT / "tests/kind"
SCRIPT = (HERE / "rolling.sh").read_text()
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def manifests() -> dict[tuple[str, str], Any]:
    """By kind and name."""
    if shutil.which("kubectl") is None:
        unavailable("kubectl is missing: the manifests are not checked")
    done = subprocess.run(["kubectl", "kustomize", str(HERE)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return {(document["kind"], document["metadata"]["name"]): document for document in yaml.safe_load_all(done.stdout)}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_one(path: Path) -> None:
    """By the schema of GitHub's workflows; what it runs is there, and the shell can read it."""
    needed("check_jsonschema")
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*check, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    broken = path.read_text().replace("runs-on:", "runs_on:")
    done = subprocess.run([*check, "-"], input=broken, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, "the schema is not looked at"
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        for step in job["steps"]:
            command = step.get("run", "true")
            assert "${{" not in command, "what is put into a command can be one"
            assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0
            if command.startswith("tests/"):
                assert (ROOT / command.split()[0]).stat().st_mode & 0o111
            if command.startswith("make "):
                assert f"\n{command.split()[1]}:" in (ROOT / "Makefile").read_text()


def test_the_script_can_be_read_and_its_files_are_there() -> None:
    assert subprocess.run(["bash", "-n", str(HERE / "rolling.sh")]).returncode == 0
    for name in re.findall(r"[= ]((?:tests|deploy)/[\w./-]+)", SCRIPT):
        assert (ROOT / name).exists(), name
    cluster = yaml.safe_load((HERE / "cluster.yaml").read_text())
    assert [node["role"] for node in cluster["nodes"]] == ["control-plane", "worker", "worker"]


# Writes down what it was asked; the load has ended with the code in the file `code`.
STAND_IN = """#!/bin/sh
echo "${0##*/} $*" >>"${0%/*}/asked"
case "$*" in *exitCode*) cat "${0%/*}/code" ;; esac
"""


@pytest.mark.parametrize("code", ["0", "1"])
def test_the_script_goes_through(code: str, tmp_path: Path) -> None:
    """With tools that do nothing: the steps come in order, and its exit code is that of the load."""
    for tool in ("kind", "kubectl"):
        (tmp_path / tool).write_text(STAND_IN)
        (tmp_path / tool).chmod(0o755)
    (tmp_path / "code").write_text(code)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "DRAIN": "0"}
    done = subprocess.run([str(HERE / "rolling.sh"), "3"], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == int(code), done.stderr
    asked = (tmp_path / "asked").read_text().splitlines()
    restarts = [n for n, line in enumerate(asked) if "rollout restart" in line]
    assert len(restarts) == 3
    (ended,) = (n for n, line in enumerate(asked) if "SIGTERM" in line)
    (applied,) = (n for n, line in enumerate(asked) if "apply -k tests/kind" in line)
    assert applied < restarts[0] and restarts[-1] < ended
    assert asked[0].startswith("kind create cluster") and asked[-1].startswith("kind delete cluster")
    assert all("--context kind-pkg-rolling" in line for line in asked if line.startswith("kubectl"))  # no other cluster


def test_manifests_fit_the_api_s_schemas(manifests: dict[tuple[str, str], Any]) -> None:
    kubernetes_validate = needed("kubernetes_validate")
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_the_parts_fit(manifests: dict[tuple[str, str], Any]) -> None:
    deployment = manifests["Deployment", "pkg"]["spec"]
    assert ("HorizontalPodAutoscaler", "pkg") not in manifests
    assert deployment["replicas"] == 3
    load = manifests["Pod", "load"]["spec"]
    pods = [deployment["template"]["spec"], load, manifests["Pod", "postgres"]["spec"]]
    for pod in pods:  # the namespace refuses others
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"]
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    ours = deployment["template"]["spec"]["containers"][0]
    assert load["containers"][0]["image"] == ours["image"]
    made = set(re.findall(r"--from-file=(\w+)=", SCRIPT))
    mounted = {
        item["key"]
        for pod in pods
        for volume in pod["volumes"]
        if volume["name"] == "rolling"
        for item in volume["configMap"]["items"]
    }
    assert made == mounted
    _, _, _, host, port = load["containers"][0]["command"]
    service = manifests["Service", host]["spec"]
    assert [entry["port"] for entry in service["ports"]] == [int(port)]
    (url,) = re.findall(r"url=(postgresql://\S+)", SCRIPT)
    (password,) = (e["value"] for e in pods[2]["containers"][0]["env"] if e["name"] == "POSTGRES_PASSWORD")
    assert url == f"postgresql://postgres:{password}@postgres/postgres"


@pytest.mark.parametrize("fails", [False, True])
def test_the_load_counts_what_is_lost(fails: bool, tmp_path: Path) -> None:
    """Laid out as in its pod, with the standard library only."""
    for source in ("support/client.py", "support/load.py", "kind/counted.py"):
        (tmp_path / "pod/tests" / source).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "tests" / source, tmp_path / "pod/tests" / source)
    application = (ROOT / "tests/support/rolling_application.py").read_text()
    if fails:
        application = application.replace("200 OK", "500 Broken")
    with running(tmp_path, application, PKG_ADMIN="off") as process:
        clients = subprocess.Popen(
            [sys.executable, "-S", "-m", "tests.kind.counted", "127.0.0.1", str(process.address[1])],
            cwd=tmp_path / "pod", env={}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert clients.stdout is not None
        try:
            assert clients.stdout.readline().startswith("loading ")
            wait_for(lambda: sum("url.path" in line for line in process.lines()) > 100, 20, "a hundred requests")
            clients.send_signal(signal.SIGTERM)
            text, _ = clients.communicate(timeout=60)
        finally:
            clients.kill()
            clients.wait()
    document = json.loads(text)
    assert clients.returncode == (1 if fails else 0), text
    assert {kind["kind"] for kind in document["kinds"]} == {
        "GET keep-alive", "GET one-shot", "POST keep-alive", "POST one-shot",
    }  # fmt: skip
    assert (document["lost"] > 0) is fails
