#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# test-root-readonly.sh - everything that test_degraded does, in a mount namespace whose every file system is read-only but the
# one that the images are on.
set -u

[ "$(id -u)" = 0 ] || { echo 'this needs root'; exit 77; }
unshare -m true 2>/dev/null || { echo 'no mount namespace is to be had here'; exit 77; }

# shellcheck disable=SC2016
unshare -m bash -c '
	images=/dev/shm
	mount --make-rprivate / || exit 1
	mount -t tmpfs -o size=256m images "$images" || exit 1
	grep -o "^[^ ]* [^ ]*" /proc/self/mounts | cut -d " " -f 2 | sort -u | while read -r where; do
		[ "$where" = "$images" ] || mount -o remount,bind,ro "$where" 2>/dev/null
	done
	if touch /root/writable /var/tmp/writable 2>/dev/null; then
		echo "the root is not read-only"
		exit 1
	fi
	TMPDIR=$images TEST_DIR=$images exec "$BUILD/tests/integration/test_degraded"
'
