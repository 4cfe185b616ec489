/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * guest.S - a guest that is nothing but a witness for its own memory.
 *
 * It needs no kernel: the BIOS loads the first sector, that loads the rest, and 32-bit code then fills the memory from
 * 1 MiB to the end of what int 15h says lies below the PCI hole, and checks it for ever. Each pass it counts on COM1:
 *
 *     guest: started with 255 MiB
 *     guest: pass 1 memory ok
 *     guest: MEMORY DAMAGED at 0x01234000 in pass 2
 *     guest: PROCESSOR AND MEMORY DISAGREE in pass 2
 *
 * Memory is dealt out in groups of 64 pages (256 KiB), by (address >> 18) & 7:
 *   0-3  data, written once             4  data, new in each pass
 *   5    zero, but written once         6  never touched: a hole, if whoever owns the memory keeps holes
 *   7    by page & 3: data, never touched, zero, and a page that is data in even passes and zero in odd ones
 *
 * A word of data is the next of a linear congruential sequence that starts from the page's address and, where the page
 * changes, the pass: no two pages are alike, and a page that comes back at a wrong place or from a wrong time is seen.
 *
 * The number of the pass stands twice: in memory (`pass`) and in a register (ebp). A save keeps the one with the
 * memory and the other with the state of the devices; they disagree if the two are not from the same moment.
 *
 * Registers of the 32-bit part: ebp = pass, edi = page being worked on, esi = end of memory. 8 MiB are the least.
 */

	.set BASE, 0x7c00
	.set SECTORS, 4
	.set COM1, 0x3f8
	.set FIRST, 0x100000
	.set E820, 0x6000		/* where an entry of the memory map is put */
	.set MULTIPLIER, 1664525
	.set INCREMENT, 1013904223

	.text
	.globl _start

/* ---- sector 0: 16-bit code, as the BIOS starts it with the drive in dl ------------------------------------------- */

	.code16
_start:
	cli
	cld
	xorl	%eax, %eax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movl	$BASE, %esp
	ljmp	$0, $load

load:	/* the other sectors, by the BIOS's extended read */
	movb	$0x42, %ah
	movw	$packet, %si
	int	$0x13
	jc	halt16

	/* the memory map: we want the entry that starts at 1 MiB */
	xorl	%ebx, %ebx
next_entry:
	movl	$0xe820, %eax
	movl	$0x534d4150, %edx	/* "SMAP" */
	movl	$20, %ecx
	movw	$E820, %di
	int	$0x15
	jc	halt16
	cmpl	$FIRST, E820
	je	found
	testl	%ebx, %ebx
	jnz	next_entry
halt16:
	hlt
	jmp	halt16

found:
	movl	E820 + 8, %esi
	addl	$FIRST, %esi
	andl	$~0xfff, %esi
	inb	$0x92, %al		/* address line 20 */
	orb	$2, %al
	andb	$~1, %al
	outb	%al, $0x92
	lgdt	gdt_pointer
	movl	%cr0, %eax
	orl	$1, %eax
	movl	%eax, %cr0
	ljmpl	$8, $protected

	.balign	4
packet:	/* of the extended read: size, sectors, to offset:segment, from sector 1 */
	.word	16, SECTORS - 1, BASE + 512, 0
	.quad	1
gdt:	/* none, flat code, flat data */
	.quad	0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdt_pointer:
	.word	gdt_pointer - gdt - 1
	.long	gdt

	.org	510
	.word	0xaa55

/* ---- the other sectors: 32-bit code ----------------------------------------------------------------------------- */

	.code32
protected:
	movw	$16, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	xorl	%ebp, %ebp
	call	serial_setup
	movl	$text_started, %edx
	call	print
	movl	%esi, %eax
	subl	$FIRST, %eax
	shrl	$20, %eax
	call	print_decimal
	movl	$text_mib, %edx
	call	print

	movl	$fill_page, %ebx	/* the first time, everything */
	call	for_each_page

pass_start:
	incl	%ebp
	incl	pass
	movl	$change_page, %ebx
	call	for_each_page
	call	check_pass
	movl	$check_page, %ebx
	call	for_each_page
	call	check_pass
	movl	$text_pass, %edx
	call	print
	movl	%ebp, %eax
	call	print_decimal
	movl	$text_ok, %edx
	call	print
pass_end:
	call	pause
	jmp	pass_start

check_pass:
	cmpl	%ebp, pass
	je	1f
	movl	$text_disagree, %edx
	jmp	complain
1:	ret

/* Says what edx says and begins the next pass, with the stack as it was: there is no way back into this one. */
damaged:
	movl	$text_damaged, %edx
	call	print
	movl	%edi, %eax
	call	print_hexadecimal
	movl	$text_in_pass, %edx
complain:
	call	print
	movl	%ebp, %eax
	call	print_decimal
	movl	$text_newline, %edx
	call	print
	movl	%ebp, pass
	movl	$BASE, %esp
	jmp	pass_end

/* Calls *ebx for every page, which may destroy eax, ecx and edx. */
for_each_page:
	movl	$FIRST, %edi
1:	call	*%ebx
	addl	$4096, %edi
	cmpl	%esi, %edi
	jb	1b
	ret

/* ---- what a page is and what should stand in it ------------------------------------------------------------------- */

	.set KIND_DATA, 0
	.set KIND_CHANGING, 1
	.set KIND_ZERO, 2
	.set KIND_UNTOUCHED, 3
	.set KIND_FLIPPING, 4		/* resolved by kind_of to ZERO or CHANGING */

/* eax = the kind of page edi; destroys ecx. */
kind_of:
	movl	%edi, %ecx
	shrl	$18, %ecx
	andl	$7, %ecx
	movzbl	kinds(%ecx), %eax
	cmpl	$7, %ecx
	jne	1f
	movl	%edi, %ecx
	shrl	$12, %ecx
	andl	$3, %ecx
	movzbl	kinds_mixed(%ecx), %eax
1:	cmpl	$KIND_FLIPPING, %eax
	jne	3f
	movl	$KIND_CHANGING, %eax
	testl	$1, %ebp
	jz	3f
	movl	$KIND_ZERO, %eax
3:	ret

/* eax = the first word of data page edi, eax being its kind; destroys ecx. */
first_word:
	xorl	%ecx, %ecx
	cmpl	$KIND_CHANGING, %eax
	jne	1f
	movl	%ebp, %ecx
1:	imull	$0x9e3779b1, %ecx, %ecx
	leal	1(%edi, %ecx), %eax
	imull	$0x85ebca6b, %eax, %eax
	movl	%eax, %ecx
	shrl	$15, %ecx
	xorl	%ecx, %eax
	ret

/* Writes page edi as it should be. */
fill_page:
	call	kind_of
	cmpl	$KIND_UNTOUCHED, %eax
	je	3f
	cmpl	$KIND_ZERO, %eax
	je	2f
	call	first_word
	xorl	%ecx, %ecx
1:	.rept	8
	movl	%eax, (%edi, %ecx)
	imull	$MULTIPLIER, %eax, %eax
	addl	$INCREMENT, %eax
	addl	$4, %ecx
	.endr
	cmpl	$4096, %ecx
	jb	1b
	ret
2:	movl	$1024, %ecx
	xorl	%eax, %eax
	pushl	%edi
	rep stosl
	popl	%edi
3:	ret

/* Writes page edi if the pass changes it. */
change_page:
	movl	%edi, %ecx
	shrl	$18, %ecx
	andl	$7, %ecx
	cmpl	$4, %ecx
	je	fill_page
	cmpl	$7, %ecx
	jne	1f
	movl	%edi, %ecx
	andl	$0x3000, %ecx
	cmpl	$0x3000, %ecx
	je	fill_page
1:	ret

/* Goes to `damaged`, with edi at the word, unless page edi is as it should be. Untouched pages stay untouched. */
check_page:
	call	kind_of
	cmpl	$KIND_UNTOUCHED, %eax
	je	3f
	cmpl	$KIND_ZERO, %eax
	je	2f
	call	first_word
	xorl	%ecx, %ecx
1:	.rept	8
	cmpl	%eax, (%edi, %ecx)
	jne	wrong
	imull	$MULTIPLIER, %eax, %eax
	addl	$INCREMENT, %eax
	addl	$4, %ecx
	.endr
	cmpl	$4096, %ecx
	jb	1b
	ret
2:	xorl	%ecx, %ecx
4:	cmpl	$0, (%edi, %ecx)
	jne	wrong
	cmpl	$0, 4(%edi, %ecx)
	jne	5f
	addl	$8, %ecx
	cmpl	$4096, %ecx
	jb	4b
3:	ret
5:	addl	$4, %ecx
wrong:
	addl	%ecx, %edi
	jmp	damaged

/* ---- the serial port and the clock ------------------------------------------------------------------------------------ */

serial_setup:	/* 115200 baud, 8 bits, no interrupts */
	movl	$serial_settings, %ecx
1:	movzwl	(%ecx), %edx
	movb	2(%ecx), %al
	outb	%al, %dx
	addl	$3, %ecx
	cmpl	$serial_settings_end, %ecx
	jb	1b
	ret

/* Prints al. A port that never becomes ready must not stop the guest: it tries a million times. */
print_byte:
	pushl	%edx
	pushl	%ecx
	pushl	%eax
	movl	$1000000, %ecx
	movl	$COM1 + 5, %edx
1:	inb	%dx, %al
	testb	$0x20, %al
	jnz	2f
	decl	%ecx
	jnz	1b
2:	popl	%eax
	movl	$COM1, %edx
	outb	%al, %dx
	popl	%ecx
	popl	%edx
	ret

print:	/* the text at edx, up to its NUL */
	movb	(%edx), %al
	testb	%al, %al
	jz	1f
	call	print_byte
	incl	%edx
	jmp	print
1:	ret

print_decimal:	/* eax */
	movl	$10, %ecx
	xorl	%edx, %edx
	divl	%ecx
	pushl	%edx
	testl	%eax, %eax
	jz	1f
	call	print_decimal
1:	popl	%eax
	addb	$'0', %al
	jmp	print_byte

print_hexadecimal:	/* eax, eight digits */
	movl	$8, %ecx
	movl	%eax, %edx
1:	roll	$4, %edx
	movl	%edx, %eax
	andl	$15, %eax
	movb	digits(%eax), %al
	call	print_byte
	decl	%ecx
	jnz	1b
	ret

/*
 * At least 0.2 s, so that the serial port sees no more than five lines a second, whatever the machine: four times the
 * longest count of the timer's channel 2, whose end shows in bit 5 of port 0x61.
 */
pause:
	movl	$4, %ecx
1:	inb	$0x61, %al
	andb	$0xfc, %al
	orb	$1, %al			/* count, but be silent */
	outb	%al, $0x61
	movb	$0xb0, %al		/* channel 2, both bytes, mode 0 */
	outb	%al, $0x43
	movb	$0xff, %al
	outb	%al, $0x42
	outb	%al, $0x42
2:	inb	$0x61, %al
	testb	$0x20, %al
	jz	2b
	decl	%ecx
	jnz	1b
	ret

/* ---- data -------------------------------------------------------------------------------------------------------------- */

	.balign	4
pass:	.long	0
kinds:	.byte	KIND_DATA, KIND_DATA, KIND_DATA, KIND_DATA, KIND_CHANGING, KIND_ZERO, KIND_UNTOUCHED, 0
kinds_mixed:
	.byte	KIND_DATA, KIND_UNTOUCHED, KIND_ZERO, KIND_FLIPPING

	.macro	setting port, value
	.word	\port
	.byte	\value
	.endm
serial_settings:
	setting	COM1 + 1, 0x00
	setting	COM1 + 3, 0x80
	setting	COM1 + 0, 0x01
	setting	COM1 + 1, 0x00
	setting	COM1 + 3, 0x03
	setting	COM1 + 2, 0x07
	setting	COM1 + 4, 0x03
serial_settings_end:

digits:	.ascii	"0123456789abcdef"
text_started:
	.asciz	"guest: started with "
text_mib:
	.asciz	" MiB\n"
text_pass:
	.asciz	"guest: pass "
text_ok:
	.asciz	" memory ok\n"
text_damaged:
	.asciz	"guest: MEMORY DAMAGED at 0x"
text_disagree:
	.ascii	"guest: PROCESSOR AND MEMORY DISAGREE"
text_in_pass:
	.asciz	" in pass "
text_newline:
	.asciz	"\n"

	.org	512 * SECTORS
	.org	0x100000		/* SeaBIOS does not boot from a disk smaller than a cylinder */
