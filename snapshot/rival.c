/* SPDX-License-Identifier: Apache-2.0 */
#include "rival.h"

#include "recover.h"

#include <string.h>

int rival_lock(struct guest *g, struct error *err)
{
	auto_free char *key = NULL, *text = NULL;
	const char *file = NULL;
	int r;

	for (size_t i = 0; !file && i < g->ndisks; i++)
		file = g->disks[i].overlay_of ? g->disks[i].overlay_of : g->disks[i].file;
	if (!file || g->kind != GUEST_QMP)
		return 0; /* an image is what its key is made from */
	r = journal_key(file, &key, err);
	if (!r)
		r = text_format(&text, err, "disk-%s", key);
	return r ? r : journal_lock(g->state_dir, text, NULL, &g->lock_disk, err);
}

int rival_check_journal(struct guest *g, struct error *err)
{
	auto_clean(journal_free) struct journal *j = NULL;
	int r = recover_find(g, &j, err);

	if (r || !j)
		return r;
	if (recover_agent_lives(j))
		return error_set(err, TM_E_BUSY,
				 "another tidemark, process %llu, has begun to work on this guest",
				 (unsigned long long)j->agent_pid);
	return error_set(err, TM_E_STALE,
			 "an interrupted backup of this guest is in %s: recovery is needed",
			 j->path ? j->path : "a journal beside a base");
}

bool rival_began(const struct guest_disk *d, const struct journal *j, const struct journal_disk *jd)
{
	struct bitmap_id old;

	if (!jd->old_bitmap || !bitmap_name_parse(jd->old_bitmap, &old))
		return false;
	for (size_t i = 0; i < d->nbitmaps; i++) {
		const struct disk_bitmap *b = &d->bitmaps[i];

		if (b->ours && id_equal(&b->id.repo, &j->repo) &&
		    id_equal(&b->id.parent, &old.point) && !id_equal(&b->id.point, &j->point))
			return true;
	}
	return false;
}

static bool records(const struct guest_disk *d, const char *bitmap)
{
	for (size_t i = 0; i < d->nbitmaps; i++) {
		if (strcmp(d->bitmaps[i].name, bitmap) == 0)
			return d->bitmaps[i].recording && !d->bitmaps[i].inconsistent;
	}
	return false;
}

int rival_check_base(const struct block_node *base, const struct journal *j,
		     const struct journal_disk *jd, bool frozen, struct error *err)
{
	struct guest_disk *d;
	bool good;
	int r;

	if (!jd->old_bitmap)
		return 0; /* what is read whole needs nobody's bitmap */
	r = disks_from_node(base, &d, err);
	if (r)
		return r;
	good = !rival_began(d, j, jd) && (frozen || records(d, jd->old_bitmap));
	guest_disks_free(d, 1);
	if (good)
		return 0;
	return error_set(err, TM_E_STALE,
			 "disk %s: another run has changed the bitmap that this one was to read: "
			 "another tidemark is at work on this guest.  Try again when it has ended",
			 jd->name);
}
