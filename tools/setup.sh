#!/bin/sh
# setup.sh run|test VENV: a virtual environment with virtirq in it, and for "test" what the
# tests need. As root it installs the distribution's packages that are missing, otherwise it says
# which to install. Safe to run again.
set -eu

goal=$1
venv=$2
here=$(cd "$(dirname "$0")/.." && pwd)

say() { printf '%s\n' "$*" >&2; }

if command -v apt-get >/dev/null; then
	family=debian
	install() {
		apt-get update -q
		DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"
	}
	installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q 'ok installed'; }
elif command -v dnf >/dev/null; then
	family=fedora
	install() { dnf install -qy "$@"; }
	installed() { rpm -q --quiet --whatprovides "$1"; }
else
	family=other
	install() { return 1; }
	installed() { return 0; }
fi

# The packages of this goal that are missing, one a line. packages.txt: Debian name, Fedora name.
missing() {
	while read -r debian fedora _; do
		case $debian in '' | '#'*) continue ;; esac
		if [ "$family" = fedora ]; then name=$fedora; else name=$debian; fi
		[ "$name" = - ] || installed "$name" || printf '%s\n' "$name"
	done
}

# A Python of 3.11 or later that can make virtual environments.
find_python() {
	for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
		if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
			>/dev/null 2>&1; then
			printf '%s\n' "$candidate"
			return
		fi
	done
	return 1
}

need() {
	[ $# -gt 0 ] || return 0
	if [ "$(id -u)" = 0 ]; then
		say "installing: $*"
		install "$@"
	else
		say "not installed: $*"
		say "install them as root, with $([ "$family" = fedora ] && echo dnf || echo apt-get) install"
		return 1
	fi
}

python=$(find_python) || {
	case $family in
	debian) need python3 python3-venv ;;
	fedora) need python3 ;;
	*) say "install Python 3.11 or later with its venv module" && exit 1 ;;
	esac
	python=$(find_python) || {
		say "virtirq needs Python 3.11 or later; set PYTHON to one"
		exit 1
	}
}

if [ "$goal" = test ]; then
	# Without these the lab's and libvirt's tests cannot run; they say so themselves, loudly.
	# shellcheck disable=SC2046
	need $(missing <"$here/lab/packages.txt") || say "some tests will not run without them"
fi

"$python" -m venv "$venv"
extra=
if [ "$goal" = test ]; then
	extra='[dev]'
	# libvirt-python has to be built; without headers or compiler the rest must still install.
	if pkg-config --exists libvirt 2>/dev/null && command -v gcc >/dev/null; then
		extra='[dev,libvirt]'
	fi
fi
"$venv/bin/python" -m pip install -q --disable-pip-version-check -e "$here$extra"
