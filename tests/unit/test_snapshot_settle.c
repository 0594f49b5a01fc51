/* SPDX-License-Identifier: Apache-2.0 */
/* Names of bitmaps, and the table that says what becomes of them. */
#include "test.h"

#include "../../snapshot/settle.h"

static struct tm_id id(unsigned n)
{
	struct tm_id v = {{0}};

	v.b[TM_ID_BYTES - 1] = (uint8_t)n;
	return v;
}

static void names_round_trip(void **state)
{
	struct bitmap_id in = {id(1), id(2), id(3), 0xabcd, 0x12345678}, out;
	char text[BITMAP_NAME_MAX];

	(void)state;
	bitmap_name_format(&in, text);
	assert_int_equal(strlen(text), BITMAP_NAME_MAX - 1);
	assert_true(bitmap_name_parse(text, &out));
	assert_true(id_equal(&in.repo, &out.repo) && id_equal(&in.point, &out.point) &&
		    id_equal(&in.parent, &out.parent));
	assert_int_equal(out.disk, 0xabcd);
	assert_int_equal(out.chain, 0x12345678);
}

static void other_names_are_not_ours(void **state)
{
	struct bitmap_id in = {id(1), id(2), id(3), 0xabcd, 0x12345678}, out;
	char text[BITMAP_NAME_MAX + 1];

	(void)state;
	bitmap_name_format(&in, text);
	for (size_t i = 0; text[i]; i++) {
		char keep = text[i];

		text[i] = 'X';
		assert_false(bitmap_name_parse(text, &out));
		text[i] = '\0';
		assert_false(bitmap_name_parse(text, &out));
		text[i] = keep;
	}
	(void)strcat(text, "0");
	assert_false(bitmap_name_parse(text, &out));
	assert_false(bitmap_name_parse("", &out));
	assert_false(bitmap_name_parse("bitmap0", &out));
}

/* flags: r recording, i inconsistent, b busy, c committed, s the disk shrank, m another chain */
static struct settle_bitmap bitmap(unsigned point, unsigned parent, const char *flags)
{
	return (struct settle_bitmap){.id = {id(99), id(point), id(parent), 0, 0},
				      .recording = strchr(flags, 'r') != NULL,
				      .inconsistent = strchr(flags, 'i') != NULL,
				      .busy = strchr(flags, 'b') != NULL,
				      .committed = strchr(flags, 'c') != NULL,
				      .fits = strchr(flags, 's') == NULL,
				      .same_chain = strchr(flags, 'm') == NULL};
}

struct row {
	struct {
		unsigned point, parent;
		const char *flags;
	} b[4];
	const char *actions; /* K keep, M merge, X remove, - leave */
	bool enable;
	const char *reason; /* a part of it, or NULL */
};

static const struct row table[] = {
	{{{0}}, "", false, "no bitmap of this repository"},
	/* at rest */
	{{{1, 0, "rc"}}, "K", false, NULL},
	{{{2, 1, "rc"}}, "K", false, NULL},
	/* after a run: committed, failed */
	{{{1, 0, "c"}, {2, 1, "rc"}}, "XK", false, NULL},
	{{{1, 0, "c"}, {2, 1, "r"}}, "KM", true, NULL},
	/* the first run failed */
	{{{1, 0, "r"}}, "X", false, "does not hold"},
	/* two failed runs in a row, never settled between */
	{{{1, 0, "c"}, {2, 1, ""}, {3, 2, "r"}}, "KMM", true, NULL},
	/* images: the old one went on recording */
	{{{1, 0, "rc"}, {2, 1, "r"}}, "KM", false, NULL},
	{{{1, 0, "rc"}, {2, 1, "rc"}}, "XK", false, NULL},
	/* unclean stop */
	{{{1, 0, "ic"}}, "X", false, "inconsistent"},
	{{{1, 0, "c"}, {2, 1, "ir"}}, "XX", false, "inconsistent"},
	{{{1, 0, "rc"}, {2, 1, "i"}}, "XX", false, "inconsistent"},
	{{{1, 0, "ic"}, {2, 1, "rc"}}, "XK", false, NULL},
	/* its child was lost: nobody recorded since the freeze */
	{{{1, 0, "c"}}, "X", false, "all the time"},
	/* the repository went back to an older state */
	{{{2, 1, "r"}}, "X", false, "does not hold"},
	/* the point was forgotten, its parent's bitmap is still there */
	{{{1, 0, "c"}, {2, 1, ""}, {3, 2, "rc"}}, "XXK", false, NULL},
	/* busy: hands off */
	{{{1, 0, "bc"}, {2, 1, "r"}}, "--", false, "in use"},
	/* the disk became smaller */
	{{{1, 0, "rcs"}}, "X", false, "resized"},
	/* names made up as a ring */
	{{{1, 2, "c"}, {2, 1, "c"}}, "XX", false, "all the time"},
	/* two that know nothing of each other: the newer id */
	{{{1, 0, "rc"}, {5, 3, "rc"}}, "XK", false, NULL},
};

static void the_table_holds(void **state)
{
	static const char letters[] = "-KMX";

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(table); i++) {
		struct settle_bitmap v[4];
		struct settle_plan plan;
		char got[5] = "";
		size_t n = strlen(table[i].actions);

		for (size_t k = 0; k < n; k++)
			v[k] = bitmap(table[i].b[k].point, table[i].b[k].parent,
				      table[i].b[k].flags);
		plan = settle_decide(v, n);
		for (size_t k = 0; k < n; k++)
			got[k] = letters[v[k].action];
		if (strcmp(got, table[i].actions) != 0 || plan.enable != table[i].enable ||
		    (plan.reason == NULL) != (table[i].reason == NULL) ||
		    (plan.reason && !strstr(plan.reason, table[i].reason)))
			fail_msg("row %zu: %s enable %d reason %s", i, got, plan.enable,
				 plan.reason ? plan.reason : "-");
	}
}

/* Whatever is there: at most one is kept, it is committed and consistent, and nothing is merged
 * without one. */
static void random_sets_keep_the_rules(void **state)
{
	uint64_t seed = test_seed() | 1;

	(void)state;
	for (unsigned round = 0; round < 20000; round++) {
		struct settle_bitmap v[6];
		size_t n = test_below(&seed, 7), kept = 0;
		struct settle_plan plan;

		for (size_t k = 0; k < n; k++) {
			char flags[6] = "";
			size_t len = 0;

			for (const char *f = "ricsb"; *f; f++) {
				if (test_below(&seed, *f == 'b' ? 20 : 3) == 0)
					flags[len++] = *f;
			}
			v[k] = bitmap((unsigned)test_below(&seed, 6),
				      (unsigned)test_below(&seed, 6), flags);
		}
		plan = settle_decide(v, n);
		for (size_t k = 0; k < n; k++) {
			kept += v[k].action == SETTLE_KEEP;
			if (v[k].action == SETTLE_KEEP)
				assert_true(v[k].committed && v[k].fits && !v[k].inconsistent);
			if (v[k].action == SETTLE_MERGE)
				assert_true(plan.keep != SIZE_MAX && !v[k].inconsistent);
		}
		assert_int_equal(kept, plan.keep != SIZE_MAX);
		assert_int_equal(plan.reason == NULL, plan.keep != SIZE_MAX);
	}
}

struct dead_row {
	struct {
		unsigned repo, point, parent; /* repo 0: not a name of ours */
		bool inconsistent;
	} b[3];
	const char *dead; /* X: it is, -: it is not */
};

static const struct dead_row dead_table[] = {
	{{{1, 1, 0, true}}, "X"},
	{{{1, 1, 0, false}}, "-"},
	/* another program's */
	{{{0, 0, 0, true}}, "-"},
	/* all that was open when QEMU died, of two repositories */
	{{{1, 1, 0, true}, {1, 2, 1, true}, {2, 1, 0, true}}, "XXX"},
	/* made since then */
	{{{1, 1, 0, true}, {1, 2, 1, false}, {2, 1, 0, true}}, "X-X"},
	/* its parent is not proved by what recorded after it, and nobody else knows */
	{{{1, 1, 0, false}, {1, 2, 1, true}}, "--"},
	{{{1, 1, 0, false}, {1, 2, 1, true}, {1, 3, 2, true}}, "--X"},
	/* the same point in another repository is another one */
	{{{2, 1, 0, false}, {1, 2, 1, true}}, "-X"},
	/* no parent is no point */
	{{{1, 0, 0, false}, {1, 2, 0, true}}, "-X"},
};

static void what_is_dead(void **state)
{
	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(dead_table); i++) {
		struct disk_bitmap v[3] = {0};
		size_t n = strlen(dead_table[i].dead);

		for (size_t k = 0; k < n; k++) {
			v[k].ours = dead_table[i].b[k].repo != 0;
			v[k].id.repo = id(dead_table[i].b[k].repo);
			v[k].id.point = id(dead_table[i].b[k].point);
			v[k].id.parent = id(dead_table[i].b[k].parent);
			v[k].inconsistent = dead_table[i].b[k].inconsistent;
		}
		for (size_t k = 0; k < n; k++) {
			if (settle_is_dead(v, n, k) != (dead_table[i].dead[k] == 'X'))
				fail_msg("row %zu: bitmap %zu", i, k);
		}
	}
}

/* With the dead ones gone their repository proves nothing that it could not prove before. */
static void burying_proves_nothing(void **state)
{
	uint64_t seed = test_seed() | 1;

	(void)state;
	for (unsigned round = 0; round < 20000; round++) {
		struct disk_bitmap d[6] = {0};
		struct settle_bitmap all[6], left[6];
		size_t n = test_below(&seed, 7), nleft = 0, of[6];
		struct settle_plan before, after;

		for (size_t k = 0; k < n; k++) {
			char flags[4] = "c";

			if (test_below(&seed, 2))
				(void)strcat(flags, "r");
			if (test_below(&seed, 3) == 0)
				(void)strcat(flags, "i");
			all[k] = bitmap((unsigned)test_below(&seed, 6),
					(unsigned)test_below(&seed, 6), flags);
			d[k].ours = true;
			d[k].id = all[k].id;
			d[k].inconsistent = all[k].inconsistent;
		}
		for (size_t k = 0; k < n; k++) {
			if (settle_is_dead(d, n, k))
				continue;
			of[nleft] = k;
			left[nleft++] = all[k];
		}
		before = settle_decide(all, n);
		after = settle_decide(left, nleft);
		assert_int_equal(before.keep == SIZE_MAX, after.keep == SIZE_MAX);
		if (after.keep == SIZE_MAX)
			continue;
		/* As the only one that is committed it is kept if and only if it is provable. */
		for (size_t k = 0; k < n; k++)
			all[k].committed = k == of[after.keep];
		assert_int_equal(settle_decide(all, n).keep, of[after.keep]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_round_trip), cmocka_unit_test(other_names_are_not_ours),
		cmocka_unit_test(the_table_holds),  cmocka_unit_test(random_sets_keep_the_rules),
		cmocka_unit_test(what_is_dead),     cmocka_unit_test(burying_proves_nothing),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
