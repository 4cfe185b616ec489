#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What tests/run makes of tests that pass, fail, and skip all of themselves or a part: with CI=true a skip is a failure, but
# for those that are listed, under the run that they are listed for. A copy of it runs, with tests and a list of its own.
# shellcheck source=tests/integration/functions.sh
. "$(dirname "$0")/functions.sh"

mkdir -p "$tmp/tests" && cp "$root/tests/run" "$tmp/tests/" && cd "$tmp" || exit 1
export BUILD=$tmp/build
unset CI VG DIOH_SANITIZE JOBS V
: >tests/permitted-skips

make_test() { # NAME STATUS LINE...
	local path=tests/$1 status=$2

	shift 2
	{ printf '#!/bin/sh\n'; printf 'echo "%s"\n' "$@"; printf 'exit %d\n' "$status"; } >"$path"
	chmod +x "$path"
}

says() { # LINE...
	local line

	for line in "$@"; do
		grep -qF -- "$line" out || fail "not said: $line"
	done
}

# ends STATUS TEST...
ends() {
	local wanted=$1 status

	shift
	tests/run "${@/#/tests/}" >out 2>&1
	status=$?
	cp out "$tmp/err"
	[ "$status" = "$wanted" ] || fail "tests/run ended with $status, not with $wanted"
}

make_test good 0 'all is well'
make_test bad 1 'something is wrong'
make_test skips 77 'some line' 'there is no disk here'
make_test mute 77 ''
make_test part 0 'skipped: there is no ring here' 'its half is skipped: there is no room'
make_test python 0 "test_it (Case.test_it) ... skipped 'there is no gnuplot here'"
make_test cmocka 0 '[  SKIPPED ] 1 test(s), listed below:'
make_test whole 0 'skipped: there is no mount here' '[  SKIPPED ] it' 'skipped: there is no room' '[  SKIPPED ] that' \
	'[==========] 2 test(s) run.' '[  PASSED  ] 0 test(s).' '[  SKIPPED ] 2 test(s), listed below:' '[  SKIPPED ] it'
make_test most 0 'skipped: there is no mount here' '[==========] 2 test(s) run.' '[  PASSED  ] 1 test(s).' \
	'[  SKIPPED ] 1 test(s), listed below:' '[==========] others: 1 test(s) run.' \
	'[  SKIPPED ] others: 1 test(s), listed below:'
make_test unittest 0 '..s' 'OK (skipped=1)'
skipping=(skips mute part python cmocka unittest)

ends 0 good
ends 1 bad good
says 'FAILED:  bad: exit status 1' '1 passed, 1 failed, 0 skipped'
ends 1 skips
says 'no test ran'
ends 1 whole
says 'SKIP  whole: there is no mount here' 'no test ran' '0 passed, 0 failed, 1 skipped'
ends 0 whole most
says '1 passed, 0 failed, 1 skipped' 'skipped in part: most: there is no mount here'
ends 0 good "${skipping[@]}"
says '5 passed, 0 failed, 2 skipped' 'skipped: skips: there is no disk here' 'skipped: mute: it gave no reason' \
	'skipped in part: part: there is no ring here' 'skipped in part: part: there is no room' \
	'skipped in part: python: there is no gnuplot here' 'skipped in part: cmocka: it gave no reason' \
	'skipped in part: unittest: it gave no reason'

# What a test has left running ends with it; in a container, perhaps, nobody reaps it.
printf '#!/bin/sh\nsleep 1000 &\necho $! >leftover\nexit 1\n' >tests/leaves
chmod +x tests/leaves
ends 1 good leaves
for ((i = 0; i < 100; i++)); do
	grep -q '^State:.[^ZX]' "/proc/$(cat leftover)/status" 2>/dev/null || break
	sleep 0.1
done
[ "$i" -lt 100 ] || fail 'what a test has started is left'

export CI=true
ends 0 good
ends 1 good "${skipping[@]}"
says '1 passed, 6 failed, 0 skipped'
for test in "${skipping[@]}" whole most; do
	ends 1 good "$test"
	says "FAILED:  $test: skipped, which may not be with CI=true"
done

echo 'plain skips: there is no disk here' >tests/permitted-skips
ends 0 good skips
says '1 passed, 0 failed, 1 skipped'
DIOH_SANITIZE=address ends 1 good skips
VG='/somewhere/valgrind --quiet' ends 1 good skips
printf 'any %s\n' 'skips: there is no' 'skips: there is no disk here, nor there' 'mute: there is no disk here' 'skips: .*' \
	>tests/permitted-skips
ends 1 good skips
printf '%s\n' 'sanitize skips: there is no disk here' 'any part: there is no ring here' >tests/permitted-skips
DIOH_SANITIZE=address ends 0 good skips
ends 1 good skips
ends 1 good part
says 'tests/permitted-skips): there is no room'
echo 'any part: there is no room' >>tests/permitted-skips
ends 0 good part
says 'skipped in part: part: there is no room' '2 passed, 0 failed, 0 skipped'

# Every reason of a program that has skipped all of itself must be permitted.
echo 'any whole: there is no mount here' >tests/permitted-skips
ends 1 good whole
says 'tests/permitted-skips): there is no room'
echo 'any whole: there is no room' >>tests/permitted-skips
ends 0 good whole
says '1 passed, 0 failed, 1 skipped'
