/* SPDX-License-Identifier: Apache-2.0 */
/* Points in memory. */
#include "internal.h"

const char *point_kind_name(enum point_kind kind)
{
	switch (kind) {
	case POINT_REDIRECT_ON_WRITE:
		return "redirect-on-write";
	case POINT_COPY_BEFORE_WRITE:
		return "copy-before-write";
	case POINT_OFFLINE:
		return "offline";
	}
	return "unknown";
}

const char *disk_rung_name(enum disk_rung rung)
{
	switch (rung) {
	case RUNG_BITMAP:
		return "bitmap";
	case RUNG_HASH_DIFF:
		return "hash-diff";
	case RUNG_FULL:
		return "full";
	}
	return "unknown";
}

void disk_map_free(struct disk_map *m)
{
	if (!m)
		return;
	free(m->table);
	free(m->sketch);
	free(m);
}

static void disk_done(struct point_disk *d)
{
	free(d->name);
	free(d->reason);
	free(d->format);
	free(d->file);
	free(d->bitmap);
	disk_map_free(d->map);
}

void point_free(struct point *p)
{
	if (!p)
		return;
	for (size_t i = 0; i < p->ndisks; i++)
		disk_done(&p->disks[i]);
	for (size_t i = 0; i < p->ntags; i++)
		free(p->tags[i]);
	free(p->disks);
	free(p->tags);
	free(p->guest);
	free(p->guest_uuid);
	free(p->name);
	free(p->description);
	free(p->state);
	free(p->object);
	free(p);
}

void point_list_done(struct point_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		point_free(list->v[i]);
	free(list->v);
	*list = (struct point_list){0};
}
