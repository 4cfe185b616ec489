# SPDX-License-Identifier: LGPL-2.1-or-later
#
# guest.mk - builds $(GUEST_IMAGE), the boot disk of the guest that the demo and the QEMU tests run. Included by the
# Makefiles of the tree and of the examples. Any GNU as and ld that know x86 will do; on another machine name a cross tool chain:
# make GUEST_AS=x86_64-linux-gnu-as GUEST_LD=x86_64-linux-gnu-ld (The tree's Makefile has $(call quiet,WHAT), which says what is
# made; where there is none, make prints the commands.)

BUILD ?= build
GUEST_DIR := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))
GUEST_AS ?= as
GUEST_LD ?= ld
GUEST_IMAGE := $(BUILD)/guest/boot.img

$(BUILD)/guest/guest.o: $(GUEST_DIR)/guest.S
	@mkdir -p $(@D)
	$(call quiet,AS)$(GUEST_AS) --32 -o $@ $<

$(GUEST_IMAGE): $(BUILD)/guest/guest.o
	$(call quiet,LD)$(GUEST_LD) -m elf_i386 -Ttext 0x7c00 --oformat binary -o $@ $<
	@chmod -x $@
