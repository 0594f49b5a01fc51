/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include "common/common.h"

#include <errno.h>

static uint64_t parse_size(const char *text)
{
	uint64_t v = 0;

	assert_int_equal(size_parse(text, &v, NULL), 0);
	return v;
}

static void sizes_have_units(void **state)
{
	(void)state;
	assert_int_equal(parse_size("0"), 0);
	assert_int_equal(parse_size("123"), 123);
	assert_int_equal(parse_size("64K"), 65536);
	assert_int_equal(parse_size("64k"), 65536);
	assert_int_equal(parse_size("64KiB"), 65536);
	assert_int_equal(parse_size("1.5G"), UINT64_C(3) << 29);
	assert_int_equal(parse_size("16T"), UINT64_C(16) << 40);
	assert_int_equal(parse_size("18446744073709551615"), UINT64_MAX);
}

static void sizes_that_make_no_sense_are_refused(void **state)
{
	static const char *const bad[] = {
		"",         "x", "-1", "1X", "1KB", "K", "1 K", "1.5.5", "18446744073709551616",
		"16777216T"};
	uint64_t v;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(size_parse(bad[i], &v, NULL), TM_E_USAGE);
}

static void sizes_are_printed_for_people(void **state)
{
	char text[SIZE_TEXT_MAX];

	(void)state;
	size_format(0, text);
	assert_string_equal(text, "0 B");
	size_format(1023, text);
	assert_string_equal(text, "1023 B");
	size_format(65536, text);
	assert_string_equal(text, "64.0 KiB");
	size_format(UINT64_MAX, text);
	assert_string_equal(text, "16384.0 PiB");
}

static uint64_t parse_time(const char *text)
{
	uint64_t v = 0;

	assert_int_equal(time_parse(text, &v, NULL), 0);
	return v;
}

static void times_include_all_they_name(void **state)
{
	char text[TIME_TEXT_MAX];

	(void)state;
	assert_int_equal(parse_time("1970-01-01T00:00:00Z"), 999);
	assert_int_equal(parse_time("2026-11-21T03:00Z"), UINT64_C(1795230059999));
	assert_int_equal(parse_time("2026-11-21T04:00+01:00"), UINT64_C(1795230059999));
	assert_int_equal(parse_time("2026-11-21T03:00:59.123Z"), UINT64_C(1795230059999));
	time_format_utc(UINT64_C(1795230059999), text);
	assert_string_equal(text, "2026-11-21T03:00:59Z");
	(void)setenv("TZ", "UTC", 1);
	tzset();
	assert_int_equal(parse_time("2026-11-21"), UINT64_C(1795305599999));
	time_format_local(UINT64_C(1795230000000), text);
	assert_string_equal(text, "2026-11-21 03:00:00");
}

static void times_that_make_no_sense_are_refused(void **state)
{
	static const char *const bad[] = {"",
					  "yesterday",
					  "2026",
					  "2026-13-01",
					  "2026-00-01",
					  "2026-01-32",
					  "2026-01-01T25",
					  "2026-01-01T03:00+1",
					  "2026-01-01X",
					  "26-01-01"};
	uint64_t v;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(time_parse(bad[i], &v, NULL), TM_E_USAGE);
}

static void utf8_is_told_from_other_bytes(void **state)
{
	static const char *const good[] = {"", "plain", "caf\xc3\xa9", "\xe2\x82\xac",
					   "\xf0\x9f\x92\xbe"};
	static const char *const bad[] = {"caf\xe9",      "\xc3",         "\xc0\xaf",
					  "\xe0\x80\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80",
					  "\xff",         "\xe2\x82"};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_true(text_is_utf8(good[i]));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_false(text_is_utf8(bad[i]));
}

static void ids_survive_their_text(void **state)
{
	struct tm_id a, b;
	struct tm_id_text t;

	(void)state;
	assert_int_equal(id_new(&a, NULL), 0);
	t = id_text(&a);
	assert_true(id_parse(t.s, &b));
	assert_true(id_equal(&a, &b));
	t.s[31] = 'G';
	assert_false(id_parse(t.s, &b));
	t.s[31] = '\0';
	assert_false(id_parse(t.s, &b));
	assert_int_equal(id_new_timed(UINT64_C(0x0123456789ab), &a, NULL), 0);
	assert_memory_equal(a.b, "\x01\x23\x45\x67\x89\xab", 6);
}

static void crc32c_is_the_castagnoli_one(void **state)
{
	uint8_t data[8192], zeroes[32] = {0};
	uint32_t whole, parts = 0;

	(void)state;
	/* RFC 3720, B.4 */
	assert_int_equal(crc32c(0, zeroes, sizeof(zeroes)), 0x8a9136aa);
	assert_int_equal(crc32c(0, "123456789", 9), 0xe3069283);
	for (size_t i = 0; i < sizeof(data); i++)
		data[i] = (uint8_t)(i * 7 + i / 256);
	whole = crc32c(0, data, sizeof(data));
	for (size_t i = 0; i < sizeof(data); i++)
		parts = crc32c(parts, data + i, 1);
	assert_int_equal(whole, parts);
}

static void errors_keep_the_first_and_grow_prefixes(void **state)
{
	struct error err = {0};

	(void)state;
	assert_int_equal(error_set(&err, TM_E_CORRUPT, "bad\nbyte %d", 7), TM_E_CORRUPT);
	assert_int_equal(error_set(&err, TM_E_IO, "second"), TM_E_IO);
	assert_int_equal(err.code, TM_E_CORRUPT);
	error_prefix(&err, "disk %s", "vda");
	error_append(&err, " (%s)", "look");
	assert_string_equal(err.text, "disk vda: bad byte 7 (look)");
	error_clear(&err);
	assert_int_equal(error_errno(&err, ENOSPC, "write"), TM_E_NOSPACE);
	assert_string_equal(err.text, "write: No space left on device");
	error_prefix(NULL, "nothing");
}

static bool text_ends_in(const char *text, const char *end)
{
	size_t n = strlen(text), k = strlen(end);

	return n >= k && strcmp(text + n - k, end) == 0;
}

/* Whatever is long in it: the advice at its end is kept, and where it happened. */
static void a_long_error_keeps_both_ends(void **state)
{
	enum { LONG = 5000 };
	char path[LONG + 1], umlauts[LONG + 1];
	struct error err = {0};

	(void)state;
	(void)memset(path, 'p', LONG);
	path[LONG] = '\0';
	for (size_t i = 0; i < LONG; i += 2)
		(void)memcpy(umlauts + i, "\xc3\xa4", 2);
	umlauts[LONG] = '\0';
	assert_int_equal(error_set(&err, TM_E_STALE, "the file /%s/x is gone: put it back", path),
			 TM_E_STALE);
	assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
	assert_memory_equal(err.text, "the file /pp", 12);
	assert_non_null(strstr(err.text, "p[...]p"));
	assert_true(text_ends_in(err.text, "p/x is gone: put it back"));
	/* However often it grows, it has one gap. */
	for (unsigned i = 0; i < 40; i++) {
		error_prefix(&err, "disk vda%u", i);
		assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
		error_append(&err, "; and look at %u", i);
		assert_non_null(strstr(err.text, "[...]"));
		assert_null(strstr(strstr(err.text, "[...]") + 5, ".."));
	}
	assert_memory_equal(err.text, "disk vda39: disk vda38: ", 24);
	assert_true(text_ends_in(err.text, "; and look at 38; and look at 39"));
	for (size_t i = 0; i < 4; i++) { /* no half of a character */
		error_clear(&err);
		assert_int_equal(error_set(&err, TM_E_IO, "%.*s%s!", (int)i, "....", umlauts),
				 TM_E_IO);
		assert_true(text_is_utf8(err.text));
		assert_true(text_ends_in(err.text, "\xc3\xa4!"));
	}
	error_clear(&err);
	assert_int_equal(error_set(&err, TM_E_IO, "%.767s", path), TM_E_IO);
	assert_null(strchr(err.text, '['));
	assert_int_equal(strlen(err.text), 767);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sizes_have_units),
		cmocka_unit_test(sizes_that_make_no_sense_are_refused),
		cmocka_unit_test(sizes_are_printed_for_people),
		cmocka_unit_test(times_include_all_they_name),
		cmocka_unit_test(times_that_make_no_sense_are_refused),
		cmocka_unit_test(utf8_is_told_from_other_bytes),
		cmocka_unit_test(ids_survive_their_text),
		cmocka_unit_test(crc32c_is_the_castagnoli_one),
		cmocka_unit_test(errors_keep_the_first_and_grow_prefixes),
		cmocka_unit_test(a_long_error_keeps_both_ends),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
