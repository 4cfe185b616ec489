#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# test-root-pairwise.sh - test_pairwise with a block device among its values: a loop device.
. "$(dirname "$0")/functions.sh"

[ "$(id -u)" = 0 ] || skip 'this needs root'
requires losetup truncate

truncate -s 96M "$tmp/backing" || fail 'no room for a device'
device=$(losetup --find --show "$tmp/backing") || skip 'there is no loop device here'
# Nobody has to detach it: it goes with the last process that has it open.
# shellcheck disable=SC2034 # it is held open, that is all
exec {device_fd}<>"$device"
losetup --detach "$device"
"$BUILD/tests/integration/test_pairwise" "$device"
