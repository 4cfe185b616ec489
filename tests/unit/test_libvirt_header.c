/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * test_libvirt_header.c - libvirt's 92 bytes, field by field, and what is found in the XML behind them.
 *
 * Every XML is read from a buffer that ends where it ends, so that sanitizers and valgrind see a byte too far.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libvirt_header.h"

#define KIB UINT64_C(1024)
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)

/* ---- the 92 bytes -------------------------------------------------------------------------------- */

enum { VERSION_AT = 16, DATA_AT = 20, RUNNING_AT = 24, FORMAT_AT = 28, COOKIE_AT = 32, UNUSED_AT = 36 };

struct bytes {
	uint8_t at[DIOH_LIBVIRT_HEADER_BYTES];
};

static void put_u32(struct bytes *header, size_t at, uint32_t value)
{
	memcpy(&header->at[at], &value, sizeof(value));
}

static struct bytes make_header(void)
{
	struct bytes header = { { 0 } };

	memcpy(header.at, "LibvirtQemudSave", 16);
	put_u32(&header, VERSION_AT, 2);
	put_u32(&header, DATA_AT, 1000);
	put_u32(&header, RUNNING_AT, 1);
	put_u32(&header, FORMAT_AT, 6);
	put_u32(&header, COOKIE_AT, 700);
	return header;
}

static int read_header(const struct bytes *header, struct dioh_libvirt_header *ret, struct dioh_error *err)
{
	return dioh_libvirt_header_read(header->at, 92 + 1000, ret, err);
}

static void test_the_magic_alone_says_whose_it_is(void **state)
{
	struct bytes header = make_header();

	(void)state;
	assert_true(dioh_libvirt_header_is(header.at, 92));
	assert_true(dioh_libvirt_header_is("LibvirtQemudPart", 16));
	assert_true(dioh_libvirt_header_is("LibvirtQemudSave", 16));
	assert_false(dioh_libvirt_header_is("LibvirtQemudSave", 15));
	assert_false(dioh_libvirt_header_is("LibvirtQemudSave", 0));
	assert_false(dioh_libvirt_header_is("LibvirtQemudSavE", 16));
	assert_false(dioh_libvirt_header_is("libvirtQemudPart", 16));
}

static void test_a_header_is_read(void **state)
{
	struct dioh_error err = { .code = 1234 };
	struct dioh_libvirt_header header;
	struct bytes bytes = make_header();

	(void)state;
	memset(&header, 0xaa, sizeof(header));
	assert_int_equal(read_header(&bytes, &header, &err), 0);
	assert_int_equal(err.code, 1234);
	assert_true(header.complete);
	assert_false(header.swapped);
	assert_true(header.was_running);
	assert_int_equal(header.format, DIOH_LIBVIRT_SPARSE);
	assert_int_equal(header.data_bytes, 1000);
	assert_int_equal(header.cookie_offset, 700);

	memcpy(bytes.at, "LibvirtQemudPart", 16);
	put_u32(&bytes, RUNNING_AT, 0);
	put_u32(&bytes, FORMAT_AT, 0);
	put_u32(&bytes, COOKIE_AT, 0);
	put_u32(&bytes, UNUSED_AT, 0xffffffff); /* libvirt does not look there either */
	assert_int_equal(read_header(&bytes, &header, &err), 0);
	assert_false(header.complete);
	assert_false(header.was_running);
	assert_int_equal(header.format, DIOH_LIBVIRT_RAW);
	assert_int_equal(header.cookie_offset, 0);
	put_u32(&bytes, COOKIE_AT, 999); /* the last byte */
	assert_int_equal(read_header(&bytes, &header, &err), 0);
	put_u32(&bytes, COOKIE_AT, 1000); /* of no bytes */
	assert_int_equal(read_header(&bytes, &header, &err), 0);
	assert_int_equal(header.cookie_offset, 1000);
}

static void test_a_header_of_the_other_endianness(void **state)
{
	struct dioh_libvirt_header header;
	struct bytes bytes = make_header();

	(void)state;
	put_u32(&bytes, VERSION_AT, __builtin_bswap32(2));
	put_u32(&bytes, DATA_AT, __builtin_bswap32(1000));
	put_u32(&bytes, RUNNING_AT, __builtin_bswap32(1));
	put_u32(&bytes, FORMAT_AT, __builtin_bswap32(5));
	put_u32(&bytes, COOKIE_AT, __builtin_bswap32(700));
	assert_int_equal(read_header(&bytes, &header, NULL), 0);
	assert_true(header.swapped);
	assert_true(header.was_running);
	assert_int_equal(header.format, DIOH_LIBVIRT_ZSTD);
	assert_int_equal(header.data_bytes, 1000);
	assert_int_equal(header.cookie_offset, 700);
}

static void assert_refused(const struct bytes *bytes, uint64_t file_bytes, int code, uint64_t at,
                           const char *part)
{
	struct dioh_libvirt_header header, before;
	struct dioh_error err = { 0 };

	memset(&header, 0xaa, sizeof(header));
	before = header;
	assert_int_equal(dioh_libvirt_header_read(bytes->at, file_bytes, &header, &err), -code);
	assert_int_equal(dioh_libvirt_header_read(bytes->at, file_bytes, &header, NULL), -code);
	assert_int_equal(err.code, code);
	assert_int_equal(err.operation, DIOH_OP_PARSE);
	assert_int_equal(err.object, DIOH_OBJECT_IMAGE);
	assert_int_equal(err.offset, at);
	if (!strstr(err.text, part) || strncmp(err.text, "image: libvirt's header: ", 25) != 0)
		fail_msg("\"%s\" does not say \"%s\"", err.text, part);
	assert_memory_equal(&header, &before, sizeof(header));
}

static void refused_with(size_t at, uint32_t value, int code, const char *part)
{
	struct bytes bytes = make_header();

	put_u32(&bytes, at, value);
	assert_refused(&bytes, 92 + 1000, code, at, part);
}

static void test_every_field_is_checked(void **state)
{
	struct bytes bytes = make_header();

	(void)state;
	bytes.at[15] = 'f';
	assert_refused(&bytes, 92 + 1000, EBADMSG, 0, "the magic is missing");
	refused_with(VERSION_AT, 0, EOPNOTSUPP, "version 0 is not known");
	refused_with(VERSION_AT, 1, EOPNOTSUPP, "version 1 is not known");
	refused_with(VERSION_AT, 3, EOPNOTSUPP, "version 3 is not known");
	refused_with(VERSION_AT, __builtin_bswap32(3), EOPNOTSUPP, "version 50331648");
	refused_with(DATA_AT, 0, EBADMSG, "it has no XML");
	refused_with(DATA_AT, 1001, EBADMSG, "1001 bytes, but only 1000 follow");
	refused_with(DATA_AT, UINT32_MAX, EBADMSG, "4294967295 bytes, but only 1000");
	refused_with(COOKIE_AT, 1001, EBADMSG, "its cookie at 1001 lies outside its 1000");
	refused_with(COOKIE_AT, UINT32_MAX, EBADMSG, "its cookie at 4294967295");
	refused_with(FORMAT_AT, 7, EOPNOTSUPP, "format 7 is not known");
	refused_with(FORMAT_AT, UINT32_MAX, EOPNOTSUPP, "format 4294967295");
	bytes = make_header();
	assert_refused(&bytes, 91, EBADMSG, 91, "cut off");
	assert_refused(&bytes, 0, EBADMSG, 0, "cut off");
	assert_refused(&bytes, 92, EBADMSG, DATA_AT, "only 0 follow");
	assert_refused(&bytes, 92 + 999, EBADMSG, DATA_AT, "only 999 follow");
	put_u32(&bytes, VERSION_AT, __builtin_bswap32(2)); /* then the rest is the other way round, too */
	assert_refused(&bytes, 92 + 1000, EBADMSG, DATA_AT, "3892510720 bytes");
}

/* ---- the domain ---------------------------------------------------------------------------------- */

static struct dioh_libvirt_domain read_domain(const char *xml, size_t count)
{
	struct dioh_libvirt_domain domain;
	char *exact = malloc(count ? count : 1);

	assert_non_null(exact);
	memcpy(exact, xml, count);
	memset(&domain, 0xaa, sizeof(domain));
	dioh_libvirt_domain_read(exact, count, &domain);
	free(exact);
	assert_true(strlen(domain.name) < sizeof(domain.name));
	assert_true(strlen(domain.uuid) < sizeof(domain.uuid));
	return domain;
}

static void assert_domain(const char *xml, const char *name, const char *uuid, uint64_t memory_bytes)
{
	struct dioh_libvirt_domain domain = read_domain(xml, strlen(xml));

	if (strcmp(domain.name, name) != 0 || strcmp(domain.uuid, uuid) != 0 ||
	    domain.memory_bytes != memory_bytes)
		fail_msg("%s\ngives \"%s\", \"%s\", %" PRIu64 "\nnot   \"%s\", \"%s\", %" PRIu64, xml,
		         domain.name, domain.uuid, domain.memory_bytes, name, uuid, memory_bytes);
}

#define UUID "c7a5fdbd-edaf-9455-926a-d65c16db1809"

static const char usual[] =
	"<?xml version='1.0'?>\n"
	"<!-- WARNING: <domain><name>generated</name> -->\n"
	"<domain type='kvm' id=\"7\">\n"
	"  <name>guest-1</name>\n"
	"  <uuid>" UUID "</uuid>\n"
	"  <metadata><app:name xmlns:app='a>b'>other</app:name><name>inner</name></metadata>\n"
	"  <memory unit='KiB'>2097152</memory>\n"
	"  <currentMemory unit='KiB'>1048576</currentMemory>\n"
	"  <devices><disk><name>disk</name><uuid>1</uuid><memory unit='GiB'>9</memory></disk></devices>\n"
	"</domain>\n";

static void test_a_usual_domain(void **state)
{
	struct dioh_libvirt_domain domain;

	(void)state;
	assert_domain(usual, "guest-1", UUID, 2 * GIB);
	domain = read_domain(usual, sizeof(usual)); /* with its NUL */
	assert_string_equal(domain.name, "guest-1");
}

/* Cut off anywhere: a value is there once its end tag has come, and not before. */
static void test_every_short_length(void **state)
{
	size_t name = (size_t)(strstr(usual, "guest-1</name>") - usual) + strlen("guest-1</name>");
	size_t uuid = (size_t)(strstr(usual, "</uuid>") - usual) + strlen("</uuid>");
	size_t memory = (size_t)(strstr(usual, "</memory>") - usual) + strlen("</memory>");

	(void)state;
	for (size_t count = 0; count < sizeof(usual); count++) {
		struct dioh_libvirt_domain domain = read_domain(usual, count);

		assert_string_equal(domain.name, count >= name ? "guest-1" : "");
		assert_string_equal(domain.uuid, count >= uuid ? UUID : "");
		assert_int_equal(domain.memory_bytes, count >= memory ? 2 * GIB : 0);
	}
}

static void test_xml_ends_with_its_nul(void **state)
{
	static const char xml[] = "<domain><name>a</name>\0<uuid>b</uuid></domain>";
	struct dioh_libvirt_domain domain = read_domain(xml, sizeof(xml));

	(void)state;
	assert_string_equal(domain.name, "a");
	assert_string_equal(domain.uuid, "");
}

static void test_only_children_of_the_outermost_element_count(void **state)
{
	(void)state;
	assert_domain("<d><x><name>a</name></x><name>b</name></d>", "b", "", 0);
	assert_domain("<status><domain><name>a</name></domain></status>", "", "", 0);
	assert_domain("<name>a</name>", "", "", 0);
	assert_domain("<d></d><d><name>a</name></d>", "", "", 0);
	assert_domain("<d/><d><name>a</name></d>", "", "", 0);
	assert_domain("</d><d><name>a</name></d>", "", "", 0);
	assert_domain("<d><name>a<name>b</name>c</name></d>", "ac", "", 0);
	assert_domain("<d><name>a<x/>b<x></x>c</name><uuid>u</uuid></d>", "abc", "u", 0);
	assert_domain("<d><x/><x a='/'></x><name>a</name></d>", "a", "", 0);
	assert_domain("<d><names>a</names><nam>b</nam><Name>c</Name></d>", "", "", 0);
	assert_domain("<d><name >a</name ></d >", "a", "", 0);
	assert_domain("<d><name\n\ta='1'>a</name\n></d>", "a", "", 0);
}

/* As libvirt's string(./name[1]). */
static void test_the_first_of_several_counts(void **state)
{
	(void)state;
	assert_domain("<d><name>a</name><name>b</name></d>", "a", "", 0);
	assert_domain("<d><name/><name>b</name></d>", "", "", 0);
	assert_domain("<d><memory unit='b'>1</memory><memory unit='b'>2</memory></d>", "", "", 1);
}

static void test_what_looks_like_tags_and_is_none(void **state)
{
	(void)state;
	assert_domain("<d><!-- <name>a</name> --><name>b</name></d>", "b", "", 0);
	assert_domain("<d><!-- -- > </d> --><name>b</name></d>", "b", "", 0);
	assert_domain("<d><!----><name>b</name></d>", "b", "", 0);
	assert_domain("<d><!--><name>b</name></d>", "", "", 0); /* a comment that does not end */
	assert_domain("<d><name>a<!-- x -->b</name></d>", "ab", "", 0);
	assert_domain("<d><![CDATA[<name>a</name></d>]]><name>b</name></d>", "b", "", 0);
	assert_domain("<d><name><![CDATA[<a>&amp;]]]]></name></d>", "<a>&amp;]]", "", 0);
	assert_domain("<d><name>a<![CDATA[b]]>c</name></d>", "abc", "", 0);
	assert_domain("<d><?php <name>a</name> ?><name>b</name></d>", "b", "", 0);
	assert_domain("<d a='<name>x</name>' b=\"/>\"><name>b</name></d>", "b", "", 0);
	assert_domain("<d><x a='>' b='\"' c=\"'>\"/><name>b</name></d>", "b", "", 0);
	assert_domain("<d><x a='/>'><name>a</name></x><name>b</name></d>", "b", "", 0);
	assert_domain("<!DOCTYPE d [<!ENTITY x '<name>a</name>'>]><d><name>b</name></d>", "", "", 0);
	assert_domain("<d><name>a</name><!ELEMENT x><uuid>u</uuid></d>", "a", "", 0);
	assert_domain("<d><!x/><name>a</name></d>", "", "", 0);
	assert_domain("<d><name a='>a</name></d>", "", "", 0); /* a quote that does not end */
}

static void test_entities(void **state)
{
	(void)state;
	assert_domain("<d><name>&lt;&gt;&amp;&quot;&apos;</name></d>", "<>&\"'", "", 0);
	assert_domain("<d><name>&#65;&#x42;&#x63;&#00068;</name></d>", "ABcD", "", 0);
	assert_domain("<d><name>&#xe4;&#x20ac;&#x1F600;</name></d>", "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", "", 0);
	assert_domain("<d><name>&#x7f;&#x80;&#x7ff;&#x800;</name></d>", "\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80", "", 0);
	assert_domain("<d><name>&#xffff;&#x10000;&#x10ffff;</name></d>",
	              "\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf", "", 0);
	assert_domain("<d><name>&amp;lt;</name></d>", "&lt;", "", 0); /* once */
	assert_domain("<d><memory unit='&#107;'>1</memory></d>", "", "", 1024);
	assert_domain("<d><memory>&#50;</memory></d>", "", "", 2048);
}

/* What is no XML is left empty, and the rest is read all the same. */
static void test_what_is_no_entity(void **state)
{
	static const char *const wrong[] = {
		"&", "&;", "&&amp;", "&amp", "&LT;", "&foo;", "&#;", "&#x;", "&#0;", "&#xd800;", "&#xdfff;",
		"&#x110000;", "&#99999999999999999999;", "&#x100000041;", "&#12a;", "&#xg;", "&# 65;", "&#-65;",
		"a & b", "a &b c;",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		char xml[200];

		snprintf(xml, sizeof(xml), "<d><name>%s</name><uuid>u</uuid></d>", wrong[i]);
		assert_domain(xml, "", "u", 0);
	}
}

static void test_control_characters(void **state)
{
	(void)state;
	assert_domain("<d><name>a\x01" "b\nc\x1f d\x1b[31m</name></d>", "a?b?c? d?[31m", "", 0);
	assert_domain("<d><name>&#10;&#x1b;\xc3\xa4</name></d>", "??\xc3\xa4", "", 0);
	assert_domain("<d><uuid>\n  a-b\t </uuid></d>", "", "a-b", 0);
	assert_domain("<d><name> a </name></d>", " a ", "", 0); /* libvirt does not trim it */
}

/* What does not fit is not cut off in the middle: it is left out. */
static void test_long_values(void **state)
{
	char xml[400], value[300];

	(void)state;
	memset(value, 'x', sizeof(value));
	for (int length = 250; length < 260; length++) {
		snprintf(xml, sizeof(xml), "<d><name>%.*s</name><uuid>u</uuid></d>", length, value);
		value[length] = '\0';
		assert_domain(xml, length <= 255 ? value : "", "u", 0);
		value[length] = 'x';
	}
	for (int length = 36; length < 44; length++) {
		snprintf(xml, sizeof(xml), "<d><uuid>%.*s</uuid><name>n</name></d>", length, value);
		value[length] = '\0';
		assert_domain(xml, "n", length <= 39 ? value : "", 0);
		value[length] = 'x';
	}
}

static void test_units(void **state)
{
	static const struct {
		const char *unit;
		uint64_t bytes;
	} units[] = {
		{ "b", 1 }, { "byte", 1 }, { "bytes", 1 }, { "Bytes", 1 },
		{ "k", KIB }, { "K", KIB }, { "KiB", KIB }, { "kib", KIB }, { "KB", 1000 }, { "kb", 1000 },
		{ "M", MIB }, { "MiB", MIB }, { "MB", 1000000 }, { "G", GIB }, { "GiB", GIB }, { "GB", 1000000000 },
		{ "T", 1024 * GIB }, { "TiB", 1024 * GIB }, { "TB", UINT64_C(1000000000000) },
		{ "P", MIB * GIB }, { "PB", UINT64_C(1000000000000000) }, { "E", GIB * GIB },
		{ "EB", UINT64_C(1000000000000000000) }, { "", KIB },
		/* none */
		{ "x", 0 }, { "Ki", 0 }, { "KiBs", 0 }, { "KBs", 0 }, { "bb", 0 }, { "iB", 0 }, { "Z", 0 },
		{ " KiB", 0 }, { "\xcb", 0 }, { "+", 0 }, { "KiBKiBKiBKiBKiBKiB", 0 }, { "&x;", 0 },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
		char xml[100];

		snprintf(xml, sizeof(xml), "<d><memory unit='%s'>3</memory></d>", units[i].unit);
		assert_domain(xml, "", "", 3 * units[i].bytes);
		snprintf(xml, sizeof(xml), "<d><memory a='b' unit = \"%s\" c='d'>3</memory></d>", units[i].unit);
		assert_domain(xml, "", "", 3 * units[i].bytes);
	}
	assert_domain("<d><memory>3</memory></d>", "", "", 3072);
	assert_domain("<d><memory xunit='b' dumpCore='on'>3</memory></d>", "", "", 3072);
	assert_domain("<d><memory unit>3</memory></d>", "", "", 3072); /* not XML: as if it had none */
}

static void test_numbers(void **state)
{
	(void)state;
	assert_domain("<d><memory unit='b'> \n 17\t</memory></d>", "", "", 17);
	assert_domain("<d><memory unit='b'>0017</memory></d>", "", "", 17);
	assert_domain("<d><memory unit='b'>18446744073709551615</memory></d>", "", "", UINT64_MAX);
	assert_domain("<d><memory unit='b'>18446744073709551616</memory></d>", "", "", 0);
	assert_domain("<d><memory unit='b'>18446744073709551620</memory></d>", "", "", 0);
	assert_domain("<d><memory unit='b'>99999999999999999999999999</memory></d>", "", "", 0);
	assert_domain("<d><memory unit='KiB'>18014398509481983</memory></d>", "", "", UINT64_MAX - 1023);
	assert_domain("<d><memory unit='KiB'>18014398509481984</memory></d>", "", "", 0);
	assert_domain("<d><memory unit='EiB'>15</memory></d>", "", "", 15 * GIB * GIB);
	assert_domain("<d><memory unit='EiB'>16</memory></d>", "", "", 0);
	assert_domain("<d><memory unit='b'/></d>", "", "", 0);
	assert_domain("<d><memory unit='b'></memory></d>", "", "", 0);
	assert_domain("<d><memory unit='b'>-1</memory></d>", "", "", 0);
	assert_domain("<d><memory unit='b'>+1</memory></d>", "", "", 0);
	assert_domain("<d><memory unit='b'>0x10</memory></d>", "", "", 0);
	assert_domain("<d><memory unit='b'>1 2</memory></d>", "", "", 0);
	assert_domain("<d><memory unit='b'>1.5</memory></d>", "", "", 0);
}

/* Deep, and long without an end: the walk is one, and does not recurse. */
static void test_depth(void **state)
{
	enum { DEPTH = 1000000 };
	char *xml = malloc(3 * DEPTH + 100);
	struct dioh_libvirt_domain domain;

	(void)state;
	assert_non_null(xml);
	for (size_t i = 0; i < DEPTH; i++)
		memcpy(xml + 3 * i, "<d>", 3);
	strcpy(xml + 3 * (size_t)DEPTH, "<name>a</name>");
	domain = read_domain(xml, strlen(xml));
	assert_string_equal(domain.name, "");
	for (size_t i = 0; i < DEPTH; i++)
		memcpy(xml + 3 * i, i % 2 ? "&&&" : "<!-", 3);
	memcpy(xml, "<d><name>", 9);
	domain = read_domain(xml, strlen(xml));
	assert_string_equal(domain.name, "");
	free(xml);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_magic_alone_says_whose_it_is),
		cmocka_unit_test(test_a_header_is_read),
		cmocka_unit_test(test_a_header_of_the_other_endianness),
		cmocka_unit_test(test_every_field_is_checked),
		cmocka_unit_test(test_a_usual_domain),
		cmocka_unit_test(test_every_short_length),
		cmocka_unit_test(test_xml_ends_with_its_nul),
		cmocka_unit_test(test_only_children_of_the_outermost_element_count),
		cmocka_unit_test(test_the_first_of_several_counts),
		cmocka_unit_test(test_what_looks_like_tags_and_is_none),
		cmocka_unit_test(test_entities),
		cmocka_unit_test(test_what_is_no_entity),
		cmocka_unit_test(test_control_characters),
		cmocka_unit_test(test_long_values),
		cmocka_unit_test(test_units),
		cmocka_unit_test(test_numbers),
		cmocka_unit_test(test_depth),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
