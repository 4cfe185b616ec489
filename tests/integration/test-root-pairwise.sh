#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# test-root-pairwise.sh - test_pairwise with a block device among its values: a loop device.
. "$(dirname "$0")/functions.sh"

[ "$(id -u)" = 0 ] || skip 'this needs root'
requires losetup truncate

truncate -s 96M "$tmp/backing" || fail 'no room for a device'
device=$(losetup --find --show "$tmp/backing") || skip 'there is no loop device here'
cleanup_fn losetup -d "$device"
"$BUILD/tests/integration/test_pairwise" "$device"
