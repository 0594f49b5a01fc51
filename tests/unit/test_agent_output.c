/* SPDX-License-Identifier: Apache-2.0 */
/* Names that others gave: what a terminal gets of them, what JSON does, and how wide they are. */
#include "test.h"

#include "agent/agent.h"

static void controls_and_strange_bytes_are_spelled_out(void **state)
{
	static const char *const cases[][2] = {
		{"plain", "plain"},
		{"\033[2J", "\\x1b[2J"},
		{"a\nb\x7f", "a\\x0ab\\x7f"},
		{"\xc2\x9b"
		 "31m",
		 "\\xc2\\x9b31m"}, /* CSI as UTF-8 */
		{"a\x9b"
		 "31m",
		 "a\\x9b31m"},              /* … and as a byte */
		{"\xe2\x82", "\\xe2\\x82"}, /* half a character */
		{"Größe", "Größe"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		assert_string_equal(shown(cases[i][0]).s, cases[i][1]);
}

static void columns_are_those_of_the_terminal(void **state)
{
	(void)state;
	assert_int_equal(shown("abc").columns, 3);
	assert_int_equal(shown("Größe").columns, 5);
	assert_int_equal(shown("日本").columns, 4);      /* two wide ones */
	assert_int_equal(shown("e\xcc\x81").columns, 1); /* a combining accent */
	assert_int_equal(shown("\n").columns, 4);
	assert_int_equal(column_with(3, "日本"), 4);
	assert_int_equal(column_with(7, "日本"), 7);
	assert_string_equal(shown_column("日", 5).s, "日   ");
	assert_string_equal(shown_column("longer", 3).s, "longer");
}

static void what_is_too_long_is_cut(void **state)
{
	char text[3 * SHOWN_MAX];
	struct shown s;

	(void)state;
	for (size_t i = 0; i + 3 < sizeof(text); i += 3)
		memcpy(text + i, "日", 4);
	s = shown(text);
	assert_true(strlen(s.s) < SHOWN_MAX);
	assert_string_equal(s.s + strlen(s.s) - 3, "...");
	assert_int_equal((strlen(s.s) - 3) % 3, 0); /* no half character */
	assert_int_equal(s.columns, (int)(strlen(s.s) - 3) / 3 * 2 + 3);
	assert_true(strlen(shown_column(text, 5000).s) < SHOWN_MAX);
}

/* What a call printed to stderr. */
static size_t stderr_of(void (*call)(struct agent *), struct agent *a, char *ret, size_t size)
{
	FILE *f = tmpfile();
	int saved = dup(STDERR_FILENO);
	size_t n;

	assert_non_null(f);
	assert_true(saved >= 0);
	(void)fflush(stderr);
	assert_true(dup2(fileno(f), STDERR_FILENO) >= 0);
	call(a);
	(void)fflush(stderr);
	assert_true(dup2(saved, STDERR_FILENO) >= 0);
	(void)close(saved);
	rewind(f);
	n = fread(ret, 1, size - 1, f);
	ret[n] = '\0';
	(void)fclose(f);
	return n;
}

static void show_progress(struct agent *a)
{
	progress_show(a, "restore", "vd\033]0;x\007", 1, 2);
}

static void show_odd_progress(struct agent *a)
{
	progress_show(a, "restore", "vd\xff", 1, 2);
}

static void a_disk_of_any_name_makes_progress(void **state)
{
	struct agent a = {.opt = {.progress = PROGRESS_ALWAYS}};
	char text[400];

	(void)state;
	assert_true(stderr_of(show_progress, &a, text, sizeof(text)) > 0);
	assert_non_null(strstr(text, "vd\\x1b]0;x\\x07 ["));
	a = (struct agent){.opt = {.progress = PROGRESS_ALWAYS, .json = true}};
	assert_true(stderr_of(show_odd_progress, &a, text, sizeof(text)) > 0);
	assert_non_null(strstr(text, "\"disk\":\"vd?\""));
}

static void warn_of_odd_name(struct agent *a)
{
	say_warning(a, "file %s", "x\xff");
}

static void a_warning_about_any_name_is_in_json_too(void **state)
{
	struct agent a = {.warnings = json_array()};
	char text[400];
	json_t *taken;

	(void)state;
	assert_true(stderr_of(warn_of_odd_name, &a, text, sizeof(text)) > 0);
	assert_string_equal(text, "tidemark: warning: file x\\xff\n");
	taken = take_warnings(&a);
	assert_string_equal(json_string_value(json_array_get(taken, 0)), "file x?");
	json_decref(taken);
	json_decref(a.warnings);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(controls_and_strange_bytes_are_spelled_out),
		cmocka_unit_test(columns_are_those_of_the_terminal),
		cmocka_unit_test(what_is_too_long_is_cut),
		cmocka_unit_test(a_disk_of_any_name_makes_progress),
		cmocka_unit_test(a_warning_about_any_name_is_in_json_too),
	};

	if (!shown_init())
		return 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
