/* SPDX-License-Identifier: Apache-2.0 */
/* The audit's choice is uniform, and what it counts is what differs. */
#include "repo/cache.h"
#include "test_repo.h"

#define BS 4096U

/* ---- what a reader would do ---- */

static void give(struct piece *p)
{
	free(p->data);
	free(p);
}

static void put_run(struct rig *rig, struct repo_audit *a, const struct image *im, uint64_t block,
		    uint32_t count, uint64_t seq)
{
	struct piece *p = calloc(1, sizeof(*p));

	p->data = malloc((size_t)PIECE_CLUSTERS * BS);
	p->release = give;
	p->seq = seq;
	for (uint64_t b = block; b < block + count; b++) {
		bool zero = block_is_zero(im, b) && test_below(&rig->random, 2);

		piece_add(p, b, zero);
		if (!zero)
			memcpy(p->data + (size_t)p->nclusters++ * BS, im->data + b * BS, BS);
	}
	assert_int_equal(piece_sink_put(repo_audit_sink(a), p, NULL), 0);
}

/* All that is chosen, as it is in the image.  seen: how often each block was. */
static struct repo_audit_counts audit(struct rig *rig, const struct point *p,
				      const struct image *im, unsigned share, unsigned *seen)
{
	const struct repo_audit_options opt = {.size = im->size,
					       .share = share,
					       .seed = test_random(&rig->random),
					       .pool = rig->pool};
	auto_clean(repo_audit_free) struct repo_audit *a = NULL;
	auto_extents struct extents e = {0};
	struct repo_audit_counts c;
	uint64_t seq = 0;

	assert_int_equal(repo_audit_begin(rig->repo, &p->disks[0], &opt, &a, NULL), 0);
	for (;;) {
		assert_int_equal(repo_audit_choose(a, &e, NULL), 0);
		if (!e.n)
			break;
		for (size_t i = 0; i < e.n; i++) {
			uint64_t b = e.v[i].offset / BS, end;

			assert_int_equal(e.v[i].offset % BS, 0);
			end = (e.v[i].offset + e.v[i].length + BS - 1) / BS;
			for (; b < end; b++) {
				put_run(rig, a, im, b, 1, seq++);
				if (seen)
					seen[b]++;
			}
		}
		/* pieces are back before the next choice */
		for (;;) {
			struct repo_audit_counts now;

			assert_int_equal(repo_audit_counts(a, &now, NULL), 0);
			if (now.data + now.empty == seq)
				break;
			assert_int_equal(loop_run_once(rig->loop, 1000, NULL), 0);
		}
	}
	assert_int_equal(repo_audit_counts(a, &c, NULL), 0);
	assert_int_equal(c.data + c.empty, seq);
	return c;
}

static struct point *make_point(struct rig *rig, struct image *im)
{
	struct error err = {0};
	struct point *p = NULL;
	struct tm_id id;

	if (rig_backup(rig, im, NULL, &id, &err) < 0 ||
	    repo_point_get(rig->repo, rig_guest, &id, &p, &err) < 0)
		fail_msg("%s", err.text);
	return p;
}

/* Every second group of 50 blocks holds data that is not zero. */
static void fill(struct image *im)
{
	for (uint64_t b = 0; b < im->blocks; b++) {
		im->dirty[b] = true;
		if (b / 50 % 2)
			memset(im->data + b * BS, (int)(b % 255) + 1, BS);
	}
}

/* ---- tests ---- */

static void what_is_as_before_never_differs(void **state)
{
	uint64_t seed = test_seed();
	struct rig rig;

	(void)state;
	for (int round = 0; round < 6; round++) {
		struct repo_audit_counts c;
		struct image im;
		struct point *p;

		rig_up(&rig, BS, seed + (uint64_t)round);
		image_init(&im, (1 + test_below(&rig.random, 3000)) * BS + 77, BS);
		image_change(&im, &rig.random, (unsigned)test_below(&rig.random, 60));
		p = make_point(&rig, &im);
		for (int i = 0; i < 10; i++) {
			c = audit(&rig, p, &im, 0, NULL);
			assert_int_equal(c.differed, 0);
			assert_true(c.data <= REPO_AUDIT_DATA && c.empty <= REPO_AUDIT_EMPTY);
			assert_true(c.data + c.empty > 0);
		}
		c = audit(&rig, p, &im, 1000000, NULL);
		assert_int_equal(c.differed, 0);
		assert_int_equal(c.data + c.empty, im.blocks);
		point_free(p);
		image_done(&im);
		rig_down(&rig);
	}
}

static void all_that_differs_is_counted(void **state)
{
	uint64_t seed = test_seed();
	struct rig rig;

	(void)state;
	for (int round = 0; round < 8; round++) {
		uint64_t first = UINT64_MAX, differed = 0;
		struct repo_audit_counts c;
		uint8_t *before;
		struct image im;
		struct point *p;

		rig_up(&rig, BS, seed + (uint64_t)round);
		image_init(&im, 900 * (uint64_t)BS + test_below(&rig.random, 2 * BS), BS);
		fill(&im);
		p = make_point(&rig, &im);
		if (round % 2)
			image_resize(&im, im.size + 100 * (uint64_t)BS);
		before = malloc(im.blocks * BS);
		memcpy(before, im.data, im.blocks * BS);
		image_change(&im, &rig.random, 10);
		for (uint64_t b = im.blocks; b-- > 0;) {
			if (memcmp(before + b * BS, im.data + b * BS, BS) != 0) {
				differed++;
				first = b * BS;
			}
		}
		c = audit(&rig, p, &im, 1000000, NULL);
		assert_int_equal(c.data + c.empty, im.blocks);
		assert_int_equal(c.differed, differed);
		if (differed)
			assert_int_equal(c.first, first);
		free(before);
		point_free(p);
		image_done(&im);
		rig_down(&rig);
	}
}

/* Six standard deviations. */
static void assert_near(double got, double mean, double variance)
{
	double off = got - mean;

	if (off * off > 36 * variance + 1)
		fail_msg("%.0f instead of about %.0f", got, mean);
}

static void the_choice_is_uniform(void **state)
{
	enum { BLOCKS = 600, ROUNDS = 400 };
	unsigned seen[2][BLOCKS] = {0};
	struct image im;
	struct point *p;
	struct rig rig;

	(void)state;
	rig_up(&rig, BS, test_seed());
	image_init(&im, BLOCKS * (uint64_t)BS, BS);
	fill(&im);
	p = make_point(&rig, &im);
	for (int i = 0; i < ROUNDS; i++) {
		struct repo_audit_counts c = audit(&rig, p, &im, 0, seen[0]);

		assert_int_equal(c.data, REPO_AUDIT_DATA);
		assert_int_equal(c.empty, REPO_AUDIT_EMPTY);
		(void)audit(&rig, p, &im, 100000, seen[1]);
	}
	for (uint64_t b = 0; b < BLOCKS; b++) {
		double few = b / 50 % 2 ? REPO_AUDIT_DATA / 300.0 : REPO_AUDIT_EMPTY / 300.0;

		assert_near(seen[0][b], ROUNDS * few, ROUNDS * few * (1 - few));
		assert_near(seen[1][b], ROUNDS * 0.1, ROUNDS * 0.09);
	}
	point_free(p);
	image_done(&im);
	rig_down(&rig);
}

/* The bound that is published: with 4 % wrong, a run misses them in 0.96^48 of all cases. */
static void a_share_that_is_wrong_is_found_as_often_as_promised(void **state)
{
	enum { ROUNDS = 500 };
	double missed = 0, chance = 1;
	struct image im;
	struct point *p;
	struct rig rig;

	(void)state;
	rig_up(&rig, BS, test_seed());
	image_init(&im, 4000 * (uint64_t)BS, BS);
	fill(&im);
	p = make_point(&rig, &im);
	for (uint64_t b = 0; b < im.blocks; b++)
		if (b / 50 % 2 && b % 100 < 53 && b % 100 != 50)
			im.data[b * BS + 5]++; /* 2 of 50 */
	for (int i = 0; i < ROUNDS; i++)
		missed += audit(&rig, p, &im, 0, NULL).differed == 0;
	for (int i = 0; i < REPO_AUDIT_DATA; i++)
		chance *= 0.96;
	assert_near(missed, ROUNDS * chance, ROUNDS * chance * (1 - chance));
	point_free(p);
	image_done(&im);
	rig_down(&rig);
}

/* Any read of the repository may fail: an error, or what could be told is right. */
static void a_repository_that_fails_is_no_mismatch(void **state)
{
	struct image im;
	struct point *p;
	struct rig rig;
	unsigned n = 0;
	int r;

	(void)state;
	rig_up(&rig, BS, test_seed());
	image_init(&im, 3000 * (uint64_t)BS, BS);
	fill(&im);
	p = make_point(&rig, &im);
	do {
		const struct repo_audit_options opt = {
			.size = im.size, .seed = n, .pool = rig.pool};
		auto_clean(repo_audit_free) struct repo_audit *a = NULL;
		auto_extents struct extents e = {0};
		struct error err = {0};

		cache_drop(rig.repo->cache);
		rig.store->calls = 0;
		rig.store->fail_at = ++n;
		assert_int_equal(repo_audit_begin(rig.repo, &p->disks[0], &opt, &a, NULL), 0);
		r = repo_audit_choose(a, &e, &err);
		if (r)
			assert_non_null(strstr(err.text, "fails for the test"));
	} while (r);
	assert_true(n > 2);
	rig.store->fail_at = 0;
	assert_int_equal(audit(&rig, p, &im, 0, NULL).differed, 0);
	point_free(p);
	image_done(&im);
	rig_down(&rig);
}

/* ---- the highest cluster ---- */

struct bits {
	const struct image *im; /* its dirty is the bitmap */
	unsigned asked;
	int fail;
};

static int reach(void *data, const struct extents *part, uint64_t *ret_end, struct error *err)
{
	struct bits *bits = data;
	const struct image *im = bits->im;

	bits->asked++;
	*ret_end = 0;
	assert_true(part->n > 0);
	for (uint64_t b = 0; b < im->blocks; b++) {
		if (extents_contain(part, b * BS) && !im->dirty[b])
			*ret_end = (b + 1) * BS < im->size ? (b + 1) * BS : im->size;
	}
	return bits->fail ? error_set(err, bits->fail, "the disk fails") : 0;
}

/* Chooses, reads what was chosen, and gives its block; UINT64_MAX: none. */
static uint64_t highest(struct rig *rig, const struct point *p, const struct image *im,
			struct bits *bits, bool *ret_same)
{
	const struct repo_audit_options opt = {.size = im->size, .pool = rig->pool};
	auto_clean(repo_audit_free) struct repo_audit *a = NULL;
	auto_extents struct extents e = {0};
	struct repo_audit_counts c = {0};
	uint64_t block;

	assert_int_equal(repo_audit_begin(rig->repo, &p->disks[0], &opt, &a, NULL), 0);
	assert_int_equal(repo_audit_highest(a, reach, bits, &e, NULL), 0);
	if (!e.n)
		return UINT64_MAX;
	block = e.v[0].offset / BS;
	assert_true(e.n == 1 && e.v[0].offset % BS == 0);
	assert_int_equal(e.v[0].length, im->size - block * BS < BS ? im->size - block * BS : BS);
	put_run(rig, a, im, block, 1, 0);
	while (!c.data) {
		assert_int_equal(repo_audit_counts(a, &c, NULL), 0);
		if (!c.data)
			assert_int_equal(loop_run_once(rig->loop, 1000, NULL), 0);
	}
	*ret_same = !c.differed;
	return block;
}

/* Compared with a walk over all blocks. */
static void check_highest(struct rig *rig, const struct point *p, const struct image *then,
			  const struct image *now)
{
	struct bits bits = {.im = now};
	uint64_t want = UINT64_MAX, got;
	bool same = false;

	for (uint64_t b = 0; b < then->blocks; b++)
		if (!block_is_zero(then, b) && !now->dirty[b])
			want = b;
	got = highest(rig, p, now, &bits, &same);
	assert_true(got == want);
	if (got != UINT64_MAX)
		assert_true(same == (memcmp(then->data + got * BS, now->data + got * BS, BS) == 0));
}

static void the_highest_clean_cluster_with_data_is_chosen(void **state)
{
	enum { BLOCKS = 20000 };
	struct image im, now;
	struct point *p;
	struct rig rig;
	bool same;

	(void)state;
	rig_up(&rig, BS, test_seed());
	image_init(&im, BLOCKS * (uint64_t)BS + 77, BS); /* and a ragged one */
	/* so many runs that one part does not hold them */
	for (uint64_t b = 0; b < im.blocks; b++) {
		im.dirty[b] = true;
		if (b % 3 == 0 && b != 300)
			memset(im.data + b * BS, (int)(b % 255) + 1, 77);
	}
	memset(im.data + BLOCKS * (uint64_t)BS, 1, 77);
	p = make_point(&rig, &im);
	image_copy(&im, &now);
	memset(now.dirty, 0, now.blocks);
	check_highest(&rig, p, &im, &now); /* the ragged end is clean */
	for (uint64_t b = BLOCKS; b > BLOCKS - 700; b--) {
		now.dirty[b] = true;
		if (b % 97 == 0)
			check_highest(&rig, p, &im, &now);
	}
	/* all but one are dirty: with data, a hole, none at all */
	for (uint64_t only = 297; only <= 303; only += 3) {
		memset(now.dirty, 1, now.blocks);
		now.dirty[only] = false;
		check_highest(&rig, p, &im, &now);
	}
	memset(now.dirty, 1, now.blocks);
	check_highest(&rig, p, &im, &now);
	/* grown, and what is clean reads as zeroes from some place on */
	image_resize(&now, now.size + 300 * (uint64_t)BS);
	memset(now.dirty, 0, now.blocks);
	memset(now.dirty + 9000, 1, now.blocks - 9000);
	for (uint64_t cut = 8990; cut < 9001; cut++) {
		struct bits bits = {.im = &now};

		memcpy(now.data, im.data, im.size);
		memset(now.data + cut * BS, 0, now.size - cut * BS);
		assert_int_equal(highest(&rig, p, &now, &bits, &same), 8997);
		assert_int_equal(same, cut > 8997);
	}
	point_free(p);
	image_done(&now);
	image_done(&im);
	rig_down(&rig);
}

static void the_common_case_asks_once(void **state)
{
	struct bits bits = {0};
	struct image im;
	struct point *p;
	struct rig rig;
	bool same;

	(void)state;
	rig_up(&rig, BS, test_seed());
	image_init(&im, 3000 * (uint64_t)BS, BS);
	fill(&im);
	p = make_point(&rig, &im);
	memset(im.dirty, 0, im.blocks);
	bits.im = &im;
	assert_int_equal(highest(&rig, p, &im, &bits, &same), 2999);
	assert_true(same && bits.asked == 1);
	/* scattered ones that are dirty change nothing: the gap between them ends it */
	for (uint64_t b = 1; b < im.blocks; b += 2)
		im.dirty[b] = true;
	bits.asked = 0;
	assert_int_equal(highest(&rig, p, &im, &bits, &same), 2998);
	assert_true(same && bits.asked == 1);
	point_free(p);
	image_done(&im);
	rig_down(&rig);
}

/* Any read of the repository may fail, and the disk: an error, never "nothing to prove". */
static void what_cannot_be_looked_up_is_an_error(void **state)
{
	auto_clean(repo_audit_free) struct repo_audit *a = NULL;
	struct repo_audit_options opt = {0};
	auto_extents struct extents e = {0};
	struct bits bits = {0};
	struct image im;
	struct point *p;
	struct rig rig;
	unsigned n = 0;
	int r;

	(void)state;
	rig_up(&rig, BS, test_seed());
	image_init(&im, 3000 * (uint64_t)BS, BS);
	fill(&im);
	p = make_point(&rig, &im);
	memset(im.dirty, 0, im.blocks);
	memset(im.dirty + 1000, 1, im.blocks - 1000);
	bits.im = &im;
	opt = (struct repo_audit_options){.size = im.size, .pool = rig.pool};
	do {
		struct error err = {0};

		cache_drop(rig.repo->cache);
		rig.store->calls = 0;
		rig.store->fail_at = ++n;
		repo_audit_free(tm_steal(a));
		assert_int_equal(repo_audit_begin(rig.repo, &p->disks[0], &opt, &a, NULL), 0);
		r = repo_audit_highest(a, reach, &bits, &e, &err);
		if (r)
			assert_non_null(strstr(err.text, "fails for the test"));
	} while (r);
	assert_true(n > 2 && e.n == 1);
	assert_int_equal(e.v[0].offset / BS, 999);
	rig.store->fail_at = 0;
	bits.fail = TM_E_PEER;
	assert_int_equal(repo_audit_highest(a, reach, &bits, &e, NULL), TM_E_PEER);
	repo_audit_free(tm_steal(a));
	point_free(p);
	image_done(&im);
	rig_down(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_as_before_never_differs),
		cmocka_unit_test(all_that_differs_is_counted),
		cmocka_unit_test(the_choice_is_uniform),
		cmocka_unit_test(a_share_that_is_wrong_is_found_as_often_as_promised),
		cmocka_unit_test(a_repository_that_fails_is_no_mismatch),
		cmocka_unit_test(the_highest_clean_cluster_with_data_is_chosen),
		cmocka_unit_test(the_common_case_asks_once),
		cmocka_unit_test(what_cannot_be_looked_up_is_an_error),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
