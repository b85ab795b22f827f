#!/usr/bin/env python3
"""Builds stand-ins of the base images that the Dockerfile names, from Debian's packages.  For tests, not for shipping.

    localhost/standin/python3-debian13:nonroot          for gcr.io/distroless/python3-debian13:nonroot
    localhost/standin/python3-debian13:debug-nonroot    for the same with a busybox
    localhost/standin/debian:13-slim                    for docker.io/library/debian:13-slim

The distroless pair is put together as the distroless project does it: a layer for each package, the package lists,
users and paths of its static -> base -> cc -> python3 chain, a status.d entry for each package.  So a Dockerfile
written for the real images builds and runs where no registry can be reached.  debian:13-slim is a plain minbase with
this machine's package sources in it: never push it.  The same packages give the same digests.

Python's standard library only.  Tools: apt-get, mmdebstrap, skopeo, zstd; root, for mmdebstrap and ldconfig -r.

    standin.py [--engine podman|docker] [--platform linux/arm64] [--work FOLDER] [--again]

It prints shell assignments of the three names.  Those for another platform than this machine's end with its
architecture, and are made where the kernel starts that platform's programs (deploy/image/emulate.py).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import hashlib
import io
import json
import lzma
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from typing import Any

SUITE, RELEASE = "trixie", "13"
SUITES = [SUITE, f"{SUITE}-updates"]
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
RUNTIME = "localhost/standin/python3-debian13:nonroot"
DEBUG = "localhost/standin/python3-debian13:debug-nonroot"
BUILDER = "localhost/standin/debian:13-slim"
TOOLS = {"apt-get": "apt", "mmdebstrap": "mmdebstrap", "skopeo": "skopeo", "dpkg": "dpkg"}

# Package lists: static/config.bzl, base/config.bzl, cc/config.bzl,
# python3/config.bzl of GoogleContainerTools/distroless (debian13).
STATIC = ["base-files", "netbase", "tzdata", "tzdata-legacy", "media-types"]
BASE = ["libc6", "libssl3t64", "libzstd1", "zlib1g"]
CC = ["libgomp1", "libstdc++6", "libgcc-s1", "gcc-14-base"]
PYTHON = [
    "libbz2-1.0",
    "libdb5.3t64",
    "libexpat1",
    "liblzma5",
    "libsqlite3-0",
    "libuuid1",
    "libncursesw6",
    "libtinfo6",
    "zlib1g",
    "libcom-err2",
    "libcrypt1",
    "libc-bin",
    "libgssapi-krb5-2",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "libnsl2",
    "libreadline8t64",
    "libtirpc3t64",
    "libffi8",
    "libpython3.13-minimal",
    "libpython3.13-stdlib",
    "python3.13-minimal",
    "python3.13-venv",
]
EXTRA = ["ca-certificates", "busybox-static"]  # used, but not unpacked whole

ROOT, NOBODY, NONROOT = 0, 65534, 65532
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PASSWD = (
    f"root:x:{ROOT}:{ROOT}:root:/root:/sbin/nologin\n"
    f"nobody:x:{NOBODY}:{NOBODY}:nobody:/nonexistent:/sbin/nologin\n"
    f"nonroot:x:{NONROOT}:{NONROOT}:nonroot:/home/nonroot:/sbin/nologin\n"
)
GROUP = f"root:x:{ROOT}:\nnobody:x:{NOBODY}:\ntty:x:5:\nstaff:x:50:\nnonroot:x:{NONROOT}:\n"
PROJECT = "https://github.com/GoogleContainerTools/distroless"
OS_RELEASE = (
    'PRETTY_NAME="Distroless"\nNAME="Debian GNU/Linux"\nID="debian"\n'
    f'VERSION_ID="{RELEASE}"\nVERSION="Debian GNU/Linux {RELEASE} ({SUITE})"\n'
    f'HOME_URL="{PROJECT}"\nSUPPORT_URL="{PROJECT}/blob/master/README.md"\n'
    f'BUG_REPORT_URL="{PROJECT}/issues/new"\n'
)
NSSWITCH = """\
# /etc/nsswitch.conf
#
# Example configuration of GNU Name Service Switch functionality.
# If you have the `glibc-doc-reference' and `info' packages installed, try:
# `info libc "Name Service Switch"' for information about this file.

passwd:         compat
group:          compat
shadow:         compat
gshadow:        files

hosts:          files dns
networks:       files

protocols:      db files
services:       db files
ethers:         db files
rpc:            db files

netgroup:       nis
"""


# --- packages -------------------------------------------------------------


class Apt:
    """A private apt: its own sources, lists and cache; the host's is not touched."""

    def __init__(self, work: pathlib.Path, architecture: str):
        self.dir = work / "apt"
        self.debs = work / "debs"
        for d in ("etc", "state/lists/partial", "cache/archives/partial"):
            (self.dir / d).mkdir(parents=True, exist_ok=True)
        self.debs.mkdir(parents=True, exist_ok=True)
        (self.dir / "etc/sources.list").write_text("".join(f"{s}\n" for s in sources()))
        (self.dir / "state/status").write_text("")
        self.opts = [
            f"-oDir::Etc::sourcelist={self.dir}/etc/sources.list",
            "-oDir::Etc::sourceparts=-",
            f"-oDir::State={self.dir}/state",
            f"-oDir::State::status={self.dir}/state/status",
            f"-oDir::Cache={self.dir}/cache",
            "-oAPT::Sandbox::User=root",
            f"-oAPT::Architecture={architecture}",
            f"-oAPT::Architectures={architecture}",
        ]

    def fetch(self, packages: list[str]) -> dict[str, pathlib.Path]:
        run(["apt-get", "-qq", *self.opts, "update"])
        run(["apt-get", "-qq", *self.opts, "download", *packages], cwd=self.debs)
        found = {}
        for name in packages:
            hits = sorted(self.debs.glob(f"{name}_*.deb"), key=lambda p: p.stat().st_mtime)
            found[name] = hits[-1]
        return found


def sources() -> list[str]:
    """deb lines for SUITE, from the mirrors that this machine already uses."""
    texts = [path.read_text() for path in sorted(pathlib.Path("/etc/apt").glob("sources.list*/*.sources"))]
    texts += [path.read_text() for path in sorted(pathlib.Path("/etc/apt").glob("sources.list*/*.list"))]
    texts += [path.read_text() for path in [pathlib.Path("/etc/apt/sources.list")] if path.exists()]
    uris = re.findall(r"^(?:URIs:|deb (?:\[[^]]*\] )?)\s*(http\S+)", "\n".join(texts), re.M)
    debian = [uri.rstrip("/") for uri in uris if re.search(r"/debian(-security)?/?$", uri)]
    main = next((uri for uri in debian if not uri.endswith("security")), "http://deb.debian.org/debian")
    secu = next((uri for uri in debian if uri.endswith("security")), None)
    lines = [f"deb [signed-by={KEYRING}] {main} {s} main" for s in SUITES]
    if secu is not None:
        lines.append(f"deb [signed-by={KEYRING}] {secu} {SUITE}-security main")
    return lines


def ar_members(deb: bytes) -> dict[str, bytes]:
    assert deb[:8] == b"!<arch>\n", "not a .deb"
    members, at = {}, 8
    while at < len(deb):
        head = deb[at : at + 60]
        name, size = head[:16].decode().strip().rstrip("/"), int(head[48:58])
        members[name] = deb[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    return members


def deb_tar(members: dict[str, bytes], stem: str) -> tarfile.TarFile:
    name = next(n for n in members if n.startswith(stem + ".tar"))
    data = members[name]
    if name.endswith(".xz"):
        data = lzma.decompress(data)
    elif name.endswith(".gz"):
        data = gzip.decompress(data)
    elif name.endswith(".zst"):
        data = subprocess.run(["zstd", "-dc"], input=data, check=True, stdout=subprocess.PIPE).stdout
    return tarfile.open(fileobj=io.BytesIO(data))


@functools.cache
def open_deb(path: pathlib.Path) -> dict[str, bytes]:
    return ar_members(path.read_bytes())


# --- layers ---------------------------------------------------------------


class Layer:
    """One tar layer, deterministic: order, owners and times come from the input."""

    def __init__(self, note: str):
        self.note, self.buf = note, io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buf, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - closed by blob()

    def _info(self, path, kind, mode, uid, gid):
        info = tarfile.TarInfo("./" + path.lstrip("/") if path != "/" else "./")
        info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, uid, gid, 0
        return info

    def dir(self, path, mode=0o755, uid=0, gid=0):
        self.tar.addfile(self._info(path, tarfile.DIRTYPE, mode, uid, gid))
        return self

    def file(self, path, data, mode=0o644):
        data = data.encode() if isinstance(data, str) else data
        info = self._info(path, tarfile.REGTYPE, mode, 0, 0)
        info.size = len(data)
        self.tar.addfile(info, io.BytesIO(data))
        return self

    def link(self, path, target):
        info = self._info(path, tarfile.SYMTYPE, 0o777, 0, 0)
        info.linkname = target
        self.tar.addfile(info)
        return self

    def package(self, deb: pathlib.Path, data=True):
        """data.tar whole, and control + md5sums under status.d as dpkg_statusd does."""
        members = open_deb(deb)
        if data:
            with deb_tar(members, "data") as src:
                for m in src:
                    self.tar.addfile(m, src.extractfile(m) if m.isreg() else None)
        name = deb.name.split("_")[0]
        with deb_tar(members, "control") as ctl:
            for m in ctl:
                which = m.name.removeprefix("./")
                if which in ("control", "md5sums"):
                    suffix = "" if which == "control" else ".md5sums"
                    self.file(f"/var/lib/dpkg/status.d/{name}{suffix}", ctl.extractfile(m).read())
        return self

    def blob(self) -> bytes:
        self.tar.close()
        return self.buf.getvalue()


def cacerts(deb: pathlib.Path) -> Layer:
    """All of ca-certificates in one bundle, as rules_distroless' cacerts.sh does."""
    bundle, copyright_ = [], b""
    with deb_tar(open_deb(deb), "data") as src:
        for m in sorted((m for m in src if m.isreg()), key=lambda m: m.name):
            if m.name.startswith("./usr/share/ca-certificates/"):
                bundle.append(src.extractfile(m).read())
            elif m.name == "./usr/share/doc/ca-certificates/copyright":
                copyright_ = src.extractfile(m).read()
    layer = Layer("cacerts").dir("/etc").dir("/etc/ssl").dir("/etc/ssl/certs")
    layer.file("/etc/ssl/certs/ca-certificates.crt", b"".join(bundle), 0o555)
    for d in ("/usr", "/usr/share", "/usr/share/doc", "/usr/share/doc/ca-certificates"):
        layer.dir(d)
    layer.file("/usr/share/doc/ca-certificates/copyright", copyright_, 0o555)
    return layer.package(deb, data=False)


def busybox(deb: pathlib.Path, work: pathlib.Path) -> Layer:
    with deb_tar(open_deb(deb), "data") as src:
        member = next(m for m in src if m.isreg() and m.name.endswith("/bin/busybox"))
        data = src.extractfile(member).read()
    exe = work / "busybox"
    exe.write_bytes(data)
    exe.chmod(0o755)
    applets = run([str(exe), "--list"], stdout=subprocess.PIPE).stdout.decode().split()
    layer = Layer("busybox").dir("/busybox").file("/busybox/busybox", data, 0o755)
    for applet in sorted(set(applets) - {"busybox"}):
        layer.link(f"/busybox/{applet}", "/busybox/busybox")
    return layer


def static_layers(debs) -> list[Layer]:
    return [Layer(p).package(debs[p]) for p in STATIC] + [
        Layer("rootfs").dir("/"),
        Layer("passwd").dir("/etc").file("/etc/passwd", PASSWD),
        Layer("home").dir("/root", 0o700).dir("/home").dir("/home/nonroot", 0o700, NONROOT, NONROOT),
        Layer("group").dir("/etc").file("/etc/group", GROUP),
        Layer("tmp").dir("/tmp", 0o1777),
        Layer("nsswitch").file("/etc/nsswitch.conf", NSSWITCH),
        Layer("os-release").dir("/usr").dir("/usr/lib").file("/usr/lib/os-release", OS_RELEASE, 0o555),
        cacerts(debs["ca-certificates"]),
    ]


def python_layers(debs) -> list[Layer]:
    alias = Layer("python aliases")
    for name in ("python", "python3"):
        alias.link(f"/usr/bin/{name}", "/usr/bin/python3.13")
    return [Layer(p).package(debs[p]) for p in BASE + CC + PYTHON] + [alias]


def ldconfig(layers: list[bytes], rootfs: pathlib.Path) -> Layer:
    """Run the image's own (static) ldconfig over the unpacked layers."""
    shutil.rmtree(rootfs, ignore_errors=True)
    rootfs.mkdir(parents=True)
    for blob in layers:
        with tarfile.open(fileobj=io.BytesIO(blob)) as src:
            src.extractall(rootfs)
    run([str(rootfs / "usr/sbin/ldconfig"), "-X", "-r", str(rootfs)])
    return Layer("ld.so.cache").file("/etc/ld.so.cache", (rootfs / "etc/ld.so.cache").read_bytes())


# --- OCI layout -----------------------------------------------------------


class Layout:
    """An OCI image layout directory; the same input gives the same digests."""

    def __init__(self, path: pathlib.Path, architecture: str):
        shutil.rmtree(path, ignore_errors=True)
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.path, self.architecture, self.index, self.done = path, architecture, [], {}

    def put(self, data: bytes) -> dict:
        digest = hashlib.sha256(data).hexdigest()
        (self.path / "blobs/sha256" / digest).write_bytes(data)
        return {"digest": "sha256:" + digest, "size": len(data)}

    def layer(self, tar: bytes) -> tuple[dict, str]:
        diff = "sha256:" + hashlib.sha256(tar).hexdigest()
        if diff not in self.done:
            media = "application/vnd.oci.image.layer.v1.tar+gzip"
            self.done[diff] = {"mediaType": media, **self.put(gzip.compress(tar, 6, mtime=0))}
        return self.done[diff], diff

    def image(self, ref: str, layers: list[tuple[str, bytes]], config: dict):
        entries = [self.layer(tar) for _, tar in layers]
        created = "1970-01-01T00:00:00Z"
        cfg = {
            "created": created,
            "architecture": self.architecture,
            "os": "linux",
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [d for _, d in entries]},
            "history": [{"created": created, "created_by": note} for note, _ in layers],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **self.put(dump(cfg))},
            "layers": [e for e, _ in entries],
            "annotations": {"org.opencontainers.image.source": PROJECT},
        }
        self.index.append(
            {
                "mediaType": manifest["mediaType"],
                **self.put(dump(manifest)),
                "platform": {"architecture": self.architecture, "os": "linux"},
                "annotations": {"org.opencontainers.image.ref.name": ref},
            }
        )
        (self.path / "index.json").write_bytes(dump({"schemaVersion": 2, "manifests": self.index}))
        packed, plain = sum(e["size"] for e, _ in entries), sum(len(t) for _, t in layers)
        stage(f"{ref}: {len(layers)} layers, {plain} bytes of tar, {packed} gzipped")


def dump(value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


# --- the images -----------------------------------------------------------


def distroless(work: pathlib.Path, layout: Layout, names: dict[str, str]) -> None:
    wanted = list(dict.fromkeys(STATIC + BASE + CC + PYTHON + EXTRA))
    debs = Apt(work, layout.architecture).fetch(wanted)
    stage(f"{len(debs)} packages fetched")
    static = [(x.note, x.blob()) for x in static_layers(debs)]
    python = [(x.note, x.blob()) for x in python_layers(debs)]
    cache = ldconfig([b for _, b in static + python], work / "rootfs")
    python.append((cache.note, cache.blob()))
    box = busybox(debs["busybox-static"], work)
    common = {"Entrypoint": ["/usr/bin/python3.13"], "User": str(NONROOT), "WorkingDir": "/home/nonroot"}
    for name, layers, path in (
        (names["runtime"], static + python, PATH),
        (names["debug"], [*static, (box.note, box.blob()), *python], PATH + ":/busybox"),
    ):
        environment = [f"PATH={path}", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt", "LANG=C.UTF-8"]
        layout.image(name, layers, {**common, "Env": environment})


def slim(work: pathlib.Path, layout: Layout, name: str) -> None:
    """debian:13-slim: minbase without documentation.  Its package sources are this machine's."""
    tar = work / "debian-slim.tar"
    left_out = ("man", "info", "doc", "groff", "lintian", "linda", "locale")
    run(
        ["mmdebstrap", "--quiet", "--variant=minbase", f"--architectures={layout.architecture}",
         "--skip=check/qemu,chroot/mount,output/dev",
         *(f"--dpkgopt=path-exclude=/usr/share/{d}/*" for d in left_out),
         "--dpkgopt=path-include=/usr/share/doc/*/copyright", SUITE, str(tar), *sources()],
        env={**os.environ, "SOURCE_DATE_EPOCH": "0"},
    )  # fmt: skip
    layout.image(name, [("debootstrap", tar.read_bytes())], {"Cmd": ["bash"], "Env": [f"PATH={PATH}"]})


def own_architecture() -> str:
    return run(["dpkg", "--print-architecture"], stdout=subprocess.PIPE).stdout.decode().strip()


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[Any]:
    """Its output goes to stderr: stdout is for the names."""
    return subprocess.run(command, check=True, **{"stdout": sys.stderr, **options})


def stage(text: str, _start: float = time.monotonic()) -> None:
    print(f"[{time.monotonic() - _start:6.1f}s] {text}", file=sys.stderr, flush=True)


def is_there(engine: str, name: str) -> bool:
    command = [engine, "image", "inspect", name]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--engine", choices=["podman", "docker"], default="podman", help="whose storage to put them in")
    parser.add_argument("--platform", help="such as linux/arm64, in place of this machine's")
    parser.add_argument("--work", type=pathlib.Path, help="folder for packages and layers; kept if named")
    parser.add_argument("--again", action="store_true", help="also if they are there, for newer packages")
    options = parser.parse_args()
    architecture = (options.platform or f"linux/{own_architecture()}").removeprefix("linux/")
    suffix = "" if architecture == own_architecture() else f"-{architecture}"
    names = {"builder": BUILDER + suffix, "runtime": RUNTIME + suffix, "debug": DEBUG + suffix}
    if options.again or not all(is_there(options.engine, name) for name in names.values()):
        lacking = sorted(package for tool, package in TOOLS.items() if shutil.which(tool) is None)
        if lacking:
            sys.exit(f"stand-in bases need Debian's {', '.join(lacking)}: apt-get install {' '.join(lacking)}")
        if os.geteuid() != 0:
            sys.exit("stand-in bases are made by root only")
        with contextlib.ExitStack() as stack:
            work = options.work or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="standin-")))
            work.mkdir(parents=True, exist_ok=True)
            layout = Layout(work / "oci", architecture)
            distroless(work, layout, names)
            slim(work, layout, names["builder"])
            for name in names.values():
                source = f"oci:{layout.path}:{name}"
                if options.engine == "podman":
                    run(["skopeo", "copy", "-q", source, f"containers-storage:{name}"], stderr=subprocess.DEVNULL)
                else:
                    archive = work / f"{name.rpartition(':')[2]}.tar"
                    run(["skopeo", "copy", "-q", source, f"docker-archive:{archive}:{name}"])
                    run(["docker", "load", "-q", "-i", str(archive)])
                stage(f"{name} is there")
    for variable, name in names.items():
        print(f"{variable}={shlex.quote(name)}")


if __name__ == "__main__":
    main()
