#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# startup.sh - how long it takes from the start of a helper until it is sealed, against libvirt's own helper from its
# start to its end (--help) and /bin/true, in turn within the same run. Prints milliseconds: median and quartiles.
#
# ROUNDS=N (default 200)
set -u

cd "$(dirname "$0")/../.." || exit 2
BUILD=${BUILD:-$PWD/build}
export DIOHELPER=${DIOHELPER:-$BUILD/diohelper}
exec "$BUILD/bench/startup" "${ROUNDS:-200}"
