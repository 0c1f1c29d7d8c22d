# make demo      set up everything, train three methods over five seeds on the embedded data, report
# make test      set up everything, check style and types, run all tests
# make clusters  run the tests on a real SLURM and a real Ray, started on loopback, for minutes
# make faults    kill, cut and fill up whatever can be, and print what was lost (the full form)
# make bench     measure speed against the libraries and loops the field uses

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo

.PHONY: install demo test clusters lint faults bench clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/bench run --method supervised --method mt --method tcseg --dataset phantom --ratio 0.1 --seeds 5 --store $(DEMO)
	$(BIN)/bench report --protocol best --store $(DEMO)
	$(BIN)/bench report --protocol last --store $(DEMO)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n auto

clusters: install
	BENCH_CLUSTERS=1 $(BIN)/pytest -rs tests/cluster

faults: install
	$(BIN)/python -m tests.faults

bench: install
	$(BIN)/python -m tests.speed

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
