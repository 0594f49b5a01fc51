/* SPDX-License-Identifier: Apache-2.0 */
/*
 * I/O faults: each call below the directory store fails in turn, once or from then on for good,
 * with EIO or ENOSPC, or transfers only half.  The answer is an error or success, never a wrong
 * read; points that are there stay readable; a failed backup shows no point, or a whole one (when
 * only the last sync failed); no descriptor is lost.
 */
#include "crash.h"

#include <dirent.h>

static uint64_t seed;

static const char *const fault_name[] = {"-", "EIO", "ENOSPC", "half a transfer"};

struct faults {
	struct place place;
	struct rig rig;
	struct image past, now;
	bool *dirty;
	unsigned runs, hits, failed;
};

static unsigned open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(dir);
	while (readdir(dir))
		n++;
	(void)closedir(dir);
	return n;
}

static void must_be_right(struct faults *f, const struct point *p, const struct image *im)
{
	struct error err = {0};
	int r = rig_matches(&f->rig, p, im, &err);

	if (r != 1)
		fail_msg("point %u: %s", p->seq, r < 0 ? err.text : "differs");
}

static void up(struct faults *f)
{
	struct error err = {0};
	struct tm_id id;

	*f = (struct faults){.runs = 0};
	place_up(&f->place);
	rig_start(&f->rig, seed);
	image_init(&f->now, 2 * 1024 * 1024 + 99, BS);
	image_fill(&f->now, &f->rig.random, 40);
	shim_start(f->place.run, false);
	assert_int_equal(rig_repo(&f->rig, f->place.repo, true, &err), 0);
	assert_int_equal(rig_backup(&f->rig, &f->now, NULL, &id, &err), 0);
	rig_close(&f->rig);
	image_copy(&f->now, &f->past);
	image_fill(&f->now, &f->rig.random, 6);
	f->dirty = calloc(f->now.blocks, sizeof(bool));
	assert_non_null(f->dirty);
	memcpy(f->dirty, f->now.dirty, f->now.blocks);
}

static void down(struct faults *f)
{
	rig_stop(&f->rig);
	shim_clear();
	place_down(&f->place);
	image_done(&f->past);
	image_done(&f->now);
	free(f->dirty);
}

/* Opens the repository and backs the image up on top of its first point. */
static int whole_backup(struct faults *f, struct error *err)
{
	auto_point_list struct point_list l = {0};
	struct tm_id id;
	size_t damaged = 0;
	int r = rig_repo(&f->rig, f->place.repo, false, err);

	r = r ? r : repo_points(f->rig.repo, rig_guest, &l, &damaged, err);
	if (r < 0)
		return r;
	if (damaged) /* it could not be read just now */
		return error_set(err, TM_E_IO, "a point is unreadable");
	assert_true(l.n >= 1);
	memcpy(f->now.dirty, f->dirty, f->now.blocks);
	return rig_backup(&f->rig, &f->now, l.v[0], &id, err);
}

/* After the fault is gone: what is to be seen is whole. */
static void check_points(struct faults *f, bool succeeded)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	size_t damaged = 0;
	char path[512];

	rig_close(&f->rig);
	if (rig_repo(&f->rig, f->place.repo, false, &err) < 0 ||
	    repo_points(f->rig.repo, rig_guest, &l, &damaged, &err) < 0)
		fail_msg("%s", err.text);
	assert_int_equal(damaged, 0);
	assert_true(l.n >= 1 + (size_t)succeeded && l.n <= 2);
	must_be_right(f, l.v[0], &f->past);
	if (l.n == 2) {
		must_be_right(f, l.v[1], &f->now);
		/* away, so that every run begins with the same points */
		(void)snprintf(path, sizeof(path), "%s/%s", f->place.repo, l.v[1]->object);
		assert_int_equal(remove(path), 0);
	}
	rig_close(&f->rig);
}

static void sweep_backup(struct faults *f, enum shim_fault fault, bool for_good)
{
	for (unsigned n = 1;; n++) {
		unsigned fds = open_fds();
		struct error err = {0};
		bool reached;
		int r;

		shim_arm(fault, n, for_good);
		r = whole_backup(f, &err);
		rig_close(&f->rig);
		reached = shim.calls >= n;
		f->hits += shim.hits;
		f->runs++;
		f->failed += r < 0;
		if (r < 0 && (!err.text[0] || fault == FAULT_SHORT))
			fail_msg("%s at call %u: '%s'", fault_name[fault], n, err.text);
		shim_disarm();
		check_points(f, r == 0);
		assert_int_equal(open_fds(), fds);
		if (!reached)
			return;
	}
}

static void a_backup_fails_or_succeeds_whole(void **state)
{
	struct faults f;

	(void)state;
	up(&f);
	for (int fault = FAULT_EIO; fault <= FAULT_SHORT; fault++)
		for (int for_good = 0; for_good < 2; for_good++)
			sweep_backup(&f, (enum shim_fault)fault, for_good);
	printf("backup: %u runs, %u faults, %u runs failed\n", f.runs, f.hits, f.failed);
	down(&f);
}

static int whole_read(struct faults *f, int *ret_same, struct error *err)
{
	auto_point_list struct point_list l = {0};
	size_t damaged = 0;
	int r = rig_repo(&f->rig, f->place.repo, false, err);

	r = r ? r : repo_points(f->rig.repo, rig_guest, &l, &damaged, err);
	if (r < 0)
		return r;
	if (l.n == 0)
		return damaged ? error_set(err, TM_E_IO, "the point is unreadable") : -1;
	*ret_same = rig_matches(&f->rig, l.v[0], &f->past, err);
	return *ret_same < 0 ? *ret_same : 0;
}

static void a_read_fails_or_is_right(void **state)
{
	struct faults f;

	(void)state;
	up(&f);
	for (int i = 0; i < 6; i++) {
		enum shim_fault fault = (enum shim_fault)(FAULT_EIO + i / 2);

		bool reached = true;

		for (unsigned n = 1; reached; n++) {
			unsigned fds = open_fds();
			struct error err = {0};
			int same = -1, r;

			shim_arm(fault, n, i % 2);
			r = whole_read(&f, &same, &err);
			rig_close(&f.rig);
			reached = shim.calls >= n;
			shim_disarm();
			f.hits += shim.hits;
			f.runs++;
			f.failed += r < 0;
			assert_true(r < 0 ? err.text[0] != 0 : same == 1);
			assert_true(r == 0 || fault != FAULT_SHORT);
			assert_int_equal(open_fds(), fds);
		}
	}
	printf("read: %u runs, %u faults, %u runs failed\n", f.runs, f.hits, f.failed);
	down(&f);
}

static void an_init_that_failed_runs_again(void **state)
{
	struct faults f;

	(void)state;
	up(&f);
	for (int i = 0; i < 6; i++) {
		bool reached = true;

		for (unsigned n = 1; reached; n++) {
			unsigned fds = open_fds();
			struct error err = {0};
			int r;

			remove_tree(f.place.repo);
			shim_arm((enum shim_fault)(FAULT_EIO + i / 2), n, i % 2);
			r = rig_repo(&f.rig, f.place.repo, true, &err);
			rig_close(&f.rig);
			reached = shim.calls >= n;
			f.hits += shim.hits;
			f.runs++;
			f.failed += r < 0;
			shim_disarm();
			error_clear(&err);
			if (rig_repo(&f.rig, f.place.repo, false, &err) < 0) {
				assert_true(r < 0);
				error_clear(&err);
				if (rig_repo(&f.rig, f.place.repo, true, &err) < 0)
					fail_msg("%s", err.text);
			}
			rig_close(&f.rig);
			assert_int_equal(open_fds(), fds);
		}
	}
	printf("init: %u runs, %u faults, %u runs failed\n", f.runs, f.hits, f.failed);
	down(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_backup_fails_or_succeeds_whole),
		cmocka_unit_test(a_read_fails_or_is_right),
		cmocka_unit_test(an_init_that_failed_runs_again),
	};

	seed = test_seed();
	(void)alarm(500); /* a hang is a failure, too */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
