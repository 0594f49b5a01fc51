/* SPDX-License-Identifier: Apache-2.0 */
/*
 * I/O faults: each call below the directory store fails in turn, once or from then on for good,
 * with EIO or ENOSPC, or transfers only half; for each command of the scripts.  The answer is
 * an error or success, never damage and never a wrong read.  What was there before and is there
 * after stays; what the command makes or deletes is whole or not there; it runs again to the same
 * end; no descriptor is lost.
 *
 * FAULTS=n: one of n calls is looked at (default 131; 1 is all), of repair each when it is given.
 */
#include "play.h"
#include "script.h"

#include <dirent.h>

static uint64_t seed;

static const char *const fault_name[] = {"-", "EIO", "ENOSPC", "half a transfer"};

struct faults {
	struct play play;
	char before[112], after[112]; /* the folder before a step, and after it */
	unsigned runs, hits, failed, turn;
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

static unsigned stride(enum step_kind kind)
{
	const char *text = getenv("FAULTS");
	unsigned n = text ? (unsigned)strtoul(text, NULL, 10) : 0;

	return n == 0 ? 131 : kind == STEP_REPAIR ? 1 : n;
}

/* Repair makes more calls than all others together, so it gets a repository that is as small as
 * can be. */
static const struct step repair_script[] = {
	{STEP_INIT, 0, 0}, {STEP_BACKUP, 0, 0}, {STEP_BACKUP, 1, 0}, {STEP_REPAIR, 0, 0}};

static bool is_faulted(const struct step *script, unsigned i)
{
	return (script == repair_script) == (script[i].kind == STEP_REPAIR);
}

/* ---- commands ---- */

static void must(struct faults *f, unsigned i, unsigned n, const char *what, bool ok,
		 const char *text)
{
	if (!ok)
		fail_msg("%s, call %u: %s: '%s'", step_name(f->play.script[i].kind), n, what, text);
}

/* Step i with a fault at its n-th call; false when it has not so many. */
static bool fault_step(struct faults *f, unsigned i, enum shim_fault fault, unsigned n,
		       bool for_good)
{
	struct play *p = &f->play;
	struct model a = play_model(p, i), b = play_model(p, i + 1);
	struct model least = model_both(&a, &b), most = model_either(&a, &b);
	unsigned fds;
	struct error err = {0};
	bool reached;
	int r;

	copy_tree(f->before, p->place.run);
	fds = open_fds();
	shim_start(p->place.run, false);
	shim_arm(fault, n, for_good);
	r = play_step(p, i, p->place.repo, &err);
	rig_close(&p->rig);
	reached = shim.calls >= n;
	f->runs++;
	f->hits += shim.hits;
	f->failed += r < 0;
	shim_disarm();
	must(f, i, n, "an error without a text", r == 0 || err.text[0], "");
	must(f, i, n, "half a transfer is no error", r == 0 || fault != FAULT_SHORT, err.text);
	must(f, i, n, "taken for damage", r != TM_E_CORRUPT || (fault == FAULT_EIO && for_good),
	     err.text);
	least.damaged = p->script[i].kind == STEP_REPAIR;
	if (r == 0)
		least = most = b;
	must(f, i, n, fault_name[fault], play_check(p, p->place.repo, &least, &most) == 0,
	     p->error);
	error_clear(&err);
	must(f, i, n, "does not run again", play_step(p, i, p->place.repo, &err) == 0, err.text);
	must(f, i, n, "run again", play_check(p, p->place.repo, &b, &b) == 0, p->error);
	shim_stop();
	must(f, i, n, "descriptors are lost", open_fds() == fds, "");
	return reached;
}

/* Step i with each fault, at one call after the other. */
static void fault_calls(struct faults *f, unsigned i)
{
	enum step_kind kind = f->play.script[i].kind;
	unsigned step = stride(kind);

	f->runs = f->hits = f->failed = 0;
	for (int k = 0; k < 6; k++) {
		enum shim_fault fault = (enum shim_fault)(FAULT_EIO + k / 2);
		unsigned n = 1 + f->turn % step;

		while (fault_step(f, i, fault, n, k % 2))
			n += step;
		f->turn += n;
	}
	printf("%-17s %5u runs, %6u faults, %5u runs failed\n", step_name(kind), f->runs, f->hits,
	       f->failed);
	(void)fflush(stdout);
}

static void fault_script(const struct step *script, unsigned steps, bool encrypted)
{
	struct faults f = {.turn = (unsigned)(seed % 1024)};
	struct play *p = &f.play;

	play_up(p, script, steps, encrypted, seed);
	(void)snprintf(f.before, sizeof(f.before), "%s/before", p->place.base);
	(void)snprintf(f.after, sizeof(f.after), "%s/after", p->place.base);
	copy_tree(p->place.run, f.after);
	for (unsigned i = 0; i < steps; i++) {
		struct error err = {0};

		copy_tree(f.after, f.before);
		if (script[i].kind == STEP_REPAIR) {
			play_damage(f.before);
			copy_tree(f.before, p->place.run);
		}
		if (play_step(p, i, p->place.repo, &err) < 0)
			fail_msg("%s: %s", step_name(script[i].kind), err.text);
		copy_tree(p->place.run, f.after);
		if (is_faulted(script, i))
			fault_calls(&f, i);
		copy_tree(f.after, p->place.run);
	}
	play_down(p);
}

static void every_command_fails_or_succeeds_whole(void **state)
{
	(void)state;
	fault_script(repair_script, ARRAY_SIZE(repair_script), false);
	fault_script(points_script, ARRAY_SIZE(points_script), false);
	fault_script(keys_script, ARRAY_SIZE(keys_script), true);
}

/* ---- reading ---- */

/* Opens, lists and reads; *ret_same: 1 when all is as it was. */
static int whole_read(struct play *p, int *ret_same, struct error *err)
{
	auto_point_list struct point_list l = {0};
	size_t damaged = 0;
	int r = play_open(p, p->place.repo, 1, err);

	r = r ? r : repo_points(p->rig.repo, rig_guest, &l, &damaged, err);
	if (r < 0)
		return r;
	if (damaged)
		return error_set(err, TM_E_CORRUPT, "%zu manifests are damaged", damaged);
	assert_int_equal(l.n, 1);
	*ret_same = rig_matches(&p->rig, l.v[0], &p->past[0], err);
	return *ret_same < 0 ? *ret_same : 0;
}

static void a_read_fails_or_is_right(void **state)
{
	struct faults f = {.runs = 0};
	struct play *p = &f.play;
	struct error err = {0};

	(void)state;
	play_up(p, points_script, 2, false, seed);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(play_step(p, i, p->place.repo, &err), 0);
	shim_start(p->place.run, false);
	for (int i = 0; i < 6; i++) {
		enum shim_fault fault = (enum shim_fault)(FAULT_EIO + i / 2);
		bool reached = true;

		for (unsigned n = 1; reached; n++) {
			unsigned fds = open_fds();
			int same = -1, r;

			error_clear(&err);
			shim_arm(fault, n, i % 2);
			r = whole_read(p, &same, &err);
			rig_close(&p->rig);
			reached = shim.calls >= n;
			shim_disarm();
			f.hits += shim.hits;
			f.runs++;
			f.failed += r < 0;
			assert_true(r < 0 ? err.text[0] != 0 : same == 1);
			assert_true(r == 0 || fault != FAULT_SHORT);
			assert_true(r != TM_E_CORRUPT || (fault == FAULT_EIO && i % 2));
			assert_int_equal(open_fds(), fds);
		}
	}
	printf("%-17s %5u runs, %6u faults, %5u runs failed\n", "open, list, read", f.runs, f.hits,
	       f.failed);
	play_down(p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_command_fails_or_succeeds_whole),
		cmocka_unit_test(a_read_fails_or_is_right),
	};

	seed = test_seed();
	(void)alarm(getenv("FAULTS") ? 3600 : 500); /* a hang is a failure, too */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
