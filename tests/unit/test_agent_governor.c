/* SPDX-License-Identifier: Apache-2.0 */
/* The rate that follows the guest's writes. */
#include "test.h"

#include "agent/governor.h"

#define MIB  ((uint64_t)1 << 20)
#define LOOK GOVERNOR_MS

struct rig {
	struct governor g;
	uint64_t now_ms;
	uint64_t read; /* bytes */
	struct write_counts writes;
};

static void begin(struct rig *rig, uint64_t limit)
{
	*rig = (struct rig){.now_ms = 5000};
	governor_init(&rig->g, 10, limit);
	governor_disk(&rig->g, rig->now_ms);
}

/* Half a second: so many writes, so many of them slow, so much read. */
static void look(struct rig *rig, uint64_t all, uint64_t slow, uint64_t read)
{
	rig->now_ms += LOOK;
	rig->writes.all += all;
	rig->writes.slow += slow;
	rig->read += read;
	assert_true(governor_due(&rig->g, rig->now_ms));
	governor_look(&rig->g, rig->now_ms, rig->read, &rig->writes);
	assert_false(governor_due(&rig->g, rig->now_ms));
}

static void a_quiet_guest_costs_nothing(void **unused)
{
	struct rig rig;

	(void)unused;
	begin(&rig, 0);
	look(&rig, 0, 0, 100 * MIB);
	assert_int_equal(rig.g.rate, 0);
	look(&rig, 1000, 10, 100 * MIB); /* one in a hundred may be slow */
	assert_int_equal(rig.g.rate, 0);
	assert_int_equal(rig.g.slowed_ms, 0);
}

static void slow_writes_halve_what_is_read(void **unused)
{
	struct rig rig;

	(void)unused;
	begin(&rig, 0);
	look(&rig, 1000, 11, 100 * MIB);
	assert_int_equal(rig.g.rate, 100 * MIB); /* was 200 a second */
	look(&rig, 5, 1, 50 * MIB);
	assert_int_equal(rig.g.rate, 50 * MIB);
	for (int i = 0; i < 20; i++)
		look(&rig, 5, 5, 0);
	assert_int_equal(rig.g.rate, GOVERNOR_LEAST);
	assert_int_equal(rig.g.slowed_ms, 21 * LOOK);
}

static void it_comes_back_by_quarters(void **unused)
{
	uint64_t before = 0;
	struct rig rig;

	(void)unused;
	begin(&rig, 0);
	look(&rig, 10, 0, 100 * MIB);
	look(&rig, 10, 10, 100 * MIB);
	for (int i = 0; i < 4; i++) {
		before = rig.g.rate;
		look(&rig, 10, 0, rig.g.rate / 2);
		assert_int_equal(rig.g.rate, before + before / 4);
	}
	for (int i = 0; rig.g.rate && i < 100; i++)
		look(&rig, 10, 0, 100 * MIB);
	assert_int_equal(rig.g.rate, 0);
}

static void a_limit_stays_one(void **unused)
{
	struct rig rig;

	(void)unused;
	begin(&rig, 10 * MIB);
	assert_int_equal(rig.g.rate, 10 * MIB);
	look(&rig, 10, 0, 5 * MIB);
	assert_int_equal(rig.g.rate, 10 * MIB);
	look(&rig, 10, 10, 5 * MIB);
	assert_int_equal(rig.g.rate, 5 * MIB);
	for (int i = 0; i < 10; i++)
		look(&rig, 10, 0, rig.g.rate / 2);
	assert_int_equal(rig.g.rate, 10 * MIB);
	begin(&rig, GOVERNOR_LEAST / 4);
	look(&rig, 10, 10, MIB);
	assert_int_equal(rig.g.rate, GOVERNOR_LEAST / 4);
}

static void counts_that_begin_anew_say_nothing(void **unused)
{
	struct rig rig;

	(void)unused;
	begin(&rig, 0);
	look(&rig, 1000, 0, MIB);
	rig.writes = (struct write_counts){0};
	look(&rig, 10, 10, MIB);
	assert_int_equal(rig.g.rate, 0);
	look(&rig, 10, 10, MIB);
	assert_int_equal(rig.g.rate, GOVERNOR_LEAST);
}

static void without_a_bound_it_never_looks(void **unused)
{
	struct governor g;

	(void)unused;
	governor_init(&g, 0, 0);
	governor_disk(&g, 0);
	assert_false(governor_due(&g, UINT64_MAX));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_quiet_guest_costs_nothing),
		cmocka_unit_test(slow_writes_halve_what_is_read),
		cmocka_unit_test(it_comes_back_by_quarters),
		cmocka_unit_test(a_limit_stays_one),
		cmocka_unit_test(counts_that_begin_anew_say_nothing),
		cmocka_unit_test(without_a_bound_it_never_looks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
