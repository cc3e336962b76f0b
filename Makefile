# Every command that the README promises. Set-up is a by-product: each target makes what it needs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON := .venv/bin/python
UV := $(or $(shell command -v uv),build/tools/bin/uv)
ROOT := $(if $(filter 0,$(shell id -u)),,sudo)

# An image's lock is the part of the whole lock that it installs.
IMAGE_LOCK := -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
	-c deploy/requirements.lock

PYTEST := NEXTCLICK_REQUIRE_PROMETHEUS=1 $(PYTHON) -m pytest
# Two commands at a time, one a core; the output of the first is shown after that of the second.
both = { $(1) >build/background.log 2>&1 & first=$$!; trap "kill $$first 2>/dev/null || true" EXIT; \
	$(2) && second=0 || second=$$?; wait $$first && first=0 || first=$$?; trap - EXIT; \
	cat build/background.log; [ $$first = 0 ] && [ $$second = 0 ]; }
FAULTS := $(patsubst %,tests/integration/test_%.py,faults hanging restart)
TWO_BY_TWO = $(call both,$(PYTEST) tests/unit/train,$(PYTEST) tests/unit --ignore=tests/unit/train) \
	&& $(call both,$(PYTEST) $(FAULTS),$(PYTEST) tests/integration $(FAULTS:%=--ignore=%))

.PHONY: help
help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.PHONY: demo
demo: .venv/installed ## The main job end to end: Kafka, training, export, worker, replay (CLICKS=path FLAGS='--columns ...': your own log)
	$(PYTHON) -m deploy.demo $(if $(CLICKS),--clicks "$(CLICKS)") $(FLAGS)

.PHONY: test
test: .venv/installed build/prometheus ## All tests, on a real Kafka and a real Prometheus
	$(if $(TESTS),$(PYTEST) $(TESTS),$(TWO_BY_TWO))

.PHONY: coverage
coverage: .venv/installed build/prometheus ## All tests in one process, and the lines they do not reach
	$(PYTEST) --cov --cov-report=term:skip-covered $(TESTS)

.PHONY: check
check: .venv/installed build/prometheus ## Formatting, lint, types, architecture, generated files, Prometheus rules
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy & types=$$!; \
		.venv/bin/lint-imports && $(PYTHON) -m docs.floors && $(PYTHON) -m docs.generate --check && \
		$(PYTHON) -m bench.lab.tables --check && $(PYTHON) -m deploy.grafana.dashboard --check && \
		others=0 || others=$$?; wait $$types && [ $$others = 0 ]
	promtool check config deploy/prometheus/prometheus.yaml
	promtool check rules deploy/prometheus/recording.yaml deploy/prometheus/alerts.yaml
	promtool test rules deploy/prometheus/alerts_test.yaml

.PHONY: bench
bench: .venv/installed build/quix/installed ## Clicks/s, latency and CPU beside 0.1.0, a naive agent and Quix Streams, into bench/results/stream.json
	$(PYTHON) -m bench.serving.stream

.PHONY: bench-accuracy
bench-accuracy: .venv/installed ## The GRU beside its baselines on RSC15-100k, into bench/results/rsc15-100k.json
	$(PYTHON) -m bench.training.accuracy

.PHONY: faults
faults: .venv/installed ## Faults under load, 20 runs each, into bench/results/faults.json; goes on where it stopped
	$(PYTHON) -m bench.faults

.PHONY: fuzz
fuzz: .venv/installed ## Ten minutes of hostile records in good traffic, into bench/results/fuzz.json
	$(PYTHON) -m bench.fuzz

.PHONY: day
day: .venv/installed ## A day of all traffic and faults in minutes, into bench/results/day.json
	$(PYTHON) -m bench.fuzz --hours 24

.PHONY: broker
broker: .venv/installed ## An Apache Kafka on 127.0.0.1:9092 until Ctrl-C
	$(PYTHON) -m deploy.broker --port 9092

.PHONY: images
images: .venv/installed ## Container images on a host that cannot pull any (needs Docker and debootstrap)
	$(PYTHON) -m deploy.images

.PHONY: lock
lock: $(UV) ## Resolve the dependencies again
	$(UV) pip compile -q --universal --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links \
		--no-header --all-extras --group dev pyproject.toml -o deploy/requirements.lock
	$(UV) pip compile $(IMAGE_LOCK) --extra stream pyproject.toml -o deploy/stream.lock
	$(UV) pip compile $(IMAGE_LOCK) --extra train pyproject.toml -o deploy/train.lock

.PHONY: clean
clean: ## Remove the environment and everything built
	rm -rf .venv build bundles .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage

.venv/installed: deploy/requirements.lock pyproject.toml | $(UV)
	test -x $(PYTHON) || $(UV) venv -q --python 3.11 .venv
	$(UV) pip sync -q --python $(PYTHON) deploy/requirements.lock
	$(UV) pip install -q --python $(PYTHON) --no-deps -e .
	touch $@

# Quix Streams wants older packages than ours: an environment of its own.
build/quix/installed: bench/serving/quix.txt | $(UV)
	$(UV) venv -q --clear --python $(PYTHON) build/quix
	$(UV) pip install -q --python build/quix/bin/python -r bench/serving/quix.txt
	touch $@

build/tools/bin/uv:
	python3 -m venv build/tools
	build/tools/bin/pip install -q uv

# The tests query a real Prometheus server, and the rules are checked with its promtool.
build/prometheus:
	command -v promtool prometheus >/dev/null || \
		($(ROOT) apt-get update -qq && $(ROOT) apt-get install -y -qq prometheus >/dev/null)
	mkdir -p build && touch $@
