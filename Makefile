# The commands people need.  Everything is installed into .venv and built in place on first use.
PYTHON ?= python3
PY      = .venv/bin/python
PORT   ?= 8080
SECONDS_EACH ?= 60

.PHONY: run test test-all lint bench image fuzz ext clean

run: .venv/ready             ## the service on $(PORT), with DATABASE_URL or a PostgreSQL of its own; APP=module:attribute
	@PORT=$(PORT) exec $(PY) -m tests.faults.postgres --unless-set -- $(PY) -m pkg $(APP)

test: .venv/ready            ## the tests that CI runs; SLOW=0 leaves out those that take more than a few seconds
	@$(PY) -m pytest -q -m "not long$(if $(filter 0,$(SLOW)), and not slow)" $(ARGS)

test-all: .venv/ready        ## every test, also those that take minutes each
	@$(PY) -m pytest -q $(ARGS)

lint: .venv/ready            ## ruff and mypy
	@$(PY) -m ruff check pkg tests bench setup.py && $(PY) -m ruff format --check pkg tests bench setup.py && $(PY) -m mypy

bench: .venv/ready           ## side by side with the peers; QUICK=1 for three minutes
	@$(PY) -m bench $(if $(QUICK),--quick) $(ARGS)

image:                       ## the distroless image, on docker or podman
	@deploy/image/build.sh

fuzz: .venv/ready            ## libFuzzer on the C core, SECONDS_EACH for each target
	@$(PY) tests/fuzz/run.py $(SECONDS_EACH)

ext: .venv/ready             ## the extension, again
	@$(PY) setup.py -q build_ext --inplace

clean:                       ## what was built
	@rm -rf .venv build dist *.egg-info pkg/*.so

.venv/ready: pyproject.toml setup.py $(wildcard ext/*)
	@$(PYTHON) tests/check_machine.py
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@$(PY) -m pip install -q --disable-pip-version-check -U pip 'setuptools>=77,<82' 'cython>=3.1' wheel
	@PYTHONWARNINGS=ignore $(PY) -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[test]'
	@$(PY) setup.py -q build_ext --inplace
	@touch $@
