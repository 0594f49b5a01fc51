/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Power cuts.  Each command of two scripts is recorded through the shim; then, for a cut after
 * each call was issued and after each was answered, every outcome that disk.h allows is made on
 * disk and looked at.  In each one
 *	- the repository opens with every key that was there before and after the command,
 *	- every point that was there before and after is there and reads back bit by bit, with its
 *	  protection; those that the command makes or deletes are there and right, or not there
 *	  (I2: a manifest that is there has all its segments),
 *	- verify finds no damage,
 *	- the command simply runs again and comes to the same end, and so does a prune.
 *
 * The same after a process was killed at any call and another one went on with what it saw: what
 * that one reported, or built or decided on, survives the cut that follows.
 *
 * A disk that does not do what fsync asks for must be found out: the control.
 *
 * The short form looks at one of so many; 1 is all:
 *	CRASH_STATES  states that a cut leaves (3)
 *	CRASH_KILLS   calls at which the process is killed (97)
 *	CRASH_WHILE   states that a cut leaves while the next process runs (23)
 *	CRASH_SAMPLES is the number of random outcomes where there are too many for all (32).
 */
#include "disk.h"
#include "play.h"
#include "script.h"

#include <sys/stat.h>

static uint64_t seed;

struct counts {
	unsigned calls, moments, outcomes, states;
};

struct cuts {
	struct play play;
	char before[112], after[112]; /* the repository's folder before a step, and after it */
	uint64_t *seen;               /* signatures */
	size_t nseen;
	unsigned turn;
	struct counts counts;
};

static unsigned setting(const char *name, unsigned otherwise)
{
	const char *text = getenv(name);
	unsigned n = text ? (unsigned)strtoul(text, NULL, 10) : 0;

	return n ? n : otherwise;
}

static unsigned samples(void)
{
	return setting("CRASH_SAMPLES", 32);
}

static bool is_new(struct cuts *c, uint64_t signature)
{
	for (size_t i = 0; i < c->nseen; i++)
		if (c->seen[i] == signature)
			return false;
	c->seen = reallocarray(c->seen, c->nseen + 1, sizeof(*c->seen));
	assert_non_null(c->seen);
	c->seen[c->nseen++] = signature;
	return true;
}

static void cuts_up(struct cuts *c, const struct step *script, unsigned steps, bool encrypted)
{
	*c = (struct cuts){.nseen = 0};
	play_up(&c->play, script, steps, encrypted, seed);
	(void)snprintf(c->before, sizeof(c->before), "%s/before", c->play.place.base);
	(void)snprintf(c->after, sizeof(c->after), "%s/after", c->play.place.base);
	copy_tree(c->play.place.run, c->after);
}

static void cuts_down(struct cuts *c)
{
	play_down(&c->play);
	free(c->seen);
}

/* The tree of step `i` begins the recording; moments from the returned tick on are the step's. */
static unsigned begin_recording(struct cuts *c)
{
	copy_tree(c->before, c->play.place.run);
	shim_start(c->play.place.run, true);
	shim_load();
	return shim.tick;
}

static int run_again(struct cuts *c, unsigned i)
{
	struct play *p = &c->play;
	struct model m = play_model(p, i + 1);
	struct error err = {0};
	const char *path = p->place.left_repo;
	int r = play_step(p, i, path, &err);

	if (r < 0) {
		(void)snprintf(p->error, sizeof(p->error), "it does not run again: %s", err.text);
		return r;
	}
	r = play_check(p, path, &m, &m);
	if (r < 0)
		return r;
	r = play_open(p, path, m.secrets, &err);
	r = r ? r : play_prune(p, &err);
	rig_close(&p->rig);
	if (r < 0) {
		(void)snprintf(p->error, sizeof(p->error), "prune: %s", err.text);
		return r;
	}
	return play_check(p, path, &m, &m);
}

/* Every outcome of cuts from tick `from` on, which leave no less than `least`; again: step i is
 * then run once more. */
static int cut(struct cuts *c, unsigned from, const struct model *least, const struct model *most,
	       unsigned i, bool again, enum disk_lie lie, unsigned stride)
{
	struct disk *d = disk_new(shim.events, shim.nevents, lie);
	struct play *p = &c->play;
	uint64_t random = seed | 1;
	int r = 0;

	c->nseen = 0;
	for (unsigned tick = from; r == 0 && tick <= shim.tick; tick++) {
		struct model m = *least;

		if (again && disk_marks(d, tick))
			m = play_model(p, i + 1);
		c->counts.moments++;
		for (unsigned k = 0; r == 0 && disk_choose(d, tick, k, samples(), &random); k++) {
			c->counts.outcomes++;
			if (!is_new(c, disk_signature(d) * 31 + disk_marks(d, tick)) ||
			    c->turn++ % stride != 0)
				continue;
			c->counts.states++;
			remove_tree(p->place.left);
			assert_int_equal(mkdir(p->place.left, 0700), 0);
			disk_write(d, p->place.left);
			r = play_check(p, p->place.left_repo, &m,
				       again && disk_marks(d, tick) ? &m : most);
			r = r == 0 && again ? run_again(c, i) : r;
			rig_close(&p->rig);
		}
	}
	disk_free(d);
	return r;
}

/* Records step i on top of the one before; the tree after it is kept. */
static unsigned record(struct cuts *c, unsigned i)
{
	struct play *p = &c->play;
	struct error err = {0};
	unsigned from;
	size_t before;

	copy_tree(c->after, c->before);
	if (p->script[i].kind == STEP_REPAIR)
		play_damage(c->before);
	from = begin_recording(c);
	before = shim.nevents;
	if (play_step(p, i, p->place.repo, &err) < 0)
		fail_msg("step %u, %s: %s", i, step_name(p->script[i].kind), err.text);
	c->counts.calls += (unsigned)(shim.nevents - before);
	shim_mark();
	shim_stop();
	copy_tree(p->place.run, c->after);
	return from;
}

static void cut_script(const struct step *script, unsigned steps, bool encrypted)
{
	struct counts sum = {0};
	struct cuts c;

	cuts_up(&c, script, steps, encrypted);
	for (unsigned i = 0; i < steps; i++) {
		struct model a = play_model(&c.play, i), b = play_model(&c.play, i + 1);
		struct model least = model_both(&a, &b), most = model_either(&a, &b);
		unsigned from;

		least.damaged = script[i].kind == STEP_REPAIR;
		c.counts = (struct counts){0};
		from = record(&c, i);
		if (cut(&c, from, &least, &most, i, true, LIE_NONE, setting("CRASH_STATES", 3)) < 0)
			fail_msg("step %u, %s: %s", i, step_name(script[i].kind), c.play.error);
		printf("%-17s %4u calls, %4u moments, %5u outcomes, %4u states opened\n",
		       step_name(script[i].kind), c.counts.calls, c.counts.moments,
		       c.counts.outcomes, c.counts.states);
		(void)fflush(stdout);
		sum.calls += c.counts.calls;
		sum.moments += c.counts.moments;
		sum.outcomes += c.counts.outcomes;
		sum.states += c.counts.states;
	}
	assert_true(sum.calls > 100); /* the calls do go through the shim */
	printf("%-17s %4u calls, %4u moments, %5u outcomes, %4u states opened\n", "all", sum.calls,
	       sum.moments, sum.outcomes, sum.states);
	cuts_down(&c);
}

static void a_power_cut_loses_no_point(void **state)
{
	(void)state;
	cut_script(points_script, ARRAY_SIZE(points_script), false);
}

static void a_power_cut_locks_nobody_out(void **state)
{
	(void)state;
	cut_script(keys_script, ARRAY_SIZE(keys_script), true);
}

/* ---- kills ---- */

/* What the next process does after the kill. */
enum follower {
	THE_SAME,
	A_REPORT, /* lists points: what is named has to stay */
	A_PRUNE,
	A_RETENTION, /* keeps the newest point it sees, forgets the others, prunes */
	FOLLOWERS,
};

static const char *const follower_names[] = {"the same again", "list", "prune",
					     "forget old ones and prune"};

/* Does what f does; *least and *most: what is there after that. */
static int follow(struct cuts *c, unsigned i, enum follower f, struct model *least,
		  struct model *most, struct error *err)
{
	struct play *p = &c->play;
	const char *path = p->place.repo;
	unsigned points, held, kept;
	int r;

	if (f == THE_SAME) {
		r = play_step(p, i, path, err);
		*least = *most = play_model(p, i + 1);
		return r;
	}
	r = play_open(p, path, most->secrets, err);
	if (r == TM_E_NOTFOUND && !least->made) {
		error_clear(err);
		return 0;
	}
	r = r ? r : play_points(p, &points, &held, err);
	if (r == 0 && f == A_REPORT) {
		least->points |= points;
		least->held |= held;
		most->points = points;
	}
	if (r == 0 && f == A_RETENTION) {
		r = play_forget_old(p, &kept, err);
		least->points = most->points = kept;
	}
	if (r == 0 && (f == A_RETENTION || f == A_PRUNE))
		r = play_prune(p, err);
	rig_close(&p->rig);
	return r;
}

/* Step i is killed at its n-th call, from which on nothing it asks for happens.  1; 0: it had ended
 * before; or what is wrong. */
static int kill_and_follow(struct cuts *c, unsigned i, unsigned n, enum follower f)
{
	struct play *p = &c->play;
	struct model a = play_model(p, i), b = play_model(p, i + 1);
	struct model least = model_both(&a, &b), most = model_either(&a, &b);
	struct error err = {0};
	struct model while_it_runs, most_then = most;
	unsigned from;
	bool killed;
	int r;

	least.damaged = p->script[i].kind == STEP_REPAIR;
	while_it_runs = least;
	(void)begin_recording(c);
	shim_arm(FAULT_EIO, n, true);
	(void)play_step(p, i, p->place.repo, &err);
	rig_close(&p->rig);
	killed = shim.hits > 0;
	shim_disarm();
	error_clear(&err);
	from = shim.tick;
	r = follow(c, i, f, &least, &most, &err);
	if (r < 0)
		(void)snprintf(p->error, sizeof(p->error), "%s", err.text);
	shim_stop();
	/* when it is done, and while it is at it */
	r = r ? r : cut(c, shim.tick, &least, &most, i, false, LIE_NONE, 1);
	if (f == A_RETENTION) {
		while_it_runs.any = while_it_runs.points != 0;
		while_it_runs.points = 0;
	}
	if (f != THE_SAME)
		r = r ? r
		      : cut(c, from, &while_it_runs, &most_then, i, false, LIE_NONE,
			    setting("CRASH_WHILE", 23));
	return r ? r : killed;
}

static void kill_script(const struct step *script, unsigned steps, bool encrypted)
{
	unsigned stride = setting("CRASH_KILLS", 97), kills = 0, n = 1 + (unsigned)(seed % stride);
	struct cuts c;

	cuts_up(&c, script, steps, encrypted);
	for (unsigned i = 0; i < steps; i++) {
		unsigned calls = 0;

		(void)record(&c, i);
		for (unsigned f = 0; f < FOLLOWERS; f++) {
			int r;

			/* the others want what is whole */
			if (script[i].kind == STEP_REPAIR && f > A_REPORT)
				continue;
			for (; (r = kill_and_follow(&c, i, n, f)) > 0; n += stride) {
				kills++;
				calls = n;
			}
			if (r < 0)
				fail_msg("%s killed at call %u, then %s, then a cut: %s",
					 step_name(script[i].kind), n, follower_names[f],
					 c.play.error);
			n = stride == 1 ? 1 : 1 + (n + kills) % stride;
		}
		printf("%-17s %4u calls, %6u states opened so far\n", step_name(script[i].kind),
		       calls, c.counts.states);
		(void)fflush(stdout);
	}
	printf("%u kills, %u outcomes, %u states opened\n", kills, c.counts.outcomes,
	       c.counts.states);
	cuts_down(&c);
}

static void a_kill_leaves_nothing_unsynced_behind(void **state)
{
	(void)state;
	kill_script(points_script, ARRAY_SIZE(points_script), false);
	kill_script(keys_script, ARRAY_SIZE(keys_script), true);
}

/* ---- control ---- */

static void a_disk_that_does_not_sync_is_found_out(void **state)
{
	struct cuts c;

	(void)state;
	for (int lie = LIE_FILES; lie <= LIE_FOLDERS; lie++) {
		int r = 0;

		cuts_up(&c, points_script, ARRAY_SIZE(points_script), false);
		for (unsigned i = 0; r == 0 && i < c.play.steps; i++) {
			struct model a = play_model(&c.play, i), b = play_model(&c.play, i + 1);
			struct model least = model_both(&a, &b), most = model_either(&a, &b);
			unsigned from = record(&c, i);

			r = cut(&c, from, &least, &most, i, true, (enum disk_lie)lie, 1);
		}
		assert_true(r < 0);
		printf("without fsync of %s: %s (state %u)\n",
		       lie == LIE_FILES ? "files" : "folders", c.play.error, c.counts.states);
		cuts_down(&c);
	}
}

static void a_store_that_does_not_sync_what_it_sees_is_found_out(void **state)
{
	unsigned i = 0, n = 0;
	struct cuts c;
	int r = 0;

	(void)state;
	cuts_up(&c, points_script, ARRAY_SIZE(points_script), false);
	c.play.lazy = true;
	for (; r == 0 && i < c.play.steps; i++) {
		(void)record(&c, i);
		/* Only the last calls of a step publish something.  Which number the one before
		 * the sync has differs from run to run, so one step alone may miss it. */
		for (n = 20, r = 1; r > 0; n++)
			r = kill_and_follow(&c, i, n, A_REPORT);
	}
	assert_true(r < 0);
	printf("%s killed at call %u, then %s: %s\n", step_name(points_script[i - 1].kind), n - 1,
	       follower_names[A_REPORT], c.play.error);
	cuts_down(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_power_cut_loses_no_point),
		cmocka_unit_test(a_power_cut_locks_nobody_out),
		cmocka_unit_test(a_kill_leaves_nothing_unsynced_behind),
		cmocka_unit_test(a_disk_that_does_not_sync_is_found_out),
		cmocka_unit_test(a_store_that_does_not_sync_what_it_sees_is_found_out),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
