# make run    sets up and runs the main job on the recorded host that ships with virtirq
# make test   sets up and passes the tests, the QEMU lab's included
# make lab    a shell on a virtualisation host inside QEMU, with libvirt and VFIO devices; builds
#             its image once (lab/full/README.md); make quick-lab is smaller: one kernel, one NIC
# make demo-host  records the host that the demo shows anew, in the lab
# make corpus every domain XML that Debian's libvirt ships, through the parser
# make bench  time per interrupt for read, plan and write, beside a floor
# make golden writes the tests' golden outputs again; look at the difference before you commit

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test lint lab quick-lab demo-host corpus bench golden clean

run: $(VENV)/run.stamp
	$(BIN)/virtirq demo

test: $(VENV)/test.stamp lint
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

lab: $(VENV)/test.stamp
	$(BIN)/python -m lab.full shell

quick-lab: $(VENV)/test.stamp
	$(BIN)/python -m lab quick

demo-host: $(VENV)/test.stamp
	$(BIN)/python -m lab.record_demo

corpus: $(VENV)/test.stamp
	sh tools/corpus.sh $(BIN)/python

bench: $(VENV)/test.stamp
	$(BIN)/python -m bench.per_interrupt

golden: $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/ui --regenerate-output

$(VENV)/run.stamp $(VENV)/test.stamp: $(VENV)/%.stamp: pyproject.toml tools/setup.sh lab/packages.txt
	sh tools/setup.sh $* $(VENV)
	touch $@

clean:
	rm -rf $(VENV) dist
