/* SPDX-License-Identifier: Apache-2.0 */
#include "dry_run.h"

#include "guest_repo.h"

#include <stdio.h>

struct estimates {
	struct agent *agent;
	const char *guest;
	struct earlier_points earlier;
	struct known_points known;
	json_t *disks;
};

static void print_estimate(const struct guest_disk *d, enum disk_rung rung, uint64_t dirty,
			   const char *reason)
{
	char text[SIZE_TEXT_MAX] = "changes", size[SIZE_TEXT_MAX];

	if (dirty != UINT64_MAX)
		size_format(dirty, text);
	size_format(d->size, size);
	(void)printf("%s: would read %s%s of %s%s%s%s\n", d->name,
		     rung == RUNG_BITMAP ? "" : "at most ", text, size,
		     rung == RUNG_HASH_DIFF ? " and compare" : "", *reason ? ": " : "", reason);
}

/* Bytes that the bitmap's point has lost. */
static int lost_of_epoch(struct estimates *e, const struct disk_epoch *epoch, uint64_t *ret,
			 struct error *err)
{
	uint64_t size;

	*ret = 0;
	if (!epoch->usable || !known_points_ask(&e->known, &epoch->point, epoch->disk, &size))
		return 0;
	return repo_disk_lost(e->agent->repo, &e->known.last->disks[epoch->disk], ret, err);
}

static enum disk_rung expected_rung(struct estimates *e, const struct guest_disk *d, bool damaged)
{
	const struct point *point = NULL;
	const struct point_disk *disk;

	if (e->agent->opt.full)
		return RUNG_FULL;
	if (d->epoch.usable)
		return damaged ? RUNG_HASH_DIFF : RUNG_BITMAP;
	return earlier_next(e->agent, e->guest, d->name, &e->earlier, &point, &disk)
		       ? RUNG_HASH_DIFF
		       : RUNG_FULL;
}

/* Adds what a backup would read of one disk; prints it without --json. */
static int estimate(struct estimates *e, const struct guest_disk *d, struct error *err)
{
	struct agent *a = e->agent;
	uint64_t lost = 0, dirty;
	int r = a->opt.full ? 0 : lost_of_epoch(e, &d->epoch, &lost, err);
	enum disk_rung rung = expected_rung(e, d, lost > 0);
	const char *reason = a->opt.full          ? "asked for with --full"
			     : lost               ? "the bitmap's point is damaged"
			     : rung > RUNG_BITMAP ? d->epoch.reason
						  : "";
	json_t *o;

	if (r)
		return r;
	dirty = rung == RUNG_BITMAP ? d->epoch.dirty_bytes : d->size;
	if (!a->opt.json)
		print_estimate(d, rung, dirty, reason);
	o = json_pack("{s:s, s:I, s:s, s:s, s:o}", "disk", d->name, "size", (json_int_t)d->size,
		      "source", disk_rung_name(rung), "reason", reason, "dirty_bytes",
		      dirty == UINT64_MAX ? json_null() : json_integer((json_int_t)dirty));
	return json_array_append_new(e->disks, o) ? error_nomem(err) : 0;
}

int dry_run(struct agent *a, const struct guest *guest, const size_t *disks, size_t ndisks,
	    struct error *err)
{
	struct estimates e = {.agent = a, .guest = guest_name(guest), .disks = json_array()};
	int r = 0;

	e.known = (struct known_points){.agent = a, .guest = e.guest};
	for (size_t i = 0; !r && i < ndisks; i++)
		r = estimate(&e, guest_disk(guest, disks[i]), err);
	earlier_points_done(&e.earlier);
	known_points_done(&e.known);
	if (r || !a->opt.json) {
		json_decref(e.disks);
		return r;
	}
	return print_json(json_pack("{s:b, s:s, s:o, s:o}", "dry_run", 1, "guest", e.guest, "disks",
				    e.disks, "warnings", take_warnings(a)),
			  err);
}
