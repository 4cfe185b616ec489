#!/bin/bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# What `make install` puts somewhere is enough to build and run a manager: the README's own, as C99, against the shared
# and the static library, by pkg-config's flags; so is examples/minimal.c by the command that it names. The shared library
# has the name and the symbols that programs were linked with. `make uninstall` takes all of it away again.
set -eu

fail() { echo "test-install: $*"; exit 1; }

for tool in cc pkg-config readelf nm; do
	command -v "$tool" >/dev/null || { echo "skip: no $tool here"; exit 77; }
done
cd "$(dirname "$0")/../.."
unset MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL
work=$(mktemp -d "${TMPDIR:-/var/tmp}/install.XXXXXX")
trap 'rm -rf "$work"' EXIT
stage=$work/stage
sanitize=${DIOH_SANITIZE:+-fsanitize=$DIOH_SANITIZE}

run_make() { make --no-print-directory BUILD="$BUILD" DESTDIR="$stage" prefix=/opt/dioh "$@"; }

run_make install >"$work/log" 2>&1 || { cat "$work/log"; fail "make install failed"; }
! grep -E '^ +(CC|LD) ' "$work/log" || fail "make install compiled something"
for file in bin/diohelper bin/diohelper-tool lib/libdiohelper.so lib/libdiohelper.so.0 lib/libdiohelper.a \
	lib/pkgconfig/libdiohelper.pc include/diohelper.h include/diohelper-protocol.h include/diohelper-image.h \
	share/doc/diohelper/README.md share/doc/diohelper/docs/security.md share/doc/diohelper/LICENSE \
	share/bash-completion/completions/diohelper \
	share/bash-completion/completions/diohelper-tool share/man/man1/diohelper.1 share/man/man1/diohelper-tool.1 \
	share/man/man3/libdiohelper.3 share/man/man7/diohelper-protocol.7 share/man/man7/diohelper-image.7; do
	[ -s "$stage/opt/dioh/$file" ] || fail "$file was not installed"
done
[ "$(readlink "$stage/opt/dioh/lib/libdiohelper.so")" = libdiohelper.so.0 ] || fail "the development link is wrong"

library=$stage/opt/dioh/lib/libdiohelper.so.0
readelf -d "$library" | grep -q 'SONAME.*\[libdiohelper\.so\.0\]' || fail "the library has another soname than libdiohelper.so.0"
# The list of a release: a symbol may come, with a line there; one that goes breaks programs.
sed -n 's/^ \(dioh_.*@[A-Z_0-9]*\) .*/\1/p' debian/libdiohelper0.symbols | sort >"$work/listed"
nm -D --defined-only --with-symbol-versions "$library" | sed -n 's/.* T \(.*\)/\1/p' | sed 's/@@/@/' | sort >"$work/exported"
[ -s "$work/listed" ] || fail "debian/libdiohelper0.symbols lists nothing"
diff "$work/listed" "$work/exported" || fail "debian/libdiohelper0.symbols (<) and the library (>) differ"

# What a page that is installed speaks of is installed, too.
(cd "$stage/opt/dioh/share/doc/diohelper" && find . -name '*.md' | while read -r page; do
	grep -o ']([^)#]*[)#]' "$page" | sed 's/^](//; s/.$//' | grep -v '^https\?:\|^$' | while read -r link; do
		[ -e "$(dirname "$page")/$link" ] || echo "$page: $link"
	done
done) >"$work/broken"
[ ! -s "$work/broken" ] || fail "links lead nowhere: $(cat "$work/broken")"
(cd "$stage/opt/dioh/share/man" && grep -rho '/usr/share/doc/diohelper/[a-z\\/-]*\.md' . | tr -d '\\') >"$work/named"
[ -s "$work/named" ] || fail "no manual page names a page"
while read -r page; do
	[ -e "$stage/opt/dioh${page#/usr}" ] || fail "a manual page names $page, which is not there"
done <"$work/named"

export PKG_CONFIG_PATH=$stage/opt/dioh/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$stage
version=$(sed -n 's/.*DIOH_VERSION_STRING "\(.*\)"/\1/p' include/diohelper.h)
[ "$(pkg-config --modversion libdiohelper)" = "$version" ] || fail "libdiohelper.pc names another version"

sed -n '/^```c$/,/^```$/p' README.md | grep -v '^```' >"$work/save.c"
grep -q dioh_save_memory "$work/save.c" || fail "README.md has no example"
cat >"$work/main.c" <<'END'
#define _GNU_SOURCE
#include <diohelper.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

int save(int image_fd, int direct_fd, int memory_fd, uint64_t bytes, struct dioh_error *err);

int main(int argc, char **argv)
{
	struct dioh_error err = { 0 };
	int image = argc == 2 ? open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0600) : -1;
	int memory = memfd_create("ram", 0);

	if (image < 0 || memory < 0 || ftruncate(memory, 4 << 20) || pwrite(memory, "page", 4, 1 << 20) != 4)
		return 2;
	if (save(image, -1, memory, 4 << 20, &err) < 0) {
		fprintf(stderr, "save: %s\n", err.text);
		return 1;
	}
	return 0;
}
END
# shellcheck disable=SC2046,SC2086
compile() { cc -std=c99 -pedantic -Wall -Wextra -Werror $sanitize "$@"; }
# shellcheck disable=SC2046
compile -c -o "$work/save.o" "$work/save.c" $(pkg-config --cflags libdiohelper)
# shellcheck disable=SC2046
compile -c -o "$work/main.o" "$work/main.c" $(pkg-config --cflags libdiohelper)
# shellcheck disable=SC2046
compile -o "$work/shared" "$work/main.o" "$work/save.o" $(pkg-config --libs libdiohelper)
compile -o "$work/static" "$work/main.o" "$work/save.o" "$stage/opt/dioh/lib/libdiohelper.a"

# shellcheck disable=SC2046,SC2086
cc -Wall -Wextra -Werror $sanitize -o "$work/minimal" examples/minimal.c $(pkg-config --cflags --libs libdiohelper)

# diohelper is found through PATH, and finds diohelper-tool beside itself.
PATH=$stage/opt/dioh/bin:$PATH
! ldd "$work/static" | grep -q libdiohelper || fail "the static program wants the shared library"
LD_LIBRARY_PATH=$stage/opt/dioh/lib "$work/shared" "$work/shared.img" || fail "saving with the shared library failed"
"$work/static" "$work/static.img" || fail "saving with the static library failed"
LD_LIBRARY_PATH=$stage/opt/dioh/lib "$work/minimal" "$work/minimal.img" || fail "the minimal manager failed"
for image in shared static minimal; do
	diohelper verify "$work/$image.img" || fail "the image saved with the $image library is not in order"
done
# The other programs of the examples are started as their page says.
(cd "$stage/opt/dioh/share/doc/diohelper/examples" &&
	find . -type f -exec awk 'FNR == 1 && /^#!/ { print FILENAME }' {} +) >"$work/scripts"
grep -q 'save_restore\.py$' "$work/scripts" || fail "the example in Python was not installed"
while read -r script; do
	[ -x "$stage/opt/dioh/share/doc/diohelper/examples/$script" ] || fail "examples/$script cannot be executed"
done <"$work/scripts"

run_make uninstall >/dev/null
left=$(find "$stage" ! -type d)
[ -z "$left" ] || fail "make uninstall left: $left"
