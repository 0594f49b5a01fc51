/* SPDX-License-Identifier: Apache-2.0 */
#include "play.h"

#include <ftw.h>
#include <string.h>

#define IMAGE_BYTES (UINT64_C(5) * 1024 * 1024 + 300)
#define HOURS_MS    (UINT64_C(3600) * 1000)

static char point_names[MAX_POINTS][4] = {"p0", "p1", "p2", "p3", "p4"};

const char *step_name(enum step_kind kind)
{
	static const char *const names[] = {
		[STEP_INIT] = "init",
		[STEP_BACKUP] = "backup",
		[STEP_ABANDON] = "backup, given up",
		[STEP_FORGET] = "forget",
		[STEP_PROTECT] = "protect",
		[STEP_UNPROTECT] = "unprotect",
		[STEP_PRUNE] = "prune",
		[STEP_REPAIR] = "repair",
		[STEP_KEY_ADD] = "key add",
		[STEP_KEY_REMOVE] = "key remove",
		[STEP_KEY_CHANGE] = "key password",
		[STEP_KEY_ROTATE] = "key rotate",
	};

	return names[kind];
}

void play_up(struct play *p, const struct step *script, unsigned steps, bool encrypted,
	     uint64_t seed)
{
	*p = (struct play){.script = script, .steps = steps, .encrypted = encrypted};
	place_up(&p->place);
	rig_start(&p->rig, seed);
	for (unsigned i = 0; i < MAX_POINTS; i++) {
		if (i == 0)
			image_init(&p->past[0], IMAGE_BYTES, BS);
		else
			image_copy(&p->past[i - 1], &p->past[i]);
		image_fill(&p->past[i], &p->rig.random, i ? 8 : 120);
	}
}

void play_down(struct play *p)
{
	rig_stop(&p->rig);
	shim_clear();
	place_down(&p->place);
	for (unsigned i = 0; i < MAX_POINTS; i++)
		image_done(&p->past[i]);
}

/* ---- model ---- */

static void model_step(struct model *m, const struct step *s)
{
	switch (s->kind) {
	case STEP_INIT:
		m->made = true;
		m->secrets = 1;
		break;
	case STEP_BACKUP:
		m->points |= 1U << s->arg;
		break;
	case STEP_FORGET:
		m->points &= ~s->arg;
		break;
	case STEP_PROTECT:
		m->held |= 1U << s->arg;
		break;
	case STEP_UNPROTECT:
		m->held &= ~(1U << s->arg);
		break;
	case STEP_KEY_ADD:
		m->secrets |= 1U << s->arg;
		break;
	case STEP_KEY_REMOVE:
		m->secrets &= ~(1U << s->arg);
		break;
	case STEP_KEY_CHANGE:
		m->secrets = (m->secrets & ~(1U << s->from)) | 1U << s->arg;
		break;
	case STEP_KEY_ROTATE:
	case STEP_PRUNE:
	case STEP_REPAIR:
	case STEP_ABANDON:
		break;
	}
}

struct model play_model(const struct play *p, unsigned done)
{
	struct model m = {.made = false};

	for (unsigned i = 0; i < done; i++)
		model_step(&m, &p->script[i]);
	return m;
}

struct model model_both(const struct model *a, const struct model *b)
{
	return (struct model){.made = a->made && b->made,
			      .points = a->points & b->points,
			      .held = a->held & b->held,
			      .secrets = a->secrets & b->secrets};
}

struct model model_either(const struct model *a, const struct model *b)
{
	return (struct model){.made = a->made || b->made,
			      .points = a->points | b->points,
			      .held = a->held | b->held,
			      .secrets = a->secrets | b->secrets};
}

/* ---- opening ---- */

struct secret_text {
	struct repo_secret secret;
	char text[REPO_KEY_FILE_TEXT];
};

static void secret_of(unsigned i, struct secret_text *ret)
{
	memset(ret->text, '0' + (int)i, sizeof(ret->text));
	ret->text[64] = '\n';
	ret->text[65] = 0;
	ret->secret =
		(struct repo_secret){.kind = REPO_SECRET_KEY_FILE, .bytes = ret->text, .len = 65};
}

static int give_secret(void *data, struct repo_secret *ret, struct error *err)
{
	(void)err;
	*ret = ((struct secret_text *)data)->secret;
	return 0;
}

static int sync_nothing(struct store *st, const char *prefix, struct error *err)
{
	(void)st;
	(void)prefix;
	(void)err;
	return 0;
}

static void make_lazy(struct store *st)
{
	static struct store_ops ops;

	ops = *st->ops;
	ops.sync = sync_nothing;
	st->ops = &ops;
}

static int open_with(struct play *p, const char *path, unsigned secret, struct error *err)
{
	struct secret_text text;
	const struct repo_credentials cred = {
		.get = give_secret, .data = &text, .given = p->encrypted};
	struct store *st;
	int r = store_dir_open(p->rig.loop, path, false, &st, err);

	secret_of(secret, &text);
	if (r == 0 && p->lazy)
		make_lazy(st);
	return r ? r : repo_open_with(st, p->encrypted ? &cred : NULL, &p->rig.repo, err);
}

int play_open(struct play *p, const char *path, unsigned secrets, struct error *err)
{
	int r = TM_E_DENIED;

	for (unsigned i = 0; r == TM_E_DENIED && i < MAX_SECRETS; i++) {
		if (!(secrets >> i & 1))
			continue;
		error_clear(err);
		r = open_with(p, path, i, err);
	}
	return r;
}

static bool opens(struct play *p, const char *path, unsigned secret)
{
	struct error err = {0};
	bool r = open_with(p, path, secret, &err) == 0;

	rig_close(&p->rig);
	return r;
}

static int make(struct play *p, const char *path, struct error *err)
{
	struct secret_text text;
	const struct repo_init_options opt = {
		.block_size = BS, .label = "s0", .secret = p->encrypted ? &text.secret : NULL};
	struct store *st;
	int r = store_dir_open(p->rig.loop, path, true, &st, err);

	secret_of(0, &text);
	return r ? r : repo_init(st, &opt, &p->rig.repo, err);
}

/* ---- points ---- */

static unsigned number_of(const struct point *point)
{
	for (unsigned i = 0; i < MAX_POINTS; i++)
		if (strcmp(point->name, point_names[i]) == 0)
			return i;
	return MAX_POINTS;
}

static int list(struct play *p, struct point_list *ret, struct error *err)
{
	size_t damaged = 0;
	int r = repo_points(p->rig.repo, rig_guest, ret, &damaged, err);

	for (size_t i = 0; r == 0 && i < ret->n; i++)
		if (number_of(ret->v[i]) == MAX_POINTS)
			r = error_set(err, TM_E_CORRUPT, "a point that was never made");
	if (r == 0 && damaged)
		r = error_set(err, TM_E_CORRUPT, "%zu unreadable manifests", damaged);
	return r;
}

int play_points(struct play *p, unsigned *ret_points, unsigned *ret_held, struct error *err)
{
	auto_point_list struct point_list l = {0};
	int r = list(p, &l, err);

	*ret_points = *ret_held = 0;
	for (size_t i = 0; r == 0 && i < l.n; i++) {
		unsigned n = number_of(l.v[i]);

		if (*ret_points >> n & 1)
			r = error_set(err, TM_E_CORRUPT, "point %s is there twice", l.v[i]->name);
		*ret_points |= 1U << n;
		*ret_held |= (unsigned)l.v[i]->is_protected << n;
	}
	return r;
}

/* ---- steps ---- */

static int do_backup(struct play *p, unsigned n, bool commit, struct error *err)
{
	auto_point_list struct point_list l = {0};
	const struct point *parent;
	struct image *im = &p->past[n];
	struct tm_id id;
	int r = list(p, &l, err);

	for (size_t i = 0; r == 0 && i < l.n; i++)
		if (commit && number_of(l.v[i]) == n)
			return 0;
	if (r < 0)
		return r;
	parent = l.n ? l.v[l.n - 1] : NULL;
	for (uint64_t b = 0; parent && b < im->blocks; b++)
		im->dirty[b] = memcmp(im->data + b * BS, p->past[number_of(parent)].data + b * BS,
				      BS) != 0;
	p->rig.name = point_names[n];
	p->rig.give_up = !commit;
	r = rig_backup(&p->rig, im, parent, &id, err);
	p->rig.give_up = false;
	return !commit && r == TM_E_CANCELED ? 0 : r;
}

static int do_forget(struct play *p, unsigned mask, struct error *err)
{
	auto_point_list struct point_list l = {0};
	struct tm_id ids[MAX_POINTS];
	size_t n = 0;
	int r = list(p, &l, err);

	for (size_t i = 0; r == 0 && i < l.n; i++)
		if (mask >> number_of(l.v[i]) & 1)
			ids[n++] = l.v[i]->id;
	return r ? r : repo_forget(p->rig.repo, ids, n, err);
}

static int do_protect(struct play *p, unsigned n, bool on, struct error *err)
{
	auto_point_list struct point_list l = {0};
	int r = list(p, &l, err);

	for (size_t i = 0; r == 0 && i < l.n; i++)
		if (number_of(l.v[i]) == n)
			return repo_protect(p->rig.repo, &l.v[i]->id, on, err);
	return r ? r : error_set(err, TM_E_NOTFOUND, "no such point");
}

int play_prune(struct play *p, struct error *err)
{
	const struct repo_prune_options opt = {.stale_ms = 24 * HOURS_MS,
					       .now_ms = p->rig.now + 48 * HOURS_MS};
	struct repo_prune_report report = {0};

	return repo_prune(p->rig.repo, &opt, &report, err);
}

int play_forget_old(struct play *p, unsigned *ret, struct error *err)
{
	auto_point_list struct point_list l = {0};
	unsigned drop = 0;
	int r = list(p, &l, err);

	*ret = 0;
	for (size_t i = 0; r == 0 && i < l.n; i++) {
		unsigned bit = 1U << number_of(l.v[i]);

		if (i + 1 < l.n && !l.v[i]->is_protected)
			drop |= bit;
		else
			*ret |= bit;
	}
	return r ? r : do_forget(p, drop, err);
}

static int do_repair(struct play *p, struct error *err)
{
	const struct repo_repair_options opt = {.pool = p->rig.pool};
	struct repo_verify_report report = {0};
	int r = repo_repair(p->rig.repo, &opt, &report, err);

	for (size_t i = 0; r == 0 && i < report.ndamaged; i++)
		if (!report.damaged[i].repaired) /* there is always a way here */
			r = error_set(err, TM_E_IO, "%s: %s", report.damaged[i].object,
				      report.damaged[i].remedy ? report.damaged[i].remedy : "?");
	repo_verify_report_done(&report);
	return r;
}

static char damage_at[512];

static int find_map(const char *path, const struct stat *sb, int type, struct FTW *ftw)
{
	(void)sb;
	(void)ftw;
	if (type == FTW_F && strstr(path, "/s/") && strstr(path, "/m000.") &&
	    strcmp(path, damage_at) > 0)
		(void)snprintf(damage_at, sizeof(damage_at), "%s", path);
	return 0;
}

void play_damage(const char *path)
{
	FILE *file;

	damage_at[0] = 0;
	assert_int_equal(nftw(path, find_map, 16, FTW_PHYS), 0);
	file = fopen(damage_at, "r+e");
	assert_non_null(file);
	assert_int_equal(fseek(file, 300, SEEK_SET), 0);
	assert_int_equal(fwrite("damage", 1, 6, file), 6);
	assert_int_equal(fclose(file), 0);
}

static int key_remove(struct play *p, unsigned secret, struct error *err)
{
	auto_key_list struct repo_key_list l = {0};
	char label[8];
	int r = repo_keys(p->rig.repo, &l, err);

	(void)snprintf(label, sizeof(label), "s%u", secret);
	for (size_t i = 0; r == 0 && i < l.n; i++)
		if (strcmp(l.v[i].label, label) == 0)
			r = repo_key_remove(p->rig.repo, &l.v[i].id, err);
	return r;
}

static int key_step(struct play *p, const struct step *s, struct error *err)
{
	struct repo_key_options opt = {.role = REPO_ROLE_FULL};
	struct secret_text text;
	struct tm_id id;
	char label[8];

	secret_of(s->arg, &text);
	(void)snprintf(label, sizeof(label), "s%u", s->arg);
	opt.label = label;
	if (s->kind == STEP_KEY_ADD)
		return repo_key_add(p->rig.repo, &opt, &text.secret, &id, err);
	if (s->kind == STEP_KEY_CHANGE)
		return repo_key_change(p->rig.repo, &text.secret, &id, err);
	if (s->kind == STEP_KEY_ROTATE)
		return repo_key_rotate(p->rig.repo, false, &text.secret, &id, err);
	return key_remove(p, s->arg, err);
}

/* It is there, whoever made it: the next one to write goes on with that. */
static int see_it_lasts(struct play *p, struct error *err)
{
	auto_clean(repo_session_free) struct repo_session *s = NULL;
	struct repo_session_options opt = {.guest = rig_guest, .pool = p->rig.pool};
	int r = id_new_timed(p->rig.now, &opt.id, err);

	return r ? r : repo_session_begin(p->rig.repo, &opt, &s, err);
}

static int do_step(struct play *p, const struct step *s, struct error *err)
{
	switch (s->kind) {
	case STEP_BACKUP:
	case STEP_ABANDON:
		return do_backup(p, s->arg, s->kind == STEP_BACKUP, err);
	case STEP_FORGET:
		return do_forget(p, s->arg, err);
	case STEP_PROTECT:
	case STEP_UNPROTECT:
		return do_protect(p, s->arg, s->kind == STEP_PROTECT, err);
	case STEP_PRUNE:
		return play_prune(p, err);
	case STEP_REPAIR:
		return do_repair(p, err);
	case STEP_INIT:
		return see_it_lasts(p, err);
	case STEP_KEY_ADD:
	case STEP_KEY_REMOVE:
	case STEP_KEY_CHANGE:
	case STEP_KEY_ROTATE:
		break;
	}
	return key_step(p, s, err);
}

/* Which secret a person would use for the step, and whether there is anything to do. */
static bool secret_for(struct play *p, unsigned i, const char *path, unsigned *ret)
{
	const struct step *s = &p->script[i];

	*ret = play_model(p, i).secrets;
	if (s->kind == STEP_KEY_CHANGE) {
		*ret = 1U << s->from;
		return opens(p, path, s->from);
	}
	if (s->kind == STEP_KEY_REMOVE)
		*ret &= ~(1U << s->arg);
	return true;
}

/* The old secret does not work: somebody looks whether that is right. */
static int see_keys(struct play *p, unsigned secret, const char *path, struct error *err)
{
	auto_key_list struct repo_key_list l = {0};
	int r = open_with(p, path, secret, err);

	r = r ? r : repo_keys(p->rig.repo, &l, err);
	rig_close(&p->rig);
	return r;
}

int play_step(struct play *p, unsigned i, const char *path, struct error *err)
{
	unsigned secrets;
	int r;

	if (i > 0 && !secret_for(p, i, path, &secrets))
		return see_keys(p, p->script[i].arg, path, err);
	r = i > 0 ? play_open(p, path, secrets, err) : play_open(p, path, 1, err);
	if (i == 0 && r == TM_E_NOTFOUND) {
		error_clear(err);
		r = make(p, path, err);
	}
	r = r ? r : do_step(p, &p->script[i], err);
	rig_close(&p->rig);
	return r;
}

/* ---- checks ---- */

static int wrong(struct play *p, const char *what, const struct error *err)
{
	(void)snprintf(p->error, sizeof(p->error), "%s%s%s", what, err && err->text[0] ? ": " : "",
		       err ? err->text : "");
	return -1;
}

static int check_points(struct play *p, const struct model *least, const struct model *most)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	unsigned points, held;

	if (play_points(p, &points, &held, &err) < 0 || list(p, &l, &err) < 0)
		return wrong(p, "the points cannot be listed", &err);
	if (least->any && !points)
		return wrong(p, "all points are gone", NULL);
	if (least->points & ~points)
		return wrong(p, "a point is gone", NULL);
	if (points & ~most->points)
		return wrong(p, "a point is there that should not be", NULL);
	if (least->held & points & ~held)
		return wrong(p, "a point is not protected any more", NULL);
	if (held & ~most->held)
		return wrong(p, "a point is protected that should not be", NULL);
	for (size_t i = 0; i < l.n; i++) {
		int r = rig_matches(&p->rig, l.v[i], &p->past[number_of(l.v[i])], &err);

		if (r == TM_E_CORRUPT && least->damaged) {
			error_clear(&err);
			continue;
		}
		if (r != 1)
			return wrong(p, r == 0 ? "a point differs" : "a point is unreadable", &err);
	}
	return 0;
}

static int check_verify(struct play *p)
{
	const struct repo_verify_options opt = {.pool = p->rig.pool, .scrub = true};
	struct repo_verify_report report = {0};
	struct error err = {0};
	int r = repo_verify(p->rig.repo, &opt, &report, &err);

	if (r == 0 && report.ndamaged)
		r = error_set(&err, TM_E_CORRUPT, "%s: %s", report.damaged[0].object,
			      report.damaged[0].reason);
	repo_verify_report_done(&report);
	return r < 0 ? wrong(p, "verify", &err) : 0;
}

static int check_secrets(struct play *p, const char *path, const struct model *least,
			 const struct model *most)
{
	for (unsigned i = 0; p->encrypted && i < MAX_SECRETS; i++) {
		bool works = opens(p, path, i);

		if (!works && least->secrets >> i & 1)
			return wrong(p, "a key does not open the repository any more", NULL);
		if (works && !(most->secrets >> i & 1))
			return wrong(p, "a key that is not there opens the repository", NULL);
	}
	return 0;
}

int play_check(struct play *p, const char *path, const struct model *least,
	       const struct model *most)
{
	struct error err = {0};
	int r = check_secrets(p, path, least, most);

	if (r < 0)
		return r;
	r = play_open(p, path, most->secrets, &err);
	if (r == TM_E_NOTFOUND && !least->made)
		return 0;
	if (r < 0)
		return wrong(p, "the repository does not open", &err);
	r = check_points(p, least, most);
	if (r == 0 && !least->damaged)
		r = check_verify(p);
	rig_close(&p->rig);
	return r;
}
