# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash
#
# functions.sh - for the integration scripts; to be sourced first. Gives a directory of the test's own ($tmp), the
# programs under test ($DIOHELPER, $DIOHELPER_TOOL), and what follows.

set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BUILD=${BUILD:-$root/build}
export DIOHELPER=${DIOHELPER:-$BUILD/diohelper}
export DIOHELPER_TOOL=${DIOHELPER_TOOL:-$BUILD/diohelper-tool}

tmp=$(mktemp -d "${TMPDIR:-/var/tmp}/dioh.XXXXXX") || exit 1
cleanups=()

run_cleanups() {
	local i

	for ((i = ${#cleanups[@]} - 1; i >= 0; i--)); do
		eval "${cleanups[i]}"
	done
	rm -rf -- "$tmp"
}
trap run_cleanups EXIT
trap 'exit 1' INT TERM HUP

# cleanup_fn COMMAND...: runs it when the test ends, last registered first.
cleanup_fn() {
	cleanups+=("$(printf '%q ' "$@")")
}

# skip REASON: the test cannot be done here.
skip() {
	echo "skip: $*"
	exit 77
}

# requires COMMAND...: skips the test unless all these commands are there.
requires() {
	local command

	for command in "$@"; do
		command -v "$command" >/dev/null || skip "there is no $command here"
	done
}

# fail SENTENCE: ends the test with what the last `run` printed.
fail() {
	echo "FAIL: $*"
	if [ -e "$tmp/out" ]; then
		echo "---- stdout"
		cat -v "$tmp/out"
		echo "---- stderr"
		cat -v "$tmp/err"
	fi
	exit 1
}

# run STATUS COMMAND...: runs the command with its output in $tmp/out and $tmp/err, and wants that exit status.
run() {
	local wanted=$1 status=0

	shift
	"$@" >"$tmp/out" 2>"$tmp/err" </dev/null || status=$?
	[ "$status" = "$wanted" ] || fail "$*: exit status $status, not $wanted"
}

# The last run printed, on stdout or stderr, something that matches the extended regular expression; or nothing at all.
says() { grep -qE -e "$1" "$tmp/out" || fail "stdout does not say: $1"; }
complains() { grep -qE -e "$1" "$tmp/err" || fail "stderr does not say: $1"; }
is_silent() { [ ! -s "$tmp/out" ] || fail "something was printed on stdout"; }
is_content() { [ ! -s "$tmp/err" ] || fail "something was printed on stderr"; }

for program in "$DIOHELPER" "$DIOHELPER_TOOL"; do
	[ -x "$program" ] || fail "$program is not built"
done
