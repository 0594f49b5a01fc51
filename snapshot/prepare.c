/* SPDX-License-Identifier: Apache-2.0 */
#include "prepare.h"

#include "guard.h"
#include "identity.h"
#include "names.h"
#include "overlay.h"
#include "proc.h"
#include "rival.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

const struct guest_disk *prepare_disk(const struct snapshot *s, size_t i)
{
	return &s->g->disks[s->info.disks[i].disk];
}

static int set_reason(struct snapshot *s, size_t i, const char *text, struct error *err)
{
	char *copy;
	int r = text_copy(text, &copy, err);

	if (r)
		return r;
	free(s->reasons[i]);
	s->reasons[i] = copy;
	s->info.disks[i].reason = copy;
	return 0;
}

static int new_bitmap_name(const struct snapshot *s, const struct guest_disk *d, size_t i,
			   char **ret, struct error *err)
{
	struct bitmap_id id = {.repo = s->j->repo,
			       .point = s->j->point,
			       .disk = (uint16_t)i,
			       .chain = d->chain_id};
	char name[BITMAP_NAME_MAX];

	if (d->epoch.usable)
		id.parent = d->epoch.point;
	bitmap_name_format(&id, name);
	return text_copy(name, ret, err);
}

static int journal_disk(struct snapshot *s, const struct snapshot_options *opt, size_t i,
			struct error *err)
{
	const struct guest_disk *d = &s->g->disks[opt->disks[i]];
	struct journal_disk *jd;
	int r = journal_add_disk(s->j, &jd, err);

	if (!r)
		r = text_copy(d->name, &jd->name, err);
	if (!r && d->qdev)
		r = text_copy(d->qdev, &jd->qdev, err);
	if (!r && d->drive)
		r = text_copy(d->drive, &jd->drive, err);
	if (!r)
		r = text_copy(d->file, &jd->base, err);
	if (!r)
		r = text_copy(d->format, &jd->format, err);
	if (!r && d->epoch.usable)
		r = text_copy(d->epoch.bitmap, &jd->old_bitmap, err);
	if (!r)
		r = new_bitmap_name(s, d, i, &jd->new_bitmap, err);
	if (!r && s->g->kind == GUEST_QMP) {
		jd->how = pull_choose(d, opt);
		r = overlay_path(d->file, opt->overlay_dir, &opt->point, i, jd->how, &jd->overlay,
				 err);
		if (!r)
			r = text_format(&jd->overlay_node, err, "tm-%.12s-%zu-ov",
					id_text(&opt->point).s + TM_ID_HEX - 12, i);
	}
	if (r)
		return r;
	jd->size = d->size;
	jd->base_id = identity_of(jd->base);
	if (identity_open_elsewhere(s->g, jd->base))
		return error_set(err, TM_E_STALE,
				 "disk %s: its file %s was just replaced by another one", jd->name,
				 jd->base);
	s->info.disks[i].disk = opt->disks[i];
	return set_reason(s, i, d->epoch.usable ? "" : d->epoch.reason, err);
}

static int check_choice(const struct snapshot *s, const struct snapshot_options *opt, size_t i,
			struct error *err)
{
	const struct guest_disk *d;

	if (opt->disks[i] >= s->g->ndisks)
		return error_set(err, TM_E_RANGE, "there is no disk number %zu", opt->disks[i]);
	d = &s->g->disks[opt->disks[i]];
	if (d->left_out)
		return error_set(err, TM_E_USAGE, "disk %s cannot be backed up: %s", d->name,
				 d->left_out);
	if (d->overlay_of)
		return error_set(
			err, TM_E_STALE,
			"disk %s runs on %s, which an interrupted backup left: recovery is needed",
			d->name, d->file);
	return 0;
}

static int fill_head(struct snapshot *s, const struct snapshot_options *opt, struct error *err)
{
	struct journal *j = s->j;
	int r = journal_path(s->g->state_dir, s->g->key, &j->path, err);

	j->kind = s->g->kind;
	j->repo = opt->repo;
	j->point = opt->point;
	j->agent_pid = (uint64_t)getpid();
	j->agent_start = proc_start(getpid());
	if (!r)
		r = text_copy(s->g->name, &j->guest, err);
	if (!r && s->g->qmp_socket)
		r = text_copy(s->g->qmp_socket, &j->qmp_socket, err);
	if (!r && s->g->agent_socket)
		r = text_copy(s->g->agent_socket, &j->agent_socket, err);
	if (!r && opt->repo_url)
		r = text_copy(opt->repo_url, &j->repo_url, err);
	if (!r)
		r = text_copy(s->g->state, &j->state, err);
	return r;
}

static int start_guard(struct snapshot *s, struct error *err)
{
	struct error e = {0};

	if (guard_start(s->j, s->g->state_dir, &s->g->guard, &e) == 0)
		return 0;
	return text_list_add(&s->info.warnings, err, "nobody watches over this run: %s", e.text);
}

int prepare_journal(struct snapshot *s, const struct snapshot_options *opt, struct error *err)
{
	struct journal *j = s->j;
	int r = rival_check_journal(s->g, err);

	if (!r)
		r = fill_head(s, opt, err);
	for (size_t i = 0; !r && i < opt->ndisks; i++) {
		r = check_choice(s, opt, i, err);
		if (r)
			break;
		names_tidy(s->g->disks[opt->disks[i]].file, s->g->disks[opt->disks[i]].alias);
		r = journal_disk(s, opt, i, err);
	}
	if (!r)
		r = rundir_make(j->disks[0].base, &j->socket_dir, &j->socket_lock, err);
	if (!r)
		r = start_guard(s, err);
	return r ? r : journal_write(j, JOURNAL_PREPARING, err);
}

static int file_args(const char *path, const char *overlay_node, char kind, bool direct,
		     bool no_flush, json_t **ret, struct error *err)
{
	char node[40];

	if (snprintf(node, sizeof(node), "%s-%c", overlay_node, kind) < 0)
		return error_set(err, TM_E_RANGE, "node name");
	return jsonx_make(ret, err, "{s:s, s:s, s:s, s:s, s:{s:b, s:b}}", "driver", "file",
			  "filename", path, "node-name", node, "discard", "unmap", "cache",
			  "direct", (int)direct, "no-flush", (int)no_flush);
}

/* The overlay's options follow those of the base, so that the guest notices no difference. */
static int overlay_args(const struct journal_disk *jd, const struct block_node *base, bool apart,
			bool direct, json_t **ret, struct error *err)
{
	const char *zeroes = base ? jsonx_text(base->info, "detect_zeroes") : NULL;
	const json_t *cache = base ? json_object_get(base->info, "cache") : NULL;
	bool no_flush = jsonx_flag(cache, "no-flush");
	auto_json json_t *args = NULL;
	auto_free char *data = NULL;
	json_t *file;
	int r = jsonx_make(&args, err, "{s:s, s:s, s:s, s:s, s:n, s:{s:b, s:b}}", "driver", "qcow2",
			   "node-name", jd->overlay_node, "discard", "unmap", "detect-zeroes",
			   zeroes ? zeroes : "off", "backing", "cache", "direct", (int)direct,
			   "no-flush", (int)no_flush);

	if (!r)
		r = file_args(jd->overlay, jd->overlay_node, 'f', direct, no_flush, &file, err);
	if (!r)
		r = jsonx_set(args, "file", file, err);
	if (!r && apart) {
		r = overlay_data_path(jd->overlay, &data, err);
		if (!r)
			r = file_args(data, jd->overlay_node, 'd', direct, no_flush, &file, err);
		if (!r)
			r = jsonx_set(args, "data-file", file, err);
	}
	if (!r)
		*ret = tm_steal(args);
	return r;
}

static int add_node(struct guest *g, const struct journal_disk *jd, const struct block_node *base,
		    bool apart, struct error *err)
{
	bool direct = base && jsonx_flag(json_object_get(base->info, "cache"), "direct");

	for (;;) {
		struct error e = {0};
		json_t *args;
		int r = overlay_args(jd, base, apart, direct, &args, err);

		if (r)
			return r;
		r = guest_do(g, "blockdev-add", args, &e);
		if (!r)
			return 0;
		if (r != TM_E_PEER || !direct)
			return error_pass(err, r, &e);
		direct = false; /* its file system cannot: better cached than no backup */
	}
}

int prepare_overlays(struct snapshot *s, struct error *err)
{
	auto_graph struct block_graph graph = {0};
	int r = block_graph_load(s->g->qmp, &graph, err);

	for (size_t i = 0; !r && i < s->j->ndisks; i++) {
		struct journal_disk *jd = &s->j->disks[i];
		const struct guest_disk *d = prepare_disk(s, i);

		bool apart = jd->how == COLLAPSE_COMMIT;

		r = overlay_create(jd->overlay, jd->base, jd->format, jd->size, &apart, err);
		jd->overlay_id = identity_of(jd->overlay);
		if (!r)
			r = add_node(s->g, jd, block_graph_node(&graph, d->node), apart, err);
		if (!r)
			r = guest_tick(s->g, "freeze", jd->name, 0, 0, err);
		if (r)
			error_prefix(err, "disk %s", jd->name);
	}
	return r;
}

static int try_bitmap(struct guest *g, const char *node, const char *name, uint32_t granularity,
		      bool persistent, struct error *err)
{
	json_t *args;
	int r = jsonx_make(&args, err, "{s:s, s:s, s:I, s:b, s:b}", "node", node, "name", name,
			   "granularity", (json_int_t)granularity, "persistent", (int)persistent,
			   "disabled", 1);

	if (!r)
		r = guest_do(g, "block-dirty-bitmap-add", args, err);
	if (!r)
		r = jsonx_make(&args, err, "{s:s, s:s}", "node", node, "name", name);
	return r ? r : guest_do(g, "block-dirty-bitmap-remove", args, err);
}

/* A refused bitmap would roll back the whole transaction: try before. */
int prepare_bitmaps(struct snapshot *s, struct error *err)
{
	for (size_t i = 0; i < s->j->ndisks; i++) {
		struct journal_disk *jd = &s->j->disks[i];
		const struct guest_disk *d = prepare_disk(s, i);
		bool persistent = d->can_persist;
		struct error e = {0};
		int r = try_bitmap(s->g, d->node, jd->new_bitmap, s->granularity, persistent, &e);

		if (r == TM_E_PEER && persistent) {
			persistent = false;
			r = try_bitmap(s->g, d->node, jd->new_bitmap, s->granularity, persistent,
				       NULL);
		}
		if (r == TM_E_PEER) {
			free(jd->new_bitmap);
			jd->new_bitmap = NULL;
		} else if (r) {
			return error_set(err, r, "disk %s: %s", jd->name, e.text);
		}
		if (e.code) {
			r = text_list_add(
				&s->info.warnings, err, "disk %s: %s: %s", jd->name,
				r ? "no bitmap can be kept, the next backup reads all of it"
				  : "its bitmap will not survive a restart of QEMU",
				e.text);
			if (r)
				return r;
		}
		s->info.disks[i].persistent = persistent && jd->new_bitmap;
	}
	return 0;
}
