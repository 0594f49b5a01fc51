/* SPDX-License-Identifier: Apache-2.0 */
/*
 * After a pull the overlay is the guest's disk, so in the transaction of the freeze it gets all the
 * bitmaps that its base has: the new one records on both, and whether the point is committed or
 * not, the bitmaps are settled as on a base.
 */
#include "overlay.h"
#include "prepare.h"

#include <string.h>
#include <sys/stat.h>

static int check_keep(const struct journal_disk *jd, const struct block_node *base,
		      struct error *err)
{
	const json_t *image = json_object_get(base->info, "image");
	const json_t *own = json_object_get(json_object_get(image, "format-specific"), "data");
	const char *slash = strrchr(jd->base, '/');
	struct stat a, b;

	if (strlen(slash ? slash + 1 : jd->base) > OVERLAY_STEM)
		return error_set(err, TM_E_USAGE,
				 "the name of %s is too long for a second one: leave out "
				 "--keep-name",
				 jd->base);
	if (strcmp(jd->format, "qcow2") != 0)
		return error_set(err, TM_E_USAGE,
				 "its overlay cannot take the name of %s, whose format is %s and "
				 "not qcow2: leave out --keep-name",
				 jd->base, jd->format);
	if (json_array_size(json_object_get(image, "snapshots")))
		return error_set(err, TM_E_USAGE,
				 "%s holds internal snapshots, which would be lost: leave out "
				 "--keep-name",
				 jd->base);
	if (json_object_get(own, "data-file"))
		return error_set(err, TM_E_USAGE,
				 "%s keeps its data in another file, which would be out of use: "
				 "leave out --keep-name",
				 jd->base);
	if (lstat(jd->base, &a) < 0 || S_ISLNK(a.st_mode))
		return error_set(err, TM_E_USAGE,
				 "%s is a symbolic link, which would be replaced, and not the file "
				 "it names: leave out --keep-name",
				 jd->base);
	if (stat(jd->base, &a) < 0 || stat(jd->overlay, &b) < 0 || a.st_dev != b.st_dev)
		return error_set(
			err, TM_E_USAGE,
			"its overlay %s cannot take the name of %s on another file system: "
			"leave out --overlay-dir or --keep-name",
			jd->overlay, jd->base);
	return 0;
}

static int check_disk(const struct journal_disk *jd, const struct block_node *base,
		      struct error *err)
{
	struct stat st;

	if (!base || stat(jd->base, &st) < 0 || !S_ISREG(st.st_mode))
		return error_set(err, TM_E_USAGE,
				 "%s is not a file, so nothing can be pulled out of it: use "
				 "--collapse commit",
				 jd->base);
	return jd->how == COLLAPSE_PULL_KEEP ? check_keep(jd, base, err) : 0;
}

static int add_bitmap(json_t *actions, const char *node, const char *name, uint64_t granularity,
		      bool disabled, struct error *err)
{
	return jsonx_append(actions,
			    json_pack("{s:s, s:{s:s, s:s, s:b, s:I, s:b}}", "type",
				      "block-dirty-bitmap-add", "data", "node", node, "name", name,
				      "persistent", 1, "granularity", (json_int_t)granularity,
				      "disabled", (int)disabled),
			    err);
}

static int merge_bitmap(json_t *actions, const char *node, const char *base, const char *name,
			struct error *err)
{
	return jsonx_append(actions,
			    json_pack("{s:s, s:{s:s, s:s, s:[{s:s, s:s}]}}", "type",
				      "block-dirty-bitmap-merge", "data", "node", node, "target",
				      name, "bitmaps", "node", base, "name", name),
			    err);
}

/* A copy of one bitmap of the base. */
static int copy_bitmap(const struct journal_disk *jd, const char *base, const json_t *info,
		       json_t *actions, struct error *err)
{
	const char *name = jsonx_text(info, "name");
	bool ends = name && jd->new_bitmap && jd->old_bitmap && strcmp(name, jd->old_bitmap) == 0;
	uint64_t granularity;
	int r;

	if (!name || jsonx_flag(info, "inconsistent") ||
	    !jsonx_u64(info, "granularity", &granularity))
		return 0; /* a job's own, or of no use to anybody */
	if (jsonx_flag(info, "busy"))
		return error_set(err, TM_E_BUSY,
				 "its bitmap '%s' is in use, and would be left behind", name);
	r = add_bitmap(actions, jd->overlay_node, name, granularity,
		       ends || !jsonx_flag(info, "recording"), err);
	return r ? r : merge_bitmap(actions, jd->overlay_node, base, name, err);
}

static int copy_bitmaps(const struct snapshot *s, const struct journal_disk *jd,
			const struct block_node *base, json_t *actions, struct error *err)
{
	const json_t *list = json_object_get(base->info, "dirty-bitmaps"), *v;
	size_t i;
	int r = 0;

	json_array_foreach(list, i, v)
	{
		r = copy_bitmap(jd, base->name, v, actions, err);
		if (r)
			return r;
	}
	if (jd->new_bitmap)
		r = add_bitmap(actions, jd->overlay_node, jd->new_bitmap, s->granularity, false,
			       err);
	return r;
}

static int prepare_pull(struct snapshot *s, struct journal_disk *jd, const struct block_node *base,
			struct error *err)
{
	auto_json json_t *actions = json_array();
	struct error e = {0};
	int r = actions ? check_disk(jd, base, &e) : error_nomem(err);

	if (!r)
		r = copy_bitmaps(s, jd, base, actions, &e);
	if (!r)
		return json_array_extend(s->pull_actions, actions) ? error_nomem(err) : 0;
	if (s->may_commit && (r == TM_E_USAGE || r == TM_E_BUSY)) {
		log_debug("disk %s: no pull: %s", jd->name, e.text);
		jd->how = COLLAPSE_COMMIT;
		return 0;
	}
	return error_set(err, r, "disk %s cannot be collapsed by pull: %s", jd->name, e.text);
}

int prepare_pulls(struct snapshot *s, struct error *err)
{
	auto_graph struct block_graph graph = {0};
	bool any = false;
	int r;

	for (size_t i = 0; i < s->j->ndisks; i++)
		any |= s->j->disks[i].how != COLLAPSE_COMMIT;
	s->pull_actions = json_array();
	if (!s->pull_actions)
		return error_nomem(err);
	r = any ? block_graph_load(s->g->qmp, &graph, err) : 0;
	for (size_t i = 0; !r && i < s->j->ndisks; i++) {
		struct journal_disk *jd = &s->j->disks[i];

		if (jd->how != COLLAPSE_COMMIT)
			r = prepare_pull(s, jd, block_graph_node(&graph, prepare_disk(s, i)->node),
					 err);
	}
	return r;
}

/* ---- which way ---- */

#define AUTO_EMPTY 64                    /* a new disk: no more than such a part has data */
#define AUTO_MORE  ((uint64_t)256 << 20) /* what a pull has to save at least */

static uint64_t allocated(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && st.st_blocks > 0 ? (uint64_t)st.st_blocks * 512 : 0;
}

/*
 * A pull can only be the cheaper way for a disk that was nearly empty; and nobody may be surprised
 * by it: the file keeps its name, and no node is replaced that somebody has named.
 */
static bool could_pull(const struct guest_disk *d)
{
	struct stat st;

	return d->can_persist && d->size > AUTO_MORE && d->node && d->node[0] == '#' &&
	       stat(d->file, &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink == 1 &&
	       allocated(d->file) <= d->size / AUTO_EMPTY;
}

enum collapse_how pull_choose(const struct guest_disk *d, const struct snapshot_options *opt)
{
	switch (opt->collapse) {
	case COLLAPSE_MODE_PULL:
		return opt->keep_name ? COLLAPSE_PULL_KEEP : COLLAPSE_PULL;
	case COLLAPSE_MODE_AUTO:
		return could_pull(d) ? COLLAPSE_PULL_KEEP : COLLAPSE_COMMIT;
	case COLLAPSE_MODE_COMMIT:
	default:
		return COLLAPSE_COMMIT;
	}
}

void pull_decide(struct snapshot *s)
{
	for (size_t i = 0; s->may_commit && i < s->j->ndisks; i++) {
		struct journal_disk *jd = &s->j->disks[i];
		uint64_t base = allocated(jd->base),
			 overlay = jd->overlay ? allocated(jd->overlay) : 0;

		if (overlay / 2 < base || overlay - base < AUTO_MORE)
			jd->how = COLLAPSE_COMMIT;
	}
	s->may_commit = false;
}
