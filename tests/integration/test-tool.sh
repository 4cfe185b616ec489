#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# diohelper-tool's command line, and what it says of files that are no images: each with one clear sentence and status 1.
# shellcheck source=tests/integration/functions.sh
. "$(dirname "$0")/functions.sh"

tool=$DIOHELPER_TOOL
version=$(sed -n 's/.*DIOH_VERSION_STRING "\(.*\)"/\1/p' "$root/include/diohelper.h")
verbs="inspect verify map" # these take an image
all_verbs="bench convert ingest $verbs"

usage_error() { # PATTERN ARGUMENT...
	local pattern=$1

	shift
	run 2 "$tool" "$@"
	complains "^diohelper-tool( [a-z]+)?: .*($pattern)"
	is_silent
	[ "$(wc -l <"$tmp/err")" = 1 ] || fail "$*: more than one line of complaint"
}

refused() { # FILE PATTERN ARGUMENT...
	local file=$1 pattern=$2 verb

	shift 2
	for verb in $verbs; do
		run 1 "$tool" "$verb" "$@" "$file"
		complains "^diohelper-tool: .*$(basename "$file"): .*($pattern)"
		is_silent
	done
}

# ---- help and version ----

run 0 "$tool" --help
says '^Usage: diohelper-tool VERB'
for verb in $all_verbs; do says "^  $verb "; done
is_content
run 0 "$tool" --version
[ "$(cat "$tmp/out")" = "diohelper-tool $version" ] || fail "--version does not say $version"
is_content
for verb in $verbs; do
	run 0 "$tool" "$verb" --help
	says "^Usage: diohelper-tool $verb \[OPTION...\] IMAGE"
	is_content
done

# Help, the table that the options are parsed by, and the manual page know the same options.
page=$(sed 's/\\-/-/g' "$root/docs/diohelper-tool.1")
for verb in $all_verbs; do
	run 0 "$tool" "$verb" --long-options
	options=$(cat "$tmp/out")
	run 0 "$tool" "$verb" --help
	[ "$(grep -oE '^  --[a-z-]+' "$tmp/out" | tr -d ' ')" = "$options" ] || fail "$verb --help and its table differ"
	for option in $options; do
		grep -qE -- "$option([ =\\\\]|\$)" <<<"$page" || fail "the manual page does not know $verb's $option"
	done
done
for option in $(grep -oE '^\.B[IR]? --[a-z-]+' <<<"$page" | sed 's/.* //'); do
	[ "$option" = --version ] && continue
	{ for verb in $all_verbs; do "$tool" "$verb" --long-options; done; } | grep -qxF -- "$option" ||
		fail "the manual page has $option, which no verb has"
done

# The same for diohelper itself.
run 0 "$DIOHELPER" --long-options
page=$(sed 's/\\-/-/g' "$root/docs/diohelper.1")
[ -s "$tmp/out" ] || fail "diohelper --long-options is empty"
while read -r option; do
	grep -qE -- "$option([ =\\\\]|\$)" <<<"$page" || fail "the manual page does not know diohelper's $option"
done <"$tmp/out"

# ---- wrong command lines ----

usage_error 'verb is missing'
usage_error 'explode: there is no such verb' explode
usage_error '\-\-explode: there is no such option' --explode
for verb in $verbs; do
	usage_error 'IMAGE is missing' "$verb"
	usage_error 'IMAGE is missing' "$verb" --json
	usage_error "name is empty" "$verb" ''
	usage_error 'b: one IMAGE only' "$verb" a b
	usage_error '\-\-explode: there is no such option' "$verb" --explode a
	usage_error '\-x: there is no such option' "$verb" -x a
	usage_error '\-\-json=yes: it takes no value' "$verb" --json=yes a
	usage_error '\-\-base-offset: a value is missing' "$verb" a --base-offset
	usage_error '\-\-base-offset: x is not a size' "$verb" --base-offset=x a
	usage_error '\-\-base-offset: -4096 is not a size' "$verb" --base-offset=-4096 a
	usage_error '\-\-base-offset:  1 is not a size' "$verb" --base-offset=' 1' a
	usage_error '\-\-base-offset: 4KB is not a size' "$verb" --base-offset=4KB a
	usage_error '\-\-base-offset: 18446744073709551616 is not a size' "$verb" --base-offset=18446744073709551616 a
	usage_error '\-\-base-offset: 16777216T is not a size' "$verb" --base-offset=16777216T a
	usage_error '\-\-base-offset: 4097 is not a multiple of 4096' "$verb" --base-offset=4097 a
	usage_error '\-\-base-offset: .* is too large' "$verb" --base-offset=4194304T a
done

usage_error 'IMAGE is missing' ingest
usage_error 'a: one IMAGE only|b: one IMAGE only' ingest a b
usage_error '\-\-fd: x is not a descriptor' ingest --fd=x a
usage_error '\-\-fd and --listen: one of them only' ingest --fd=3 --listen=unix:s a
usage_error '\-\-listen: tcp:1 does not begin with unix:' ingest --listen=tcp:1 a
usage_error '\-\-listen: a path has 1 to 107 bytes' ingest --listen=unix: a
usage_error '\-\-listen: a path has 1 to 107 bytes' ingest --listen="unix:$(printf '%0108d' 0)" a
usage_error '\-\-multifd: 0 is not a number from 1 to 63' ingest --listen=unix:s --multifd=0 a
usage_error '\-\-multifd: 64 is not a number' ingest --listen=unix:s --multifd=64 a
usage_error '\-\-multifd: this needs --listen' ingest --multifd=2 a
usage_error '\-\-engine: fast is not an engine' ingest --engine=fast a
usage_error '\-\-or-raw: not with --multifd' ingest --or-raw --listen=unix:s --multifd=2 a
usage_error '\-\-or-raw: not with --base-offset' ingest --or-raw --base-offset=4K a
usage_error '\-\-base-offset: 4097 is not a multiple of 4096' ingest --base-offset=4097 a

# ---- files that are no images ----

cd "$tmp" || exit 1
refused missing 'cannot be opened: No such file or directory'
mkdir directory
refused directory 'is a directory'
: >empty
refused empty 'is empty'
refused /dev/null 'neither a regular file nor a block device'
mkfifo fifo
refused fifo 'neither a regular file nor a block device'
head -c 100 /dev/urandom >short
refused short 'not .*image|not one of ours|too few'
head -c 1000000 /dev/urandom >random
refused random 'not .*image|not one of ours|magic'
head -c 1000000 /dev/zero >zeros
refused zeros 'not .*image|not one of ours|magic'
refused random '.' --base-offset=4K
refused random '.' --base-offset=1G
# What QEMU and libvirt write, cut off in each of its parts; a migration stream, which is no image.
if command -v python3 >/dev/null; then
	make_file() { python3 "$root/tests/integration/qemu_stream.py" "$@" || fail "qemu_stream.py $*"; }
	make_file stream stream
	run 0 "$DIOHELPER_TOOL" inspect stream
	says '^layout: +raw$'
	run 1 "$DIOHELPER_TOOL" map stream
	run 1 "$DIOHELPER_TOOL" verify stream
	grep -q 'is a migration stream' "$tmp/err" || fail 'a stream is not called one'
	make_file image whole pc.ram=4
	for bytes in 1 7 8 30 100 200 5000000; do
		head -c "$bytes" whole >cut-off
		refused cut-off 'not .*image|not one of ours|too few|truncated'
	done
	for format in sparse raw zstd; do
		make_file "libvirt-$format" libvirt pc.ram=4
		for bytes in 16 91 92 4000; do
			head -c "$bytes" libvirt >cut-off
			refused cut-off 'not .*image|not one of ours|too few|libvirt.s header'
		done
	done
else
	echo "images of QEMU's and libvirt's are skipped: there is no python3 here"
fi
if [ "$(id -u)" != 0 ]; then
	: >unreadable
	chmod 0 unreadable
	refused unreadable 'cannot be opened: Permission denied'
fi

# With --json the same is said in a document as well, whose strings are plain ASCII.
head -c 5000 /dev/urandom >$'bad\xff\e[31m'
for verb in $verbs; do
	run 1 "$tool" "$verb" --json $'bad\xff\e[31m'
	complains '^diohelper-tool: '
	says '"result": "unreadable"'
	says '"image": "bad\\\\xff\\\\x1b\[31m"'
	says '"text": "'
	LC_ALL=C grep -q '[^ -~]' "$tmp/out" && fail "$verb --json: something that is not ASCII"
done

# ---- what cannot be ingested; what can ----

refused_ingest() { # PATTERN ARGUMENT...: from standard input; a new image's name is free again
	local pattern=$1 status=0

	shift
	"$tool" ingest "$@" made >"$tmp/out" 2>"$tmp/err" || status=$?
	[ "$status" = 1 ] || fail "ingest $*: exit status $status, not 1"
	complains "^diohelper-tool: made: .*($pattern)"
	is_silent
	[ ! -e made ] || fail "ingest $*: it left a file behind"
}

refused_ingest 'it ends after 0 bytes' <empty
refused_ingest 'magic|not .*QEMU' <random
refused_ingest 'descriptor 77: Bad file descriptor' --fd=77
refused_ingest '\-\-header: missing cannot be opened' --header=missing
refused_ingest '\-\-header: empty is not a file of 1 to' --header=empty
refused_ingest 'random: Address already in use' --listen=unix:random
run 1 "$tool" ingest directory
complains 'directory: cannot be opened: Is a directory'
run 1 "$tool" ingest fifo
complains 'fifo: is neither a regular file nor a block device'
if command -v python3 >/dev/null; then
	for engine in io_uring libaio sync; do
		"$tool" ingest --base-offset=4K --engine=$engine made <stream || fail "ingest by $engine"
		run 0 "$tool" verify --base-offset=4K made
	done
	run 0 "$tool" ingest --fd=5 --header=short --buffered made 5<stream
	cmp -n 100 short made || fail 'the header does not stand in front'
	run 0 "$tool" ingest --fd=5 made 5<stream
	run 0 "$tool" inspect made
	says '^state: *complete'
	head -c 100000 stream | "$tool" ingest made 2>"$tmp/err" && fail 'a stream that was cut off has been ingested'
	complains 'it ends too early'
	run 0 "$tool" inspect made
	says '^state: *partial'
	rm made

	# What is not understood is refused; or kept, if that is wanted, in place of what stood there.
	make_file bitmaps-stream foreign
	make_file libvirt-sparse-header sparse-header
	make_file libvirt-raw-header raw-header
	refused_ingest 'the start of section "dirty-bitmap" .* is not understood' <foreign
	refused_ingest 'it ends after 0 bytes' --or-raw <empty
	refused_ingest 'magic' --or-raw <random
	(ulimit -f 100 && trap '' XFSZ && refused_ingest 'File too large' --or-raw <foreign) || exit 1
	head -c 100M foreign | "$tool" ingest --or-raw made 2>"$tmp/err" || fail "--or-raw: $(cat "$tmp/err")"
	complains '^diohelper-tool: made: kept verbatim as raw: .*the start of section "dirty-bitmap"'
	cmp foreign made || fail 'what was kept is not the stream'
	head -c 30000000 /dev/urandom >made
	run 0 "$tool" ingest --or-raw --quiet --fd=5 made 5<foreign
	complains 'kept verbatim as raw'
	cmp foreign made || fail 'what was kept is not the stream'
	run 0 "$tool" inspect made
	says '^layout: +raw$'
	run 0 "$tool" ingest --or-raw --header=sparse-header --fd=5 made 5<foreign
	cat raw-header foreign | cmp - made || fail 'what was kept behind libvirt'\''s header is not the stream'
	run 0 "$tool" inspect made
	says 'raw'
	run 0 "$tool" ingest --or-raw --fd=5 made 5<stream
	is_content
	run 0 "$tool" verify made
	[ ! -e made.partial ] || fail 'made.partial is left'

	# Until it is whole it has another name, which must be to be had; else what stood there is untouched.
	cp random made
	ln -s made link
	run 1 "$tool" ingest --or-raw --fd=5 link 5<foreign
	complains '^diohelper-tool: link: is a link, '
	ln made further
	run 1 "$tool" ingest --or-raw --fd=5 made 5<foreign
	complains '^diohelper-tool: made: is a link, has further names'
	rm link further
	{ head -c 16 sparse-header && printf '\3' && tail -c +18 sparse-header; } >odd-header
	run 1 "$tool" ingest --or-raw --header=odd-header --fd=5 made 5<foreign
	complains '^diohelper-tool: made: --header: it cannot be made the header of a stream'
	mkdir made.partial
	run 1 "$tool" ingest --or-raw --fd=5 made 5<foreign
	complains '^diohelper-tool: made: made.partial is in the way'
	rmdir made.partial
	cmp random made || fail 'what stood there was touched'

	# A name that could not be made durable is taken back.
	faulty=$BUILD/tests/integration/faulty_tool
	DIOH_FAULT=0 run 1 "$faulty" ingest --helper="$DIOHELPER" --or-raw --fd=5 made 5<foreign
	complains '^diohelper-tool: made: renaming made to made.partial could not be made durable: Input/output error'
	cmp random made || fail 'what stood there was touched'
	[ ! -e made.partial ] || fail 'made.partial is left'
	rm made
	DIOH_FAULT=0 run 1 "$faulty" ingest --helper="$DIOHELPER" --or-raw --fd=5 made 5<foreign
	complains 'could not be made durable'
	[ "$(echo made*)" = 'made*' ] || fail 'it left a file behind'
	DIOH_FAULT=1 run 1 "$faulty" ingest --helper="$DIOHELPER" --or-raw --fd=5 made 5<foreign
	complains '^diohelper-tool: made: renaming made.partial to made could not be made durable: Input/output error'
	[ ! -e made ] || fail 'a name that is not durable has been given'
	refused_ingest 'made.partial is in the way' --or-raw --fd=5 5<foreign
	cmp foreign made.partial || fail 'what was kept is not the stream'
	rm -f made.partial
	DIOH_FAULT=2 run 0 "$faulty" ingest --helper="$DIOHELPER" --or-raw --fd=5 made 5<foreign
	cmp foreign made || fail 'what was kept is not the stream'
	rm made

	# A sync that fails: nothing is left of a stream of which not all came; one of which all did is spared.
	spared=0
	for ((i = 0; ; i++)); do
		[ "$((i % 2))" = 0 ] || : >made # new, and what stood there
		if DIOH_FAULT=sync:$i "$tool" ingest --helper="$BUILD/tests/integration/faulty_engine" --or-raw --fd=5 made \
			5<foreign 2>"$tmp/err"; then
			break
		fi
		complains '^diohelper-tool: made: .*Input/output error'
		if [ -e made.partial ]; then
			complains '^diohelper-tool: made: note: all of the stream came, and is kept as made.partial'
			cmp foreign made.partial || fail 'what was kept is not the stream'
			refused_ingest 'made.partial is in the way' --or-raw --fd=5 5<foreign
			spared=$((spared + 1))
		fi
		rm -f made made.partial
	done
	[ "$spared" -gt 1 ] || fail "of $i syncs that failed $spared spared the stream"
	cmp foreign made || fail 'what was kept is not the stream'
	rm made
fi

# ---- which helper ----

for verb in $verbs; do
	run 1 "$tool" "$verb" --helper=/nonexistent/diohelper random
	complains 'random: .*/nonexistent/diohelper.*No such file'
	run 1 env DIOHELPER=/nonexistent/other "$tool" "$verb" random
	complains '/nonexistent/other'
	run 1 env DIOHELPER=/nonexistent/other "$tool" "$verb" --helper="$DIOHELPER" random
	complains 'image'
	# A helper that is none ends at once, and the tool does not wait for it.
	run 1 "$tool" "$verb" --helper=/bin/true random
	complains '^diohelper-tool: random: '
done
# Without being told, the tool takes the one beside it: first of all from a directory that has one, then through PATH.
mkdir beside alone
ln "$tool" beside/diohelper-tool 2>/dev/null || cp "$tool" beside/diohelper-tool
cp beside/diohelper-tool alone/diohelper-tool
printf '#!/bin/sh\necho "the neighbour ran" >&2\nexit 1\n' >beside/diohelper
chmod +x beside/diohelper
run 1 env -u DIOHELPER beside/diohelper-tool inspect random
complains 'the neighbour ran'
run 1 env -u DIOHELPER PATH="$tmp/beside:$PATH" alone/diohelper-tool inspect random
complains 'the neighbour ran'

# ---- output that cannot be written ----

if [ -w /dev/full ]; then
	status=0
	"$tool" --help >/dev/full 2>"$tmp/err" || status=$?
	[ "$status" = 1 ] || fail "--help into a full device: exit status $status, not 1"
	complains 'standard output failed: No space left on device'
fi
for option in --help --version --print-capabilities; do
	for to in '>/dev/full' '>&-'; do
		[ "$to" = '>&-' ] || [ -w /dev/full ] || continue
		run 1 sh -c "\"\$0\" $option $to" "$DIOHELPER"
		complains '^diohelper: writing standard output failed: (No space left on device|Bad file descriptor)$'
	done
done

echo "diohelper-tool's command line is as documented"
