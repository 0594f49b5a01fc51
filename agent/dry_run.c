/* SPDX-License-Identifier: Apache-2.0 */
#include "dry_run.h"

#include "guest_repo.h"

#include <stdio.h>

struct estimates {
	struct agent *agent;
	const char *guest;
	struct earlier_points earlier;
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

static enum disk_rung expected_rung(struct estimates *e, const struct guest_disk *d)
{
	const struct point *point = NULL;
	const struct point_disk *disk;

	if (e->agent->opt.full)
		return RUNG_FULL;
	if (d->epoch.usable)
		return RUNG_BITMAP;
	return earlier_next(e->agent, e->guest, d->name, &e->earlier, &point, &disk)
		       ? RUNG_HASH_DIFF
		       : RUNG_FULL;
}

/* Adds what a backup would read of one disk; prints it without --json. */
static int estimate(struct estimates *e, const struct guest_disk *d, struct error *err)
{
	struct agent *a = e->agent;
	enum disk_rung rung = expected_rung(e, d);
	uint64_t dirty = rung == RUNG_BITMAP ? d->epoch.dirty_bytes : d->size;
	const char *reason = rung == RUNG_BITMAP ? ""
			     : a->opt.full       ? "asked for with --full"
						 : d->epoch.reason;
	json_t *o;

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

	for (size_t i = 0; !r && i < ndisks; i++)
		r = estimate(&e, guest_disk(guest, disks[i]), err);
	earlier_points_done(&e.earlier);
	if (r || !a->opt.json) {
		json_decref(e.disks);
		return r;
	}
	return print_json(json_pack("{s:b, s:s, s:o, s:o}", "dry_run", 1, "guest", e.guest, "disks",
				    e.disks, "warnings", take_warnings(a)),
			  err);
}
