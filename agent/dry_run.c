/* SPDX-License-Identifier: Apache-2.0 */
#include "dry_run.h"

#include "guest_repo.h"

#include <stdio.h>

static void print_estimate(const struct guest_disk *d, const struct outlook *o)
{
	char text[SIZE_TEXT_MAX] = "", size[SIZE_TEXT_MAX];
	bool counted = o->dirty_bytes != UINT64_MAX;

	if (counted)
		size_format(o->dirty_bytes, text);
	size_format(d->size, size);
	if (o->rung == RUNG_BITMAP)
		(void)printf("%s: would read %s%schanged since point %.12s, of %s%s\n",
			     shown(d->name).s, counted ? text : "what", counted ? ", " : " ",
			     id_text(&o->point).s, size,
			     counted ? "" : " (how much cannot be told now)");
	else
		(void)printf("%s: would read at most %s of %s%s: %s\n", shown(d->name).s, text,
			     size, o->rung == RUNG_HASH_DIFF ? " and compare" : "",
			     shown(o->reason).s);
}

/* Adds what a backup would read of one disk; prints it without --json. */
static int estimate(struct agent *a, const char *guest, const struct guest_disk *d, json_t *disks,
		    struct error *err)
{
	struct outlook o;
	json_t *v;
	int r = outlook(a, guest, d, &o, err);

	if (r)
		return r;
	if (!a->opt.json)
		print_estimate(d, &o);
	v = json_pack("{s:s, s:I, s:s, s:s, s:o}", "disk", d->name, "size", (json_int_t)d->size,
		      "source", disk_rung_name(o.rung), "reason", o.reason, "dirty_bytes",
		      json_bytes(o.dirty_bytes));
	return json_array_append_new(disks, v) ? error_nomem(err) : 0;
}

int dry_run(struct agent *a, const struct guest *guest, const size_t *disks, size_t ndisks,
	    struct error *err)
{
	json_t *list = json_array();
	int r = list ? 0 : error_nomem(err);

	for (size_t i = 0; !r && i < ndisks; i++)
		r = estimate(a, guest_name(guest), guest_disk(guest, disks[i]), list, err);
	if (r || !a->opt.json) {
		json_decref(list);
		return r;
	}
	return print_json(json_pack("{s:b, s:s, s:o, s:o}", "dry_run", 1, "guest",
				    guest_name(guest), "disks", list, "warnings", take_warnings(a)),
			  err);
}
