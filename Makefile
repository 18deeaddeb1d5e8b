# The verbs of the project. Each sets up on first use what it needs: .venv, dependencies, the default model.
#
#   make serve   start the server on http://127.0.0.1:8000   (ARGS="--port 9000 …")
#   make test    run all tests                                (ARGS="-k name …")
#   make check   ruff, mypy, import-linter
#   make demo    a session that survives being killed, in a few minutes
#   make bench-recall   what sessions remember                (ARGS="--book PATH …", QUICK=1 for a first look)
#   make bench-presses   slots beside the presses of kvpress, on the same facts in as many bytes (ARGS="--book PATH …")
#   make bench-fading   how long a number is kept in a novel (ARGS="--book PATH …")
#   make bench-memory   every memory side by side         (ARGS="--book PATH …")
#   make bench-engine   the engine beside llama.cpp and transformers, and what the server adds
#   make bench-learn    small models learn to use every memory
#   make bench-load   many streams beside one long append
#   make bench-park   park and resume through Redis           (ARGS="--book PATH …"); beside it 10,000 sessions in one Redis
#   make faults  kill, stop, cut, fill and corrupt what can be, and count what was lost

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: serve test check demo bench-recall bench-presses bench-fading bench-memory bench-engine bench-learn bench-load bench-park faults model redis clean
.DEFAULT_GOAL := serve

serve: .venv/.server model
	$(BIN)/palimpsest-server serve $(ARGS)

# A process for each core, at most four, each with one thread: the models of the tests are small.
test: .venv/.developer model redis
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile $(ARGS)

check: .venv/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: .venv/.server model
	$(BIN)/python -m bench.demo $(ARGS)

bench-recall: .venv/.server model
	$(BIN)/python -m bench.recall $(if $(QUICK),--quick) $(ARGS)

bench-presses: .venv/.presses model
	.venv/presses/bin/python -m bench.presses $(ARGS)

bench-fading: .venv/.server model
	$(BIN)/python -m bench.fading $(ARGS)

bench-memory: .venv/.bench model
	$(BIN)/python -m bench.memory $(ARGS)

bench-engine: .venv/.engine model
	$(BIN)/python -m bench.engine $(ARGS)

bench-learn: .venv/.server
	$(BIN)/python -m bench.learn $(ARGS)

bench-load: .venv/.server model
	$(BIN)/python -m bench.load $(ARGS)

bench-park: .venv/.server model redis
	$(BIN)/python -m bench.park $(ARGS)
	$(BIN)/python -m bench.parked

faults: .venv/.server redis
	@$(BIN)/python -m bench.faults $(ARGS)

model: .venv/.server
	@$(BIN)/python -m models.weights.hub

# Only for tests and benchmarks: serving from Redis needs one somewhere, not here.
redis:
	@command -v redis-server >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing redis-server"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server >/dev/null; \
	  else \
	    echo "This needs redis-server, and installing it needs root. On Debian and Ubuntu: sudo apt-get install redis-server"; exit 1; fi; }

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Palimpsest needs Python 3.11 or newer; $(PYTHON) is older or missing. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Creating the virtual environment .venv"
	@$(PYTHON) -m venv .venv || { echo "Could not create .venv. On Debian and Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@touch $@

.venv/.server: .venv/.python pyproject.toml clients/python/pyproject.toml $(wildcard models/native/*.cpp models/native/*.h)
	@echo "Installing the server and the client with their dependencies (torch is large: the first time takes minutes)"
	@command -v c++ >/dev/null || echo "There is no C++ compiler: long texts will be read a quarter more slowly. On Debian and Ubuntu: sudo apt-get install g++, then make again after 'make clean'"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e . -e clients/python
	@touch $@

.venv/.bench: .venv/.server
	@echo "Installing what draws the figures of benchmarks"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

# llama.cpp is compiled for this processor, but for AMX, with which it crashes on some: that takes minutes.
.venv/.engine: .venv/.bench
	@echo "Installing what our engine is measured beside: llama-cpp-python (compiled here, which takes minutes) and transformers"
	@CMAKE_ARGS="-DGGML_NATIVE=ON -DGGML_AMX_TILE=OFF -DGGML_AMX_INT8=OFF -DGGML_AMX_BF16=OFF" \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check 'llama-cpp-python==0.3.36' 'transformers>=5,<5.24'
	@touch $@

# kvpress wants an older transformers than our tests: an environment of its own.
.venv/.presses: .venv/.python pyproject.toml
	@echo "Creating .venv/presses with kvpress (torch is large: this takes minutes)"
	@$(PYTHON) -m venv .venv/presses
	@.venv/presses/bin/python -m pip install --quiet --disable-pip-version-check -e . 'kvpress==0.5.5'
	@touch $@

.venv/.developer: .venv/.server
	@echo "Installing the tools of developers"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -e clients/python
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info
