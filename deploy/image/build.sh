#!/bin/sh
# Builds the image with Docker or podman, whichever works on this machine, and writes its provenance beside it.
#
#   deploy/image/build.sh [runtime|debug|builder] [flags of `docker build`, such as --no-cache]
#
#   IMAGE           name and tag; default pkg:VERSION, with the suffix -debug or -builder for those
#   PLATFORM        linux/arm64 or linux/amd64; default: this machine's.  Another's programs are run by QEMU (emulate.py),
#                   and the default name ends with its architecture
#   ENGINE          docker or podman
#   RUNTIME_IMAGE   also DEBUG_IMAGE and BUILDER_IMAGE: base images in place of the Dockerfile's; a release sets digests
#                   (and uses --no-cache, because otherwise libpq comes from an old layer)
#   PROVENANCE      file for the statement of where the image came from (deploy/image/provenance.py); default: in dist/
#   SOURCE_URI      where the commit can be fetched, BUILDER_ID who builds: URIs, for the statement
#   PIP_CONFIG_FILE file with pip's configuration
#   PIP_CERT        file with the certificates that pip trusts; default: those of this machine.  Both become secrets
#
# If the base images cannot be pulled and none are set, stand-ins are built from Debian's packages
# (tests/image/standin.py), for trying and testing, not for production.
set -eu
cd "$(dirname "$0")/../.."

say() { echo "$*" >&2; }
die() { say "$*"; exit 1; }

engine=${ENGINE:-}
if [ -z "$engine" ]; then
    # The docker command may exist without its daemon, or may be podman under Docker's name.
    if said=$(docker version 2>/dev/null) && [ "${said##*Podman*}" ]; then engine=docker
    elif podman version >/dev/null 2>&1; then engine=podman
    else die "neither a Docker daemon nor podman is here; on Debian: apt-get install podman runc"
    fi
fi
# In a container or a minimal virtual machine podman's defaults fail (a bridge network, a raised limit).
if [ "$engine" = podman ] && [ ! -d /run/systemd/system ] && [ -z "${CONTAINERS_CONF:-}" ]; then
    export CONTAINERS_CONF="$PWD/tests/image/containers.conf"
fi

own=linux/$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
platform=${PLATFORM:-$own}
# Docker's daemon knows how to run another's programs; on podman's machine nobody may have registered QEMU.
if [ "$engine $platform" = "podman linux/arm64" ] && [ "$own" != linux/arm64 ] && [ ! -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ]; then
    if [ -z "${CONTAINERS_STORAGE_CONF:-}" ]; then  # in the namespace podman would look for it elsewhere
        mkdir -p build
        podman info --format '[storage]
driver = "{{.Store.GraphDriverName}}"
graphroot = "{{.Store.GraphRoot}}"
runroot = "{{.Store.RunRoot}}"' >build/storage.conf
        export CONTAINERS_STORAGE_CONF="$PWD/build/storage.conf"
    fi
    exec python3 deploy/image/emulate.py "$PWD/deploy/image/build.sh" "$@"
fi

case ${1:-} in
    runtime | debug | builder) target=$1 && shift ;;
    *) target=runtime ;;
esac

version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
suffix=; [ "$target" = runtime ] || suffix=-$target
[ "$platform" = "$own" ] || suffix=$suffix-${platform#*/}
image=${IMAGE:-pkg:$version$suffix}

default() { sed -n "s/^ARG $1=//p" Dockerfile | head -n 1; }
runtime=${RUNTIME_IMAGE:-$(default RUNTIME_IMAGE)}
debug=${DEBUG_IMAGE:-$(default DEBUG_IMAGE)}
builder=${BUILDER_IMAGE:-$(default BUILDER_IMAGE)}

# A tag moves with security updates, so a local copy may be old and is pulled again.  A base that the caller names is
# pulled only if it is missing, so that digests and local names work.
here() { "$engine" image inspect "$1" >/dev/null 2>&1; }
pull() { say "pulling $1"; timeout 300 "$engine" pull -q --platform "$platform" "$1" >/dev/null 2>&1; }
renewed() { pull "$1" || here "$1"; }
if [ -n "${RUNTIME_IMAGE:-}" ]; then
    here "$runtime" || pull "$runtime" || die "$runtime is not here and cannot be pulled"
elif renewed "$runtime"; then
    [ -n "${BUILDER_IMAGE:-}" ] || renewed "$builder" || die "$builder cannot be pulled"
    [ -n "${DEBUG_IMAGE:-}" ] || [ "$target" != debug ] || renewed "$debug" || die "$debug cannot be pulled"
else
    say "$runtime cannot be pulled: building on stand-ins made from Debian's packages, not for shipping"
    bases=$(python3 tests/image/standin.py --engine "$engine" --platform "$platform")
    eval "$bases"  # builder, runtime and debug
    image=${IMAGE:-pkg:standin$suffix}
fi

# The same commit gives the same bytes.  This is the creation time of the image; its files have the Dockerfile's FILE_TIME.
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || echo 1767225600)}"
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
[ -z "$(git status --porcelain -- Dockerfile deploy/image ext pkg setup.py pyproject.toml 2>/dev/null)" ] || revision=$revision-dirty
digest_of() {
    case $1 in
        *@*) found=$1 ;;
        *) found=$("$engine" image inspect --format '{{if .RepoDigests}}{{index .RepoDigests 0}}{{else}}{{.Id}}{{end}}' "$1") ;;
    esac
    echo "${found##*@}"
}
digest=$(digest_of "$runtime")

set -- "$@" --target "$target" --tag "$image" --platform "$platform" \
    --build-arg RUNTIME_IMAGE="$runtime" --build-arg DEBUG_IMAGE="$debug" --build-arg BUILDER_IMAGE="$builder" \
    --build-arg VERSION="$version" --build-arg REVISION="$revision" \
    --build-arg CREATED="$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)" \
    --build-arg BASE_NAME="$runtime" --build-arg BASE_DIGEST="$digest"
[ -z "${PIP_CONFIG_FILE:-}" ] || set -- "$@" --secret "id=pip_conf,src=$PIP_CONFIG_FILE"
certificates=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}}
[ ! -f "$certificates" ] || set -- "$@" --secret "id=ca,src=$certificates"

if [ "$engine" = podman ]; then
    # The OCI format does not support HEALTHCHECK.
    podman build "$@" --format docker --timestamp "$(default FILE_TIME)" .
    podman save --format docker-archive "$image" | python3 deploy/image/normalize.py "$SOURCE_DATE_EPOCH" | podman load -q >&2
else
    DOCKER_BUILDKIT=1 docker build "$@" --build-arg SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH" .
fi

case $target in
    runtime) bases="$runtime $builder" ;;
    debug) bases="$runtime $builder $debug" ;;
    builder) bases=$builder ;;
esac
# Docker may have pulled a base for this build alone; that one is named without a digest.
bases=$(for base in $bases; do echo "$base $(digest_of "$base" 2>/dev/null || true)"; done)
name=${image##*/}
tag=${name#*:}; [ "$tag" != "$name" ] || tag=latest
provenance=${PROVENANCE:-dist/${name%%:*}-$tag.provenance.json}
mkdir -p "$(dirname "$provenance")"
IMAGE_NAME=${image%":$tag"} IMAGE_ID=$("$engine" image inspect --format '{{.Id}}' "$image") TARGET=$target BASES=$bases \
    VERSION=$version REVISION=$revision SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH python3 deploy/image/provenance.py >"$provenance"
say "$image built with $engine on $runtime; its provenance is in $provenance"
