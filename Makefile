# The commands people type. Each sets up what it needs first; repeated calls do not install again.

ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
OLDEST_TORCH := 2.6
RELEASED := server,postgres,cli,mup,frames,otel
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable

.DEFAULT_GOAL := help
.NOTPARALLEL:
.SILENT:

.PHONY: help
help: ## Show this list
	awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: $(VENV)/.installed ## Train a small model, watched live on the board (ARGS=--headless: without a person)
	$(BIN)/internist demo $(ARGS)

.PHONY: test
test: $(VENV)/.installed-dev browser compiler alertmanager prometheus ## Run all tests (ARGS=tests/client: some of them)
	$(BIN)/python -m pytest -p tests.workers -n auto $(ARGS)

.PHONY: check
check: $(VENV)/.installed-dev ## Check format, lint, types and imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.PHONY: oldest
oldest: ## Run the client's fast tests on the oldest torch (PYTHON=python3.12: on another Python): gigabytes are fetched
	"$${PYTHON:-python3}" -m venv --clear build/oldest
	build/oldest/bin/python -m pip --disable-pip-version-check --quiet install 'torch==$(OLDEST_TORCH).*' -e '.[mup,cli]' \
	  hypothesis ipython pytest pytest-timeout pytest-xdist
	build/oldest/bin/python -m pytest -m fast $(addprefix tests/client/,measures model monitor observe optim record ship) $(ARGS)

.PHONY: bench
bench: $(VENV)/.installed-bench ## Measure client, server, optimizers and scaling rules (ARGS=--json: one object a line)
	$(BIN)/python -m benchmarks.client $(ARGS)
	$(BIN)/python -m benchmarks.governor $(ARGS)
	$(BIN)/python -m benchmarks.ingest $(ARGS)
	$(BIN)/python -m benchmarks.ranks --quick $(ARGS)
	$(BIN)/python -m benchmarks.latency $(ARGS)
	$(BIN)/python -m benchmarks.optimizer --quick $(ARGS)
	$(BIN)/python -m benchmarks.quality --quick $(ARGS)
	$(BIN)/python -m benchmarks.mup_stability --quick $(ARGS)
	$(BIN)/python -m benchmarks.mup_transfer --quick $(ARGS)
	$(BIN)/python -m benchmarks.mup_depth --quick $(ARGS)
	$(BIN)/python -m benchmarks.mup_peers --quick $(ARGS)
	$(BIN)/python -m benchmarks.mup_check $(ARGS)
	$(BIN)/python -m benchmarks.scaling $(ARGS)
	$(BIN)/python -m benchmarks.scaling_confusion --quick $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.installed-dev ## Send the server what no client would, ten minutes (ARGS="--seconds 60": less)
	$(BIN)/python -m tests.server.fuzzing $(ARGS)

.PHONY: torture
torture: $(VENV)/.installed-dev ## Kill servers, databases and trainings, hundreds of times (ARGS="--rounds 20": less)
	$(BIN)/python -m tests.torture $(ARGS)

.PHONY: bench-faults
bench-faults: $(VENV)/.installed-dev ## Measure the judge on healthy and sick runs, half an hour (ARGS=--short: a minute)
	$(BIN)/python -m benchmarks.faults.bench $(ARGS)

.PHONY: bench-board
bench-board: $(VENV)/.installed-dev browser ## Measure the board in a browser, at size (ARGS=--quick: smaller scenes)
	$(BIN)/python -m benchmarks.board $(ARGS)

.PHONY: screenshots
screenshots: $(VENV)/.installed-dev browser ## Draw every page of the board into build/screenshots
	$(BIN)/python -m benchmarks.screenshots $(ARGS)

.PHONY: sbom
sbom: | $(BIN)/python ## Write what users install as CycloneDX, and its licences, into build/sbom
	rm -rf build/sbom && mkdir -p build/sbom
	$(BIN)/python -m venv build/sbom/installed && $(BIN)/python -m venv build/sbom/tools
	build/sbom/tools/bin/python -m pip --disable-pip-version-check --quiet install cyclonedx-bom==7.5.0
	build/sbom/installed/bin/python -m pip --disable-pip-version-check --quiet install -c constraints.txt '.[$(RELEASED)]'
	build/sbom/installed/bin/python .ci/licences.py > build/sbom/licences.txt || { cat build/sbom/licences.txt; exit 1; }
	build/sbom/installed/bin/python -m pip --disable-pip-version-check --quiet uninstall --yes pip
	build/sbom/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type library --output-reproducible \
	  --output-file build/sbom/internist.cdx.json build/sbom/installed/bin/python
	echo "build/sbom/internist.cdx.json and build/sbom/licences.txt"

.PHONY: clean
clean: ## Remove the virtual environment and what the tools left
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -type d -name __pycache__ -prune -exec rm -rf {} +

# The stamps say what is installed; a changed dependency makes them old. What developers need includes everything else.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	echo "Installing Internist into $(VENV): the first time takes minutes."
	$(PIP) install -c constraints.txt -e '.[all]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	echo "Installing Internist and its development tools into $(VENV): the first time takes minutes."
	$(PIP) install -c constraints.txt -e '.[all,dev]'
	touch $(VENV)/.installed $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	echo "Installing what the benchmarks compare with."
	$(PIP) install -c constraints.txt -e '.[all,dev,bench]'
	$(PIP) install --no-deps mup==1.0.0 gram-newton-schulz==0.1.6 # they ask for what needs a GPU, and is not used here
	touch $@

# A virtual environment without pip is none: it is taken away again.
$(BIN)/python:
	for python in $(PYTHONS); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then \
	    "$$python" -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); exit 1; \
	  fi; \
	done; \
	echo "Internist needs Python 3.11 or newer, and found none among: $(PYTHONS)." >&2; exit 1

# Root on Debian gets Chromium; elsewhere the browser tests are skipped, but never where CI is set.
.PHONY: browser
browser:
	for browser in $(BROWSERS); do \
	  if command -v "$$browser" > /dev/null; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ] && [ -f /etc/debian_version ] && command -v apt-get > /dev/null; then \
	  echo "Installing Chromium for the browser tests."; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium > /dev/null && exit 0; \
	fi; \
	echo "No browser found ($(BROWSERS)): install Chromium to run the browser tests." >&2; \
	if [ -n "$${CI:-}" ]; then exit 1; fi; \
	echo "They are skipped this time." >&2

# So it does for a C compiler, with which the optimizers' passes over a CPU's memory are tested.
.PHONY: compiler
compiler:
	if command -v cc > /dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && [ -f /etc/debian_version ] && command -v apt-get > /dev/null; then \
	  echo "Installing a C compiler for the tests of compiled passes."; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get -qq update && apt-get -qq install --yes --no-install-recommends gcc libc6-dev > /dev/null && exit 0; \
	fi; \
	echo "No C compiler found (cc): install one to test the optimizers' compiled passes." >&2; \
	if [ -n "$${CI:-}" ]; then exit 1; fi; \
	echo "They are skipped this time." >&2

# And for Alertmanager: taken out of Debian's package, since installing that would start a service.
.PHONY: alertmanager
alertmanager:
	for program in prometheus-alertmanager alertmanager $(VENV)/alertmanager/usr/bin/prometheus-alertmanager; do \
	  if command -v "$$program" > /dev/null; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ] && [ -f /etc/debian_version ] && command -v apt-get > /dev/null; then \
	  echo "Fetching Alertmanager for the tests of what it is told."; \
	  mkdir -p $(VENV)/alertmanager && cd $(VENV)/alertmanager && apt-get -qq update && \
	  apt-get -qq -o APT::Sandbox::User=root download prometheus-alertmanager > /dev/null && \
	  dpkg-deb --extract prometheus-alertmanager_*.deb . && exit 0; \
	fi; \
	echo "No Alertmanager found: install prometheus-alertmanager to test what it is told." >&2; \
	if [ -n "$${CI:-}" ]; then exit 1; fi; \
	echo "They are skipped this time." >&2

# And for Prometheus, with promtool.
.PHONY: prometheus
prometheus:
	for program in promtool $(VENV)/prometheus/usr/bin/promtool; do \
	  if command -v "$$program" > /dev/null; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ] && [ -f /etc/debian_version ] && command -v apt-get > /dev/null; then \
	  echo "Fetching Prometheus for the tests of what it is told."; \
	  mkdir -p $(VENV)/prometheus && cd $(VENV)/prometheus && apt-get -qq update && \
	  apt-get -qq -o APT::Sandbox::User=root download prometheus > /dev/null && \
	  dpkg-deb --extract prometheus_*.deb . && rm prometheus_*.deb && exit 0; \
	fi; \
	echo "No Prometheus found: install prometheus to test what it is told." >&2; \
	if [ -n "$${CI:-}" ]; then exit 1; fi; \
	echo "They are skipped this time." >&2
