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

# As a part of something that runs on: no descriptor stays behind, and the helper's reason is told where a pipe breaks for it.
cat >"$tmp/often.py" <<'END'
import os, resource, runpy, sys

program, image = sys.argv[1:]
sys.path.insert(0, os.path.dirname(program))
sys.argv = [program, image]
there = runpy.run_path(program)
fd, before, after = os.open(image, os.O_RDWR), there["memory"]("before"), there["memory"]("after")


def descriptors():
    return len(os.listdir("/proc/self/fd"))


at_first = descriptors()
there["save"](fd, before, b"state")
assert there["load"](fd, after) == b"state"
print("stays open:", descriptors() - at_first)
resource.setrlimit(resource.RLIMIT_FSIZE, (24 << 20, 24 << 20))
try:
    there["save"](fd, before, bytes(64 << 20))
except there["HelperError"] as error:
    print("too large:", error.text)
print("stays open:", descriptors() - at_first)
END
run 0 python3 "$tmp/often.py" "$root/examples/python/save_restore.py" "$tmp/often.img"
[ "$(grep -c '^stays open: 0$' "$tmp/out")" = 2 ] || fail "the example in Python leaves descriptors open"
says '^too large: .*File too large'
