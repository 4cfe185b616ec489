#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# test-apparmor.sh - the AppArmor profile is compiled, without a kernel that has AppArmor; a broken copy of it is refused.
# It is not run: the machines that this project is tested on have no AppArmor.
set -u

root=$(cd "$(dirname "$0")/../.." && pwd)
profile=$root/selinux/apparmor-diohelper
parser=$(PATH=$PATH:/usr/sbin:/sbin command -v apparmor_parser) || {
	echo 'skip: there is no apparmor_parser here (package apparmor)'
	exit 77
}
if [ ! -e /etc/apparmor.d/abi/3.0 ]; then
	echo "skip: this apparmor has no abi/3.0"
	exit 77
fi

compile() { "$parser" --skip-kernel-load --skip-cache --abort-on-error "$1"; }

compile "$profile" || exit 1
sed 's/capability fowner,/capability of_no_such_name,/' "$profile" >"${TMPDIR:-/tmp}/broken"
if compile "${TMPDIR:-/tmp}/broken" 2>/dev/null; then
	echo 'FAIL: a profile with an unknown capability was accepted'
	exit 1
fi
