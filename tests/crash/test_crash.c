/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Power cuts.  One run (init, a full backup, incremental ones) is recorded through the shim; then,
 * for a cut after each call was issued and after each was answered, every outcome that disk.h
 * allows is made on disk and opened.  In each one
 *	- every point whose backup had returned is there and reads back bit by bit,
 *	- a point whose backup had not returned is there and right, or not there at all,
 *	- verify finds no damage,
 *	- the interrupted command simply runs again, and its point reads back, too.
 * The same after a process was killed at any call and its command ran again.
 * A disk that does not do what fsync asks for must be found out: the control.
 *
 * CRASH_STRIDE=n looks at every n-th moment only (default 1), CRASH_KILL_STRIDE=n kills at every
 *n-th call (default 5); CRASH_SAMPLES is the number of random outcomes where there are too many for
 *all.
 */
#include "crash.h"
#include "disk.h"

#include <sys/stat.h>

#define BACKUPS 4

static uint64_t seed;

struct power_cut {
	struct place place;
	struct rig rig;
	struct image past[BACKUPS]; /* what point i holds */
	struct image now;
	bool *dirty[BACKUPS]; /* blocks that changed before backup i */
	struct tm_id id[BACKUPS];
	uint64_t *seen; /* signatures */
	size_t nseen;
	unsigned outcomes, states, reruns;
	char why[1200]; /* of the first wrong state */
};

static unsigned setting(const char *name, unsigned otherwise)
{
	const char *text = getenv(name);

	return text ? (unsigned)strtoul(text, NULL, 10) : otherwise;
}

static int newest(struct rig *rig, struct point_list *l, struct error *err)
{
	size_t damaged = 0;
	int r = repo_points(rig->repo, rig_guest, l, &damaged, err);

	if (r == 0 && damaged)
		r = error_set(err, TM_E_CORRUPT, "%zu unreadable manifests", damaged);
	return r;
}

/* Backs up what the image was at backup i. */
static int backup(struct power_cut *c, unsigned i, struct tm_id *ret, struct error *err)
{
	auto_point_list struct point_list l = {0};
	struct image *im = &c->past[i];
	int r = newest(&c->rig, &l, err);

	if (r < 0)
		return r;
	memcpy(im->dirty, c->dirty[i], im->blocks);
	return rig_backup(&c->rig, im, l.n ? l.v[l.n - 1] : NULL, ret, err);
}

static void record(struct power_cut *c)
{
	struct error err = {0};

	image_init(&c->now, 18 * 1024 * 1024 + 300, BS);
	shim_start(c->place.run, true);
	if (rig_repo(&c->rig, c->place.repo, true, &err) < 0)
		fail_msg("%s", err.text);
	shim_mark();
	for (unsigned i = 0; i < BACKUPS; i++) {
		image_fill(&c->now, &c->rig.random, i ? 12 : 500);
		image_copy(&c->now, &c->past[i]);
		c->dirty[i] = calloc(c->now.blocks, sizeof(bool));
		assert_non_null(c->dirty[i]);
		memcpy(c->dirty[i], c->now.dirty, c->now.blocks);
		memset(c->now.dirty, 0, c->now.blocks);
		if (backup(c, i, &c->id[i], &err) < 0)
			fail_msg("%s", err.text);
		shim_mark();
	}
	rig_close(&c->rig);
	shim_stop();
}

static int wrong(struct power_cut *c, unsigned tick, const char *what, const struct error *err)
{
	if (!c->why[0])
		(void)snprintf(c->why, sizeof(c->why), "cut at %u: %s%s%s", tick, what,
			       err->text[0] ? ": " : "", err->text);
	return -1;
}

/* Point i of the list is the i-th that was backed up, and right. */
static int check_list(struct power_cut *c, const struct point_list *l, unsigned tick)
{
	for (size_t i = 0; i < l->n; i++) {
		struct error err = {0};
		int r;

		if (!id_equal(&l->v[i]->id, &c->id[i]))
			return wrong(c, tick, "a point that was never made", &err);
		r = rig_matches(&c->rig, l->v[i], &c->past[i], &err);
		if (r != 1)
			return wrong(c, tick, r == 0 ? "a point differs" : "a point is unreadable",
				     &err);
	}
	return 0;
}

static int check_verify(struct power_cut *c, unsigned tick)
{
	const struct repo_verify_options opt = {.pool = c->rig.pool};
	struct repo_verify_report report = {0};
	struct error err = {0};
	int r = repo_verify(c->rig.repo, &opt, &report, &err);

	if (r == 0 && report.ndamaged)
		r = error_set(&err, TM_E_CORRUPT, "%s: %s", report.damaged[0].object,
			      report.damaged[0].reason);
	repo_verify_report_done(&report);
	return r < 0 ? wrong(c, tick, "verify", &err) : 0;
}

/* The command that the cut interrupted, once more. */
static int check_again(struct power_cut *c, size_t have, unsigned tick)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	struct tm_id id;
	int r;

	if (have == BACKUPS)
		return 0;
	c->reruns++;
	r = backup(c, (unsigned)have, &id, &err);
	if (r < 0)
		return wrong(c, tick, "the backup does not run again", &err);
	r = newest(&c->rig, &l, &err);
	if (r < 0 || l.n != have + 1 || !id_equal(&l.v[have]->id, &id))
		return wrong(c, tick, "the new point is not there", &err);
	r = rig_matches(&c->rig, l.v[have], &c->past[have], &err);
	return r == 1 ? 0 : wrong(c, tick, "the new point is wrong", &err);
}

/* Opens what is left; done: commands that had returned. */
static int check_state(struct power_cut *c, unsigned tick, unsigned done)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	int r = rig_repo(&c->rig, c->place.left_repo, false, &err);

	if (r < 0 && (done > 0 || r != TM_E_NOTFOUND))
		return wrong(c, tick, "the repository does not open", &err);
	error_clear(&err);
	if (r < 0) {
		c->reruns++;
		r = rig_repo(&c->rig, c->place.left_repo, true, &err);
		if (r < 0)
			return wrong(c, tick, "init does not run again", &err);
	}
	r = newest(&c->rig, &l, &err);
	if (r < 0)
		return wrong(c, tick, "the points cannot be listed", &err);
	if (l.n + 1 < done)
		return wrong(c, tick, "a committed point is gone", &err);
	if (l.n > done)
		return wrong(c, tick, "more points than backups began", &err);
	r = check_list(c, &l, tick);
	r = r ? r : check_verify(c, tick);
	return r ? r : check_again(c, l.n, tick);
}

static bool is_new(struct power_cut *c, uint64_t signature)
{
	for (size_t i = 0; i < c->nseen; i++)
		if (c->seen[i] == signature)
			return false;
	c->seen = reallocarray(c->seen, c->nseen + 1, sizeof(*c->seen));
	assert_non_null(c->seen);
	c->seen[c->nseen++] = signature;
	return true;
}

/* All outcomes of all cuts; ends at the first wrong one. */
static int cut_everywhere(struct power_cut *c, enum disk_lie lie, unsigned stride)
{
	struct disk *d = disk_new(shim.events, shim.nevents, lie);
	unsigned samples = setting("CRASH_SAMPLES", 32);
	uint64_t random = seed | 1;
	int r = 0;

	c->nseen = c->outcomes = c->states = c->reruns = 0;
	c->why[0] = 0;
	for (unsigned tick = 0; r == 0 && tick <= shim.tick; tick += stride) {
		unsigned done = disk_marks(d, tick);

		for (unsigned k = 0; r == 0 && disk_choose(d, tick, k, samples, &random); k++) {
			c->outcomes++;
			if (!is_new(c, disk_signature(d) * 31 + done))
				continue;
			c->states++;
			remove_tree(c->place.left);
			assert_int_equal(mkdir(c->place.left, 0700), 0);
			disk_write(d, c->place.left);
			r = check_state(c, tick, done);
			rig_close(&c->rig);
		}
	}
	disk_free(d);
	return r;
}

static void up(struct power_cut *c)
{
	*c = (struct power_cut){.nseen = 0};
	place_up(&c->place);
	rig_start(&c->rig, seed);
	record(c);
}

static void down(struct power_cut *c)
{
	rig_stop(&c->rig);
	shim_clear();
	place_down(&c->place);
	for (unsigned i = 0; i < BACKUPS; i++) {
		image_done(&c->past[i]);
		free(c->dirty[i]);
	}
	image_done(&c->now);
	free(c->seen);
}

static void a_power_cut_loses_nothing_that_was_committed(void **state)
{
	struct power_cut c;
	int r;

	(void)state;
	up(&c);
	assert_true(shim.nevents > 100); /* the calls do go through the shim */
	r = cut_everywhere(&c, LIE_NONE, setting("CRASH_STRIDE", 1));
	printf("%zu calls, %u moments, %u outcomes, %u different states opened, %u commands run "
	       "again\n",
	       shim.nevents, shim.tick + 1, c.outcomes, c.states, c.reruns);
	if (r < 0)
		fail_msg("%s", c.why);
	down(&c);
}

/* init where it has not been done, and a backup; *ret_points are there then. */
static int init_and_backup(struct power_cut *c, unsigned *ret_points, struct error *err)
{
	auto_point_list struct point_list l = {0};
	int r = rig_repo(&c->rig, c->place.repo, false, err);

	if (r == TM_E_NOTFOUND) {
		error_clear(err);
		r = rig_repo(&c->rig, c->place.repo, true, err);
	}
	r = r ? r : newest(&c->rig, &l, err);
	if (r == 0 && l.n) /* the killed one came that far */
		c->id[0] = l.v[0]->id;
	*ret_points = (unsigned)l.n + 1;
	r = r ? r : backup(c, (unsigned)l.n, &c->id[l.n], err);
	rig_close(&c->rig);
	return r;
}

/* Every outcome of a cut right after the last command. */
static void cut_at_end(struct power_cut *c, unsigned points)
{
	struct disk *d = disk_new(shim.events, shim.nevents, LIE_NONE);
	uint64_t random = seed | 1;

	c->nseen = 0;
	for (unsigned k = 0; disk_choose(d, shim.tick, k, 32, &random); k++) {
		c->outcomes++;
		if (!is_new(c, disk_signature(d)))
			continue;
		c->states++;
		remove_tree(c->place.left);
		assert_int_equal(mkdir(c->place.left, 0700), 0);
		disk_write(d, c->place.left);
		if (check_state(c, shim.tick, 1 + points) < 0)
			fail_msg("%s", c->why);
		rig_close(&c->rig);
	}
	disk_free(d);
}

/*
 * A process is killed at its n-th call (from there on nothing it asks for happens), the next one
 * carries on with what lies in the page cache, and then the power goes: what the second
 * one reports as done must not lean on what the first one never synced.
 */
static void a_killed_run_leaves_nothing_unsynced_behind(void **state)
{
	unsigned stride = setting("CRASH_KILL_STRIDE", 5), kills = 0, points = 0;
	struct power_cut c;
	bool killed = true;

	(void)state;
	up(&c);
	for (unsigned n = 1 + (unsigned)(seed % stride); killed; n += stride, kills++) {
		struct error err = {0};

		remove_tree(c.place.run);
		assert_int_equal(mkdir(c.place.run, 0700), 0);
		shim_start(c.place.run, true);
		shim_arm(FAULT_EIO, n, true);
		(void)init_and_backup(&c, &points, &err);
		killed = shim.hits > 0;
		shim_disarm();
		error_clear(&err);
		if (init_and_backup(&c, &points, &err) < 0)
			fail_msg("after a kill at call %u: %s", n, err.text);
		shim_mark();
		shim_stop();
		cut_at_end(&c, points);
	}
	printf("%u kills, %u outcomes, %u states opened\n", kills, c.outcomes, c.states);
	down(&c);
}

static void a_disk_that_does_not_sync_is_found_out(void **state)
{
	struct power_cut c;

	(void)state;
	up(&c);
	for (int lie = LIE_FILES; lie <= LIE_FOLDERS; lie++) {
		assert_int_equal(cut_everywhere(&c, (enum disk_lie)lie, 1), -1);
		printf("without fsync of %s: %s (state %u)\n",
		       lie == LIE_FILES ? "files" : "folders", c.why, c.states);
	}
	down(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_power_cut_loses_nothing_that_was_committed),
		cmocka_unit_test(a_killed_run_leaves_nothing_unsynced_behind),
		cmocka_unit_test(a_disk_that_does_not_sync_is_found_out),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
