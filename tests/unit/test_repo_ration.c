/* SPDX-License-Identifier: Apache-2.0 */
/* Which tables a session loads only to compare: as many as are worth it, and the same every time.
 */
#include "test.h"

#include "repo/ration.h"

#define SESSIONS 1000

static bool ask(struct ration *r, uint32_t session, uint64_t segment, unsigned slot)
{
	bool worth = false;

	assert_int_equal(
		ration_ask(r, ref_of(session, (segment << DATA_SLOTS_LOG2) + slot), &worth, NULL),
		0);
	return worth;
}

/* Clusters that each lie in another segment: few are worth a request. */
static void scattered(void **state)
{
	struct ration r;
	uint64_t allowed = 0;

	(void)state;
	ration_init(&r, SESSIONS);
	for (uint32_t i = 0; i < 16384; i++) {
		allowed += ask(&r, i % SESSIONS, i / SESSIONS, i % DATA_SLOTS);
		if (i == 199)
			assert_int_equal(allowed, 64);
		assert_true(allowed <= 64 + i / 16);
	}
	assert_in_range(allowed, 16384 / 16, 64 + 16384 / 16);
	assert_int_equal(r.loads, allowed);
	ration_done(&r);
}

/* Segments that many clusters lie in cost one load each, in whatever order sessions take turns. */
static void dense(void **state)
{
	struct ration r;

	(void)state;
	ration_init(&r, 32);
	for (uint64_t segment = 0; segment < 50; segment++)
		for (unsigned slot = 0; slot < DATA_SLOTS; slot += 16)
			for (uint32_t session = 0; session < 32; session++)
				assert_true(ask(&r, session, segment, slot));
	assert_int_equal(r.loads, 50 * 32);
	ration_done(&r);
}

/* What has not been asked for during many loads may have left the cache: it is a load again. */
static void long_ago(void **state)
{
	struct ration r;

	(void)state;
	ration_init(&r, SESSIONS);
	assert_true(ask(&r, 0, 0, 0));
	for (uint32_t i = 0; i < 16384; i++)
		(void)ask(&r, 1 + i % (SESSIONS - 1), i, 0);
	assert_in_range(r.loads, 256, 2000);
	while (ask(&r, 1, r.asked, 0) || r.asked % 256 > 200)
		;
	assert_false(ask(&r, 0, 0, 1));
	ration_done(&r);
}

static void without(void **state)
{
	struct ration r;

	(void)state;
	ration_init(&r, SESSIONS);
	r.off = true;
	for (uint32_t i = 0; i < 16384; i++)
		assert_true(ask(&r, i % SESSIONS, i, 0));
	ration_done(&r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(scattered),
		cmocka_unit_test(dense),
		cmocka_unit_test(long_ago),
		cmocka_unit_test(without),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
