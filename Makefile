# Everything a checkout needs. `make help` lists it. Works with GNU make 3.81 (macOS) and later.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
DIST   := dist
LOCKED := spark embedded adls hdfs test dev
NAME   :=
ARGS   :=
WORKERS := 2

.DEFAULT_GOAL := help
.PHONY: help demo test check bench dist lock up clean java airflow

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile
	@echo '  PYTHON=python3.12 chooses the interpreter of $(VENV); ARGS="..." is handed on by demo, test, bench and lock.'

demo: $(VENV)/.installed java  ## the whole way, from raw rows to an online read, on this machine
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" tidemark demo $(ARGS)

test: $(VENV)/.installed java airflow  ## the tests; ARGS="-k codec" for some of them
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: $(VENV)/.installed  ## lint, format and types
	@failed=0; for tool in 'ruff check .' 'ruff format --check .' mypy; do $(PY) -m $$tool || failed=1; done; exit $$failed

bench: $(VENV)/.installed java  ## one benchmark: make bench NAME=...; without NAME, which there are
	@if [ -n '$(NAME)' ]; then $(PY) tests/benchmarks/$(NAME).py $(ARGS); else \
	    echo 'make bench NAME=one of:'; \
	    for file in tests/benchmarks/*.py; do case "$${file##*/}" in common.py|feast_peer.py) continue ;; esac; echo "  $$(basename "$$file" .py)"; done; fi

up:  ## the parts in containers, by docker/compose.yaml
	@docker compose -f docker/compose.yaml up --build --detach --wait

clean:  ## remove what make and the tests made
	@rm -rf $(VENV) build $(DIST) .tidemark .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@rm -rf artifacts spark-warehouse metastore_db derby.log *.egg-info
	@find feature_defs connectors jobs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment ------------------------------------------------------------------------------------------------
# Made anew when the lock changes, so that it never holds what the lock does not name.

$(VENV)/.locked: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo 'Tidemark needs Python 3.10 or later, and $(PYTHON) is '"$$($(PYTHON) --version 2>&1)"'.'; \
	    echo 'Hint: make PYTHON=python3.12 ..., or apt-get install python3-venv | brew install python@3.12'; exit 1; }
	@echo 'Making $(VENV) from requirements.lock (a minute)'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PY) -m pip --disable-pip-version-check install --quiet --use-pep517 --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.installed: $(VENV)/.locked setup.py pyproject.toml
	@$(PY) -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

airflow: build/airflow/.installed  ## Airflow in an environment of its own, for the test of its DAGs

build/airflow/.installed: tests/airflow.lock
	@echo 'Making build/airflow from tests/airflow.lock (half a minute)'
	@$(PYTHON) -m venv --clear build/airflow
	@build/airflow/bin/python -m pip --disable-pip-version-check install --quiet -r tests/airflow.lock
	@touch $@

# Only says so: `tidemark` itself looks in more places and stops with a hint.
java:
	@found=$$("$${JAVA_HOME:+$$JAVA_HOME/bin/}java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p'); \
	    [ "$${found:-0}" -ge 17 ] || \
	    echo 'Java 17 is missing: apt-get install openjdk-17-jre-headless | brew install openjdk@17'

# The extras of LOCKED: all but airflow, which pins half of PyPI, kerberos, which is built against the system's libkrb5,
# and torch, whose wheels are gigabytes and whose right build depends on the machine.
lock:  ## resolve setup.py with its extras to requirements.lock; ARGS=--upgrade for newer versions
	@uv=$$(command -v uv) || { uv=build/lock/bin/uv; \
	    [ -x "$$uv" ] || { $(PYTHON) -m venv build/lock && build/lock/bin/python -m pip install --quiet uv; }; }; \
	    "$$uv" pip compile setup.py $(LOCKED:%=--extra %) --universal --python-version 3.10 --generate-hashes \
	    --no-emit-index-url --custom-compile-command 'make lock' --quiet --output-file requirements.lock $(ARGS)
	@rm -rf tidemark.egg-info
	@echo "requirements.lock: $$(grep -c '^[a-z0-9]' requirements.lock) pins"

# --- what is shipped ------------------------------------------------------------------------------------------------
# Built from a copy, so that no file of an older build gets in and the checkout stays clean. The same sources give the
# same bytes: one date, one set of modes, and a zip that stores rather than deflates (zlib's output varies).

WHEEL := tidemark-0.1.0-py3-none-any.whl

define ZIP_FROM_WHEEL
import sys, zipfile
wheel, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w") as made:
    for name in sorted(source.namelist()):
        if not name.split("/")[0].endswith(".dist-info"):
            entry = zipfile.ZipInfo(name)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            made.writestr(entry, source.read(name))
endef
export ZIP_FROM_WHEEL

dist: $(VENV)/.installed  ## the wheel for Databricks and the zip for spark-submit --py-files
	@set -e; copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; mkdir -p $(DIST); \
	    cp -R setup.py pyproject.toml LICENSE feature_defs connectors jobs "$$copy"; \
	    chmod -R u=rwX,go=rX "$$copy"; \
	    log=$$(SOURCE_DATE_EPOCH=315532800 $(PY) -m build --wheel --no-isolation --outdir $(DIST) "$$copy" 2>&1) || \
	    { echo "$$log"; exit 1; }
	@$(PY) -c "$$ZIP_FROM_WHEEL" $(DIST)/$(WHEEL) $(DIST)/tidemark.zip
	@echo '$(DIST)/$(WHEEL)  for Databricks and pip'
	@echo '$(DIST)/tidemark.zip  for spark-submit --py-files'
