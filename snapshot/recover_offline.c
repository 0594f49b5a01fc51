/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest's QEMU is gone.  The journal says whether an overlay holds the newest data (it goes
 * into the base) or is stale (it is removed, never merged).  QEMU's image locks say whether
 * somebody started the guest meanwhile.
 */
#include "recover.h"

#include "base_lock.h"
#include "epochs.h"
#include "exports.h"
#include "identity.h"
#include "names.h"
#include "overlay.h"
#include "proc.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define COMMIT_TIMEOUT_MS (6u * 3600 * 1000) /* as long as it takes, but not for ever */

static int check_free(const char *path, struct error *err)
{
	char holder[PROC_NAME_MAX + 32];

	proc_holder_text(path, holder);
	if (*holder)
		return error_set(err, TM_E_BUSY, "%s is in use%s", path, holder);
	return 0;
}

static int refuse_exchanged(const struct journal_disk *d, const char *which, struct error *err)
{
	const struct file_identity *was = which == d->base ? &d->base_id : &d->overlay_id;

	return error_set(
		err, TM_E_STALE,
		"%s is not the file that the guest had during the backup (inode %llu then): "
		"no overlay of the guest is merged, all are kept.  Put that file back under "
		"its name, then run recovery again; or do without what was written since the "
		"freeze, with the command that recovery prints, where the guest's data is right "
		"as it is",
		which, (unsigned long long)was->inode);
}

static int refuse_changed(const struct journal_disk *d, struct error *err)
{
	return error_set(
		err, TM_E_STALE,
		"%s was changed after it was frozen, so the guest was started without its overlay "
		"%s, which no longer fits: no overlay of the guest is merged, all are kept.  "
		"Where the guest's data is right as it is, do without them, with the command that "
		"recovery prints",
		d->base, d->overlay);
}

static int refuse_unknown(const struct journal_disk *d, struct error *err)
{
	return error_set(
		err, TM_E_STALE,
		"whether %s was written to since it was frozen cannot be told, for it is a device, "
		"and no count of its writes reaches back to then: no overlay of the guest is "
		"merged, all are kept.  Where no guest was started on it since, merge them; where "
		"one was, and its data is right as it is, do without them: with the commands that "
		"recovery prints",
		d->base);
}

enum change {
	CHANGE_NONE,
	CHANGE_WRITTEN,
	CHANGE_UNKNOWN,
};

static enum change change_of_device(const struct journal *j, const struct journal_disk *d,
				    const struct base_state *now)
{
	if (j->phase < JOURNAL_FREEZING || (j->phase >= JOURNAL_FROZEN && !d->frozen_mtime))
		return CHANGE_NONE;
	return *now->device && strcmp(d->frozen_device, now->device) == 0 ? CHANGE_NONE
									  : CHANGE_UNKNOWN;
}

/*
 * From the transaction to the commit of its own overlay, or for ever with a pull, nobody writes to
 * the base.  A base that was written all the same was started alone; and so it was when it is
 * younger than an overlay that was written to after a transaction which nobody lived to see.
 */
static int look_change(const struct journal *j, const struct journal_disk *d, enum change *ret,
		       struct error *err)
{
	struct stat overlay;
	struct base_state now;
	bool written = false;
	int r = base_state_look(d->base, &now, err);

	*ret = CHANGE_NONE;
	if (r)
		return r;
	if (!now.regular) {
		*ret = change_of_device(j, d, &now);
		return 0;
	}
	if (d->frozen_mtime && j->phase >= JOURNAL_FROZEN)
		written = now.mtime != d->frozen_mtime;
	else if (j->phase == JOURNAL_FREEZING && overlay_stat(d->overlay, &overlay, NULL) == 0)
		written = now.mtime > (uint64_t)overlay.st_mtim.tv_sec * 1000000000 +
					      (uint64_t)overlay.st_mtim.tv_nsec;
	*ret = written ? CHANGE_WRITTEN : CHANGE_NONE;
	return 0;
}

static int check_base_unchanged(const struct journal *j, const struct journal_disk *d,
				struct error *err)
{
	const char *exchanged = identity_exchanged(d);
	enum change change;
	int r = look_change(j, d, &change, err);

	if (r)
		return r;
	/* A copy of a base that was frozen then is as good when it has the time of its original. */
	if (exchanged && !(exchanged == d->base && change == CHANGE_NONE && d->frozen_mtime))
		return refuse_exchanged(d, exchanged, err);
	if (change == CHANGE_UNKNOWN)
		return refuse_unknown(d, err);
	return change == CHANGE_WRITTEN ? refuse_changed(d, err) : 0;
}

static int set_backing(const struct journal_disk *d, struct error *err)
{
	const char *const argv[] = {"qemu-img", "rebase", "-q", "-u",      "-f",       "qcow2",
				    "-b",       d->base,  "-F", d->format, d->overlay, NULL};

	return spawn_run(argv, IMG_TIMEOUT_MS, NULL, err);
}

/* The disk may have grown meanwhile: the base has to become as large.  *cleared: it was written. */
static int clear_way(const struct journal_disk *jd, bool *cleared, struct error *err)
{
	struct guest_disk *v = calloc(2, sizeof(*v)); /* overlay and base */
	int r = v ? image_look(jd->overlay, "qcow2", &v[0], err) : error_nomem(err);

	if (!r)
		r = image_look(jd->base, jd->format, &v[1], err);
	*cleared = !r && v[1].size < v[0].size;
	if (*cleared)
		r = epochs_clear_way(NULL, &v[1], err);
	if (v)
		guest_disks_free(v, 2);
	return r;
}

/* The overlay over its base, for qemu-img, which asks for no lock of a base that is claimed. */
static int overlay_over_base(const struct journal_disk *d, bool regular, bool claimed, char **ret,
			     struct error *err)
{
	auto_json json_t *v = NULL;
	int r = jsonx_make(&v, err, "{s:s, s:{s:s, s:s}, s:{s:s, s:{s:s, s:s, s:s}}}", "driver",
			   "qcow2", "file", "driver", "file", "filename", d->overlay, "backing",
			   "driver", d->format, "file", "driver", regular ? "file" : "host_device",
			   "filename", d->base, "locking", claimed ? "off" : "auto");

	return r ? r : export_text(v, ret, err);
}

/*
 * `claim` is ours alone until it is merged, even should we die meanwhile: qemu-img has it too.  -1:
 * there are no locks.
 */
static int merge(const struct journal_disk *d, bool regular, int claim, struct error *err)
{
	auto_free char *image = NULL;
	const char *argv[] = {"qemu-img", "commit", "-q", "-d", NULL, NULL};
	int r = overlay_over_base(d, regular, claim >= 0, &image, err);

	if (r)
		return r;
	argv[4] = image;
	if (claim >= 0 && fcntl(claim, F_SETFD, 0) < 0)
		return error_errno(err, errno, "cannot hand on the lock of %s", d->base);
	r = spawn_run(argv, COMMIT_TIMEOUT_MS, NULL, err);
	return r ? r : io_sync_file(d->base, err);
}

/* NULL: from here on the state of the base says nothing. */
static int journal_frozen(struct journal *j, struct journal_disk *d, const struct base_state *state,
			  struct error *err)
{
	d->frozen_mtime = state ? state->mtime : 0;
	if (state)
		memcpy(d->frozen_device, state->device, sizeof(state->device));
	return journal_write(j, j->phase < JOURNAL_FROZEN ? JOURNAL_FROZEN : j->phase, err);
}

/*
 * Nobody else can open the base from before the last look at it until all is merged, or a guest
 * that was started on it in between would be merged over.  *ret: the base as it is now.
 */
static int claim_base(struct journal *j, struct journal_disk *d, int *ret_claim,
		      struct base_state *ret, struct error *err)
{
	struct base_state seen;
	bool cleared = false;
	struct error e = {0};
	int r = base_state_look(d->base, &seen, err);

	if (!r)
		r = check_base_unchanged(j, d, err);
	base_unlock(d);
	if (r)
		return r;
	r = clear_way(d, &cleared, err);
	if (r == TM_E_STALE && journal_frozen(j, d, NULL, &e)) /* a person is to write to it */
		error_append(err, "; %s", e.text);
	if (!r && cleared)
		r = base_state_look(d->base, &seen, err);
	if (!r)
		r = image_claim(d->base, ret_claim, err);
	if (!r)
		r = base_state_look(d->base, ret, err);
	if (!r && d->frozen_mtime && !base_state_same(ret, &seen))
		r = ret->regular ? refuse_changed(d, err) : refuse_unknown(d, err);
	return r;
}

/*
 * From when the journal says so the base does change: a recovery that dies in the middle is simply
 * run again.  Where the merge failed and changed nothing, it is still known what the base was.
 */
static int commit(struct journal *j, struct journal_disk *d, struct error *err)
{
	bool known = d->frozen_mtime != 0;
	auto_close int claim = -1;
	struct base_state before, after;
	struct error e = {0};
	int r = claim_base(j, d, &claim, &before, err);

	if (!r)
		r = set_backing(d, err);
	if (r)
		return r;
	d->how = COLLAPSE_COMMIT; /* whatever it was to be */
	d->pivot = PIVOT_NONE;
	r = journal_frozen(j, d, NULL, err);
	if (!r)
		r = merge(d, before.regular, claim, err);
	if (!r) {
		d->pivot = PIVOT_DONE;
		return journal_write(j, JOURNAL_PIVOTED, err);
	}
	if (known && !base_state_look(d->base, &after, NULL) && base_state_same(&before, &after) &&
	    journal_frozen(j, d, &before, &e))
		error_append(err, "; %s", e.text);
	return r;
}

/*
 * The overlay has the newest data, and they are to get into the base.  A pull that was not reported
 * to be at its end is no reason to leave the guest's own file.
 */
bool recover_needs_overlay(const struct journal_disk *d)
{
	if (d->how == COLLAPSE_COMMIT)
		return d->pivot == PIVOT_NONE;
	return d->how != COLLAPSE_PULL_KEEP || d->pivot != PIVOT_DONE;
}

/* The overlay has become the guest's own file; what may be missing is its name. */
static int finish_taking_over(const struct journal_disk *d, struct text_list *lines,
			      struct error *err)
{
	int r = 0;

	if (access(d->overlay, F_OK) == 0) {
		if (identity_exchanged(d) && !same_file(d->overlay, d->base))
			return error_set(err, TM_E_STALE,
					 "all of the disk is in %s, but it cannot have the name "
					 "%s: another file has taken that.  Move it away, then run "
					 "recovery again",
					 d->overlay, d->base);
		r = names_take_over(d->overlay, d->base, err);
	}
	if (!r)
		r = io_remove(d->overlay, err);
	return r ? r
		 : text_list_add(lines, err, "disk %s: its overlay has the name %s now", d->name,
				 d->base);
}

static bool any_base(const struct journal *j, enum change what)
{
	for (size_t i = 0; i < j->ndisks; i++) {
		const struct journal_disk *d = &j->disks[i];
		enum change change;

		if (d->overlay && recover_needs_overlay(d) &&
		    look_change(j, d, &change, NULL) == 0 && change == what)
			return true;
	}
	return false;
}

static bool any_base_changed(const struct journal *j)
{
	for (size_t i = 0; i < j->ndisks; i++) {
		const struct journal_disk *d = &j->disks[i];

		if (d->overlay && recover_needs_overlay(d) && identity_exchanged(d) &&
		    check_base_unchanged(j, d, NULL) == TM_E_STALE)
			return true;
	}
	return any_base(j, CHANGE_WRITTEN);
}

/*
 * The base lacks nothing.  Without the mark an overlay that was removed could not be told from one
 * that somebody else took away.
 */
static int mark_empty(struct journal *j, struct journal_disk *d, struct error *err)
{
	if (j->phase == JOURNAL_PREPARING)
		return 0;
	d->how = COLLAPSE_COMMIT;
	d->pivot = PIVOT_DONE;
	return journal_write(j, j->phase, err);
}

/* The overlay, or what a person left of it: without the overlay nothing tells where data belong. */
static int remove_overlay(const struct journal_disk *d, struct text_list *lines, struct error *err)
{
	bool there = access(d->overlay, F_OK) == 0, data_there;
	auto_free char *data = NULL;
	int r = overlay_data_path(d->overlay, &data, err);

	if (r)
		return r;
	data_there = access(data, F_OK) == 0;
	r = overlay_remove(d->overlay, err);
	if (r || !(there || data_there))
		return r;
	return there ? text_list_add(lines, err, "disk %s: removed the overlay %s", d->name,
				     d->overlay)
		     : text_list_add(lines, err,
				     "disk %s: removed %s, the data of an overlay that is gone",
				     d->name, data);
}

static int recover_disk(struct journal *j, struct journal_disk *d, struct text_list *lines,
			struct error *err)
{
	bool there = access(d->overlay, F_OK) == 0, empty = true;
	int r = 0;

	if (d->how == COLLAPSE_PULL_KEEP && d->pivot == PIVOT_DONE)
		return finish_taking_over(d, lines, err);
	if (there)
		r = check_free(d->overlay, err);
	if (!r && there && recover_needs_overlay(d) && j->phase > JOURNAL_PREPARING)
		r = overlay_empty(d->overlay, &empty, err);
	if (!r && there && recover_needs_overlay(d) && empty)
		r = mark_empty(j, d, err);
	if (!r && !empty) {
		r = commit(j, d, err);
		if (!r)
			r = text_list_add(lines, err, "disk %s: merged its overlay into %s",
					  d->name, d->base);
	}
	if (!r)
		r = names_forget_moved(d->base, err);
	return r ? r : remove_overlay(d, lines, err);
}

/* TM_E_STALE: its base is not what the overlay belongs to. */
static int check_base(const struct journal *j, const struct journal_disk *d, struct error *err)
{
	struct error e = {0};
	bool empty = true;
	int r;

	if (!d->overlay || access(d->overlay, F_OK) < 0)
		return 0;
	if (!recover_needs_overlay(d)) /* what it was merged into is another file then */
		return d->how == COLLAPSE_COMMIT && identity_exchanged(d) == d->base
			       ? refuse_exchanged(d, d->base, err)
			       : 0;
	if (check_base_unchanged(j, d, &e) != TM_E_STALE)
		return 0;
	r = overlay_empty(d->overlay, &empty, err);
	return r || empty ? r : error_pass(err, TM_E_STALE, &e);
}

/* What a person can do who knows more than the files tell. */
static int tell_ways(const struct journal *j, struct text_list *lines, struct error *err)
{
	bool unknown = any_base(j, CHANGE_UNKNOWN) && !any_base_changed(j);
	int r = unknown ? recover_tell_merge(j, lines, err) : 0;

	return r ? r : recover_tell_without(j, lines, err);
}

/*
 * Who started the guest without one overlay started it without all: also those are kept that are to
 * go into a base whose commit had begun, and which tells nothing itself.
 */
static int check_bases(const struct journal *j, struct text_list *lines, struct error *err)
{
	for (size_t i = 0; i < j->ndisks; i++) {
		struct error e = {0};
		int r = check_base(j, &j->disks[i], &e);

		if (!r)
			continue;
		error_prefix(&e, "disk %s", j->disks[i].name);
		if (r == TM_E_STALE && tell_ways(j, lines, err))
			return err ? (int)err->code : TM_E_NOMEM;
		return error_pass(err, r, &e);
	}
	return 0;
}

/* Can it be merged, and may it go then? */
static int check_overlay(const struct journal *j, const struct journal_disk *d, struct error *err)
{
	bool empty = true;
	int r = recover_check_above(d->overlay, err);

	if (!r)
		r = check_free(d->overlay, err);
	if (!r && j->phase > JOURNAL_PREPARING) /* before that perhaps not even an image */
		r = overlay_empty(d->overlay, &empty, err);
	if (r || empty)
		return r;
	r = check_free(d->base, err);
	return r ? r : overlay_check(d->overlay, err);
}

/* All of them, before any is merged. */
static int check_overlays(const struct journal *j, struct error *err)
{
	for (size_t i = 0; i < j->ndisks; i++) {
		const struct journal_disk *d = &j->disks[i];
		int r = 0;

		if (d->overlay && recover_needs_overlay(d) && access(d->overlay, F_OK) == 0)
			r = check_overlay(j, d, err);
		if (r) {
			error_prefix(err, "disk %s", d->name);
			return r;
		}
	}
	return 0;
}

/*
 * A transaction that nobody lived to see, if there was one: what check_bases() finds good now is
 * known by its time from here on, for the first merge makes the journal say that all are frozen.
 */
static void note_bases(struct journal *j)
{
	for (size_t i = 0; j->phase == JOURNAL_FREEZING && i < j->ndisks; i++) {
		struct journal_disk *d = &j->disks[i];
		struct base_state now;
		struct error e = {0};

		if (!d->overlay || d->frozen_mtime)
			continue;
		if (base_state_look(d->base, &now, &e))
			log_debug("disk %s: %s", d->name, e.text);
		d->frozen_mtime = now.mtime; /* and of a device nothing is known */
	}
}

/* A guest is started with all its disks: one that is still locked keeps it from the others. */
static void lock_bases(const struct journal *j)
{
	for (size_t i = 0; i < j->ndisks; i++) {
		struct journal_disk *d = &j->disks[i];
		struct error e = {0};

		if (d->overlay && recover_needs_overlay(d) && base_lock(d, &e))
			log_debug("disk %s: %s", d->name, e.text);
	}
}

static int recover_disks(struct guest *g, struct journal *j, struct text_list *lines,
			 struct error *err)
{
	struct error first = {0};

	for (size_t i = 0; i < j->ndisks; i++) {
		struct error e = {0};

		if (!j->disks[i].overlay)
			continue;
		(void)guest_tick(g, "recover", j->disks[i].name, 0, 0, NULL);
		if (recover_disk(j, &j->disks[i], lines, &e) == 0) {
			base_unlock(&j->disks[i]);
			/* Already gone, perhaps: no reason to keep the guest from starting. */
			if (epochs_void_file(&j->disks[i], lines, &e))
				log_debug("%s", e.text);
			continue;
		}
		error_prefix(&e, "disk %s", j->disks[i].name);
		if (!first.code)
			first = e;
	}
	return error_pass(err, first.code, &first);
}

int recover_offline(struct guest *g, struct journal *j, struct text_list *lines, struct error *err)
{
	int r;

	lock_bases(j);
	note_bases(j);
	r = check_bases(j, lines, err);
	if (!r)
		r = recover_check_missing(j, any_base_changed(j), lines, err);
	if (!r)
		r = check_overlays(j, err);
	if (!r)
		r = recover_disks(g, j, lines, err);
	for (size_t i = 0; i < j->ndisks; i++)
		base_unlock(&j->disks[i]);
	return r;
}
