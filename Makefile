# The commands of this project. `make run PROMPT="..."` and `make test` set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One OpenMP thread a process keeps networks that run side by side from spinning against each other.
# Compiled modules are kept whatever the caller's environment says: hundreds of processes would compile them again.
TEST_ENV := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=
PROMPT ?= a red house under a full moon
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run up wheels test test-page test-matrices test-wheels test-clients test-proxies test-faults test-attacks test-real-size test-compose test-meadowrun test-gpu bench-gpu gpu-wheels fuzz parity tiny quality bench bench-full check fix manifests protos release-protos clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# The runtime stamp holds what `make run` needs; the dev stamp adds the tools and the tests.
$(VENV)/runtime: pyproject.toml packages/server/pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e . -e 'packages/server[all]'
	@touch $@

$(VENV)/dev: $(VENV)/runtime
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' -e 'packages/server[all]'
	@touch $@

setup: $(VENV)/dev ## Install everything into .venv

run: $(VENV)/runtime ## Make pictures: make run PROMPT="a red house under a full moon" ARGS="--seed 7"
	@$(BIN)/triptych run "$(PROMPT)" $(ARGS)

up: $(VENV)/runtime ## Start the three stages and the gateway and keep them running
	@$(BIN)/triptych up $(ARGS)

# WORKERS: a number; by default three for two cores. Much of the tests' time is waiting for services to start and to stop.
# Files begin in the order of tests/conftest.py, the long ones first.
WORKERS ?= auto
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/dev ## Run the tests (minutes)
	$(TEST_ENV) $(BIN)/python -m pytest -q $(PARALLEL) -m "not slow and not parity and not compose and not faults and not meadowrun and not page and not matrix" $(ARGS)

# The few that `make test` has, too: tests/web/conftest.py.
test-page: $(VENV)/dev ## Use the page in Chromium: every feature, four widths, light and dark, axe-core (minutes)
	$(TEST_ENV) $(BIN)/python -m pytest -q $(PARALLEL) -m "not slow" tests/web $(ARGS)

test-matrices: $(VENV)/dev ## Run every case of the matrices of which `make test` has a few (minutes)
	$(TEST_ENV) $(BIN)/python -m pytest -q $(PARALLEL) -m matrix tests $(ARGS)

# CLIENTS: words of their names, such as "openai LangChain"; all by default. Needs npm, node and the registries.
test-clients: $(VENV)/dev ## Make a picture with third-party programs, each in its own environment (minutes)
	$(TEST_ENV) $(BIN)/python -m tests.clients $(CLIENTS)

# PROXIES: nginx, Caddy and Envoy by default; the first two must be on PATH.
test-proxies: $(VENV)/dev ## Put the proxies of docs/operations/proxies.md, as configured there, before a gateway (a minute)
	$(TEST_ENV) $(BIN)/python -m tests.proxies $(PROXIES)

# It waits a lot, for what is silent to be noticed.
test-faults: $(VENV)/dev ## Kill, stop and cut off real processes in every place, and print what each case showed
	$(TEST_ENV) $(BIN)/python -m pytest -q $(PARALLEL) tests/faults $(ARGS)

# The light half is in `make test`. WORD: only attempts with it in their names.
test-attacks: $(VENV)/dev ## Attack gateway, stages, files, disk and clock; print memory and the delay of another caller (an hour)
	$(TEST_ENV) $(BIN)/python -m tests.attacks $(WORD)

# MODELS: real-l, mini, glid-3-xl-finetuned, glid-3-xl, glid-3-xl-inpaint, mega, karlo, mega_full; but for the last all of them.
test-real-size: $(VENV)/dev ## Pull, convert and serve models of published size, and 2 GB through S3 (25 GB of disk, an hour)
	$(TEST_ENV) $(BIN)/python -m tests.published.real_size $(MODELS)
	$(TEST_ENV) $(BIN)/python -m tests.published.real_s3

# First with compose alone, as a user would; then with `triptych deploy compose`, under load and with workers killed.
test-compose: $(VENV)/dev ## Build and start docker-compose.yml, scale it, kill a worker, take it down (needs an engine)
	TRIPTYCH=$(abspath $(BIN))/triptych tests/compose/run.sh
	$(TEST_ENV) $(BIN)/python -m pytest -q -s --durations=5 -m compose tests/compose tests/deploy $(ARGS)

# It is installed into build/meadowrun, once; needs sshd and the right to mount.
test-meadowrun: $(VENV)/dev ## Launch workers through Meadowrun itself, on a mock of AWS (minutes)
	$(TEST_ENV) $(BIN)/python -m pytest -q -m meadowrun tests/deploy $(ARGS)

# What failed before is tried again first. EXAMPLES and SECONDS_EACH are for each test and each target.
EXAMPLES ?= 300
SECONDS_EACH ?= 60

fuzz: $(VENV)/dev ## Send nonsense of all kinds to every door, for as long as it takes (half an hour)
	FUZZ_EXAMPLES=$(EXAMPLES) $(TEST_ENV) $(BIN)/python -m pytest -q --timeout 3600 tests/fuzz tests/*/test_fuzz.py $(ARGS)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	for target in pictures json messages; do \
		$(TEST_ENV) $(BIN)/python -m tests.fuzz.with_atheris $$target -max_total_time=$(SECONDS_EACH) || exit 1; \
	done

parity: $(VENV)/dev ## Compare with dalle-mini, diffusers and spandrel, in environments of their own
	$(TEST_ENV) $(BIN)/python -m tests.parity $(ARGS)

# Contenders take turns; what else runs on the machine disturbs them. ARGS="--threads 1" for one core.
bench: $(VENV)/dev ## Time every stage beside other programs, in short (minutes; gigabytes of random weights, once)
	for stage in generator refiner upscaler engine; do $(BIN)/python -m tests.bench.$$stage $(ARGS) || exit 1; done

bench-full: ## The same at length (an hour)
	$(MAKE) bench ARGS="--full $(ARGS)"

# In this order: each network learns from those before it. Every recipe can be stopped and started again with --resume.
tiny: $(VENV)/dev ## Train the built-in models from nothing (many hours; needs npm for the sprites)
	$(TEST_ENV) $(BIN)/python -m training.generator.train_tokenizer
	$(TEST_ENV) $(BIN)/python -m training.generator.train_vqgan
	$(TEST_ENV) $(BIN)/python -m training.generator.train_dalle
	$(TEST_ENV) $(BIN)/python -m training.generator.export
	$(TEST_ENV) $(BIN)/python -m training.world.near_words.word_table
	for recipe in refiner.train_autoencoder refiner.train_text_encoder refiner.train_unet refiner.train_clip upscaler.train_swinir \
		unclip.train_clip unclip.train_text unclip.train_decoder unclip.train_prior unclip.train_super_res; do \
		$(TEST_ENV) $(BIN)/python -m training.$$recipe --export || exit 1; \
	done

quality: $(VENV)/dev ## Measure the built-in models on held-out and natural prompts: make quality ARGS="--seed 7"
	$(TEST_ENV) $(BIN)/python -m training.evaluation.generator_report $(ARGS)
	$(TEST_ENV) $(BIN)/python -m training.evaluation.natural_report
	$(TEST_ENV) $(BIN)/python -m training.evaluation.final_report
	$(TEST_ENV) $(BIN)/python -m training.evaluation.ladder_report
	$(TEST_ENV) $(BIN)/python -m training.evaluation.unclip_report $(ARGS)

.PHONY: pictures
pictures: $(VENV)/dev ## Draw the pictures of README and docs again, with the built-in models
	rm -rf build/quality/run
	$(TEST_ENV) $(BIN)/triptych run "a red house under a full moon" --seed 1 --out build/quality/run
	cp build/quality/run/contact-sheet.png docs/contact-sheet.png
	$(TEST_ENV) TRIPTYCH_PAGE_PICTURES=docs $(BIN)/python -m pytest -q -m slow tests/web/test_whole.py
	$(TEST_ENV) $(BIN)/python -m training.evaluation.generator_report --seed 7 --count 32 --family-count 0 --sheet docs/generator-held-out.jpg
	$(TEST_ENV) $(BIN)/python -m training.evaluation.ladder_report --count 8 --worlds narrow --no-cost --folder build/quality
	cp build/quality/ladder-narrow.png docs/refined-256.png

check: $(VENV)/dev ## Lint, types, protos, stubs, plain words
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos
	$(BIN)/buf breaking protos --against protos/released.binpb
	$(BIN)/python protos/generate.py --check
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/python packages/check_words.py
	$(BIN)/python packages/write_manifests.py --check

fix: $(VENV)/dev ## Format, and repair what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format --write protos

wheels: $(VENV)/dev ## Build the wheels of the client and of the server into dist/
	rm -rf dist
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist . ./packages/server

# Dependencies come from the package index. SITE: a folder of installed libraries to use in place of downloading them.
test-wheels: wheels ## Install each wheel into an empty environment elsewhere and use it (minutes)
	$(TEST_ENV) $(BIN)/python -m tests.packages.installed dist $(if $(SITE),--site $(SITE))

# DEVICE: cpu with ARGS="--tiny" tries the checks themselves. On a machine of another image: python -m tests.gpu
DEVICE ?= cuda

test-gpu: $(VENV)/dev ## Check golden vectors, seeds, batches, a full device and a whole run on a GPU (minutes)
	$(TEST_ENV) $(BIN)/python -m tests.gpu --device $(DEVICE) $(ARGS)

bench-gpu: $(VENV)/dev ## Time every stage on a GPU beside its computed limit and other programs (eight minutes)
	$(BIN)/python -m tests.bench.gpu --device $(DEVICE) $(ARGS)

gpu-wheels: $(VENV)/dev ## Download what a machine with CUDA, torch and JAX lacks, for one without network
	$(BIN)/python -m tests.gpu.wheels

manifests: $(VENV)/dev ## Write what compose, Kubernetes and the monitoring have for each stage
	$(BIN)/python packages/write_manifests.py

protos: $(VENV)/dev ## Generate triptych/v1 from protos/
	$(BIN)/python protos/generate.py

release-protos: $(VENV)/dev ## Make today's contract the one that `make check` compares with
	$(BIN)/buf build protos --output protos/released.binpb

clean: ## Remove the environment and what was built
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache
