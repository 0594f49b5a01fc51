/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One backup: prepare, freeze, read, collapse, settle.  Every failure after the first journal
 * takes the same way out: collapse_disks() and epochs_finish() bring back whatever state there is.
 */
#include "base_lock.h"
#include "collapse.h"
#include "epochs.h"
#include "guard.h"
#include "identity.h"
#include "migration.h"
#include "overlay.h"
#include "prepare.h"
#include "proc.h"
#include "quiesce.h"
#include "recover.h"
#include "rival.h"

#include <stdio.h>
#include <string.h>

#define FREEZE_DEFAULT_MS 5000
#define COLLAPSE_TRIES    3
#define SERVER_END_MS     200

static void snapshot_free(struct snapshot *s)
{
	size_t n = s->info.ndisks;

	exports_free(s->exports, n);
	if (s->j)
		image_unlock(s);
	for (size_t i = 0; s->reasons && i < n; i++)
		free(s->reasons[i]);
	free(s->reasons);
	free(s->info.disks);
	text_list_done(&s->info.warnings);
	guard_end(tm_steal(s->g->guard));
	journal_free(s->j);
	json_decref(s->pull_actions);
	free(s->state);
	free(s);
}
TM_CLEANUP(struct snapshot, snapshot_free)

static int snapshot_new(struct guest *g, const struct snapshot_options *opt, struct snapshot **ret,
			struct error *err)
{
	auto_clean(snapshot_free) struct snapshot *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return error_nomem(err);
	s->g = g;
	s->granularity = opt->granularity ? opt->granularity : SNAPSHOT_GRANULARITY;
	s->overlay_limit = opt->overlay_limit;
	s->may_commit = opt->collapse == COLLAPSE_MODE_AUTO;
	s->collapse = (struct collapse_options){.rate = opt->rate, .room_ms = COLLAPSE_ROOM_MS};
	s->info.disks = calloc(opt->ndisks + 1, sizeof(*s->info.disks));
	s->exports = calloc(opt->ndisks + 1, sizeof(*s->exports));
	s->reasons = calloc(opt->ndisks + 1, sizeof(char *));
	if (!s->info.disks || !s->exports || !s->reasons)
		return error_nomem(err);
	s->info.ndisks = opt->ndisks;
	r = journal_new(&s->j, err);
	if (!r)
		r = text_copy(g->state, &s->state, err);
	if (r)
		return r;
	s->info.state = s->state;
	*ret = tm_steal(s);
	return 0;
}

/* ---- the transaction ---- */

static int add_bitmap_actions(const struct snapshot *s, size_t i, json_t *actions,
			      struct error *err)
{
	const struct journal_disk *jd = &s->j->disks[i];
	const char *node = prepare_disk(s, i)->node;
	int r = 0;

	if (jd->new_bitmap)
		r = jsonx_append(actions,
				 json_pack("{s:s, s:{s:s, s:s, s:b, s:I}}", "type",
					   "block-dirty-bitmap-add", "data", "node", node, "name",
					   jd->new_bitmap, "persistent",
					   (int)s->info.disks[i].persistent, "granularity",
					   (json_int_t)s->granularity),
				 err);
	/* Without a new bitmap the old one goes on recording. */
	if (!r && jd->old_bitmap && jd->new_bitmap)
		r = jsonx_append(actions,
				 json_pack("{s:s, s:{s:s, s:s}}", "type",
					   "block-dirty-bitmap-disable", "data", "node", node,
					   "name", jd->old_bitmap),
				 err);
	return r;
}

static int transaction(struct snapshot *s, unsigned timeout_ms, struct error *err)
{
	auto_json json_t *actions = json_array();
	json_t *args;
	int r = actions ? 0 : error_nomem(err);

	/*
	 * First, for from here on the disk is drained until the transaction ends: a guest with
	 * iothreads could write between two actions otherwise.
	 */
	for (size_t i = 0; !r && i < s->j->ndisks; i++)
		r = jsonx_append(actions,
				 json_pack("{s:s, s:{s:s, s:s}}", "type", "blockdev-snapshot",
					   "data", "node", prepare_disk(s, i)->node, "overlay",
					   s->j->disks[i].overlay_node),
				 err);
	for (size_t i = 0; !r && i < s->j->ndisks; i++)
		r = add_bitmap_actions(s, i, actions, err);
	if (!r && json_array_extend(actions, s->pull_actions))
		r = error_nomem(err);
	if (!r)
		r = jsonx_make(&args, err, "{s:O}", "actions", actions);
	return r ? r : qmp_call(s->g->qmp, "transaction", args, timeout_ms, NULL, err);
}

/* The guard thawed before the transaction had ended: it was stuck, or we were. */
static int thawed_early(struct snapshot *s, const struct snapshot_options *opt,
			const struct freeze_result *res, struct error *err)
{
	if (opt->quiesce == QUIESCE_REQUIRE)
		return error_set(err, TM_E_TIMEOUT,
				 "the guest's file systems were thawed after %llu ms, before the "
				 "disks were frozen",
				 (unsigned long long)res->held_ms);
	return text_list_add(&s->info.warnings, err,
			     "not quiesced: thawed after %llu ms, before the disks were frozen",
			     (unsigned long long)res->held_ms);
}

/*
 * An overlay of its former size would cut off from the guest what a disk has grown by; and another
 * run may have been quicker.
 */
static int check_ground(const struct snapshot *s, struct error *err)
{
	auto_graph struct block_graph graph = {0};
	int r = block_graph_load(s->g->qmp, &graph, err);

	for (size_t i = 0; !r && i < s->j->ndisks; i++) {
		const struct journal_disk *jd = &s->j->disks[i];
		struct collapse_view v = collapse_look(&graph, jd);

		if (v.state != COLLAPSE_ON_BASE)
			r = error_set(
				err, TM_E_STALE,
				"disk %s is not on its file %s any more: another tidemark, or "
				"another program, is at work on it.  Try again",
				jd->name, jd->base);
		else if (v.active->size != jd->size)
			r = error_set(err, TM_E_STALE,
				      "disk %s has just been resized: nothing is frozen.  Run the "
				      "backup again",
				      jd->name);
		else
			r = rival_check_base(v.base, s->j, jd, false, err);
	}
	return r;
}

static int freeze_and_switch(struct snapshot *s, const struct snapshot_options *opt,
			     struct error *err)
{
	unsigned limit = opt->freeze_ms ? opt->freeze_ms : FREEZE_DEFAULT_MS;
	struct freeze_result res;
	struct error thaw_err = {0};
	bool frozen;
	struct freeze f;
	int r = freeze_begin(s->g, opt->quiesce, limit, &f, &s->info.warnings, err), rt;

	if (r)
		return r;
	frozen = f.fd >= 0;
	if (frozen)
		journal_debug_point("quiesced");
	s->info.created_ms = clock_unix_ms(&clock_system);
	guest_set_quiet(s->g, true);
	r = check_ground(s, err);
	if (!r)
		r = transaction(s, freeze_left_ms(&f), err);
	if (!r && !frozen)
		journal_debug_point("switched");
	rt = freeze_end(s->g, &f, &res, &thaw_err);
	guest_set_quiet(s->g, false);
	s->info.quiesced = res.quiesced;
	s->info.freeze_ms = res.held_ms;
	if (!r && rt)
		r = error_pass(err, rt, &thaw_err);
	if (!r && frozen && !res.quiesced)
		r = thawed_early(s, opt, &res, err);
	else if (!r && frozen && res.count == 0)
		r = text_list_add(&s->info.warnings, err,
				  "the guest agent found no file system to freeze: none is mounted "
				  "in the guest, or none that can be frozen");
	return r;
}

/* From here on nobody writes to the base. */
static int note_frozen(struct journal_disk *jd, struct error *err)
{
	struct base_state now;
	int r = base_state_look(jd->base, &now, err);

	if (r)
		return r;
	jd->frozen_mtime = now.mtime;
	memcpy(jd->frozen_device, now.device, sizeof(now.device));
	return 0;
}

/* QEMU has said yes; see that it is so. */
static int check_frozen(struct snapshot *s, struct error *err)
{
	auto_graph struct block_graph graph = {0};
	int r = block_graph_load(s->g->qmp, &graph, err);

	for (size_t i = 0; !r && i < s->j->ndisks; i++) {
		struct journal_disk *jd = &s->j->disks[i];
		struct collapse_view v = collapse_look(&graph, jd);

		if (v.state != COLLAPSE_ON_OVERLAY || !v.base)
			r = error_set(err, TM_E_STALE,
				      "disk %s is not on its overlay %s, though QEMU said so: "
				      "another program changes its block nodes",
				      jd->name, jd->overlay);
		else if (!v.base->ro) /* its bitmaps are not in its file, and it may change */
			r = error_set(err, TM_E_UNSUPPORTED,
				      "QEMU left %s writable below its overlay.  It does with "
				      "copy-on-read=on (start the guest without that, or leave out "
				      "disk %s with --exclude-disk), and when it cannot write the "
				      "image's bitmaps: its log tells",
				      jd->base, jd->name);
		else if (v.active->size != jd->size || v.base->size != jd->size)
			r = error_set(err, TM_E_STALE, "disk %s was resized while it was frozen",
				      jd->name);
		else if (identity_look(jd->base, &jd->base_id) == IDENTITY_OTHER)
			r = error_set(err, TM_E_STALE,
				      "the file %s of disk %s was replaced while it was frozen",
				      jd->base, jd->name);
		else
			r = rival_check_base(v.base, s->j, jd, true, err);
		if (!r)
			r = export_describe(&s->exports[i], v.base, err);
		if (!r)
			r = note_frozen(jd, err);
	}
	return r;
}

/* Should QEMU die now, nobody starts the guest on its base alone for as long as we live. */
static int lock_bases(struct snapshot *s, struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < s->j->ndisks; i++) {
		struct error e = {0};

		if (base_lock(&s->j->disks[i], &e))
			r = text_list_add(&s->info.warnings, err,
					  "disk %s: its image is not kept locked: %s",
					  s->j->disks[i].name, e.text);
	}
	return r;
}

/* ---- what the caller sees ---- */

static void fill_info(struct snapshot *s)
{
	for (size_t i = 0; i < s->info.ndisks; i++) {
		struct snapshot_disk *sd = &s->info.disks[i];
		const struct journal_disk *jd = &s->j->disks[i];
		const struct export *e = &s->exports[i];
		const struct guest_disk *d = prepare_disk(s, i);

		sd->name = jd->name;
		sd->file = jd->base;
		sd->format = jd->format;
		sd->size = jd->size;
		sd->has_epoch = jd->old_bitmap && !*e->bitmap_reason;
		sd->parent = d->epoch.point;
		sd->parent_disk = d->epoch.disk;
		sd->old_bitmap = jd->old_bitmap;
		sd->new_bitmap = jd->new_bitmap;
		sd->nbd = (struct nbd_address){.socket = e->socket,
					       .bitmap = sd->has_epoch ? jd->old_bitmap : NULL};
		if (*e->bitmap_reason)
			sd->reason = e->bitmap_reason;
		else if (!jd->new_bitmap && sd->has_epoch)
			sd->reason = "no new bitmap could be made";
	}
}

/* A disk that can keep bitmaps may have been refused one. */
static bool is_persistent(const struct guest_disk *d, const char *bitmap)
{
	for (size_t i = 0; bitmap && i < d->nbitmaps; i++) {
		if (strcmp(d->bitmaps[i].name, bitmap) == 0)
			return d->bitmaps[i].persistent;
	}
	return false;
}

static int begin_qmp(struct snapshot *s, const struct snapshot_options *opt, struct error *err)
{
	int r = prepare_overlays(s, err);

	if (!r)
		r = snapshot_check_room(s, err);
	if (!r)
		r = prepare_bitmaps(s, err);
	if (!r)
		r = prepare_pulls(s, err);
	if (!r)
		r = journal_write(s->j, JOURNAL_FREEZING, err);
	if (!r)
		r = freeze_and_switch(s, opt, err);
	if (!r)
		r = check_frozen(s, err);
	if (!r)
		r = lock_bases(s, err);
	if (!r)
		r = journal_write(s->j, JOURNAL_FROZEN, err);
	if (r)
		return r;
	for (size_t i = 0; i < s->j->ndisks; i++) {
		s->exports[i].node = prepare_disk(s, i)->node;
		s->exports[i].bitmap = s->j->disks[i].old_bitmap;
		s->exports[i].persistent = is_persistent(prepare_disk(s, i), s->exports[i].bitmap);
	}
	return exports_start(s->g, s->j, s->exports, err);
}

/* The servers open what is below a disk by name, some time after it was looked at. */
static int check_below(const struct snapshot *s, size_t i, struct error *err)
{
	return disk_check_chain(s->g, prepare_disk(s, i), err);
}

int snapshot_begin(struct guest *g, const struct snapshot_options *opt, struct snapshot **ret,
		   struct error *err)
{
	struct snapshot *s = NULL;
	int r;

	if (g->lock < 0)
		return error_set(err, TM_E_USAGE, "the guest was not opened for changes");
	if (!opt->ndisks)
		return error_set(err, TM_E_USAGE, "no disk of guest %s was chosen", g->name);
	r = guest_tick(g, "freeze", NULL, 0, 0, err);
	if (!r && g->kind == GUEST_QMP)
		r = migration_check(g, g->state, QMP_TIMEOUT_MS, err);
	if (!r)
		r = snapshot_new(g, opt, &s, err);
	if (r)
		return r;
	r = prepare_journal(s, opt, err);
	if (r) { /* at most a directory and a journal that says that nothing was done */
		if (s->j->socket_dir)
			rundir_remove(s->j->socket_dir);
		if (s->j->sequence)
			(void)!journal_remove(s->j, NULL);
		snapshot_free(s);
		return r;
	}
	r = g->kind == GUEST_QMP ? begin_qmp(s, opt, err) : image_begin(s, opt, err);
	for (size_t i = 0; !r && i < s->j->ndisks; i++) {
		r = check_below(s, i, err);
		if (r)
			error_prefix(err, "disk %s", s->j->disks[i].name);
	}
	if (!r)
		fill_info(s);
	*ret = s;
	return r;
}

const struct snapshot_info *snapshot_info(const struct snapshot *s)
{
	return &s->info;
}

void snapshot_explain(struct snapshot *s, size_t i, struct error *err)
{
	struct server *server = &s->exports[i].server;

	/* A connection ends a moment before the process that held it. */
	for (unsigned waited = 0; !server_ended(server) && waited < SERVER_END_MS; waited += 10)
		clock_sleep_ms(&clock_system, 10);
	server_explain(server, err);
}

int snapshot_check_read(const struct snapshot *s, size_t i, struct error *err)
{
	const struct journal_disk *d = &s->j->disks[i];

	if (identity_look(d->base, &d->base_id) != IDENTITY_OTHER ||
	    !proc_has_open(s->exports[i].server.pid, d->base))
		return check_below(s, i, err);
	return error_set(err, TM_E_STALE,
			 "what was read is not the disk: %s was replaced by another file after the "
			 "freeze",
			 d->base);
}

int snapshot_void_epoch(struct snapshot *s, size_t i, struct error *err)
{
	s->j->disks[i].void_epoch = true;
	return journal_write(s->j, s->j->phase, err);
}

static int collapse_once(struct snapshot *s, struct error *err)
{
	int r = !s->g->qmp || qmp_lost(s->g->qmp) ? collapse_reconnect(s->g, err) : 0;

	if (!r)
		r = exports_end(s->g, s->j, s->exports, err);
	return r ? r : collapse_disks(s->g, s->j, &s->collapse, err);
}

static int collapse_qmp(struct snapshot *s, struct error *err)
{
	struct error e = {0};
	int r = 0;

	for (unsigned attempt = 0; attempt < COLLAPSE_TRIES; attempt++) {
		e = (struct error){0};
		r = collapse_once(s, &e);
		/* Only a connection that was lost on the way makes another attempt worth it. */
		if (!r || !s->g->qmp || !qmp_lost(s->g->qmp))
			break;
	}
	if (r) {
		migration_explain(s->g, &e);
		return error_pass(err, r, &e);
	}
	if (collapse_resume(s->g, s->j, &e))
		r = text_list_add(&s->info.warnings, err, "the guest may still be paused: %s",
				  e.text);
	return r;
}

static bool guest_is_gone(struct guest *g)
{
	return (!g->qmp || qmp_lost(g->qmp)) && guest_connect(g, NULL) == TM_E_NOTFOUND;
}

/* QEMU has ended: nobody can be quicker than we to make its files right. */
static int collapse_gone(struct snapshot *s, struct error *err)
{
	auto_text_list struct text_list lines = {0};
	struct error e = {0};
	int r;

	exports_stop_servers(s->j, s->exports);
	r = recover_offline(s->g, s->j, &lines, &e);
	if (r) {
		error_append(err, "; %s", e.text);
		return r;
	}
	s->offline = true;
	error_clear(err);
	return text_list_add(&s->info.warnings, err,
			     "the guest's QEMU has ended meanwhile; its disks are in order");
}

int snapshot_collapse(struct snapshot *s, struct error *err)
{
	int r;

	if (s->collapsed)
		return 0;
	(void)guest_tick(s->g, "collapse", NULL, 0, 0, NULL);
	pull_decide(s);
	latency_end(s);
	r = s->g->kind == GUEST_QMP ? collapse_qmp(s, err) : image_collapse(s, err);
	if (r && s->g->kind == GUEST_QMP && guest_is_gone(s->g))
		r = collapse_gone(s, err);
	s->collapsed = !r;
	s->collapse.room_ms = 0; /* once is enough */
	return r;
}

static int settle_once(struct snapshot *s, bool committed, struct error *err)
{
	struct error e = {0};
	int r = epochs_finish(s->g, s->j, committed, NULL, err);
	int rv = epochs_void(s->g, s->j, NULL, &e);

	return r || !rv ? r : error_pass(err, rv, &e);
}

/* It looks before it acts, so it can be repeated when an answer was lost. */
static int settle(struct snapshot *s, bool committed, struct error *err)
{
	struct error e = {0};
	int r = settle_once(s, committed, &e);

	if (!r)
		return 0;
	log_debug("%s", e.text);
	if (s->g->kind == GUEST_QMP && (!s->g->qmp || qmp_lost(s->g->qmp)))
		r = collapse_reconnect(s->g, err);
	else
		r = 0;
	return r ? r : settle_once(s, committed, err);
}

int snapshot_finish(struct snapshot *s, bool committed, struct error *err)
{
	struct error e = {0};
	int r, rs = 0;

	if (!s)
		return 0;
	/* Something went wrong, or it is done: the guest does not wait, and is not moved. */
	s->collapse.rate = 0;
	collapse_take_back(s->j);
	r = snapshot_collapse(s, err);
	if (!r)
		r = journal_write(s->j, JOURNAL_SETTLING, err);
	if (!r) {
		(void)guest_tick(s->g, "settle", NULL, 0, 0, NULL);
		if (!s->offline)
			rs = settle(s, committed, &e);
		/* Bitmaps that could not be settled now are settled by the next run. */
		r = collapse_note_moved(s->j, err);
		if (!r && !epochs_any_void(s->j))
			r = journal_remove(s->j, err);
	}
	if (!r && rs)
		r = error_pass(err, rs, &e);
	snapshot_free(s);
	return r;
}
