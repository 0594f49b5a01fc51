/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which journal concerns a guest.  The one in the state directory is found by the guest's key.
 * When the state was lost, a copy beside any of the bases is found through the files that the
 * guest uses: it lies in a directory of its bases or overlays, and names one of them.
 */
#include "recover.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>

TM_CLEANUP(DIR, closedir)

int recover_list_dir(const char *dir_path, const char *end, struct text_list *ret,
		     struct error *err)
{
	auto_clean(closedir) DIR *dir = opendir(dir_path);
	const struct dirent *e;
	int r = 0;

	if (!dir && errno != ENOENT)
		return error_errno(err, errno, "cannot list %s", dir_path);
	while (!r && dir && (e = readdir(dir))) {
		if (text_ends_with(e->d_name, end))
			r = text_list_add(ret, err, "%s/%s", dir_path, e->d_name);
	}
	return r;
}

int recover_list(const char *state_dir, struct text_list *ret, struct error *err)
{
	auto_free char *dir = NULL;
	int r = io_join(state_dir, "journal", &dir, err);

	return r ? r : recover_list_dir(dir, ".json", ret, err);
}

static bool concerns(const struct journal *j, const char *file)
{
	for (size_t i = 0; i < j->ndisks; i++) {
		if (same_file(j->disks[i].base, file) ||
		    (j->disks[i].overlay && same_file(j->disks[i].overlay, file)))
			return true;
	}
	return false;
}

static bool concerns_guest(const struct journal *j, const struct guest *g)
{
	for (size_t i = 0; i < g->ndisks; i++) {
		if (g->disks[i].file && concerns(j, g->disks[i].file))
			return true;
	}
	for (size_t i = 0; i < g->nimages; i++) {
		if (concerns(j, g->images[i]))
			return true;
	}
	return false;
}

/* A journal that cannot be understood, in whose text a file of this guest stands. */
static bool mentions_guest(const char *path, const struct guest *g)
{
	auto_buf struct buf text = {0};

	if (io_read_file(path, JOURNAL_MAX, &text, NULL))
		return false;
	for (size_t i = 0; i < g->ndisks; i++) {
		const char *file = g->disks[i].file;

		if (file && memmem(text.data, text.len, file, strlen(file)))
			return true;
	}
	for (size_t i = 0; i < g->nimages; i++) {
		if (memmem(text.data, text.len, g->images[i], strlen(g->images[i])))
			return true;
	}
	return false;
}

/*
 * The first of the files that is a journal of this guest.  *unread: of those that cannot be
 * understood, the first that seems to be.
 */
static int pick(const struct guest *g, const struct text_list *files, struct journal **ret,
		struct error *unread)
{
	for (size_t i = 0; i < files->n; i++) {
		auto_clean(journal_free) struct journal *j = NULL;
		struct error e = {0};

		if (journal_read(files->v[i], &j, &e)) {
			log_debug("%s", e.text);
			if (!unread->code && e.code != TM_E_NOTFOUND &&
			    mentions_guest(files->v[i], g))
				*unread = e;
			continue;
		}
		if (concerns_guest(j, g)) {
			*ret = tm_steal(j);
			return 0;
		}
	}
	return 0;
}

static int list_beside(const char *file, struct text_list *files, struct error *err)
{
	auto_free char *dir = NULL;
	int r = io_dirname(file, &dir, err);

	if (r)
		return r;
	if (recover_list_dir(dir, JOURNAL_SUFFIX, files, NULL))
		log_debug("%s cannot be searched", dir);
	return 0;
}

/* Copies beside the files of the guest.  A found one is written to all places from now on. */
static int find_copy(struct guest *g, struct journal **ret, struct error *unread, struct error *err)
{
	auto_free char *key = NULL;
	auto_text_list struct text_list files = {0};
	int r = 0;

	for (size_t i = 0; !r && i < g->ndisks; i++) {
		const struct guest_disk *d = &g->disks[i];

		if (d->empty || !d->file)
			continue;
		r = list_beside(d->file, &files, err);
		if (!r && d->overlay_of)
			r = list_beside(d->overlay_of, &files, err);
	}
	for (size_t i = 0; !r && i < g->nimages; i++)
		r = list_beside(g->images[i], &files, err);
	if (!r)
		r = pick(g, &files, ret, unread);
	if (r || !*ret)
		return r;
	free((*ret)->path);
	(*ret)->path = NULL;
	/* What is left of the lost one is found, replaced and removed under its own name. */
	if ((*ret)->kind == GUEST_QMP && (*ret)->qmp_socket)
		r = journal_key((*ret)->qmp_socket, &key, err);
	return r ? r : journal_path(g->state_dir, key ? key : g->key, &(*ret)->path, err);
}

int recover_find(struct guest *g, struct journal **ret, struct error *err)
{
	auto_text_list struct text_list files = {0};
	auto_free char *path = NULL;
	struct error e = {0}, unread = {0}, others = {0};
	int r = journal_path(g->state_dir, g->key, &path, err), r_list;

	*ret = NULL;
	if (r)
		return r;
	r = journal_read(path, ret, &e);
	if (!r)
		return 0;
	if (r != TM_E_NOTFOUND && r != TM_E_CORRUPT)
		return error_pass(err, r, &e);
	/* The guest may be known by another socket, or by one where an image is named now. */
	r_list = recover_list(g->state_dir, &files, err);
	if (!r_list)
		r_list = pick(g, &files, ret, g->kind == GUEST_IMAGE ? &unread : &others);
	if (r_list || *ret)
		return r_list;
	if (find_copy(g, ret, &unread, err))
		return err ? (int)err->code : TM_E_IO;
	if (!*ret && unread.code == TM_E_UNSUPPORTED)
		return error_set(err, TM_E_UNSUPPORTED,
				 "%s; nothing is touched: use the version that wrote it",
				 unread.text);
	if (!*ret && unread.code) {
		e = unread;
		r = TM_E_CORRUPT;
	}
	if (!*ret && r == TM_E_CORRUPT)
		return error_set(err, r,
				 "%s, and there is no copy beside a base: see that the guest runs "
				 "on its own files, then remove it",
				 e.text);
	return 0;
}
