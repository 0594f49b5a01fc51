/* SPDX-License-Identifier: Apache-2.0 */
/* Points as JSON (the command line contract). */
#include "audit.h"

#include <string.h>

static json_t *id_json(const struct tm_id *id)
{
	return id_is_zero(id) ? json_null() : json_string(id_text(id).s);
}

static json_t *disk_json(const struct point_disk *d, bool all)
{
	json_t *o = json_pack("{s:o, s:I, s:s}", "disk", json_text(d->name), "size",
			      (json_int_t)d->size, "source", disk_rung_name(d->rung));

	if (!o || !all)
		return o;
	if (json_object_set_new(o, "reason", json_text(d->reason)) ||
	    json_object_set_new(o, "epoch", id_json(&d->parent)) ||
	    json_object_set_new(o, "bitmap", json_text(d->bitmap)) ||
	    json_object_set_new(o, "dirty_bytes", json_integer((json_int_t)d->dirty_bytes)) ||
	    json_object_set_new(o, "read_bytes", json_integer((json_int_t)d->read_bytes)) ||
	    json_object_set_new(o, "new_bytes", json_integer((json_int_t)d->new_bytes)) ||
	    json_object_set_new(o, "stored_bytes", json_integer((json_int_t)d->stored_bytes)) ||
	    json_object_set_new(o, "audit", audit_json(&d->audit)) ||
	    json_object_set_new(o, "format", json_text(d->format)) ||
	    json_object_set_new(o, "file", json_text(d->file))) {
		json_decref(o);
		return NULL;
	}
	return o;
}

static json_t *tags_json(const struct point *p)
{
	json_t *tags = json_array();

	for (size_t i = 0; tags && i < p->ntags; i++) {
		if (json_array_append_new(tags, json_string(p->tags[i]))) {
			json_decref(tags);
			return NULL;
		}
	}
	return tags;
}

static json_t *disks_json(const struct point *p, bool all)
{
	json_t *disks = json_array();

	for (size_t i = 0; disks && i < p->ndisks; i++) {
		if (json_array_append_new(disks, disk_json(&p->disks[i], all))) {
			json_decref(disks);
			return NULL;
		}
	}
	return disks;
}

json_t *point_json(const struct point *p, bool all)
{
	char created[TIME_TEXT_MAX];
	json_t *o;

	time_format_utc(p->created_ms, created);
	o = json_pack("{s:s, s:o, s:o, s:o, s:s, s:o, s:o, s:b, s:s, s:o, s:o}", "point",
		      id_text(&p->id).s, "guest", json_text(p->guest), "name", json_text(p->name),
		      "description", json_text(p->description), "created", created, "parent",
		      id_json(&p->parent), "tags", tags_json(p), "protected", p->is_protected,
		      "kind", point_kind_name(p->kind), "state", json_text(p->state), "disks",
		      disks_json(p, all));
	if (!o || !all)
		return o;
	if (json_object_set_new(o, "guest_uuid", json_text(p->guest_uuid)) ||
	    json_object_set_new(o, "quiesced", json_boolean(p->quiesced)) ||
	    json_object_set_new(o, "freeze_ms", json_integer((json_int_t)p->freeze_ms)) ||
	    json_object_set_new(o, "seconds", json_real((double)p->seconds_ms / 1000))) {
		json_decref(o);
		return NULL;
	}
	return o;
}
