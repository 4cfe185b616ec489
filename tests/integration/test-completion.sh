#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What bash completes: every verb, and every option that --help has, and nothing where a file's name is due.
# shellcheck source=tests/integration/functions.sh
. "$(dirname "$0")/functions.sh"

# shellcheck source=packaging/bash-completion
. "$root/packaging/bash-completion"
PATH=$(dirname "$DIOHELPER"):$(dirname "$DIOHELPER_TOOL"):$PATH

# completes WORD...: what the last word may become, sorted.
completes() {
	COMP_WORDS=("$@")
	COMP_CWORD=$(($# - 1))
	_diohelper
	printf '%s\n' "${COMPREPLY[@]}" | sort
}

same() { # WHAT EXPECTED GOT
	[ -n "$2" ] || fail "$1: nothing is expected, so nothing is tested"
	[ "$2" = "$3" ] || { diff <(echo "$2") <(echo "$3"); fail "$1: --help (<) and completion (>) differ"; }
}

options() { "$@" --help | grep -oE '^  --[a-z-]+=?' | tr -d ' ' | sort; }
verbs=$("$DIOHELPER_TOOL" --help | awk '/^Verbs:/ { on = 1; next } /^$/ { on = 0 } on { print $1 }' | sort)

same verbs "$verbs" "$(completes diohelper-tool '' | grep -v '^--')"
for verb in $verbs; do
	same "$verb" "$(options "$DIOHELPER_TOOL" "$verb")" "$(completes diohelper-tool "$verb" --)"
	same "diohelper $verb" "$(options "$DIOHELPER_TOOL" "$verb")" "$(completes diohelper "$verb" x --)"
done
same 'diohelper' "$({ options "$DIOHELPER"; echo serve; echo "$verbs"; } | sort)" "$(completes diohelper '')"
same 'diohelper serve' "$(options "$DIOHELPER")" "$(completes diohelper serve --)"
same 'a beginning' --base-offset= "$(completes diohelper-tool inspect --ba)"
[ -z "$(completes diohelper-tool inspect gue)" ] || fail "something other than files is offered where a file is due"
