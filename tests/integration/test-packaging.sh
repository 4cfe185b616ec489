#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Header, packages and change log are of one version; `make dist` gives the same bytes each time, and all that is needed
# to build. That the packages build, install and go again is .ci/package-smoke's business.
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
