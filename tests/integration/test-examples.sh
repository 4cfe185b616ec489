#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# The small examples do what they say, and what they leave is in order: the manager in C, the one in Python. (The large
# one, with QEMU, is test-qemu-roundtrip.sh's.)
# shellcheck source=tests/integration/functions.sh
. "$(dirname "$0")/functions.sh"

PATH=$(dirname "$DIOHELPER"):$PATH # where dioh-minimal looks for it

run 0 "$BUILD/dioh-minimal" "$tmp/c.img"
says '^saved and loaded: memory$'
run 0 "$DIOHELPER_TOOL" verify "$tmp/c.img"

run 1 "$BUILD/dioh-minimal" "$tmp"
complains 'directory'
run 1 "$BUILD/dioh-minimal"
complains 'usage: minimal IMAGE'
run 1 env PATH=/nowhere "$BUILD/dioh-minimal" "$tmp/other.img"
complains '^dioh-minimal: .*diohelper'

python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' || skip "Python 3.9 is needed for the second example"
export PYTHONDONTWRITEBYTECODE=1
run 0 python3 "$root/examples/python/save_restore.py" "$tmp/python.img"
says '^in the image: ram, device state$'
says '^saved and loaded: memory and devices$'
run 0 "$DIOHELPER_TOOL" verify "$tmp/python.img"
