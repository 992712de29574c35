# make demo   install, simulate night frames, train all four networks, test, one table and one picture
# make test   install, run the tests        make lint   check style        make clean   remove what make made
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test lint clean

demo: $(VENV)/installed
	$(RUN) reproduce.py --out runs/demo

test: $(VENV)/installed-dev
	$(RUN) -m pytest -q -n 2

lint: $(VENV)/installed-dev
	$(RUN) -m ruff check .

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
	rm -rf $(VENV) runs/demo
