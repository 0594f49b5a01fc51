/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In QEMU all of a disk's bitmaps change in one transaction.  In image files each step is one
 * qemu-img, in an order in which a death anywhere leaves something provable, and whoever writes
 * between two of them is recorded by what is kept: enable, merge, and only then remove.
 */
#include "epochs.h"

#include "rival.h"
#include "settle.h"

#include <stdio.h>
#include <string.h>

/* The bitmaps of one repository on one disk, and what to do with them. */
struct settlement {
	struct settle_bitmap *v; /* owned */
	struct disk_bitmap **of; /* owned array of borrowed bitmaps, same indices */
	size_t n;
	struct settle_plan plan;
};

static void settlement_done(struct settlement *s)
{
	free(s->v);
	free(s->of);
}
#define auto_settlement __attribute__((cleanup(settlement_done)))

/* What limits a settlement to the bitmaps of one run; NULL: all of the repository. */
struct only {
	const char *old_bitmap, *new_bitmap; /* each may be NULL */
};

static bool is_wanted(const struct disk_bitmap *b, const struct tm_id *repo,
		      const struct only *only)
{
	if (!b->ours || !id_equal(&b->id.repo, repo))
		return false;
	return !only || (only->old_bitmap && strcmp(b->name, only->old_bitmap) == 0) ||
	       (only->new_bitmap && strcmp(b->name, only->new_bitmap) == 0);
}

/*
 * Bitmaps call the new end of a disk that grew clean.  QEMU makes it zeroes in qcow2; below a raw
 * disk there may be anything, as on a volume that was made larger.
 */
static bool size_fits(const struct guest_disk *d, uint64_t then)
{
	return d->size == then || (d->size > then && strcmp(d->format, "qcow2") == 0);
}

static int decide(const struct guest_disk *d, const struct tm_id *repo, const struct only *only,
		  point_known_fn *known, void *data, struct settlement *s, struct error *err)
{
	s->v = calloc(d->nbitmaps + 1, sizeof(*s->v));
	s->of = calloc(d->nbitmaps + 1, sizeof(struct disk_bitmap *));
	if (!s->v || !s->of)
		return error_nomem(err);
	for (size_t i = 0; i < d->nbitmaps; i++) {
		struct disk_bitmap *b = &d->bitmaps[i];
		struct settle_bitmap *v = &s->v[s->n];
		uint64_t size = 0;
		int r;

		if (!is_wanted(b, repo, only))
			continue;
		v->id = b->id;
		v->recording = b->recording;
		v->inconsistent = b->inconsistent;
		v->busy = b->busy;
		r = known(data, &b->id.point, b->id.disk, &v->committed, &size, err);
		if (r)
			return r;
		v->fits = size_fits(d, size);
		v->same_chain = !d->chain_hidden && b->id.chain == d->chain_id;
		s->of[s->n++] = b;
	}
	s->plan = settle_decide(s->v, s->n);
	return 0;
}

static void set_epoch(struct guest_disk *d, const struct settlement *s)
{
	struct disk_epoch *e = &d->epoch;
	const char *reason = s->plan.reason;
	uint64_t dirty;

	*e = (struct disk_epoch){.dirty_bytes = UINT64_MAX};
	if (reason) {
		if (strncmp(reason, "no bitmap", 9) == 0 && !d->can_persist)
			reason = strcmp(d->format, "raw") == 0 ? "no bitmap: a raw image cannot "
								 "keep one over a restart of QEMU"
							       : "no bitmap: this image cannot "
								 "keep one over a restart of QEMU";
		else if (d->chain_hidden)
			reason = "an image below it has data in files that are not watched";
		(void)snprintf(e->reason, sizeof(e->reason), "%s", reason);
		return;
	}
	e->usable = true;
	e->point = s->v[s->plan.keep].id.point;
	e->disk = s->v[s->plan.keep].id.disk;
	(void)snprintf(e->bitmap, sizeof(e->bitmap), "%s", s->of[s->plan.keep]->name);
	dirty = s->of[s->plan.keep]->dirty_bytes;
	for (size_t i = 0; i < s->n; i++) {
		uint64_t more = s->of[i]->dirty_bytes;

		if (s->v[i].action == SETTLE_MERGE && dirty != UINT64_MAX &&
		    __builtin_add_overflow(dirty, more, &dirty))
			dirty = UINT64_MAX;
	}
	e->dirty_bytes = dirty == UINT64_MAX ? dirty : min_u64(dirty, d->size);
}

/* ---- in QEMU ---- */

static int add_action(json_t *actions, const char *type, const char *node, const char *name,
		      struct error *err)
{
	return jsonx_append(
		actions,
		json_pack("{s:s, s:{s:s, s:s}}", "type", type, "data", "node", node, "name", name),
		err);
}

static int add_merge(json_t *actions, const struct guest_disk *d, const struct settlement *s,
		     struct error *err)
{
	auto_json json_t *sources = json_array();
	int r = sources ? 0 : error_nomem(err);

	for (size_t i = 0; !r && i < s->n; i++) {
		if (s->v[i].action == SETTLE_MERGE)
			r = jsonx_append(sources, json_string(s->of[i]->name), err);
	}
	if (r || !json_array_size(sources))
		return r;
	return jsonx_append(actions,
			    json_pack("{s:s, s:{s:s, s:s, s:O}}", "type",
				      "block-dirty-bitmap-merge", "data", "node", d->node, "target",
				      s->of[s->plan.keep]->name, "bitmaps", sources),
			    err);
}

static int apply_in_qemu(struct guest *g, const struct guest_disk *d, const struct settlement *s,
			 struct error *err)
{
	auto_json json_t *actions = json_array();
	json_t *args;
	int r = actions ? add_merge(actions, d, s, err) : error_nomem(err);

	if (!r && s->plan.enable)
		r = add_action(actions, "block-dirty-bitmap-enable", d->node,
			       s->of[s->plan.keep]->name, err);
	for (size_t i = 0; !r && i < s->n; i++) {
		if (s->v[i].action == SETTLE_MERGE || s->v[i].action == SETTLE_REMOVE)
			r = add_action(actions, "block-dirty-bitmap-remove", d->node,
				       s->of[i]->name, err);
	}
	if (r || !json_array_size(actions))
		return r;
	r = jsonx_make(&args, err, "{s:O}", "actions", actions);
	return r ? r : guest_do(g, "transaction", args, err);
}

/* ---- in files ---- */

static int apply_in_file(const struct guest_disk *d, const struct settlement *s, struct error *err)
{
	const char *keep = s->plan.keep == SIZE_MAX ? NULL : s->of[s->plan.keep]->name;
	int r = keep && s->plan.enable ? image_bitmap_enable(d, keep, err) : 0;

	for (size_t i = 0; !r && i < s->n; i++) {
		if (keep && s->v[i].action == SETTLE_MERGE)
			r = image_bitmap_merge(d, keep, s->of[i]->name, err);
	}
	for (size_t i = 0; !r && i < s->n; i++) {
		if (s->v[i].action == SETTLE_MERGE || s->v[i].action == SETTLE_REMOVE)
			r = image_bitmap_remove(d, s->of[i]->name, err);
	}
	return r;
}

static int apply(struct guest *g, const struct guest_disk *d, const struct settlement *s,
		 struct error *err)
{
	int r = g->kind == GUEST_QMP ? apply_in_qemu(g, d, s, err) : apply_in_file(d, s, err);

	if (r)
		error_prefix(err, "disk %s: its bitmaps cannot be put in order", d->name);
	return r;
}

/* ---- the calls ---- */

/* What a backup would read: the epoch's bitmap, and those that it would merge into that. */
static void count_at_rest(const struct guest_disk *d, const struct settlement *s, struct loop *loop)
{
	for (size_t i = 0; !s->plan.reason && i < s->n; i++) {
		if (s->v[i].action == SETTLE_KEEP || s->v[i].action == SETTLE_MERGE)
			image_count(d, loop, s->of[i]);
	}
}

int guest_epochs(struct guest *g, const struct tm_id *repo, point_known_fn *known, void *data,
		 struct loop *loop, struct error *err)
{
	for (size_t i = 0; i < g->ndisks; i++) {
		auto_settlement struct settlement s = {0};
		int r = g->disks[i].empty ? 0
					  : decide(&g->disks[i], repo, NULL, known, data, &s, err);

		if (r)
			return r;
		if (g->kind == GUEST_IMAGE)
			count_at_rest(&g->disks[i], &s, loop);
		if (!g->disks[i].empty)
			set_epoch(&g->disks[i], &s);
	}
	return 0;
}

static int check_settled_ground(const struct guest *g, struct error *err)
{
	if (g->lock < 0)
		return error_set(err, TM_E_USAGE, "the guest was not opened for changes");
	for (size_t i = 0; i < g->ndisks; i++) {
		if (g->disks[i].overlay_of)
			return error_set(err, TM_E_STALE,
					 "disk %s runs on %s, which an interrupted backup left: "
					 "recovery is needed",
					 g->disks[i].name, g->disks[i].file);
	}
	return 0;
}

/* They would keep a disk that grows during this backup from having its overlay merged. */
static int bury_others(struct guest *g, const struct guest_disk *d, const struct tm_id *repo,
		       struct error *err)
{
	auto_free char *text = NULL;
	struct error e = {0};
	int r = epochs_bury(g, d, repo, &e);

	if (!r)
		return 0;
	if (g->qmp && qmp_lost(g->qmp))
		return error_pass(err, e.code, &e);
	r = text_format(&text, err, "%s; until it is, QEMU does not make the disk larger", e.text);
	if (!r)
		guest_remark(g, "settle", d->name, text);
	return r;
}

int guest_settle(struct guest *g, const struct tm_id *repo, point_known_fn *known, void *data,
		 struct error *err)
{
	int r = check_settled_ground(g, err);

	for (size_t i = 0; !r && i < g->ndisks; i++) {
		auto_settlement struct settlement s = {0};
		struct guest_disk *d = &g->disks[i];
		struct error e = {0};

		if (d->empty || d->read_only || (g->kind == GUEST_QMP && !d->node))
			continue;
		(void)guest_tick(g, "settle", d->name, 0, 0, NULL);
		r = bury_others(g, d, repo, err);
		if (!r)
			r = decide(d, repo, NULL, known, data, &s, err);
		if (r)
			return r;
		set_epoch(d, &s);
		if (apply(g, d, &s, &e) == 0)
			continue;
		if (g->qmp && qmp_lost(g->qmp))
			return error_pass(err, e.code, &e);
		d->epoch.usable = false;
		d->epoch.bitmap[0] = '\0';
		(void)snprintf(d->epoch.reason, sizeof(d->epoch.reason), "%.250s", e.text);
	}
	return r;
}

/* ---- after a run ---- */

struct verdict {
	const struct journal *j;
	const struct journal_disk *jd;
	bool committed;
};

/*
 * The old bitmap was proven before the run, unless the run found it wrong; the new one is as good
 * as its point.
 */
static int run_knows(void *data, const struct tm_id *point, unsigned disk, bool *ret,
		     uint64_t *ret_size, struct error *err)
{
	const struct verdict *v = data;

	(void)disk;
	(void)err;
	*ret_size = v->jd->size;
	*ret = id_equal(point, &v->j->point) ? v->committed : !v->jd->void_epoch;
	return 0;
}

static struct guest_disk *find_disk(const struct guest *g, const struct journal_disk *jd)
{
	for (size_t i = 0; i < g->ndisks; i++) {
		struct guest_disk *d = &g->disks[i];

		if (g->kind == GUEST_IMAGE ? d->file && same_file(d->file, jd->base)
		    : jd->qdev             ? d->qdev && strcmp(d->qdev, jd->qdev) == 0
			       : d->drive && jd->drive && strcmp(d->drive, jd->drive) == 0)
			return d;
	}
	return NULL;
}

/* *ret_any: there was a bitmap of the run. */
static int finish_disk(struct guest *g, const struct guest_disk *d, struct verdict *v,
		       bool *ret_any, struct error *err)
{
	auto_settlement struct settlement s = {0};
	const struct only only = {v->jd->old_bitmap, v->jd->new_bitmap};
	int r;

	*ret_any = false;
	if (rival_began(d, v->j, v->jd)) { /* the next run sees what became of both */
		log_debug("disk %s: left alone, another run has begun a bitmap", v->jd->name);
		return 0;
	}
	r = decide(d, &v->j->repo, &only, run_knows, v, &s, err);
	*ret_any = s.n != 0;
	return r || !s.n ? r : apply(g, d, &s, err);
}

int epochs_finish(struct guest *g, const struct journal *j, bool committed, struct text_list *lines,
		  struct error *err)
{
	struct verdict verdict = {.j = j, .committed = committed};
	struct error first = {0};
	int r = guest_refresh(g, err);

	for (size_t i = 0; !r && i < j->ndisks; i++) {
		const struct journal_disk *jd = &j->disks[i];
		const struct guest_disk *d = find_disk(g, jd);
		struct error e = {0};
		bool any;
		int rd;

		if (!d || d->empty)
			continue;
		verdict.jd = jd;
		rd = finish_disk(g, d, &verdict, &any, &e);
		if (rd && !first.code)
			first = e; /* what is left is settled by the next run */
		if (!rd && any && lines)
			r = text_list_add(lines, err, "disk %s: bitmap of point %.8s %s", d->name,
					  id_text(&j->point).s, committed ? "kept" : "taken back");
	}
	if (!r && first.code)
		return error_pass(err, first.code, &first);
	return r;
}

/* ---- what is wrong, or of no use ---- */

static int remove_bitmap(struct guest *g, const struct guest_disk *d, const char *name,
			 struct error *err)
{
	json_t *args;
	int r;

	if (!d->node)
		return image_bitmap_remove(d, name, err);
	r = jsonx_make(&args, err, "{s:s, s:s}", "node", d->node, "name", name);
	return r ? r : guest_do(g, "block-dirty-bitmap-remove", args, err);
}

int epochs_bury(struct guest *g, const struct guest_disk *d, const struct tm_id *spare,
		struct error *err)
{
	struct error first = {0};

	for (size_t i = 0; i < d->nbitmaps; i++) {
		const struct disk_bitmap *b = &d->bitmaps[i];
		struct error e = {0};

		if (!settle_is_dead(d->bitmaps, d->nbitmaps, i) ||
		    (spare && id_equal(&b->id.repo, spare)))
			continue;
		if (remove_bitmap(g, d, b->name, &e) == 0) {
			log_debug("%s: removed the inconsistent bitmap %s", d->file, b->name);
		} else if (!first.code) {
			error_prefix(&e, "its inconsistent bitmap '%s' cannot be removed", b->name);
			first = e;
		}
	}
	return first.code ? error_pass(err, first.code, &first) : 0;
}

int epochs_clear_way(struct guest *g, const struct guest_disk *d, struct error *err)
{
	bool fixed = d->node && d->read_only;
	int r = fixed ? 0 : epochs_bury(g, d, NULL, err);

	for (size_t i = 0; !r && i < d->nbitmaps; i++) {
		const struct disk_bitmap *b = &d->bitmaps[i];

		if (!(b->inconsistent || b->busy) ||
		    (!fixed && settle_is_dead(d->bitmaps, d->nbitmaps, i)))
			continue;
		r = error_set(err, TM_E_STALE,
			      "QEMU does not make %s as large as the disk is now, because its "
			      "bitmap '%s' is %s.  %s%s, then run recovery",
			      d->file, b->name, b->inconsistent ? "inconsistent" : "in use",
			      fixed ? "Stop the guest"
			      : d->node
				      ? "Remove that with block-dirty-bitmap-remove from the node "
				      : "Remove that with qemu-img bitmap --remove",
			      d->node && !fixed ? d->node : "");
	}
	return r;
}

static int void_lines(const struct journal_disk *jd, int code, const struct error *e,
		      struct text_list *lines, struct error *err)
{
	if (code)
		return error_set(
			err, code,
			"disk %s: its bitmap %s was found to be wrong, and cannot be removed: %s",
			jd->name, jd->old_bitmap, e->text);
	return lines ? text_list_add(lines, err,
				     "disk %s: removed its bitmap, which was found to be wrong",
				     jd->name)
		     : 0;
}

static int void_disk(struct guest *g, const struct guest_disk *d, struct journal_disk *jd,
		     struct text_list *lines, struct error *err)
{
	struct error e = {0};
	bool there = false;
	int r = 0;

	for (size_t i = 0; i < d->nbitmaps; i++)
		there |= strcmp(d->bitmaps[i].name, jd->old_bitmap) == 0;
	if (there)
		r = void_lines(jd, remove_bitmap(g, d, jd->old_bitmap, &e), &e, lines, err);
	if (!r)
		jd->void_epoch = false;
	return r;
}

/* Its device is gone, or the guest was off: QEMU may have the image open all the same. */
static int void_node(struct guest *g, struct journal_disk *jd, struct text_list *lines,
		     struct error *err)
{
	auto_graph struct block_graph graph = {0};
	int r = block_graph_load(g->qmp, &graph, err);

	for (size_t i = 0; !r && i < graph.nnodes; i++) {
		const struct block_node *n = &graph.nodes[i];
		struct guest_disk *d;

		if (block_node_format(n) != n || !same_file(block_node_storage(n)->file, jd->base))
			continue;
		r = disks_from_node(n, &d, err);
		if (r)
			return r;
		r = void_disk(g, d, jd, lines, err);
		guest_disks_free(d, 1);
		return r;
	}
	return r ? r : epochs_void_file(jd, lines, err);
}

int epochs_void(struct guest *g, struct journal *j, struct text_list *lines, struct error *err)
{
	int r = epochs_any_void(j) ? guest_refresh(g, err) : 0;

	for (size_t i = 0; !r && i < j->ndisks; i++) {
		struct journal_disk *jd = &j->disks[i];
		const struct guest_disk *d = find_disk(g, jd);

		if (!jd->void_epoch || !jd->old_bitmap)
			continue;
		if (d && !d->empty)
			r = void_disk(g, d, jd, lines, err);
		else
			r = g->qmp ? void_node(g, jd, lines, err)
				   : epochs_void_file(jd, lines, err);
	}
	return r;
}

int epochs_void_file(struct journal_disk *jd, struct text_list *lines, struct error *err)
{
	struct error e = {0};
	int r = 0;

	if (!jd->void_epoch || !jd->old_bitmap)
		return 0;
	if (strcmp(jd->format, "qcow2") == 0 && access(jd->base, F_OK) == 0) {
		struct guest_disk *look = calloc(1, sizeof(*look));

		if (!look)
			return error_nomem(err);
		r = image_look(jd->base, jd->format, look, &e);
		r = r ? void_lines(jd, r, &e, lines, err) : void_disk(NULL, look, jd, lines, err);
		guest_disks_free(look, 1);
	}
	if (!r)
		jd->void_epoch = false;
	return r;
}

bool epochs_any_void(const struct journal *j)
{
	for (size_t i = 0; i < j->ndisks; i++) {
		if (j->disks[i].void_epoch && j->disks[i].old_bitmap)
			return true;
	}
	return false;
}
