# make demo   train a small model on real images, evaluate it, and say where to look
# make test   run the core tests, about 4 minutes on two cores; PYTEST_ARGS are added to pytest's
# make test-rest   run the tests that `make test` leaves out: pages' commands, tools, extras, slow ones, and time
# make test-all    run both, about 11 minutes on two cores
# make lint   run the linter
# make torture   try to break it: kills, full disks, damaged files, several processes; writes docs/reliability.md and docs/distributed.md
# make bench   the short benchmarks, about 7 minutes; writes docs/benchmarks.md, but for the epoch, which needs all variants
# make bench-all   all of them, about two hours
# make clean  remove the environment
#
# Each makes what it needs first, in .venv. PYTHON=python3.12 takes another interpreter.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-rest test-all lint torture bench bench-all clean

demo: $(VENV)/installed
	$(BIN)/python -m examples.demo

# Tests that measure time (clock) run at the end, at most two at a time. Most of them wait.
CORE := not docs and not tools and not extras and not slow

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not clock and $(CORE)" $(PYTEST_ARGS)

test-rest: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not clock and not ($(CORE))" $(PYTEST_ARGS)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m clock $(PYTEST_ARGS) $$(grep -rl mark.clock tests --include="test_*.py")

test-all: test test-rest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .

torture: $(VENV)/installed-dev
	$(BIN)/python -m tests.torture --write $(TORTURE_ARGS)

# BENCH_ARGS goes to each benchmark that reads FashionMNIST: make bench BENCH_ARGS="--data_dir /data/fashion-mnist"
bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.vanilla_epoch --case batch64 --variants plainloop best --epochs 2 $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.evaluation --write $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.unet_step --write
	$(BIN)/python -m benchmarks.startup --write $(BENCH_ARGS)

bench-all: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.vanilla_epoch --write $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.evaluation --write $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.unet_step --case step dice --write
	$(BIN)/python -m benchmarks.time_to_accuracy --write $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.startup --write $(BENCH_ARGS)
	$(BIN)/python -m benchmarks.carvana_loading --write
	$(BIN)/python -m benchmarks.image_loading --write
	$(BIN)/python -m benchmarks.index_size --write
	$(BIN)/python -m benchmarks.memory_plan --write
	$(BIN)/python -m benchmarks.scaling --write
	$(BIN)/python -m benchmarks.gpu --write

clean:
	rm -rf $(VENV)

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r requirements.txt
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(BIN)/python -m pip install -r requirements-dev.txt
	@touch $@

$(VENV)/installed-bench: requirements-bench.txt $(VENV)/installed
	$(BIN)/python -m pip install -r requirements-bench.txt
	@touch $@
