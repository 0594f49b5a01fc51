/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A local directory as a store.  put_new and get are chains of requests on the loop, so
 * that a dead file system never blocks the loop thread; list, head and remove block.
 *
 *	store_dir.c       opening, reading, removing
 *	store_dir_put.c   writing
 *	store_dir_list.c  making the folders, listing, syncing
 *	store_dir_tidy.c  what crashes left
 *	store_dir_reserve.c  room kept back for deletions
 */
#include "store_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define READ_CHUNK (1u << 20)

struct get {
	struct loop_op op;
	struct dir_store *d;
	struct store_req *req;
	uint8_t *bytes;
	size_t len;
	uint64_t offset;
	int fd;
	bool again; /* the medium refused it once */
	char key[KEY_MAX];
};

/* ---- get ---- */

/* What else is in an object's place is none, as for list and head: not to block on a pipe, nor to
 * be led elsewhere, and so that a later generation is looked for. */
#define GET_FLAGS (O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY)

static void get_finish(struct get *g, int code)
{
	struct store_req *req = g->req;

	if (g->fd >= 0)
		(void)close(g->fd);
	free(g);
	req->done(req, code);
}

static void get_opened(struct loop_op *op, int res);

static void get_open(struct get *g)
{
	g->op.done = get_opened;
	loop_openat(g->d->st.loop, &g->op, g->d->root, g->key, GET_FLAGS, 0);
}

static bool medium_failed(int errnum)
{
	switch (errnum) {
	case EIO:
	case EBADMSG: /* a checksum of the file system */
	case EUCLEAN:
	case ENODATA: /* a lost sector */
	case ELOOP:
	case ENXIO:
		return true;
	default:
		return false;
	}
}

static int no_object(const struct get *g, struct error *err)
{
	return error_set(err, TM_E_NOTFOUND, "no object %s: %s/%s is not a regular file", g->key,
			 g->d->path, g->key);
}

/* A link or a device in its place. */
static bool is_other(const struct get *g, int errnum)
{
	struct stat sb;

	return (errnum == ELOOP || errnum == ENXIO) &&
	       fstatat(g->d->root, g->key, &sb, AT_SYMLINK_NOFOLLOW) == 0 && !S_ISREG(sb.st_mode);
}

/* An object that cannot be had from the medium, twice, is lost; what another try may bring is not.
 */
static void get_failed(struct get *g, int errnum, const char *doing)
{
	struct error *err = &g->req->err;
	int r;

	if (is_other(g, errnum)) {
		get_finish(g, no_object(g, err));
		return;
	}

	if (medium_failed(errnum) && !g->again) {
		g->again = true;
		g->req->got = 0;
		if (g->fd >= 0)
			(void)close(g->fd);
		g->fd = -1;
		get_open(g);
		return;
	}
	r = error_errno(err, errnum, "%s %s/%s", doing, g->d->path, g->key);
	if (medium_failed(errnum))
		err->code = r = TM_E_CORRUPT;
	get_finish(g, r);
}

static void get_read_on(struct get *g)
{
	loop_read(g->d->st.loop, &g->op, g->fd, g->bytes + g->req->got,
		  (uint32_t)min_size(g->len - g->req->got, READ_CHUNK), g->offset + g->req->got);
}

static void get_progress(struct loop_op *op, int res)
{
	struct get *g = container_of(op, struct get, op);

	if (res == -EINTR || res == -EAGAIN) {
		get_read_on(g);
		return;
	}
	if (res < 0) {
		get_failed(g, -res, "reading");
		return;
	}
	g->req->got += (size_t)res;
	if (res == 0 || g->req->got == g->len)
		get_finish(g, 0);
	else
		get_read_on(g);
}

static void get_opened(struct loop_op *op, int res)
{
	struct get *g = container_of(op, struct get, op);
	struct stat sb;

	if (res == -EINTR || res == -EAGAIN) {
		get_open(g);
		return;
	}
	if (res == -ENOENT || res == -ENOTDIR) {
		get_finish(g, error_set(&g->req->err, TM_E_NOTFOUND, "no object %s", g->key));
		return;
	}
	if (res < 0) {
		get_failed(g, -res, "opening");
		return;
	}
	g->fd = res;
	/* reads of some file systems would not wait either */
	if (fstat(g->fd, &sb) < 0 || fcntl(g->fd, F_SETFL, 0) < 0) {
		get_failed(g, errno, "looking at");
		return;
	}
	if (!S_ISREG(sb.st_mode)) {
		get_finish(g, no_object(g, &g->req->err));
		return;
	}
	g->op.done = get_progress;
	get_read_on(g);
}

static void dir_get(struct store *st, const char *key, void *bytes, size_t len, uint64_t offset,
		    struct store_req *req)
{
	struct get *g = NULL;

	error_clear(&req->err);
	req->got = 0;
	if (!store_key_ok(key)) {
		store_answer(st, req, error_set(&req->err, TM_E_RANGE, "bad object key '%s'", key));
		return;
	}
	g = calloc(1, sizeof(*g));
	if (!g) {
		store_answer(st, req, error_nomem(&req->err));
		return;
	}
	*g = (struct get){.d = dir_of(st),
			  .req = req,
			  .bytes = bytes,
			  .len = len,
			  .offset = offset,
			  .fd = -1};
	memcpy(g->key, key, strlen(key) + 1);
	get_open(g);
}

/* ---- the blocking part ---- */

static int dir_list(struct store *st, const char *prefix, store_list_fn *fn, void *data,
		    struct error *err)
{
	struct dir_store *d = dir_of(st);

	return dir_walk(d->root, d->path, prefix, fn, data, err);
}

static int dir_head(struct store *st, const char *key, uint64_t *ret_size, struct error *err)
{
	struct dir_store *d = dir_of(st);
	struct stat sb;

	if (!store_key_ok(key))
		return error_set(err, TM_E_RANGE, "bad object key '%s'", key);
	if (fstatat(d->root, key, &sb, AT_SYMLINK_NOFOLLOW) < 0) {
		if (errno == ENOENT || errno == ENOTDIR)
			return error_set(err, TM_E_NOTFOUND, "no object %s", key);
		return error_errno(err, errno, "looking at %s/%s", d->path, key);
	}
	if (!S_ISREG(sb.st_mode))
		return error_set(err, TM_E_NOTFOUND, "%s/%s is not a file", d->path, key);
	*ret_size = (uint64_t)sb.st_size;
	return 0;
}

static int dir_remove(struct store *st, const char *key, struct error *err)
{
	struct dir_store *d = dir_of(st);
	auto_free char *path = NULL;
	struct error own = {0};
	int r;

	if (!store_key_ok(key))
		return error_set(err, TM_E_RANGE, "bad object key '%s'", key);
	r = io_join(d->path, key, &path, err);
	if (r < 0)
		return r;
	if (unlink(path) < 0 && errno != ENOENT && errno != ENOTDIR)
		return error_errno(err, errno, "cannot remove %s", path);
	/* also when it is gone: whoever removed it may have been killed before this */
	r = io_sync_parent(path, &own);
	if (r < 0 && own.errnum == ENOENT)
		return 0; /* there is no folder either */
	return r < 0 ? error_pass(err, r, &own) : r;
}

static int dir_sync(struct store *st, const char *prefix, struct error *err)
{
	struct dir_store *d = dir_of(st);

	return dir_sync_below(d->root, d->path, prefix, err);
}

static void dir_free(struct store *st)
{
	struct dir_store *d = dir_of(st);

	dir_folders_free(d);
	if (d->root >= 0)
		(void)close(d->root);
	if (d->tmp >= 0)
		(void)close(d->tmp);
	free(d->path);
	free(d);
}

static const struct store_ops dir_ops = {
	.put_new = dir_put_new,
	.get = dir_get,
	.list = dir_list,
	.head = dir_head,
	.remove = dir_remove,
	.sync = dir_sync,
	.tidy = dir_tidy,
	.reserve = dir_reserve,
	.free = dir_free,
};

/* Programs that copy files alone leave tmp out when it is empty. */
static int open_tmp(struct dir_store *d, struct error *err)
{
	const int flags = O_RDONLY | O_DIRECTORY | O_CLOEXEC;

	d->tmp = openat(d->root, "tmp", flags);
	if (d->tmp < 0 && errno == ENOENT) {
		if (faccessat(d->root, "repo", F_OK, 0) < 0 &&
		    faccessat(d->root, "repo.copy", F_OK, 0) < 0)
			return error_set(err, TM_E_NOTFOUND,
					 "%s is not a repository (it has no folder tmp)", d->path);
		if (mkdirat(d->root, "tmp", 0700) < 0 && errno != EEXIST)
			return error_errno(err, errno, "making %s/tmp", d->path);
		d->tmp = openat(d->root, "tmp", flags);
	}
	return d->tmp < 0 ? error_errno(err, errno, "opening %s/tmp", d->path) : 0;
}

static int dir_open(struct dir_store *d, bool create, struct error *err)
{
	int r;

	if (create) {
		r = dir_make(d->path, err);
		if (r < 0)
			return r;
	}
	d->root = open(d->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d->root < 0 && errno == ENOENT)
		return error_set(err, TM_E_NOTFOUND, "there is no repository at %s", d->path);
	if (d->root < 0 && errno == ENOTDIR)
		return error_set(err, TM_E_NOTFOUND, "%s is not a directory", d->path);
	if (d->root < 0)
		return error_errno(err, errno, "opening %s", d->path);
	return open_tmp(d, err);
}

int store_dir_open(struct loop *loop, const char *path, bool create, struct store **ret,
		   struct error *err)
{
	struct dir_store *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return error_nomem(err);
	d->st.ops = &dir_ops;
	d->st.loop = loop;
	d->root = d->tmp = -1;
	r = text_copy(path, &d->path, err);
	if (r == 0)
		r = dir_open(d, create, err);
	if (r < 0) {
		dir_free(&d->st);
		return r;
	}
	*ret = &d->st;
	return 0;
}
