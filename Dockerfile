#   builder   compiles wheels against glibc; an image of your own can use it as its build stage (examples/image/)
#   runtime   the default: distroless, user 65532, no shell
#   debug     the same files and busybox, for staging
#
# Every base image is an ARG: a tag here, a digest in a release.  Settings for the package index are passed as secrets,
# both optional: pip_conf (pip's configuration) and ca (a bundle of certificates).
ARG BUILDER_IMAGE=docker.io/library/debian:13-slim
ARG RUNTIME_IMAGE=gcr.io/distroless/python3-debian13:nonroot
ARG DEBUG_IMAGE=gcr.io/distroless/python3-debian13:debug-nonroot
# The time of every added file, for all commits: build caches ignore times, so other times could come from a cache.
ARG FILE_TIME=1767225600

# ---------------------------------------------------------------------------------------------------------- builder
FROM ${BUILDER_IMAGE} AS builder
SHELL ["/bin/sh", "-euc"]
# The versions follow Debian's security updates, here as in the base image.
# hadolint ignore=DL3008
RUN apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates gcc libc6-dev libpq-dev python3-dev python3-venv; \
    rm -rf /var/lib/apt/lists/*

# The libraries that the base lacks.  OpenSSL, Kerberos and zlib come from the base and get its security updates.
COPY deploy/image/debs.sh /build/
RUN apt-get update; sh /build/debs.sh /rootfs libpq5 libldap2 libsasl2-2; rm -rf /var/lib/apt/lists/*

# Without the secrets these files do not exist, and pip and OpenSSL ignore them.
ENV PATH=/venv/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    PIP_CONFIG_FILE=/run/secrets/pip_conf SSL_CERT_FILE=/run/secrets/ca PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
COPY deploy/image/build.lock /build/
RUN --mount=type=secret,id=pip_conf --mount=type=secret,id=ca \
    python3 -m venv /venv; pip install -q --require-hashes -r /build/build.lock

# Python's own flags lack Debian's hardening.  -g0 and -s leave out symbols (psycopg_c: 14.5 MB with them, 1.1 without);
# -Os makes psycopg_c a third smaller than -O2 and not slower (measured: fetch and execute); ours sets -O3 itself, which
# would also pad loops and functions with 20 KB.
ENV CFLAGS="-Os -g0 -ffunction-sections -fstack-protector-strong -fstack-clash-protection -D_FORTIFY_SOURCE=3 \
-Wformat -Werror=format-security -fno-align-functions -fno-align-jumps -fno-align-labels -fno-align-loops" \
    LDFLAGS="-Wl,-z,relro,-z,now,-z,noexecstack,-z,pack-relative-relocs,-z,noseparate-code -Wl,--gc-sections,--as-needed,-s"
COPY deploy/image/runtime.lock /build/
RUN --mount=type=secret,id=pip_conf --mount=type=secret,id=ca \
    pip wheel -q --no-build-isolation --no-deps --require-hashes -w /wheels -r /build/runtime.lock

WORKDIR /build
COPY LICENSE pyproject.toml setup.py ./
COPY ext ext
COPY pkg pkg
# The README would become the wheel's description: useless in an image, and each change of it would cause a rebuild.
RUN touch README.md; pip wheel -q --no-build-isolation --no-deps -w /wheels .

# The files for the base, without those for compilers and editors, and pip's lists of them, which only pip uses: they are
# hashes, which no compression makes smaller.  One text of the licence serves all parts of psycopg.  /app is for the user's
# application.
ARG FILE_TIME
# The lock files pin what is in /wheels.
# hadolint ignore=DL3013
RUN site=/rootfs$(/usr/bin/python3 -c 'import site; print(site.getsitepackages()[0])'); \
    pip install -q --no-deps --no-index --find-links /wheels --no-compile --target "$site" \
        pkg-service psycopg psycopg-c psycopg-pool; \
    find "$site" -regex '.*\.\(c\|h\|pxd\|pyx\|pyi\)\|.*\.dist-info/RECORD' -delete; \
    rm -r "${site:?}/bin"; \
    licence=$(echo "$site"/psycopg-*/licenses/LICENSE.txt); \
    for other in "$site"/psycopg_*/licenses/LICENSE.txt; do \
        cmp "$licence" "$other"; ln -sf "../../${licence#"$site"/}" "$other"; \
    done; \
    mkdir /rootfs/app; \
    find /rootfs -type d -exec chmod 755 {} +; \
    find /rootfs -exec touch -h -d "@$FILE_TIME" {} +

# --------------------------------------------------------------------------------------------------------- bytecode
FROM ${RUNTIME_IMAGE} AS bytecode
ARG FILE_TIME
COPY --from=builder /rootfs /
COPY deploy/image/bytecode.py /
# Only /pyc of this stage is used.
# hadolint ignore=DL3002
USER 0
# NODEBUGRANGES: tracebacks do not mark a part of the line; byte code and its memory are a fifth smaller.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 PYTHONNODEBUGRANGES=1
RUN ["/usr/bin/python3", "/bytecode.py", "/pyc", "pkg"]

# ---------------------------------------------------------------------------------------------------------- service
FROM ${RUNTIME_IMAGE} AS service
COPY --from=builder /rootfs /
COPY --from=bytecode /pyc /
# HOME: libpq looks for a client certificate there, and fails if the user id may not read the base's /home/nonroot.
ENV HOME=/nonexistent PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /app
USER 65532:65532
EXPOSE 8080
STOPSIGNAL SIGTERM
# The probe finds the server by its variables: HOST and PORT, PKG_LISTEN, PKG_HEALTH.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["/usr/bin/python3", "-m", "pkg", "probe"]
ENTRYPOINT ["/usr/bin/python3", "-m", "pkg"]
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
ARG BASE_NAME=unknown
ARG BASE_DIGEST=unknown
LABEL org.opencontainers.image.title="pkg" \
      org.opencontainers.image.description="A Python microservice, and a host for one" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${BASE_NAME}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"

# ------------------------------------------------------------------------------------------------- debug and runtime
FROM ${DEBUG_IMAGE} AS busybox

# The only difference is the shell of the debug base, so that staging runs the same files as production.
FROM service AS debug
COPY --from=busybox /busybox /busybox
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/busybox

# The last stage, so that a build without --target builds it.
FROM service AS runtime
