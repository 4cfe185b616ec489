#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Every shape of shapes.c, one after the other, on one file system.
#
#   shapes.sh [PAIRS [DIRECTORY]]      default: 9 pairs, /var/tmp; needs 6 GiB of memory and of disk
#
# "many" comes in two sizes: the small one is mostly syncs, the large one shows the rate. Exit status 1: a limit was missed.
set -euo pipefail

pairs=${1:-9}
dir=$(mktemp -d "${2:-/var/tmp}/diohelper-bench.XXXXXX")
trap 'rm -rf "$dir"' EXIT
export TEST_DIR=$dir
shapes=${BUILD:-build}/bench/shapes
export DIOHELPER=${DIOHELPER:-${BUILD:-build}/diohelper}
failed=0

echo "$pairs pairs, $(stat -f -c %T "$dir"), Linux $(uname -r), load average $(cut -d ' ' -f 1 /proc/loadavg)"
"$shapes" many "$pairs" 16 || failed=1
"$shapes" many "$pairs" 256 || failed=1
"$shapes" sparse "$pairs" || failed=1
"$shapes" deaf "$pairs" || failed=1
"$shapes" blocks || failed=1
"$shapes" cache || failed=1
exit $failed
