#!/bin/sh
# corpus.sh PYTHON: every XML that Debian's libvirt packages and sources ship, through the domain
# parser: each file parses or gives one clear error.
set -eu
python=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(
	cd "$work"
	for package in libvirt-doc libvirt-daemon-system libvirt-clients libvirt-daemon virtinst; do
		apt-get download -q "$package" && dpkg -x "$package"_*.deb files || true
	done
	# The sources by name, from the same mirrors as the packages.
	site=$(apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' | head -1)
	mkdir -p lists/partial
	printf 'deb-src %s main\n' "$site" >sources.list
	apt="apt-get -q -o Dir::Etc::SourceList=$work/sources.list -o Dir::Etc::SourceParts=/dev/null \
		-o Dir::State::Lists=$work/lists"
	$apt update
	$apt source --download-only libvirt
	for file in *.orig.tar.?z; do
		[ ! -e "$file" ] || tar -xf "$file" -C files
	done
	find files -name '*.xml' | wc -l
)
VIRTIRQ_DOMAIN_CORPUS=$work/files "$python" -m pytest -q tests/guests -k corpus
