#!/bin/sh
# Builds the image with Docker or podman, whichever works here, and says what came out.
#
#   deploy/image/build.sh [runtime|debug|builder] [flags of `docker build`, such as --no-cache]
#
#   IMAGE           name and tag; default pkg:VERSION, with -debug or -builder behind it for those
#   ENGINE          docker or podman
#   RUNTIME_IMAGE   and DEBUG_IMAGE, BUILDER_IMAGE: other bases than the Dockerfile names; a release gives digests
#                   (and --no-cache, or libpq stays as it was when its layer was made)
#   PIP_CONFIG_FILE pip's settings, a file
#   PIP_CERT        the certificates that pip trusts, a file; default those of this machine.  Both go in as secrets
#
# Where the bases cannot be pulled and none are given, stand-ins are made from Debian's packages (tests/image/standin.py):
# good for trying and testing, not for shipping.
set -eu
cd "$(dirname "$0")/../.."

say() { echo "$*" >&2; }
die() { say "$*"; exit 1; }

case ${1:-} in
    runtime | debug | builder) target=$1 && shift ;;
    *) target=runtime ;;
esac

engine=${ENGINE:-}
if [ -z "$engine" ]; then
    # A docker command may be there without its daemon, or be podman under Docker's name.
    if said=$(docker version 2>/dev/null) && [ "${said##*Podman*}" ]; then engine=docker
    elif podman version >/dev/null 2>&1; then engine=podman
    else die "neither a Docker daemon nor podman is here; on Debian: apt-get install podman runc"
    fi
fi
# In a container or a bare virtual machine podman's defaults want too much (a bridge network, a raised limit).
if [ "$engine" = podman ] && [ ! -d /run/systemd/system ] && [ -z "${CONTAINERS_CONF:-}" ]; then
    export CONTAINERS_CONF="$PWD/tests/image/containers.conf"
fi

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
suffix=; [ "$target" = runtime ] || suffix=-$target
image=${IMAGE:-pkg:$version$suffix}

default() { sed -n "s/^ARG $1=//p" Dockerfile | head -n 1; }
runtime=${RUNTIME_IMAGE:-$(default RUNTIME_IMAGE)}
debug=${DEBUG_IMAGE:-$(default DEBUG_IMAGE)}
builder=${BUILDER_IMAGE:-$(default BUILDER_IMAGE)}

# A tag moves with security updates: what is here under it may be old.  A base that the caller names is pulled if it is
# not here, so that a digest is what it says and a local name does.
here() { "$engine" image inspect "$1" >/dev/null 2>&1; }
pull() { say "pulling $1"; timeout 300 "$engine" pull -q "$1" >/dev/null 2>&1; }
renewed() { pull "$1" || here "$1"; }
if [ -n "${RUNTIME_IMAGE:-}" ]; then
    here "$runtime" || pull "$runtime" || die "$runtime is not here and cannot be pulled"
elif renewed "$runtime"; then
    [ -n "${BUILDER_IMAGE:-}" ] || renewed "$builder" || die "$builder cannot be pulled"
    [ -n "${DEBUG_IMAGE:-}" ] || [ "$target" != debug ] || renewed "$debug" || die "$debug cannot be pulled"
else
    say "$runtime cannot be pulled: building on stand-ins made from Debian's packages, not for shipping"
    bases=$(python3 tests/image/standin.py --engine "$engine")
    eval "$bases"  # builder, runtime and debug
    image=${IMAGE:-pkg:standin$suffix}
fi

# The same commit gives the same bytes.  This is when the image says it was made; its files are of the Dockerfile's FILE_TIME.
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || echo 1767225600)}"
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain -- Dockerfile deploy/image ext pkg setup.py pyproject.toml 2>/dev/null)" ] || revision=$revision-dirty
case $runtime in
    *@*) digest=${runtime##*@} ;;
    *) digest=$("$engine" image inspect --format '{{if .RepoDigests}}{{index .RepoDigests 0}}{{else}}{{.Id}}{{end}}' "$runtime") ;;
esac

set -- "$@" --target "$target" --tag "$image" \
    --build-arg RUNTIME_IMAGE="$runtime" --build-arg DEBUG_IMAGE="$debug" --build-arg BUILDER_IMAGE="$builder" \
    --build-arg VERSION="$version" --build-arg REVISION="$revision" \
    --build-arg CREATED="$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)" \
    --build-arg BASE_NAME="$runtime" --build-arg BASE_DIGEST="${digest##*@}"
[ -z "${PIP_CONFIG_FILE:-}" ] || set -- "$@" --secret "id=pip_conf,src=$PIP_CONFIG_FILE"
certificates=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
[ ! -f "$certificates" ] || set -- "$@" --secret "id=ca,src=$certificates"

if [ "$engine" = podman ]; then
    # OCI's format has no HEALTHCHECK.
    podman build "$@" --format docker --timestamp "$(default FILE_TIME)" .
    podman save --format docker-archive "$image" | python3 deploy/image/normalize.py "$SOURCE_DATE_EPOCH" | podman load -q >&2
else
    DOCKER_BUILDKIT=1 docker build "$@" --build-arg SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" .
fi
say "$image built with $engine on $runtime"
