#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# `make install-iohelper` and back, in a mount namespace with a libvirt_iohelper, a diversions file and a disk of its own: ours
# is a copy, stock is put back byte for byte, whatever has gone missing meanwhile, and a full disk costs nobody his program.
set -u

[ "$(id -u)" = 0 ] || { echo 'this needs root'; exit 77; }
unshare -m true 2>/dev/null || { echo 'no mount namespace is to be had here'; exit 77; }
command -v dpkg-divert >/dev/null || { echo 'this needs dpkg-divert'; exit 77; }
[ -d /usr/libexec ] || { echo 'there is no /usr/libexec to put a file system over'; exit 77; }
cd "$(dirname "$0")/../.." || exit 1
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL

export -n DESTDIR
[ "${1:-}" = inside ] || exec unshare -m "$0" inside

fail() { echo "test-root-iohelper: $*"; exit 1; }
run_make() { make --no-print-directory BUILD="$BUILD" "$@" >/dev/null 2>"$DPKG_ADMINDIR/said"; }
said() { grep -q "$1" "$DPKG_ADMINDIR/said" || fail "this was to be said: $1, not: $(cat "$DPKG_ADMINDIR/said")"; }
diversions() { LC_ALL=C dpkg-divert --list '*libvirt_iohelper*'; }

mount --make-rprivate / || exit 1
mount -t tmpfs -o size=64m own /usr/libexec || exit 1
[ ! -d /usr/lib/libvirt ] || mount -t tmpfs none /usr/lib/libvirt || exit 1
export DPKG_ADMINDIR=/usr/libexec/dpkg
mkdir "$DPKG_ADMINDIR"
: >"$DPKG_ADMINDIR/status"
: >"$DPKG_ADMINDIR/diversions"
helper=/usr/libexec/libvirt_iohelper

! run_make install-iohelper || fail "there was nothing to stand in for"
said 'no libvirt_iohelper is installed here'
! run_make uninstall-iohelper || fail "there was nothing to put back"
said 'nothing was diverted'

echo stock >$helper
! run_make install-iohelper DESTDIR=/usr/libexec/stage || fail "DESTDIR was ignored"
said DESTDIR
cmp -s $helper <(echo stock) || fail "a refused installation changed the program"

for _ in 1 2; do # the second time is an upgrade
	run_make install-iohelper || fail "installing failed: $(cat "$DPKG_ADMINDIR/said")"
	cmp -s $helper "$BUILD/diohelper" || fail "what stands there is not ours"
	[ ! -L $helper ] && [ -x $helper ] || fail "it is no copy that can be run"
	cmp -s $helper.stock <(echo stock) || fail "stock was not kept"
done
run_make uninstall-iohelper || fail "going back failed"
cmp -s $helper <(echo stock) || fail "stock is not back"
[ ! -e $helper.stock ] && [ -z "$(diversions)" ] || fail "something is left: $(ls /usr/libexec) $(diversions)"

run_make install-iohelper && rm $helper || fail "installing again failed"
run_make install-iohelper || fail "ours had gone, and could not be installed again"
rm $helper
run_make uninstall-iohelper || fail "ours had gone, and stock could not be put back"
cmp -s $helper <(echo stock) || fail "stock is not back, after ours had gone"

run_make install-iohelper && rm $helper.stock || fail "installing once more failed"
run_make uninstall-iohelper || fail "stock had gone, and ours could not be taken away"
[ ! -e $helper ] && [ -z "$(diversions)" ] || fail "something is left, after libvirt had gone"

# Interrupted, or refused by dpkg, in the middle: begun again it comes to its end, and libvirt's own is there all the time.
mkdir /usr/libexec/bin
cat >/usr/libexec/bin/dpkg-divert <<'END'
#!/bin/sh
case "$*" in *"--$FAILS "*) echo "no $FAILS today" >&2; kill -"$SIGNAL" $PPID; exit 2 ;; esac
exec /usr/bin/dpkg-divert "$@"
END
chmod +x /usr/libexec/bin/dpkg-divert
interrupted() { # SIGNAL WHAT COMMAND...
	! (export SIGNAL="$1" FAILS="$2" PATH="/usr/libexec/bin:$PATH" && shift 2 && "$@") 2>/dev/null || fail "it was to fail: $*"
}
echo stock >$helper
for signal in 0 KILL; do
	interrupted $signal add packaging/iohelper install "$BUILD/diohelper"
	cmp -s $helper <(echo stock) || fail "an installation that was interrupted took the program away"
	run_make install-iohelper || fail "it could not be installed after that: $(cat "$DPKG_ADMINDIR/said")"
	for _ in 1 2; do
		interrupted $signal remove packaging/iohelper uninstall
		cmp -s $helper <(echo stock) || fail "stock is not back, after an interruption"
	done
	run_make uninstall-iohelper || fail "going back failed after interruptions: $(cat "$DPKG_ADMINDIR/said")"
	cmp -s $helper <(echo stock) || fail "stock has gone with the second try"
	[ ! -e $helper.stock ] && [ ! -e $helper.new ] && [ -z "$(diversions)" ] || fail "interruptions left something"
done

head -c 1G /dev/zero >/usr/libexec/full 2>/dev/null
! run_make install-iohelper || fail "there was no room"
cmp -s $helper <(echo stock) || fail "a full disk took the program away"
rm /usr/libexec/full
[ ! -e $helper.new ] && [ ! -e $helper.stock ] && [ -z "$(diversions)" ] || fail "a full disk left something"
