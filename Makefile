# SPDX-License-Identifier: LGPL-2.1-or-later
#
# diohelper's build. Everything made stands under $(BUILD); `make help` lists the targets.
#
#   CC CFLAGS LDFLAGS           the compiler and its tunable flags; what the project needs is added to them
#   prefix bindir libdir includedir docdir mandir DESTDIR    where `make install` puts things
#   WERROR=                     warnings stay warnings
#   SANITIZE=address,undefined  a build with sanitizers, in a directory of its own
#   BUILD=DIR                   another build directory
#   V=1                         show the commands; tests show their output
#   JOBS=N                      so many tests at once, where they share nothing; twice as many as there are processors
#   TESTS="..."                 `make check` runs these only (build/tests/unit/test_x tests/integration/test-y.sh)
#   TIME=60                     how many seconds `make fuzz` runs each fuzzer, `make soak` all
#   ROWS="memory qemu" ROUNDS=9 DIR=/var/tmp QUICK=1         what `make bench` measures, how often, where; a trial
#   REPLAYS=5000                how many power cuts `make powercut` tries by chance; DIOH_SEED: which
#   KILLS=10000                 how many kills `make kills` tries

MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := all

prefix = /usr/local
bindir = $(prefix)/bin
libdir = $(prefix)/lib
includedir = $(prefix)/include
datadir = $(prefix)/share
docdir = $(datadir)/doc/diohelper
mandir = $(datadir)/man
completionsdir = $(datadir)/bash-completion/completions
INSTALL = install

SANITIZE =
BUILD = build$(if $(SANITIZE),-sanitize)
# One name for one directory: dependencies name their targets as they were given.
override BUILD := $(patsubst $(CURDIR)/%,%,$(BUILD))
# Whose programs the compiler makes: another machine's, perhaps. (`make deps` has yet to install one.)
MACHINE := $(or $(firstword $(subst -, ,$(shell $(CC) -dumpmachine 2>/dev/null))),$(shell uname -m))
VERSION = $(shell sed -n 's/^.define DIOH_VERSION_STRING "\(.*\)"/\1/p' include/diohelper.h)

# ---- flags ----------------------------------------------------------------------------------------------------------

CFLAGS ?= -O2 -g
WERROR = -Werror
WARNINGS = -Wall -Wextra $(WERROR) -Wmissing-prototypes -Wstrict-prototypes -Wshadow -Wvla -Wformat=2

HARDEN_x86_64 = -fcf-protection -fstack-clash-protection
HARDEN_aarch64 = -mbranch-protection=standard
HARDEN_CFLAGS = -fstack-protector-strong $(HARDEN_$(MACHINE))
HARDEN_LDFLAGS = -Wl,-z,relro,-z,now -Wl,-z,noexecstack
ifeq ($(SANITIZE),)
# glibc's FORTIFY needs an optimizing compiler, and sanitizers see less through it.
HARDEN_CFLAGS += $(if $(filter -O1 -O2 -O3 -Os -Og,$(CFLAGS)),-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
else
SANITIZE_FLAGS = -fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer
endif

BASE_CFLAGS = -std=gnu11 -D_GNU_SOURCE= -D_FILE_OFFSET_BITS=64 -pthread -fvisibility=hidden -MMD -MP \
	$(WARNINGS) $(HARDEN_CFLAGS) $(SANITIZE_FLAGS)
BASE_LDFLAGS = -pthread -Wl,--as-needed $(HARDEN_LDFLAGS) $(SANITIZE_FLAGS)

# Which directories a source may include from: the directions that tests/check-layers proves.
INCLUDES_common = -Iinclude
INCLUDES_helper = -Iinclude -Icommon
INCLUDES_tool = -Iinclude -Icommon
INCLUDES_examples = -Iinclude
INCLUDES_tests = -Iinclude -Icommon -Ihelper -Itool -Itests/lib
# common/ goes into the shared library too.
PIC_common = -fPIC
dir_of = $(firstword $(subst /, ,$<))
SOURCE_CFLAGS = $(INCLUDES_$(dir_of)) $(or $(PIC_$(dir_of)),-fPIE)

HELPER_LIBS = -luring -laio -lcap-ng -lseccomp -lisal
TOOL_LIBS = -ljansson
TEST_LIBS = -lcmocka $(HELPER_LIBS) $(TOOL_LIBS)

# ---- sources ----------------------------------------------------------------------------------------------------------

# The private codecs read and compute image bytes: for the helper and tests only. The rest of common/ is the library.
CODEC_SRC := $(addprefix common/,container_format.c libvirt_header.c mapped_ram_format.c multifd_format.c pages.c \
	qemu_configuration.c qemu_ending.c qemu_ram_setup.c qemu_sections.c qemu_stream.c qemu_stream_put.c \
	record.c record_span.c record_tables.c)
LIB_SRC := $(filter-out $(CODEC_SRC),$(wildcard common/*.c))
HELPER_SRC := $(wildcard helper/*.c)
TOOL_SRC := $(wildcard tool/*.c)
# minimal.c is a program by itself.
MINIMAL_SRC := examples/minimal.c
EXAMPLE_SRC := $(filter-out $(MINIMAL_SRC),$(wildcard examples/*.c))
TEST_LIB_SRC := $(wildcard tests/lib/*.c)
UNIT_SRC := $(wildcard tests/unit/test_*.c)
INTEGRATION_SRC := $(wildcard tests/integration/*.c)
BENCH_SRC := $(wildcard tests/bench/*.c)
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
SOAK_SRC := tests/soak/soak.c
VM_SRC := $(wildcard tests/vm/*.c)
MASK_SRC := $(wildcard tests/masks/*.c)
SCRIPTS := $(wildcard tests/integration/test-*.sh tests/integration/test_*.py)

objects = $(patsubst %.c,$(BUILD)/%.o,$(1))
LIB_OBJ := $(call objects,$(LIB_SRC))
COMMON_OBJ := $(call objects,$(LIB_SRC) $(CODEC_SRC))
HELPER_OBJ := $(call objects,$(HELPER_SRC))
TOOL_OBJ := $(call objects,$(TOOL_SRC))
EXAMPLE_OBJ := $(call objects,$(EXAMPLE_SRC))
TEST_LIB_OBJ := $(call objects,$(TEST_LIB_SRC))
ALL_OBJ := $(COMMON_OBJ) $(HELPER_OBJ) $(TOOL_OBJ) $(EXAMPLE_OBJ) $(TEST_LIB_OBJ) \
	$(call objects,$(MINIMAL_SRC) $(UNIT_SRC) $(INTEGRATION_SRC) $(BENCH_SRC) $(SOAK_SRC) $(VM_SRC) $(MASK_SRC) \
	$(FUZZ_SRC) tests/fuzz/replay.c)

PRODUCTS := $(addprefix $(BUILD)/,diohelper diohelper-tool libdiohelper.so libdiohelper.so.0 libdiohelper.a \
	libdiohelper.pc dioh-hypervisor dioh-minimal)

UNIT_TESTS := $(UNIT_SRC:%.c=$(BUILD)/%)
INTEGRATION_PROGRAMS := $(INTEGRATION_SRC:%.c=$(BUILD)/%)
BENCH_PROGRAMS := $(BENCH_SRC:tests/bench/%.c=$(BUILD)/bench/%)
VM_PROGRAMS := $(VM_SRC:%.c=$(BUILD)/%)
MASKS := $(addprefix $(BUILD)/tests/masks/,diohelper-5.15 without_io_uring)
TEST_PROGRAMS := $(UNIT_TESTS) $(INTEGRATION_PROGRAMS) $(SOAK_SRC:%.c=$(BUILD)/%)
# The same sources twice: each runs its corpus once, as a test; or searches, by libFuzzer.
FUZZ_TESTS := $(FUZZ_SRC:%.c=$(BUILD)/%)
FUZZERS := $(FUZZ_SRC:tests/fuzz/%.c=$(BUILD)/fuzzers/%)

# What a test's name begins with says which target runs it.
named = $(foreach test,$(2),$(if $(filter test-$(1)-% test_$(1)_%,$(notdir $(test))),$(test)))
INTEGRATION_TESTS := $(filter $(BUILD)/tests/integration/test_%,$(INTEGRATION_PROGRAMS)) $(SCRIPTS)
ROOT_TESTS := $(call named,root,$(INTEGRATION_TESTS))
QEMU_TESTS := $(call named,qemu,$(INTEGRATION_TESTS))
LIBVIRT_TESTS := $(call named,libvirt,$(INTEGRATION_TESTS))
FS_TESTS := $(call named,fs,$(INTEGRATION_TESTS))
MASK_TESTS := $(call named,mask,$(INTEGRATION_TESTS))
PLAIN_TESTS := $(filter-out $(ROOT_TESTS) $(QEMU_TESTS) $(LIBVIRT_TESTS) $(FS_TESTS) $(MASK_TESTS),$(INTEGRATION_TESTS))
# What is run again on an older kernel's features: where the helper moves bytes.
MASKED_TESTS := $(addprefix $(BUILD)/tests/integration/,test_session test_transfers test_memory test_stream \
	test_mapped_ram test_degraded test_pairwise test_stream_peers test_hangup \
	test_requests)

# ---- how ----------------------------------------------------------------------------------------------------------------

V = 0
ifeq ($(V),0)
Q = @
quiet = @printf '  %-7s %s\n' $(1) '$@';
endif

# `make deps all` with -j: nothing is compiled before its headers are there.
FIRST := $(filter deps,$(MAKECMDGOALS))

# Compiled anew when compiler or flags are others than last time, linked anew when the list of sources is (a file was
# removed). `make install` takes what was built.
NOW_flags = $(CC) $(CFLAGS) $(CPPFLAGS) $(BASE_CFLAGS) $(LDFLAGS) $(BASE_LDFLAGS)
NOW_sources = $(LIB_SRC) $(CODEC_SRC) $(HELPER_SRC) $(TOOL_SRC) $(EXAMPLE_SRC) $(TEST_LIB_SRC) $(TEST_LIBS)
NOW_paths = $(prefix) $(bindir) $(libdir) $(includedir)
LAST_flags := $(BUILD)/.flags
LAST_sources := $(BUILD)/.sources
LAST_paths := $(BUILD)/.paths
write = $(shell mkdir -p $(BUILD))$(file >$(LAST_$(1)),$(NOW_$(1)))
differs = $(subst x$(strip $(NOW_$(1)))x,,x$(strip $(file <$(LAST_$(1))))x)
ifneq ($(filter-out clean deps dist format-check help install uninstall,$(or $(MAKECMDGOALS),all)),)
$(foreach what,flags sources paths,$(if $(call differs,$(what)),$(call write,$(what))))
endif
$(BUILD)/.flags $(BUILD)/.sources $(BUILD)/.paths:
	$(call write,$(@F:.%=%))

$(ALL_OBJ): $(BUILD)/%.o: %.c $(LAST_flags) | $(FIRST)
	@mkdir -p $(@D)
	$(call quiet,CC)$(CC) $(BASE_CFLAGS) $(SOURCE_CFLAGS) $(CFLAGS) $(CPPFLAGS) -c -o $@ $<

define archive
	@mkdir -p $(@D)
	$(call quiet,AR)rm -f $@ && $(AR) rcs $@ $(filter %.o,$^)
endef

link = $(CC) -pie $(BASE_LDFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a %.so.0,$^)

# ---- products -------------------------------------------------------------------------------------------------------------

.PHONY: all
all: $(PRODUCTS) ## build everything that is installed, and the examples (the default)

$(BUILD)/libdiohelper.a: $(LIB_OBJ) $(LAST_sources)
	$(archive)

$(BUILD)/libdiohelper.so.0: $(LIB_OBJ) common/libdiohelper.map $(LAST_sources)
	$(call quiet,LD)$(CC) -shared -Wl,-soname,libdiohelper.so.0 -Wl,--version-script=common/libdiohelper.map \
		$(if $(SANITIZE),,-Wl,-z,defs) $(BASE_LDFLAGS) $(LDFLAGS) -o $@ $(LIB_OBJ)

$(BUILD)/libdiohelper.so: $(BUILD)/libdiohelper.so.0
	$(Q)ln -sf $(<F) $@

pc_text = sed -e 's|@prefix@|$(prefix)|' -e 's|@libdir@|$(patsubst $(prefix)/%,$${prefix}/%,$(libdir))|' \
	-e 's|@includedir@|$(patsubst $(prefix)/%,$${prefix}/%,$(includedir))|' -e 's|@version@|$(VERSION)|' \
	common/libdiohelper.pc.in

$(BUILD)/libdiohelper.pc: common/libdiohelper.pc.in include/diohelper.h $(LAST_paths)
	$(call quiet,GEN)$(pc_text) >$@

# The library and the private codecs, for the helper and for tests.
$(BUILD)/common.a: $(COMMON_OBJ) $(LAST_sources)
	$(archive)

$(BUILD)/diohelper: $(HELPER_OBJ) $(BUILD)/common.a $(LAST_sources)
	$(call quiet,LD)$(link) $(HELPER_LIBS)

$(BUILD)/diohelper-tool: $(TOOL_OBJ) $(BUILD)/libdiohelper.a $(LAST_sources)
	$(call quiet,LD)$(link) $(TOOL_LIBS)

# The examples use the library as any manager would: the shared one.
$(BUILD)/dioh-hypervisor: $(EXAMPLE_OBJ) $(BUILD)/libdiohelper.so.0 $(LAST_sources)
	$(call quiet,LD)$(link) -Wl,-rpath,'$$ORIGIN' $(TOOL_LIBS)

$(BUILD)/dioh-minimal: $(call objects,$(MINIMAL_SRC)) $(BUILD)/libdiohelper.so.0
	$(call quiet,LD)$(link) -Wl,-rpath,'$$ORIGIN'

# The guest of the demo and of the QEMU tests.
include examples/guest/guest.mk
$(BUILD)/guest/guest.o: | $(FIRST)

# ---- test and benchmark programs ----------------------------------------------------------------------------------------

# A test may name linker flags of its own in a line of its source: /* LDFLAGS: -Wl,--wrap=pread */
own_ldflags = $$(sed -n 's|^/\* LDFLAGS: *\(.*\) \*/$$|\1|p' $(1))

$(BUILD)/tests/private.a: $(COMMON_OBJ) $(filter-out %/main.o,$(HELPER_OBJ)) $(TEST_LIB_OBJ) $(LAST_sources)
	$(archive)

$(TEST_PROGRAMS): $(BUILD)/%: $(BUILD)/%.o $(BUILD)/tests/private.a
	$(call quiet,LD)$(link) $(call own_ldflags,$*.c) $(TEST_LIBS)

$(BUILD)/tests/unit/test_progress: $(BUILD)/tool/progress.o

# The tool's own objects, and what stands between them and the kernel.
$(BUILD)/tests/integration/faulty_tool: $(TOOL_OBJ)

$(BENCH_PROGRAMS): $(BUILD)/bench/%: $(BUILD)/tests/bench/%.o $(BUILD)/tests/private.a
	@mkdir -p $(@D)
	$(call quiet,LD)$(link) $(TEST_LIBS)

$(FUZZ_TESTS): $(BUILD)/%: $(BUILD)/%.o $(BUILD)/tests/fuzz/replay.o $(BUILD)/tests/private.a
	$(call quiet,LD)$(link) $(call own_ldflags,$*.c) $(TEST_LIBS)

# Made by a compiler that has -fsanitize=fuzzer: see `fuzz`.
$(FUZZERS): $(BUILD)/fuzzers/%: $(BUILD)/tests/fuzz/%.o $(BUILD)/tests/private.a
	@mkdir -p $(@D)
	$(call quiet,LD)$(link) -fsanitize=fuzzer $(call own_ldflags,tests/fuzz/$*.c) $(TEST_LIBS)

# The helper's own objects, and what stands between them and the kernel.
$(BUILD)/tests/masks/diohelper-5.15: $(BUILD)/tests/masks/kernel_5_15.o $(HELPER_OBJ) $(BUILD)/common.a $(LAST_sources)
	$(call quiet,LD)$(link) $(call own_ldflags,tests/masks/kernel_5_15.c) $(HELPER_LIBS)

$(BUILD)/tests/masks/without_io_uring: $(BUILD)/%: $(BUILD)/%.o
	$(call quiet,LD)$(link)

# What runs inside the virtual machine needs nothing but the C library there.
$(VM_PROGRAMS): $(BUILD)/%: $(BUILD)/%.o $(BUILD)/libdiohelper.a
	$(call quiet,LD)$(link)

.PHONY: tests
tests: $(TEST_PROGRAMS) $(FUZZ_TESTS) $(VM_PROGRAMS) $(MASKS) ## build the test programs

.PHONY: bench-build
bench-build: $(BENCH_PROGRAMS) ## build the benchmark programs, into build/bench/

# ---- running --------------------------------------------------------------------------------------------------------------

RUN_ENV = BUILD='$(abspath $(BUILD))' DIOH_SANITIZE='$(SANITIZE)' V='$(V)'
ifneq ($(SANITIZE),)
# 99: no test takes what a sanitizer found for the failure that it expects.
RUN_ENV += ASAN_OPTIONS=abort_on_error=0:strict_string_checks=1:exitcode=99
RUN_ENV += UBSAN_OPTIONS=print_stacktrace=1:exitcode=99
RUN_ENV += TSAN_OPTIONS=exitcode=99
RUN_ENV += TIMEOUT_FACTOR=3
endif
run_tests = $(RUN_ENV) tests/run
# What shares no devices, mounts or QEMU with others runs beside them. Such tests mostly wait: for disks, and for processes
# to end.
JOBS := $(shell echo $$((2 * $$(nproc))))
run_tests_beside = $(RUN_ENV) JOBS=$(JOBS) tests/run

.PHONY: deps
deps: ## install what building and testing needs (Debian, Ubuntu)
	@.ci/install-deps

.PHONY: demo
demo: all $(GUEST_IMAGE) | $(FIRST) ## save, kill and restore a real guest under QEMU
	@$(RUN_ENV) DIOHELPER='$(abspath $(BUILD))/diohelper' DIOHELPER_TOOL='$(abspath $(BUILD))/diohelper-tool' \
		examples/demo.sh

.PHONY: check
check: all tests | $(FIRST) ## unit and integration tests: no privileges, no network, no QEMU
	@$(run_tests_beside) $(or $(TESTS),$(UNIT_TESTS) $(FUZZ_TESTS) $(PLAIN_TESTS) \
		tests/check-layers tests/check-format tests/check-sabotage)

.PHONY: format-check
format-check: ## what a program can see of the house style: blanks, tabs, line lengths, licences
	@tests/check-format

.PHONY: check-fuzz
check-fuzz: $(FUZZ_TESTS) | $(FIRST) ## the fuzzers' corpora, each input once (`make check` has them, too)
	@$(run_tests_beside) $(FUZZ_TESTS)

# What a search finds stays in $(FUZZ_BUILD); a crash is named crash-*. FUZZ_CC=afl-clang-fast makes AFL++'s. What a harness
# prints is thrown away: run the fuzzer with a crash's file to see it.
TIME = 60
FUZZ_CC = clang
FUZZ_BUILD = build-fuzz
FUZZ_ONLY = $(patsubst tests/fuzz/fuzz_%.c,%,$(FUZZ_SRC))
.PHONY: fuzzers
fuzzers: | $(FIRST) ## the fuzzers, with coverage and sanitizers, into build-fuzz/fuzzers/; needs clang (FUZZ_CC=)
	@$(MAKE) --no-print-directory CC=$(FUZZ_CC) BUILD=$(FUZZ_BUILD) SANITIZE=address,undefined \
		CFLAGS='-g -O1 -fsanitize=fuzzer-no-link' $(FUZZ_ONLY:%=$(FUZZ_BUILD)/fuzzers/fuzz_%)

.PHONY: fuzz
fuzz: fuzzers ## search with the fuzzers (FUZZ_ONLY="record session": with these), TIME=60 seconds each
	@for fuzzer in $(FUZZ_ONLY); do \
		mkdir -p $(FUZZ_BUILD)/corpus/$$fuzzer && $(FUZZ_BUILD)/fuzzers/fuzz_$$fuzzer -max_total_time=$(TIME) \
			-print_final_stats=1 -close_fd_mask=3 -artifact_prefix=$(FUZZ_BUILD)/ $(FUZZ_BUILD)/corpus/$$fuzzer \
			tests/fuzz/corpus/$$fuzzer || exit 1; \
	done

.PHONY: soak
soak: all tests | $(FIRST) ## 64 helpers at once for TIME=60 seconds, many of them disturbed, every byte checked
	@$(RUN_ENV) DIOHELPER='$(abspath $(BUILD))/diohelper' $(BUILD)/tests/soak/soak $(TIME)

.PHONY: check-root
check-root: all tests | $(FIRST) ## the tests that need root
	@[ "$$(id -u)" = 0 ] || { echo 'check-root: this needs root' >&2; exit 1; }
	@$(run_tests_beside) $(ROOT_TESTS)

.PHONY: check-fs
check-fs: all tests | $(FIRST) ## file systems, devices and kinds of memory: a table; needs root
	@[ "$$(id -u)" = 0 ] || { echo 'check-fs: this needs root' >&2; exit 1; }
	@$(RUN_ENV) V=1 tests/run $(FS_TESTS)

# Both are run whatever became of the first.
.PHONY: check-masked
check-masked: all tests | $(FIRST) ## the tests that move bytes, with the features of Linux 5.15, and without io_uring
	@failed=; \
	DIOHELPER='$(abspath $(BUILD))/tests/masks/diohelper-5.15' $(run_tests_beside) $(MASK_TESTS) $(MASKED_TESTS) || failed=5.15; \
	VG='$(abspath $(BUILD))/tests/masks/without_io_uring' $(run_tests_beside) $(MASKED_TESTS) || failed="$$failed io_uring"; \
	[ -z "$$failed" ] || { echo "check-masked: failed without: $$failed" >&2; exit 1; }

# The long forms of tests that `make check-root` and `make check` run in short.
REPLAYS = 5000
.PHONY: powercut
powercut: all tests | $(FIRST) ## power cuts in the middle of saves, REPLAYS=5000 of them by chance; needs root
	@DIOH_REPLAYS='$(REPLAYS)' $(RUN_ENV) V=1 tests/run $(BUILD)/tests/integration/test_root_powercut

.PHONY: faults
faults: all tests | $(FIRST) ## every I/O of small saves and loads fails once, in every way; needs root
	@DIOH_FAULTS='$(or $(DIOH_FAULTS),1)' $(RUN_ENV) V=1 tests/run $(BUILD)/tests/integration/test_root_faults

KILLS = 10000
.PHONY: kills
kills: all tests | $(FIRST) ## helpers and managers killed in the middle of saves, KILLS=10000 of them
	@DIOH_KILLS='$(KILLS)' $(RUN_ENV) V=1 tests/run $(BUILD)/tests/integration/test_kills

.PHONY: sabotage
sabotage: | $(FIRST) ## break the code in named ways, one at a time: do the tests notice? needs root
	@tests/sabotage/sabotage $(NAMES)

.PHONY: check-qemu
check-qemu: all tests $(GUEST_IMAGE) | $(FIRST) ## the tests with a real QEMU
	@$(run_tests) $(QEMU_TESTS)

.PHONY: check-libvirt
check-libvirt: all $(GUEST_IMAGE) | $(FIRST) ## the drop-in under a real libvirtd of its own; needs root, touches no host's
	@$(run_tests) $(LIBVIRT_TESTS)

.PHONY: check-selinux
check-selinux: all tests | $(FIRST) ## the SELinux policy in a virtual machine that enforces it; the AppArmor profile's syntax
	@$(run_tests) tests/vm/test-selinux.sh tests/vm/test-apparmor.sh

.PHONY: check-asan
check-asan: | $(FIRST) ## `make check` in a build with AddressSanitizer and UndefinedBehaviorSanitizer
	@$(MAKE) --no-print-directory SANITIZE=address,undefined BUILD=build-asan check

# What has threads, moves bytes, and does not look at calls or signals that a sanitizer makes itself.
TSAN_TESTS = $(UNIT_SRC:%.c=build-tsan/%) build-tsan/tests/fuzz/fuzz_session $(MASKED_TESTS:$(BUILD)/%=build-tsan/%)
.PHONY: check-tsan
check-tsan: | $(FIRST) ## unit tests, and those that move bytes, in a build with ThreadSanitizer
	@$(MAKE) --no-print-directory SANITIZE=thread BUILD=build-tsan TESTS='$(TSAN_TESTS)' check

# Line coverage by what runs inside one process: a sealed helper may not write counters (docs/testing.md).
# (What writes is no parser.)
PARSERS = $(filter-out common/qemu_stream_put,$(CODEC_SRC:.c=)) $(addprefix common/,channel proto proto_reply) \
	helper/layout_record_open helper/layout_mapped_ram_open
COVERAGE_TESTS = $(patsubst %.c,build-coverage/%,$(UNIT_SRC) $(FUZZ_SRC))
.PHONY: coverage
coverage: | $(FIRST) ## line coverage by unit tests and corpora, by directory, and of the parsers, which want 90 %
	@find build-coverage -name '*.gcda' -delete 2>/dev/null || :
	@$(MAKE) --no-print-directory BUILD=build-coverage CFLAGS='-O0 -g --coverage -fprofile-update=atomic' LDFLAGS=--coverage \
		TESTS='$(COVERAGE_TESTS)' check
	@tests/coverage build-coverage $(PARSERS)

.PHONY: check-valgrind
check-valgrind: tests | $(FIRST) ## the unit tests under valgrind
	@VG='valgrind --quiet --leak-check=full --error-exitcode=99' TIMEOUT_FACTOR=5 $(run_tests_beside) $(UNIT_TESTS)

.PHONY: check-clang
check-clang: | $(FIRST) ## compile everything with clang, warnings being errors
	@if command -v clang >/dev/null; then \
		$(MAKE) --no-print-directory CC=clang WERROR=-Werror BUILD=build-clang all tests bench-build; \
	else \
		echo 'check-clang: skipped: no clang here'; [ "$${CI:-}" != true ]; \
	fi

# One file at a time: what they must know of the others stands in tests/analyze.h. Leaks are for sanitizers: gcc's analyzer
# knows neither cleanup attributes nor what a list holds.
ANALYZED := $(LIB_SRC) $(CODEC_SRC) $(HELPER_SRC) $(TOOL_SRC) $(EXAMPLE_SRC)
ANALYZE_CFLAGS = -std=gnu11 -D_GNU_SOURCE= -D_FILE_OFFSET_BITS=64 -pthread $(INCLUDES_tool) -Ihelper -Itool -Iexamples
ANALYSES := $(ANALYZED:%=$(BUILD)/analyze/%)
TIDIED := $(ANALYZED:%=$(BUILD)/tidied/%)

$(ANALYSES): $(BUILD)/analyze/%: % tests/analyze.h $(wildcard common/*.h helper/*.h tool/*.h examples/*.h include/*.h) | $(FIRST)
	@mkdir -p $(@D)
	$(call quiet,ANALYZE)gcc $(ANALYZE_CFLAGS) $(if $(filter %/error.c,$<),,-include tests/analyze.h) -O2 -Wall -Wextra -Werror \
		-fanalyzer -Wno-analyzer-malloc-leak -c -o $@ $<

$(TIDIED): $(BUILD)/tidied/%: % .clang-tidy $(wildcard common/*.h helper/*.h tool/*.h examples/*.h include/*.h) | $(FIRST)
	@mkdir -p $(@D)
	$(call quiet,TIDY)clang-tidy --quiet $< -- $(ANALYZE_CFLAGS) 2>$@.log || { cat $@.log >&2; exit 1; }
	@touch $@

.PHONY: cppcheck
cppcheck: | $(FIRST)
	@echo '  CPPCHECK'
	$(Q)cppcheck --quiet --std=c11 --inline-suppr --error-exitcode=1 --enable=warning,performance,portability \
		--suppressions-list=tests/cppcheck-suppressions.txt -D_GNU_SOURCE -D__x86_64__ \
		-D__BYTE_ORDER__=1234 -D__ORDER_LITTLE_ENDIAN__=1234 -D__SIZEOF_LONG__=8 $(INCLUDES_tool) -Ihelper -Itool -Iexamples \
		common helper tool examples

.PHONY: analyze
analyze: $(ANALYSES) $(TIDIED) cppcheck ## gcc -fanalyzer, clang-tidy and cppcheck find nothing; a few minutes

# One after the other whatever -j says: they share disks, loop devices and hugetlb pages. All are run even if one fails.
MORE_CHECKS = check-masked check-root check-fs check-qemu check-libvirt check-selinux check-valgrind check-asan check-clang
.PHONY: check-all check-more
check-all: ## check and check-more
check-more: ## every check-... but check-tsan: masked, root, fs, qemu, libvirt, selinux, valgrind, asan, clang
check-all check-more: all tests bench-build | $(FIRST)
	@failed=; \
	for target in $(if $(filter check-all,$@),check) $(MORE_CHECKS); do \
		echo "== $$target"; \
		$(MAKE) --no-print-directory $$target || failed="$$failed $$target"; \
	done; \
	[ -z "$$failed" ] || { echo "$@: failed:$$failed" >&2; exit 1; }

# A trial's page stays in the build directory.
ROWS =
ROUNDS = 9
DIR = /var/tmp
QUICK =
BENCH_RESULTS = $(BUILD)/bench/$(if $(QUICK),quick,results).json
BENCH_PAGE = tests/bench/page.py $(BENCH_RESULTS) $(if $(QUICK),$(BUILD)/bench,docs)

.PHONY: bench
bench: all bench-build $(GUEST_IMAGE) | $(FIRST) ## side by side with fio, dd, libvirt, QEMU: writes docs/performance.md
	@$(RUN_ENV) tests/bench/run.py --results=$(BENCH_RESULTS) --directory=$(DIR) \
		$(if $(QUICK),--quick $(if $(filter-out file,$(origin ROUNDS)),--rounds=$(ROUNDS)),--rounds=$(ROUNDS)) $(ROWS)
	@$(BENCH_PAGE)

.PHONY: bench-page
bench-page: ## docs/performance.md anew from what `make bench` has measured
	@$(BENCH_PAGE)

.PHONY: bench-shapes
bench-shapes: all bench-build | $(FIRST) ## saves of other shapes: many transfers, sparse, a manager that does not read
	@$(RUN_ENV) tests/bench/shapes.sh

.PHONY: bench-startup
bench-startup: all bench-build | $(FIRST) ## how long a helper takes until it is sealed
	@$(RUN_ENV) tests/bench/startup.sh

# ---- installing -------------------------------------------------------------------------------------------------------------

# As in the tree, so that links between them hold.
DOCS := README.md CHANGELOG.md CONTRIBUTING.md LICENSE $(wildcard docs/*.md docs/*.svg) \
	$(shell find examples -type f ! -name '*.pyc')
DOC_PROGRAMS = %.sh %/save_restore.py
MAN_PAGES := $(wildcard docs/*.[1-8])
HEADERS := $(wildcard include/*.h)
man_dir = $(DESTDIR)$(mandir)/man$(patsubst .%,%,$(suffix $(1)))

.PHONY: install
install: all ## install under $(DESTDIR)$(prefix)
	$(INSTALL) -d '$(DESTDIR)$(bindir)' '$(DESTDIR)$(libdir)/pkgconfig' '$(DESTDIR)$(includedir)' '$(DESTDIR)$(docdir)'
	$(INSTALL) -m 755 $(BUILD)/diohelper $(BUILD)/diohelper-tool '$(DESTDIR)$(bindir)'
	$(INSTALL) -m 755 $(BUILD)/libdiohelper.so.0 '$(DESTDIR)$(libdir)'
	ln -sf libdiohelper.so.0 '$(DESTDIR)$(libdir)/libdiohelper.so'
	$(INSTALL) -m 644 $(BUILD)/libdiohelper.a '$(DESTDIR)$(libdir)'
	$(pc_text) >'$(DESTDIR)$(libdir)/pkgconfig/libdiohelper.pc'
	chmod 644 '$(DESTDIR)$(libdir)/pkgconfig/libdiohelper.pc'
	$(INSTALL) -m 644 $(HEADERS) '$(DESTDIR)$(includedir)'
	$(foreach file,$(DOCS),$(INSTALL) -D -p -m $(if $(filter $(DOC_PROGRAMS),$(file)),755,644) $(file) \
		'$(DESTDIR)$(docdir)/$(file)' &&) :
	$(foreach page,$(MAN_PAGES),$(INSTALL) -D -m 644 -t '$(call man_dir,$(page))' $(page) &&) :
	$(INSTALL) -D -m 644 packaging/bash-completion '$(DESTDIR)$(completionsdir)/diohelper'
	ln -sf diohelper '$(DESTDIR)$(completionsdir)/diohelper-tool'

.PHONY: uninstall
uninstall: ## remove what install put there
	rm -f $(foreach f,diohelper diohelper-tool,'$(DESTDIR)$(bindir)/$(f)') \
		$(foreach f,so so.0 a,'$(DESTDIR)$(libdir)/libdiohelper.$(f)') \
		'$(DESTDIR)$(libdir)/pkgconfig/libdiohelper.pc' \
		$(foreach f,$(notdir $(HEADERS)),'$(DESTDIR)$(includedir)/$(f)') \
		$(foreach f,$(DOCS),'$(DESTDIR)$(docdir)/$(f)') \
		$(foreach page,$(MAN_PAGES),'$(call man_dir,$(page))/$(notdir $(page))') \
		$(foreach f,diohelper diohelper-tool,'$(DESTDIR)$(completionsdir)/$(f)')
	-[ ! -d '$(DESTDIR)$(docdir)' ] || find '$(DESTDIR)$(docdir)' -depth -type d -empty -delete

# The same commit gives the same bytes: git sorts, and takes its own date for the files'.
DIST = diohelper-$(VERSION)
.PHONY: dist
dist: ## build/diohelper-VERSION.tar.gz: what is committed, in git's HEAD
	@mkdir -p $(BUILD)
	$(Q)git -c tar.tar.gz.command='gzip -cn' archive --prefix=$(DIST)/ -o '$(abspath $(BUILD))/$(DIST).tar.gz' HEAD
	@echo $(BUILD)/$(DIST).tar.gz

# What changes the running system is not for a DESTDIR.
no_destdir = @[ -z '$(DESTDIR)' ] || { echo '$@: this changes the running system: not with DESTDIR' >&2; exit 1; }

# (Also in packaging/iohelper.)
IOHELPERS = /usr/lib/libvirt/libvirt_iohelper /usr/libexec/libvirt_iohelper

# A copy, never a link: AppArmor's profiles of libvirt permit exactly this path.
.PHONY: install-iohelper
install-iohelper: ## put the drop-in in libvirt_iohelper's place, by dpkg-divert (Debian, Ubuntu)
	$(no_destdir)
	@packaging/iohelper install $(BUILD)/diohelper

.PHONY: uninstall-iohelper
uninstall-iohelper: ## put libvirt's own libvirt_iohelper back
	$(no_destdir)
	@packaging/iohelper uninstall

# ---- SELinux --------------------------------------------------------------------------------------------------------------------

SELINUX_SRC := $(addprefix selinux/diohelper.,te if fc)
SELINUX_MODULE := $(BUILD)/selinux/diohelper.pp
SELINUX_DEVEL = /usr/share/selinux/devel/Makefile
# Which policy the machine has: Debian's is called default where no configuration says so.
SELINUX_TYPE = $(or $(shell sed -n 's/^SELINUXTYPE=//p' /etc/selinux/config 2>/dev/null),default)
# The policy names the usual places of the program; another bindir is added.
selinux_place = $(filter-out /usr/bin /usr/local/bin,$(bindir))

$(SELINUX_MODULE): $(SELINUX_SRC) $(LAST_paths)
	@[ -f $(SELINUX_DEVEL) ] || { echo 'selinux: this needs selinux-policy-dev (Fedora: selinux-policy-devel)' >&2; exit 1; }
	@mkdir -p $(@D)
	$(Q)cp $(SELINUX_SRC) $(@D)
	$(Q)$(if $(selinux_place),printf '%s/diohelper\t--\tgen_context(system_u:object_r:diohelper_exec_t,s0)\n' \
		'$(subst .,\.,$(selinux_place))' >>$(@D)/diohelper.fc,:)
	$(Q)$(MAKE) --no-print-directory -C $(@D) -f $(SELINUX_DEVEL) NAME=$(SELINUX_TYPE) diohelper.pp

.PHONY: selinux
selinux: $(SELINUX_MODULE) ## compile the SELinux policy module (selinux/README.md)

.PHONY: install-selinux
install-selinux: selinux ## load the policy module and label the installed program
	$(no_destdir)
	semodule -s $(SELINUX_TYPE) -i $(SELINUX_MODULE)
	@for file in '$(bindir)/diohelper' $(IOHELPERS); do \
		[ ! -e "$$file" ] || restorecon -F -v "$$file"; \
	done

.PHONY: uninstall-selinux
uninstall-selinux: ## take the policy module out again
	semodule -s $(SELINUX_TYPE) -r diohelper
	@for file in '$(bindir)/diohelper' $(IOHELPERS); do \
		[ ! -e "$$file" ] || restorecon -F -v "$$file"; \
	done

.PHONY: clean
clean: ## remove everything that was built
	rm -rf build build-sanitize build-asan build-tsan build-coverage build-clang $(FUZZ_BUILD) $(BUILD)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' Makefile

-include $(ALL_OBJ:.o=.d)
