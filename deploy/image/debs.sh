#!/bin/sh
# debs.sh ROOT PACKAGE...: adds Debian packages to a distroless root as distroless itself does: only shared objects, the
# copyright file, and a status.d entry from which scanners learn package and version.
set -eu
root=$1
shift
lib=usr/lib/$(gcc -print-multiarch)
status=$root/var/lib/dpkg/status.d
work=$(mktemp -d)
cd "$work"
apt-get -o APT::Sandbox::User=root download -qq "$@"
for deb in *.deb; do
    name=$(dpkg-deb -f "$deb" Package)
    dpkg-deb -x "$deb" files
    mkdir -p "$root/$lib" "$root/usr/share/doc/$name" "$status"
    find "files/$lib" -maxdepth 1 -name '*.so.*' -exec cp -a {} "$root/$lib/" \;
    cp -L "files/usr/share/doc/$name/copyright" "$root/usr/share/doc/$name/"
    dpkg-deb -f "$deb" >"$status/$name"
    dpkg-deb --ctrl-tarfile "$deb" | tar -xO ./md5sums >"$status/$name.md5sums"
    rm -r files
done
rm -r "$work"
