#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Header, packages and change log are of one version; every list of packages has what the others have; `make dist` gives
# the same bytes each time, and all that is needed to build. That the packages build, install and go again is
# .ci/package-smoke's business.
# shellcheck source=tests/integration/functions.sh
. "$(dirname "$0")/functions.sh"

cd "$root" || exit 1
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL
version=$(sed -n 's/.*DIOH_VERSION_STRING "\(.*\)"/\1/p' include/diohelper.h)
[ -n "$version" ] || fail "include/diohelper.h has no version"

is_version() { # WHAT VERSION
	[ "$2" = "$version" ] || fail "$1 is of version '$2', the header of $version"
}

is_version debian/changelog "$(sed -n '1s/^diohelper (\(.*\)) .*/\1/p' debian/changelog)"
is_version packaging/diohelper.spec "$(sed -n 's/^Version: *//p' packaging/diohelper.spec)"
is_version CHANGELOG.md "$(sed -nE 's/^## ([0-9.]+).*/\1/p' CHANGELOG.md | head -n 1)"

# ---- lists of packages ----

# Debian's name, and Fedora's; - where another package brings it there.
names='
gcc gcc
make make
pkg-config pkgconf-pkg-config
libc6-dev -
liburing-dev liburing-devel
libaio-dev libaio-devel
libcap-ng-dev libcap-ng-devel
libseccomp-dev libseccomp-devel
libisal-dev isa-l-devel
libjansson-dev jansson-devel
libcmocka-dev libcmocka-devel
python3 python3
valgrind valgrind
binutils binutils
e2fsprogs e2fsprogs
util-linux util-linux
mandoc mandoc
zstd zstd
lzop lzop
fio fio
gnuplot-nox gnuplot
qemu-system-x86 qemu-system-x86-core
qemu-utils qemu-img
libvirt-clients libvirt-client
libvirt-daemon libvirt-daemon
libvirt-daemon-driver-qemu libvirt-daemon-driver-qemu
'
# What Debian's gcc has in it, and what only some targets need.
fedora_only='clang libasan libtsan libubsan'

same_lists() { # WHAT OTHER, and the lists in $tmp/these and $tmp/those
	diff <(sort -u "$tmp/these") <(sort -u "$tmp/those") >"$tmp/differ" ||
		{ cat "$tmp/differ"; fail "$1 (<) and $2 (>) differ"; }
}

debian_names() { printf '%s' "$names" | sed -n 's/ .*//p'; }
fedora_of() { printf '%s' "$names" | sed -n "s/^$1 //p"; }
# The libraries that the Makefile links a program or a test with, as Debian's packages.
linked() { # VARIABLE
	sed -n "s/^$1 = //p" Makefile | tr ' ' '\n' | sed -n 's/^-l\(.*\)/lib\1-dev/p'
}

# install-deps: its arrays, without what is said of the packages.
sed -n '/^packages=(/,/^)/p; /^newer=(/,/^)/p' .ci/install-deps | sed 's/#.*//; s/^.*=(//; s/"\$@"//; s/^)//' |
	tr ' \t' '\n\n' | sed 's/=.*//; /^$/d' >"$tmp/these"
debian_names >"$tmp/those"
same_lists ".ci/install-deps" "the names in this test"

sed -n '/dnf install/,/[^\\]$/p' README.md | sed 's/.*dnf install//; s/\\$//' | tr ' ' '\n' | sed '/^$/d' >"$tmp/these"
{ printf '%s' "$names" | sed -n 's/.* //p' | grep -v '^-$'; tr ' ' '\n' <<<"$fedora_only"; } >"$tmp/those"
same_lists "what README.md has dnf install" "Fedora's names of what .ci/install-deps installs"

{ linked HELPER_LIBS; linked TOOL_LIBS; } >"$tmp/these"
[ -s "$tmp/these" ] || fail "the Makefile links nothing?"
sed -n '/^Build-Depends:/,/^[^ ]/s/^ \([a-z0-9.+-]*-dev\),\{0,1\}$/\1/p' debian/control >"$tmp/those"
same_lists "what the Makefile links" "debian/control's Build-Depends"

while read -r package; do
	fedora_of "$package"
done <"$tmp/these" >"$tmp/fedora"
mv "$tmp/fedora" "$tmp/these"
sed -n 's/^BuildRequires: *\(.*-devel\)$/\1/p' packaging/diohelper.spec >"$tmp/those"
same_lists "what the Makefile links" "the spec's BuildRequires"

# One maintainer everywhere: a placeholder, as CONTRIBUTING.md says, until somebody publishes packages.
maintainer=$(sed -n 's/^Maintainer: //p' debian/control)
for file in debian/changelog packaging/diohelper.spec; do
	grep -qF "$maintainer" "$file" || fail "$file has another maintainer than debian/control: $maintainer"
done

# ---- the archive ----

git -C "$root" rev-parse --verify -q HEAD >/dev/null 2>&1 || skip "the versions agree, but there is no git here to make dist with"
for once in first again; do
	run 0 make --no-print-directory BUILD="$tmp/$once" dist
done
name=diohelper-$version
cmp "$tmp/first/$name.tar.gz" "$tmp/again/$name.tar.gz" || fail "make dist gave something else the second time"
tar -C "$tmp" -xf "$tmp/first/$name.tar.gz" || fail "the archive cannot be unpacked"
# What git has and the archive has not would be missing from a release.
diff <(git ls-tree -r --name-only HEAD | sort) <(cd "$tmp/$name" && find . ! -type d | sed 's,^\./,,' | sort) ||
	fail "git (<) and the archive (>) differ"
run 0 make --no-print-directory -C "$tmp/$name" -n all
