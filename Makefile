# make demo   install, simulate night frames, train all networks, test, one table and one picture
# make test   install, run the tests        make lint   check style        make clean   remove what make made
# make bench  the demo, then all figures of docs/performance.md into runs/bench (40 minutes on two cores)
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint bench clean

demo: $(VENV)/installed
	$(RUN) reproduce.py --preset smoke --out runs/demo

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

BENCHMARKS := data_throughput train_throughput what_helps evaluate_throughput inference scaling bfloat16 long_list

bench: demo
	for name in $(BENCHMARKS); do echo "== $$name"; \
	    $(RUN) -m benchmarks.$$name --json runs/bench/$$name.json || exit 1; done
	$(RUN) -m benchmarks.evaluate_throughput --weights runs/demo/seed0/teacher.pth --data runs/demo/data \
	    --list test_night --json runs/bench/evaluate_demo.json
	$(RUN) -m benchmarks.label_throughput --weights runs/demo/seed0/teacher.pth --data runs/demo/data \
	    --json runs/bench/label_throughput.json

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=python3.12")'
	@echo "installing requirements.txt into $(VENV): about a minute and 5.5 GB"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

clean:
	rm -rf $(VENV) runs/demo runs/bench
