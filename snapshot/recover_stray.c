/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An overlay of ours, or the data of one, lies beside a file of the guest, and no journal tells of
 * it.  Nothing in the files says which is newer, but an overlay without anything in it is no
 * newer than its base.
 */
#include "recover.h"

#include "base_lock.h"
#include "names.h"
#include "overlay.h"

#include <string.h>

struct strays {
	const char *file; /* of the guest */
	bool check_only;
	struct text_list *lines;
};

/* A backup that has just begun journals before it makes its overlay. */
static int has_journal(const char *file, bool *ret, struct error *err)
{
	auto_free char *copy = NULL;
	int r = text_format(&copy, err, "%s" JOURNAL_SUFFIX, file);

	if (!r)
		*ret = access(copy, F_OK) == 0;
	return r;
}

/*
 * Removes it where it provably holds nothing.  Meanwhile it is locked, so that no QEMU opens it for
 * writing and loses what the guest wrote with the name.
 */
static int remove_empty(const struct strays *s, const char *overlay, bool *ret_removed,
			struct error *err)
{
	auto_close int lock = -1;
	struct error e = {0};
	bool empty = false, begun = false;
	int r = image_lock(overlay, &lock, &e);

	if (!r)
		r = has_journal(s->file, &begun, &e);
	if (!r)
		r = recover_check_above(overlay, &e);
	if (!r && !begun)
		r = overlay_empty(overlay, &empty, &e);
	*ret_removed = !r && empty;
	if (r)
		log_debug("%s: %s", overlay, e.text);
	if (!*ret_removed)
		return 0;
	if (s->check_only)
		return text_list_add(
			s->lines, err,
			"an interrupted backup left the overlay %s, and its journal is "
			"lost; nothing is in it: recovery removes it",
			overlay);
	r = overlay_remove(overlay, err);
	return r ? r
		 : text_list_add(s->lines, err,
				 "removed the overlay %s: an interrupted backup left it, and "
				 "nothing was in it",
				 overlay);
}

static int judge_overlay(const struct strays *s, const char *overlay, struct error *err)
{
	auto_free char *gone = NULL;
	bool removed = false;
	int r = overlay_missing(overlay, &gone, err);

	if (!r && gone)
		return error_set(
			err, TM_E_STALE,
			"an interrupted backup left %s; its journal is lost, and its data, %s, are "
			"gone.  Put them back under that name, then run recovery again; where the "
			"guest's data in %s is right as it is, remove the overlay",
			overlay, gone, s->file);
	if (!r)
		r = remove_empty(s, overlay, &removed, err);
	if (r || removed)
		return r;
	return error_set(
		err, TM_E_STALE,
		"an interrupted backup left %s, and its journal is lost.  With the guest off: if "
		"the guest wrote to it last, 'qemu-img commit' of it puts that in %s; if it has "
		"run on %s since, leave that out.  Then remove the overlay, and "
		"OVERLAY" OVERLAY_DATA_SUFFIX " where there is one",
		overlay, s->file, s->file);
}

/* Data of an overlay that is there are judged with it. */
static int judge_data(const struct strays *s, const char *data, struct error *err)
{
	auto_free char *overlay = NULL;
	int r = text_format(&overlay, err, "%.*s",
			    (int)(strlen(data) - strlen(OVERLAY_DATA_SUFFIX)), data);

	if (r || access(overlay, F_OK) == 0)
		return r;
	return error_set(
		err, TM_E_STALE,
		"an interrupted backup left %s, data that the guest wrote during it.  Its overlay "
		"%s is gone, as is the journal, and without that nothing tells where in %s they "
		"belong.  Put it back, then run recovery again; where the guest's data is right as "
		"it is, remove the file",
		data, overlay, s->file);
}

static int judge_all(const struct strays *s, const char *suffix,
		     int (*judge)(const struct strays *s, const char *path, struct error *err),
		     struct error *err)
{
	auto_text_list struct text_list found = {0};
	auto_free char *dir = NULL;
	const char *slash = strrchr(s->file, '/'), *name = slash ? slash + 1 : s->file;
	int r = io_dirname(s->file, &dir, err);

	if (!r)
		r = recover_list_dir(dir, suffix, &found, err);
	for (size_t i = 0; !r && i < found.n; i++) {
		const char *own = strrchr(found.v[i], '/') + 1;
		size_t len = strlen(name);

		if (strncmp(own, name, len) == 0 && own[len] == '.')
			r = judge(s, found.v[i], err);
	}
	return r;
}

static int judge_file(struct strays *s, const char *file, struct error *err)
{
	int r;

	s->file = file;
	r = judge_all(s, OVERLAY_SUFFIX, judge_overlay, err);
	if (!r)
		r = judge_all(s, OVERLAY_SUFFIX OVERLAY_DATA_SUFFIX, judge_data, err);
	return r ? r : names_check_moved(file, err);
}

int recover_strays(const struct guest *g, bool check_only, struct text_list *lines,
		   struct error *err)
{
	struct strays s = {NULL, check_only, lines};
	int r = 0;

	for (size_t i = 0; !r && i < g->ndisks; i++) {
		const struct guest_disk *d = &g->disks[i];

		if (!d->empty && d->file && !d->overlay_of && strchr(d->file, '/'))
			r = judge_file(&s, d->file, err);
	}
	for (size_t i = 0; !r && i < g->nimages; i++) {
		if (access(g->images[i], F_OK) < 0)
			return error_set(err, TM_E_NOTFOUND, "there is no image %s", g->images[i]);
		r = judge_file(&s, g->images[i], err);
	}
	return r;
}
