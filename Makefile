# make run    sets up and runs the main job on the recorded host that ships with virtirq
# make test   sets up and passes the tests, the QEMU lab's included
# make test-slow  what is too slow for it: in the lab, the daemon under attack, a guest behind AMD-Vi,
#             Debian's package, installed, upgraded, removed and purged, and the documentation's
#             first session; the Ansible role on two hosts in namespaces; Kubernetes' manifests
# make lab    a shell on a virtualisation host inside QEMU, with libvirt and VFIO devices; builds
#             its image once (lab/full/README.md); make quick-lab is smaller: one kernel, one NIC
# make demo-host  records the host that the demo shows anew, in the lab
# make corpus every domain XML that Debian's libvirt ships, through the parser
# make bench  time and system calls per interrupt beside a floor in C, starts, sizes and peers, into
#             docs/performance.md; what one guest costs the daemon among 10 to 400; the status
#             socket with hostile clients; make bench-lab  how soon the daemon moves a new vector,
#             beside a floor and under attack, what it costs when idle, and what reading a guest's
#             choices costs, in the lab
# make effect what pinning does to a guest's interrupts, by policy and by what happens to the guest:
#             a quarter of an hour in the lab, into the README's table and picture; EFFECT=--go-on goes
#             on with a run that ended early (docs/effect.md)
# make fuzz   ten minutes of made-up inputs for everything that reads what others control
#             (FUZZ_SECONDS=); what is found is kept in .fuzz/ and the beginning of the next run
# make golden writes the tests' golden outputs again; look at the difference before you commit
# make manual writes what is generated of the manual's pages again: options, verbs, findings
# make pictures draws the recorded host for the documentation again; make lab-picture the lab's, in
#             the lab
# make dist   all that is given out, in dist/: wheel and source, Debian's package, one file for
#             everything else, what has changed, check sums; make pyz and make deb make one of them
# make install PREFIX=/usr DESTDIR=…  the systemd unit, an example configuration, the manual,
#             documentation, Prometheus rules, Grafana dashboard, KubeVirt manifests, Ansible role,
#             completions.
#             The program itself comes by pip; the unit starts it from BINDIR, which must not be
#             in a home. uninstall takes them away

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# Each module's tests one after the other, the labs' modules first: those share a machine.
BESIDE := --numprocesses=2 --dist=loadfile --no-loadscope-reorder --durations=20 --durations-min=10

.PHONY: run test test-slow lint lab quick-lab demo-host corpus fuzz bench bench-lab effect golden manual \
	pictures lab-picture dist pyz deb install uninstall clean

run: $(VENV)/run.stamp
	$(BIN)/virtirq demo

test: $(VENV)/test.stamp lint
	$(BIN)/python -m pytest $(BESIDE) $(PYTEST_ARGS)

test-slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/slow $(PYTEST_ARGS)

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

FUZZ_SECONDS ?= 600

fuzz: $(VENV)/test.stamp
	$(BIN)/python -m tests.fuzz --seconds=$(FUZZ_SECONDS) $(FUZZ_TARGETS)

bench: $(VENV)/test.stamp
	$(BIN)/python -m bench.performance --write
	$(BIN)/python -m bench.scale
	$(BIN)/python -m bench.status_socket

bench-lab: $(VENV)/test.stamp
	$(BIN)/python -m bench.reaction
	$(BIN)/python -m bench.idle
	$(BIN)/python -m bench.peek
	$(BIN)/python -m bench.attack

effect: $(VENV)/test.stamp
	$(BIN)/python -m bench.effect --write $(EFFECT)

golden: $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/ui --regenerate-output

manual: $(VENV)/test.stamp
	$(BIN)/python -m tools.manual

dist pyz deb: $(VENV)/test.stamp
	$(BIN)/python -m release $@ dist

pictures: $(VENV)/test.stamp
	$(BIN)/virtirq -s src/virtirq/demo/two-node.tar.xz draw --plan -o docs/demo-host.svg

lab-picture: $(VENV)/test.stamp
	$(BIN)/python -m lab.draw_host

# Who sets DESTDIR makes a package.
PREFIX ?= $(if $(DESTDIR),/usr,/usr/local)
BINDIR ?= $(PREFIX)/bin
DATADIR ?= $(PREFIX)/share
DOCDIR ?= $(DATADIR)/doc/virtirq
MANDIR ?= $(DATADIR)/man
UNITDIR ?= $(PREFIX)/lib/systemd/system
# The program that prints its completions; without one there are none.
VIRTIRQ ?= $(firstword $(wildcard $(BIN)/virtirq) $(shell command -v virtirq))

UNIT := $(UNITDIR)/virtirq.service
EXAMPLE := $(DOCDIR)/examples/virtirq.toml
RULES := $(DATADIR)/virtirq/prometheus/virtirq.rules.yml
KUBEVIRT := $(DATADIR)/virtirq/kubevirt
DASHBOARD := $(DATADIR)/virtirq/grafana/virtirq.json
ANSIBLE := $(DATADIR)/virtirq/ansible
# What is installed as the directory that it is.
TREES := $(patsubst packaging/%,%,$(shell find packaging/ansible packaging/kubevirt -type f))
DOCS := README.md CHANGELOG.md $(wildcard docs/*.md docs/*.svg) docs/virtirq.schema.json
# What links of the documentation lead to, where it is installed.
LINKS := -e 's|](docs/|](|g' -e 's|](packaging/virtirq.toml)|](examples/virtirq.toml)|' \
	-e 's|](\.\./\([A-Z]*\.md\))|](\1)|g' \
	-e 's|](\.\./packaging/virtirq.rules.yml)|]($(RULES))|' \
	-e 's|](\.\./packaging/virtirq-dashboard.json)|]($(DASHBOARD))|' \
	-e 's|](\.\./packaging/kubevirt/|]($(KUBEVIRT)/|g' \
	-e 's|](\.\./packaging/ansible/|]($(ANSIBLE)/|g'
# A page's directory goes by the end of its name.
MANUAL := $(wildcard docs/man/*)
MAN = $(MANDIR)/man$(subst .,,$(suffix $(1)))
COMPLETION_bash := $(DATADIR)/bash-completion/completions/virtirq
COMPLETION_zsh := $(DATADIR)/zsh/site-functions/_virtirq
COMPLETION_fish := $(DATADIR)/fish/vendor_completions.d/virtirq.fish
SHELLS := bash zsh fish
OWN := $(DOCDIR)/examples $(DOCDIR) \
	$(patsubst packaging/%,$(DATADIR)/virtirq/%, \
		$(shell find packaging/ansible packaging/kubevirt -depth -type d)) \
	$(addprefix $(DATADIR)/virtirq,/prometheus /grafana) \
	$(DATADIR)/virtirq
INSTALLED := $(UNIT) $(EXAMPLE) $(RULES) $(DASHBOARD) $(addprefix $(DATADIR)/virtirq/,$(TREES)) \
	$(addprefix $(DOCDIR)/,$(notdir $(DOCS))) \
	$(foreach page,$(MANUAL),$(call MAN,$(page))/$(notdir $(page))) \
	$(foreach shell,$(SHELLS),$(COMPLETION_$(shell)))

# Nothing goes to /etc: what is there is the operator's.
install:
	install -d $(foreach file,$(UNIT) $(EXAMPLE) $(RULES) $(DASHBOARD),'$(DESTDIR)$(dir $(file))')
	sed -e 's|@bindir@|$(BINDIR)|' -e 's|@docdir@|$(DOCDIR)|' packaging/virtirq.service \
		> '$(DESTDIR)$(UNIT)'
	chmod 644 '$(DESTDIR)$(UNIT)'
	install -m 644 packaging/virtirq.toml '$(DESTDIR)$(EXAMPLE)'
	install -m 644 packaging/virtirq.rules.yml '$(DESTDIR)$(RULES)'
	install -m 644 packaging/virtirq-dashboard.json '$(DESTDIR)$(DASHBOARD)'
	set -e; for file in $(TREES); do \
		install -D -m 644 "packaging/$$file" "$(DESTDIR)$(DATADIR)/virtirq/$$file"; done
	install -m 644 $(DOCS) '$(DESTDIR)$(DOCDIR)'
	sed -i $(LINKS) $(foreach file,$(notdir $(filter %.md,$(DOCS))),'$(DESTDIR)$(DOCDIR)/$(file)')
	set -e; $(foreach page,$(MANUAL),install -d '$(DESTDIR)$(call MAN,$(page))'; \
		install -m 644 '$(page)' '$(DESTDIR)$(call MAN,$(page))';)
	set -e; if [ -n '$(VIRTIRQ)' ]; then $(foreach shell,$(SHELLS), \
		file='$(DESTDIR)$(COMPLETION_$(shell))'; install -d "$${file%/*}"; \
		'$(VIRTIRQ)' --print-completion $(shell) > "$$file"; chmod 644 "$$file";) \
	else echo 'not installed: shell completions, as there is no virtirq to print them:' \
		'install it by pip first, or name it by VIRTIRQ=' >&2; fi
	@test -n '$(DESTDIR)' -o -x '$(BINDIR)/virtirq' || echo 'not installed: the program itself:' \
		'the unit starts $(BINDIR)/virtirq, which is not there; install it there by pip,' \
		'or name where it is by BINDIR=' >&2

uninstall:
	rm -f $(foreach file,$(INSTALLED),'$(DESTDIR)$(file)')
	rmdir $(foreach place,$(OWN),'$(DESTDIR)$(place)') 2> /dev/null || true

$(VENV)/run.stamp $(VENV)/test.stamp: $(VENV)/%.stamp: pyproject.toml tools/setup.sh lab/packages.txt
	sh tools/setup.sh $* $(VENV)
	touch $@

clean:
	rm -rf $(VENV) dist
