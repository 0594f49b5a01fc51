/* SPDX-License-Identifier: Apache-2.0 */
/* Retention, as a table: points by their times, rules, what stays (docs/format.md, "Retention"). */
#include "test.h"

#include "repo/repo.h"

#define MAX  16
#define MIN  UINT64_C(60000)
#define HOUR (60 * MIN)
#define DAY  (24 * HOUR)
/* 2023-11-14T22:13:20Z, a Tuesday */
#define T0 UINT64_C(1700000000000)

struct row {
	const char *what;
	struct retention rule;
	uint64_t now;
	unsigned n;
	uint64_t time[MAX]; /* in order of commit */
	const char
		*kept; /* K or -, the same order; P: protected, T: tagged; t: tagged and not kept */
};

static const char *const tags[] = {"keep", "me"}, *const listed[] = {"me,keep"},
			 *const halves[] = {"keep,you", "you", "keep,me,you"};

static const struct row rows[] = {
	{"last counts commits, whatever the times say",
	 {.last = 2},
	 T0 + 9 * DAY,
	 4,
	 {T0 + 3 * DAY, T0 + 2 * DAY, T0 + DAY, T0},
	 "--KK"},
	{"all", {.last = RETAIN_ALL}, T0, 3, {T0, T0, T0}, "KKK"},
	{"the newest of each day, and the oldest while the count lasts",
	 {.daily = 3},
	 T0 + 9 * DAY,
	 5,
	 {T0, T0 + HOUR, T0 + DAY, T0 + DAY + HOUR, T0 + 2 * DAY},
	 "-K-KK"},
	{"the count ends before the oldest",
	 {.daily = 2},
	 T0 + 9 * DAY,
	 4,
	 {T0, T0 + DAY, T0 + DAY + HOUR, T0 + 2 * DAY},
	 "--KK"},
	{"the oldest stays while the count lasts",
	 {.daily = 5},
	 T0 + 9 * DAY,
	 4,
	 {T0, T0 + MIN, T0 + 2 * MIN, T0 + DAY},
	 "K-KK"},
	{"hours", {.hourly = 2}, T0 + DAY, 4, {T0, T0 + MIN, T0 + HOUR, T0 + HOUR + MIN}, "-K-K"},
	{"weeks begin on Monday",
	 {.weekly = 2},
	 T0 + 30 * DAY,
	 4,
	 {T0 + 4 * DAY, T0 + 5 * DAY, T0 + 6 * DAY, T0 + 7 * DAY},
	 "-K-K"},
	{"months", {.monthly = 2}, T0 + 60 * DAY, 3, {T0, T0 + DAY, T0 + 20 * DAY}, "-KK"},
	{"years", {.yearly = 2}, T0 + 90 * DAY, 3, {T0, T0 + DAY, T0 + 60 * DAY}, "-KK"},
	{"rules add up",
	 {.last = 1, .monthly = 1, .daily = 2},
	 T0 + 90 * DAY,
	 4,
	 {T0, T0 + DAY, T0 + 2 * DAY, T0 + 2 * DAY + MIN},
	 "-K-K"},
	{"within, before the newest",
	 {.within = {.days = 2}},
	 T0 + 90 * DAY,
	 4,
	 {T0, T0 + DAY, T0 + 2 * DAY, T0 + 3 * DAY - MIN},
	 "-KKK"},
	{"within hours",
	 {.within = {.hours = 3}},
	 T0 + DAY,
	 3,
	 {T0, T0 + HOUR, T0 + 4 * HOUR},
	 "--K"},
	{"protected points stay and take nobody's place",
	 {.last = 1},
	 T0 + DAY,
	 3,
	 {T0, T0 + HOUR, T0 + 2 * HOUR},
	 "P-K"},
	{"lists of tags", {.tags = listed, .ntags = 1}, T0, 2, {T0, T0 + HOUR}, "T-"},
	{"lists of which one is missing",
	 {.tags = halves, .ntags = 3},
	 T0,
	 2,
	 {T0, T0 + HOUR},
	 "tK"},
	{"tags", {.tags = tags, .ntags = 1}, T0 + DAY, 3, {T0, T0 + HOUR, T0 + 2 * HOUR}, "-T-"},
	{"the newest stays whatever the rules",
	 {.tags = tags, .ntags = 1},
	 T0 + DAY,
	 3,
	 {T0, T0 + HOUR, T0 + 2 * HOUR},
	 "--K"},
	{"times in the future fill no day and go by no rule",
	 {.daily = 2},
	 T0 + 2 * DAY,
	 6,
	 {T0, T0 + DAY, T0 + 400 * DAY, T0 + 500 * DAY, T0 + 600 * DAY, T0 + 2 * DAY},
	 "-KKKKK"},
	{"times before those of earlier commits do not push others out",
	 {.daily = 3},
	 T0 + 3 * DAY,
	 6,
	 {T0, T0 + DAY, T0 + 2 * DAY, T0 + DAY - HOUR, T0 + DAY + 20 * MIN, T0 + 3 * DAY},
	 "-KKKKK"},
	{"the newest of a day is not dropped for one from the future",
	 {.daily = 1},
	 T0,
	 3,
	 {T0 - MIN, T0, T0 + 30 * DAY},
	 "-KK"},
	{"a clock that is a little ahead is no matter",
	 {.daily = 1},
	 T0,
	 2,
	 {T0 - MIN, T0 + 10 * MIN},
	 "-K"},
	{"a clock set back by minutes is no matter",
	 {.hourly = 1},
	 T0 + DAY,
	 3,
	 {T0 + 20 * MIN, T0 + 10 * MIN, T0 + 15 * MIN},
	 "--K"},
	{"a point from the future does not widen the span",
	 {.within = {.hours = 2}},
	 T0 + 5 * HOUR,
	 4,
	 {T0, T0 + 4 * HOUR, T0 + 90 * DAY, T0 + 5 * HOUR},
	 "-KKK"},
	{"nothing at all", {.last = 3}, T0, 0, {0}, ""},
};

static void check_row(const struct row *row, uint64_t *random)
{
	struct retain_point v[MAX] = {{0}};
	char got[MAX + 1] = "";

	for (unsigned i = 0; i < row->n; i++) {
		v[i].seq = i + 1;
		v[i].created_ms = row->time[i];
		v[i].is_protected = row->kept[i] == 'P';
		v[i].tags = tags;
		v[i].ntags = row->kept[i] == 'T' || row->kept[i] == 't' ? ARRAY_SIZE(tags) : 0;
	}
	for (unsigned i = row->n; i > 1; i--) { /* the order they come in does not matter */
		unsigned k = (unsigned)test_below(random, i);
		struct retain_point tmp = v[k];

		v[k] = v[i - 1];
		v[i - 1] = tmp;
	}
	retain(&row->rule, row->now, v, row->n);
	for (unsigned i = 0; i < row->n; i++)
		got[v[i].seq - 1] = v[i].reason ? 'K' : '-';
	for (unsigned i = 0; i < row->n; i++)
		if ((got[i] == 'K') != (row->kept[i] != '-' && row->kept[i] != 't'))
			fail_msg("%s: %s instead of %s", row->what, got, row->kept);
}

static void rules_keep_what_the_table_says(void **state)
{
	uint64_t random = test_seed() | 1;

	(void)state;
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		for (int k = 0; k < 10; k++)
			check_row(&rows[i], &random);
}

static bool is_kept(const struct retain_point *v, size_t n, uint32_t seq)
{
	for (size_t i = 0; i < n; i++)
		if (v[i].seq == seq)
			return v[i].reason != NULL;
	return false;
}

/* Good points are daily; then come many with any times but those of the last hour. */
static void a_flood_of_odd_times_pushes_nothing_out(void **state)
{
	const struct retention rule = {.hourly = 4, .daily = 7, .weekly = 4, .monthly = 3};
	enum { GOOD = 60, FLOOD = 300 };
	uint64_t random = test_seed() | 1, now = T0 + GOOD * DAY;

	(void)state;
	for (int round = 0; round < 50; round++) {
		struct retain_point v[GOOD + FLOOD] = {{0}}, alone[GOOD] = {{0}};

		for (uint32_t i = 0; i < GOOD + FLOOD; i++) {
			v[i].seq = i + 1;
			if (i < GOOD)
				v[i].created_ms = now - (GOOD - i) * DAY;
			else
				v[i].created_ms =
					test_below(&random, 2)
						? now + 2 * HOUR + test_below(&random, 999 * DAY)
						: now - 26 * HOUR - test_below(&random, 99 * DAY);
		}
		memcpy(alone, v, sizeof(alone));
		retain(&rule, now, alone, GOOD);
		retain(&rule, now, v, GOOD + FLOOD);
		for (uint32_t seq = 1; seq <= GOOD; seq++)
			if (is_kept(alone, GOOD, seq))
				assert_true(is_kept(v, GOOD + FLOOD, seq));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rules_keep_what_the_table_says),
		cmocka_unit_test(a_flood_of_odd_times_pushes_nothing_out),
	};

	(void)setenv("TZ", "UTC", 1);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
