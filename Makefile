# The user interface: `make help` lists the targets. A target that needs the result of another one builds it first.

PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
ACCELERATOR ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)

# Training images (DATA=folder DATA_DIR=path: your own), or weights instead of training; the variant to publish (auto: the
# fastest that passes its gate); the model repository.
DATA ?= digits
DATA_DIR ?=
WEIGHTS ?=
PRECISION ?= auto
TRAIN_OPTIONS ?=
EXPORT_OPTIONS ?=
REPOSITORY ?= model_repository
BUILD ?= build
TARGET ?= 127.0.0.1:8001
SERVE_OPTIONS ?=
# HTTP=1: also serve HTTP on 127.0.0.1:8000.
HTTP ?=
# Duration of `make soak`.
MINUTES ?= 10
# `make load-test`: requests/s (or arrivals such as ramp:10-200), seconds, SLO, further options. `make sweep` uses SLO and LOAD_OPTIONS.
RATE ?= 50
DURATION ?= 60
SLO ?=
LOAD_OPTIONS ?=
# `make deploy-check`: name of one overlay (default: all); --release fails while image digests are placeholders.
DEPLOY_OPTIONS ?=

PYTEST_PROCESSES ?= --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PYTEST_OPTIONS ?=

# ONNX Runtime sends telemetry by default.
export ORT_DISABLE_TELEMETRY := 1

ifneq ($(words $(DATA_DIR) $(REPOSITORY) $(BUILD)),$(if $(DATA_DIR),3,2))
$(error make cannot work with spaces in DATA_DIR, REPOSITORY or BUILD)
endif

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed-$(ACCELERATOR)
DATA_OPTIONS := --data $(DATA) $(if $(DATA_DIR),--data-dir $(DATA_DIR))
DATA_FILES := $(if $(DATA_DIR),$(wildcard $(DATA_DIR)/*/*))
# Each data set has its own directory.
WORK := $(BUILD)/$(if $(DATA_DIR),$(notdir $(abspath $(DATA_DIR)))-$(firstword $(shell echo "$(abspath $(DATA_DIR))" | cksum)),$(DATA))
CHECKPOINT := $(WORK)/checkpoint/checkpoint.json
SAMPLES := $(WORK)/samples
# Manifest of the newest release, or of the first one.
NEWEST := $(shell ls -d $(REPOSITORY)/alexnet/[0-9]* 2>/dev/null | sort -V | tail -n 1)
RELEASE := $(or $(NEWEST),$(REPOSITORY)/alexnet/1)/manifest.json
EXPORT := export/alexnet_export
TRAINING_CODE := $(addprefix $(EXPORT)/,checkpoint.py data.py digits.py folder.py model.py options.py train.py)
EXPORT_CODE := $(addprefix $(EXPORT)/,gates.py graph.py image_sets.py model.py pipeline.py publish.py quantize.py \
	releases.py rewrites.py runners.py to_fp16.py to_onnx.py to_tensorrt.py triton_config.py variants.py)
SOURCE := $(if $(WEIGHTS),--weights $(WEIGHTS),--checkpoint $(dir $(CHECKPOINT)))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo train export verify report bench sweep soak soak-client gpu-check serve classify load-test monitor monitoring capacity deploy-check doctor test test-fast lint lock clean force

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "Your own images (path/train/<class>/*.jpg and path/val/<class>/*.jpg), or torchvision's ImageNet weights:"
	@echo "  make export DATA=folder DATA_DIR=path REPOSITORY=build/mine"
	@echo "  make export WEIGHTS=imagenet REPOSITORY=build/imagenet"

setup: $(STAMP) ## install everything into .venv (other targets do this when needed)

$(STAMP): constraints.txt tests/requirements.txt export/pyproject.toml client/pyproject.toml deploy/pyproject.toml
	@test "$$(uname -sm)" = "Linux x86_64" || \
		{ echo "make: this project needs Linux on x86-64, the only platform of Triton's wheel; this machine is $$(uname -sm)" >&2; exit 1; }
	@test -n "$(PYTHON)" || \
		{ echo "make: Python 3.11 or 3.12 is required, found $$(python3 -V 2>&1); install one, or set make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
		{ echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1); Python 3.11 or 3.12 is required" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "make: this Python cannot create virtual environments; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@test "$(ACCELERATOR)" = cpu -o "$(ACCELERATOR)" = gpu || \
		{ echo "make: ACCELERATOR=$(ACCELERATOR) is unknown; use cpu or gpu" >&2; exit 1; }
	@echo "Installing into $(VENV) for $(ACCELERATOR); this takes a minute or two..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/installed-*
	@# A package follows those it depends on: pip before 23.3 looks for them on PyPI otherwise.
	$(BIN)/pip install --quiet --constraint constraints.txt --requirement tests/requirements.txt \
		--editable "client[load]" --editable "deploy[triton,$(ACCELERATOR)]" --editable "export[$(ACCELERATOR)]"
	@touch $@

demo: $(STAMP) $(SAMPLES) $(RELEASE) ## train, export, serve, classify held-out images and run a short load test
	@$(BIN)/alexnet-server serve --repository $(REPOSITORY) --log $(BUILD)/triton.log $(SERVE_OPTIONS) -- \
		sh -c '$(BIN)/alexnet-client evaluate $(SAMPLES) --target $(TARGET) --sheet $(WORK)/answers.png && \
		$(BIN)/alexnet-load run --target $(TARGET) --rate $(RATE) --duration 6 --output $(BUILD)/load'

train: $(CHECKPOINT) ## train, or resume an interrupted training (TRAIN_OPTIONS="--steps 2000")
	@echo "Trained: $(CHECKPOINT)"

$(CHECKPOINT): $(TRAINING_CODE) $(DATA_FILES) $(if $(TRAIN_OPTIONS),force) | $(STAMP)
	@$(BIN)/alexnet-export train --output $(@D) $(DATA_OPTIONS) --resume $(TRAIN_OPTIONS)

export: $(RELEASE) ## create and validate variants, publish the fastest as the next version (PRECISION=int8|bf16|fp32|fp16)
	@echo "Newest release: $$(ls -d $(REPOSITORY)/alexnet/[0-9]* | sort -V | tail -n 1)"

$(RELEASE): $(if $(WEIGHTS),,$(CHECKPOINT)) $(EXPORT_CODE) $(if $(filter file,$(origin PRECISION)),,force) | $(STAMP)
	@$(BIN)/alexnet-export export $(SOURCE) --precision $(PRECISION) --repository $(REPOSITORY) $(DATA_OPTIONS) \
		$(EXPORT_OPTIONS)

verify: $(STAMP) ## validate the newest release again (SERVED=host:port: the answers of that server)
	@$(BIN)/alexnet-export verify $(SOURCE) --repository $(REPOSITORY) $(DATA_OPTIONS) $(if $(SERVED),--served $(SERVED))

report: $(STAMP) $(if $(WEIGHTS),,$(CHECKPOINT)) ## write the model report: filters, invariances, mistakes, variants (a web page)
	@$(BIN)/alexnet-export report $(SOURCE) --repository $(REPOSITORY) $(DATA_OPTIONS) --output $(WORK)/report

bench: $(STAMP) $(CHECKPOINT) ## run the benchmarks of tests/benchmarks on this machine (13 minutes)
	@$(BIN)/pip install --quiet openvino==2026.4.1 || true  # its benchmark_app is a reference; not needed otherwise
	@$(BIN)/python tests/benchmarks --checkpoint $(dir $(CHECKPOINT)) --output $(BUILD)/bench

sweep: $(STAMP) $(if $(NEWEST),,$(RELEASE)) ## tune instances, threads and batching of the Triton configuration for SLO=p99=100ms (10 minutes)
	@$(BIN)/alexnet-load tune --repository $(REPOSITORY) --slo $(or $(SLO),p99=100ms) $(LOAD_OPTIONS)

soak: $(STAMP) $(if $(NEWEST),,$(RELEASE)) ## soak test of the server: MINUTES=10 of valid and invalid requests; exit code 1 if memory or latency grows
	@$(BIN)/python tests/benchmarks/soak.py --repository $(REPOSITORY) --minutes $(MINUTES) --output $(BUILD)/soak

soak-client: $(STAMP) ## soak test of the client: 360,000 images to a fake server (2 minutes)
	@$(BIN)/python tests/benchmarks/soak_client.py

gpu-check: $(STAMP) ## run all GPU code on this machine's GPU and compare with its roofline
	@$(BIN)/alexnet-export gpu-check --output $(BUILD)/gpu-check

$(SAMPLES): $(EXPORT)/digits.py $(EXPORT)/samples.py $(DATA_FILES) | $(STAMP)
	@$(BIN)/alexnet-export samples --output $@ $(DATA_OPTIONS)
	@touch $@

# Serve the existing release: a newer checkpoint must not publish again what was rolled back.
serve: $(STAMP) $(if $(NEWEST),,$(RELEASE)) ## serve on 127.0.0.1:8001 until Ctrl-C (HTTP=1: on 127.0.0.1:8000 too)
	@$(BIN)/alexnet-server serve --repository $(REPOSITORY) --log $(BUILD)/triton.log \
		$(if $(filter-out 0,$(HTTP)),--http-port 8000) $(SERVE_OPTIONS)

load-test: $(STAMP) ## load test of the running server: make load-test RATE=100 DURATION=60 SLO=p99=50ms (writes a page and the records)
	@$(BIN)/alexnet-load run --target $(TARGET) --arrivals "$(if $(findstring :,$(RATE)),$(RATE),poisson:$(RATE))" \
		--duration $(DURATION) $(if $(SLO),--slo $(SLO)) --output $(BUILD)/load $(LOAD_OPTIONS)

monitor: $(STAMP) ## run Prometheus with rules, alerts and a status page (apt-get install prometheus)
	@$(BIN)/alexnet-server monitor --data $(BUILD)/monitor

monitoring: $(STAMP) ## generate Prometheus rules, the Grafana dashboard and their Kubernetes objects
	@$(BIN)/python -m alexnet_server.monitoring deploy

capacity: $(STAMP) ## regenerate deploy/CAPACITY.md (BENCH=build/bench/bench.json: with the results of your own run)
	@$(BIN)/python deploy/capacity.py $(if $(BENCH),--bench $(BENCH))

classify: $(STAMP) ## classify an image with the running server: make classify IMAGE=photo.jpg
	@test -n "$(IMAGE)" || { echo "make: IMAGE is missing: make classify IMAGE=photo.jpg" >&2; exit 2; }
	@$(BIN)/alexnet-client classify --target $(TARGET) "$(IMAGE)"

deploy-check: $(STAMP) ## check manifests, images and the compose file before deployment (DEPLOY_OPTIONS="--release cpu")
	@$(BIN)/python tests/deploy/manifest_checks.py $(DEPLOY_OPTIONS)

doctor: $(STAMP) ## check that this machine can run Triton
	@$(BIN)/alexnet-server doctor --repository $(REPOSITORY)

# One thread in each test process: more would only compete for the CPUs.
test test-fast: export OMP_NUM_THREADS := 1
test test-fast: export OPENBLAS_NUM_THREADS := 1

test: $(STAMP) ## run all tests, including those against the real Triton
	@$(BIN)/python -m pytest $(PYTEST_PROCESSES) $(PYTEST_OPTIONS)

test-fast: $(STAMP) ## run the unit tests only, without a server (a minute)
	@$(BIN)/python -m pytest $(PYTEST_PROCESSES) -m "not e2e and not slow" $(PYTEST_OPTIONS)

lint: $(STAMP) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/alexnet-export check $(REPOSITORY)

lock: ## select the newest versions and write constraints.txt
	rm -rf $(BUILD)/lock && $(PYTHON) -m venv $(BUILD)/lock
	$(BUILD)/lock/bin/pip install --quiet --requirement tests/requirements.txt "./client[load]" "./deploy[triton,cpu]" "./export[cpu]"
	{ sed -n '/^#/p' constraints.txt; $(BUILD)/lock/bin/pip freeze --exclude alexnet-client --exclude alexnet-export \
		--exclude alexnet-server | sed 's/+cpu$$//'; echo "$$($(BIN)/pip freeze | grep onnxruntime-gpu || grep onnxruntime-gpu constraints.txt)"; } > $(BUILD)/constraints.txt
	mv $(BUILD)/constraints.txt constraints.txt

clean: ## delete checkpoints, reports and releases (not .venv)
	rm -rf $(BUILD) $(REPOSITORY)/alexnet*/[0-9]* $(REPOSITORY)/alexnet/.rolled-back-*
