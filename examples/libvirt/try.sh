#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# try.sh BUILD-DIRECTORY - saves a guest by a libvirt that has the patch and was built there, and restores the image by
# the libvirt that is installed. Everything happens in private namespaces; needs root, and `make` in this tree.
# shellcheck source=tests/integration/libvirt.sh
. "$(dirname "$0")/../../tests/integration/libvirt.sh"

build=${1:?where libvirt was built}
image=$state/witness.save

patched_daemon() {
	find_daemon() { echo "$build/src/libvirtd"; }
	ln -sf "$build/src/libvirt_driver_qemu.so" /run/drivers/
	start_daemon "save_image_helper = \"$DIOHELPER\""
}

installed_daemon() {
	unset -f find_daemon
	find_daemon() { command -v libvirtd; }
	link_driver
	start_daemon ""
}

save() { # OPTION...
	rm -f $image
	patched_daemon
	start_guest 256
	lv save --image-format sparse "$@" witness $image
	run 0 "$DIOHELPER_TOOL" verify $image
	case_done "virsh save --image-format sparse $*: $(tail -n 1 "$tmp/out")"
}

restore() { # OPTION...
	installed_daemon
	lv restore $image "$@"
	guest_goes_on
	lv destroy witness
	case_done "virsh restore $*"
}

save
restore --bypass-cache --parallel-channels 4
save --bypass-cache
restore
passed=1
