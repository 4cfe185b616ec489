#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# timeout: 420
#
# test-selinux.sh [OPTION...] - the policy module in a virtual machine whose kernel enforces it: puts together what run-vm
# takes, whose options may be given (-D shows what dontaudit hides). selinux-guest says what is shown. Logs of the machine:
# $BUILD/tests/logs/vm/.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
BUILD=${BUILD:-$root/build}
DIOHELPER=${DIOHELPER:-$BUILD/diohelper}
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/dioh-selinux.XXXXXX")
trap 'rm -rf -- "$dir"' EXIT

place() { install -D -m 755 "$1" "$dir/$2"; }

place "$here/selinux-guest" run
place "$DIOHELPER" root/usr/bin/diohelper
place "$DIOHELPER" root/usr/libexec/libvirt_iohelper
place "$DIOHELPER" diohelper-unlabelled
place "$DIOHELPER" libvirt_iohelper
place "$BUILD/tests/vm/selinux_manager" manager
place "$BUILD/tests/vm/selinux_manager" other-manager
place "$BUILD/tests/vm/selinux_manager" qemud
place "$BUILD/tests/vm/selinux_probe" probe
place "$BUILD/tests/vm/selinux_probe" probe-unlabelled
mkdir "$dir/policy"
cp "$root"/selinux/diohelper.{te,if,fc} "$here"/policy/* "$dir/policy/"
"$here/run-vm" -t 300 -b 64 -o "$BUILD/tests/logs/vm" "$@" "$dir"
