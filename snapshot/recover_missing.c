/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Overlays that are needed and not there: moved or deleted by hand, or on a file system that is
 * not mounted.  As long as one disk cannot have its newest data no other one gets them, for the
 * disks of a guest are to be of one instant.
 */
#include "recover.h"

#include "overlay.h"

#include <string.h>

/* One of the words of a command for a shell. */
static int add_word(struct buf *line, const char *word, struct error *err)
{
	int r = buf_printf(line, err, " '");

	for (const char *p = word; !r && *p; p++)
		r = *p == '\'' ? buf_printf(line, err, "'\\''") : buf_add(line, p, 1, err);
	return r ? r : buf_printf(line, err, "'");
}

/* The command that leaves nothing of the run, and so the bases as they are. */
static int add_removal(const struct journal *j, struct buf *line, struct error *err)
{
	auto_text_list struct text_list files = {0};
	int r = journal_list_files(j, &files, err);

	for (size_t i = 0; !r && i < j->ndisks; i++) {
		const struct journal_disk *d = &j->disks[i];

		/* A pull that is complete made it the disk itself. */
		if (!d->overlay || (d->how == COLLAPSE_PULL_KEEP && d->pivot == PIVOT_DONE))
			continue;
		r = text_list_add(&files, err, "%s", d->overlay);
		if (!r)
			r = text_list_add(&files, err, "%s" OVERLAY_DATA_SUFFIX, d->overlay);
	}
	if (!r)
		r = buf_printf(line, err, "rm -f --");
	for (size_t i = 0; !r && i < files.n; i++)
		r = add_word(line, files.v[i], err);
	return r;
}

static int tell_command(const struct journal *j, struct text_list *lines, struct error *err)
{
	auto_buf struct buf line = {0};
	int r = add_removal(j, &line, err);

	return r ? r
		 : text_list_add(lines, err,
				 "to do without what the guest wrote since the freeze, where its "
				 "bases are right as they are: %s",
				 (const char *)line.data);
}

int recover_tell_merge(const struct journal *j, struct text_list *lines, struct error *err)
{
	auto_buf struct buf line = {0};
	int r = 0;

	for (size_t i = 0; !r && i < j->ndisks; i++) {
		const struct journal_disk *d = &j->disks[i];

		if (!d->overlay || !recover_needs_overlay(d) || access(d->overlay, F_OK) < 0)
			continue;
		r = buf_printf(&line, err, "qemu-img commit -q -d -f qcow2");
		if (!r)
			r = add_word(&line, d->overlay, err);
		if (!r)
			r = buf_printf(&line, err, " && ");
	}
	if (!r)
		r = add_removal(j, &line, err);
	return r ? r
		 : text_list_add(lines, err,
				 "to put what the guest wrote since the freeze into its bases, "
				 "where no guest was started on them since: %s",
				 (const char *)line.data);
}

/* Bases that are no longer as at the freeze: doing without the rest leaves no single instant. */
static int tell_merged(const struct journal *j, struct text_list *lines, struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < j->ndisks; i++) {
		const struct journal_disk *d = &j->disks[i];

		if (!d->overlay)
			continue;
		if (!recover_needs_overlay(d))
			r = text_list_add(lines, err,
					  "disk %s: has all that the guest wrote, and so is of "
					  "another instant than disks without their overlay",
					  d->name);
		else if (j->phase >= JOURNAL_FROZEN && !d->frozen_mtime)
			r = text_list_add(lines, err,
					  "disk %s: the merge of its overlay had begun: without "
					  "that its base is of no instant, and is to be restored",
					  d->name);
	}
	return r;
}

int recover_tell_without(const struct journal *j, struct text_list *lines, struct error *err)
{
	int r = tell_merged(j, lines, err);

	return r ? r : tell_command(j, lines, err);
}

static int refuse(const struct journal *j, const struct journal_disk *d, const char *gone,
		  struct text_list *lines, struct error *err)
{
	const bool data = strcmp(gone, d->overlay) != 0;
	int r = recover_tell_without(j, lines, err);

	return r ? r
		 : error_set(err, TM_E_STALE,
			     "disk %s: %s %s is gone, with what the guest wrote since the freeze: "
			     "no overlay of the guest is merged, all are kept.  Put it back under "
			     "its name%s, then run recovery again; or do without, with the "
			     "command that recovery prints, where the guest's data is right as "
			     "it is",
			     d->name, data ? "the data of its overlay," : "its overlay", gone,
			     data ? ""
				  : ", and beside it what is called so and "
				    "'" OVERLAY_DATA_SUFFIX "'");
}

int recover_check_missing(const struct journal *j, bool bases_chosen, struct text_list *lines,
			  struct error *err)
{
	const struct journal_disk *first = NULL;
	auto_free char *gone = NULL;
	bool others = false;
	int r = 0;

	if (j->phase <= JOURNAL_PREPARING || j->phase >= JOURNAL_SETTLING)
		return 0;
	for (size_t i = 0; !r && i < j->ndisks; i++) {
		const struct journal_disk *d = &j->disks[i];
		auto_free char *missing = NULL;
		bool empty = true;

		if (!d->overlay || !recover_needs_overlay(d))
			continue;
		r = overlay_missing(d->overlay, &missing, err);
		if (!r)
			r = overlay_empty(d->overlay, &empty, err);
		others |= !empty;
		if (missing && !first) {
			first = d;
			gone = tm_steal(missing);
		}
	}
	if (r || !first)
		return r;
	/* Who chose the bases removed all overlays; before "frozen" there may have been none. */
	if (!others && (bases_chosen || j->phase == JOURNAL_FREEZING))
		return 0;
	return refuse(j, first, gone, lines, err);
}

int recover_tell_missing(const struct journal_disk *d, struct text_list *lines, struct error *err)
{
	auto_free char *gone = NULL, *data = NULL;
	int r = overlay_missing(d->overlay, &gone, err);

	if (!r)
		r = overlay_data_path(d->overlay, &data, err);
	if (r || !gone)
		return r;
	if (strcmp(gone, d->overlay) != 0)
		return text_list_add(lines, err, "disk %s: the data of its overlay, %s, are gone",
				     d->name, gone);
	if (access(data, F_OK) < 0)
		return text_list_add(lines, err, "disk %s: its overlay %s is gone", d->name, gone);
	return text_list_add(
		lines, err, "disk %s: its overlay %s is gone; the data that belong to it are in %s",
		d->name, gone, data);
}
