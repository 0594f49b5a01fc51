/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Images of a guest that is off.  QEMU's own locks say whether it is; we hold those that keep
 * writers out while an image is read, and the files below it with it.  The locks of qemu-nbd are
 * not enough: it lets others write what it opens as raw.  The new bitmap is added before, and the
 * old one goes on recording: a guest that starts and stops in between loses no change.
 */
#include "base_lock.h"
#include "epochs.h"
#include "overlay.h"
#include "prepare.h"
#include "proc.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define BITMAP_TIMEOUT_MS 300000 /* a bitmap of a large image is written whole */
#define INFO_TIMEOUT_MS   30000

static int in_use(const char *file, struct error *err)
{
	char holder[PROC_NAME_MAX + 32];

	proc_holder_text(file, holder);
	return error_set(
		err, TM_E_BUSY,
		"%s is in use by a running program%s: back up the running guest, or stop it", file,
		holder);
}

static int locked(const char *file, int code, const struct error *e, struct error *err)
{
	if (!strstr(e->text, "lock") && !strstr(e->text, "another process using"))
		return error_set(err, code, "%s", e->text);
	return in_use(file, err);
}

/* Runs qemu-img; a lock that somebody holds is TM_E_BUSY and names him. */
static int run_img(const char *const argv[], const char *file, unsigned timeout_ms, struct buf *out,
		   struct error *err)
{
	struct error e = {0};
	int r = spawn_run(argv, timeout_ms, out, &e);

	return r ? locked(file, r, &e, err) : 0;
}

/* ---- what an image is ---- */

static bool has_flag(const json_t *flags, const char *want)
{
	const json_t *v;
	size_t i;

	json_array_foreach((json_t *)(uintptr_t)flags, i, v)
	{
		const char *text = json_string_value(v);

		if (text && strcmp(text, want) == 0)
			return true;
	}
	return false;
}

static int read_bitmaps(const json_t *data, struct guest_disk *d, struct error *err)
{
	const json_t *list = json_object_get(data, "bitmaps");
	size_t n = json_array_size(list);

	d->bitmaps = calloc(n + 1, sizeof(*d->bitmaps));
	if (!d->bitmaps)
		return error_nomem(err);
	for (size_t i = 0; i < n; i++) {
		const json_t *info = json_array_get(list, i),
			     *flags = json_object_get(info, "flags");
		struct disk_bitmap *b = &d->bitmaps[d->nbitmaps];
		uint64_t granularity;
		int r;

		if (!jsonx_text(info, "name"))
			continue;
		r = jsonx_copy(info, "name", &b->name, err);
		if (r)
			return r;
		d->nbitmaps++;
		b->ours = bitmap_name_parse(b->name, &b->id);
		b->recording = has_flag(flags, "auto");
		b->inconsistent =
			has_flag(flags, "in-use"); /* nobody has the image open for writing */
		b->persistent = true;
		b->dirty_bytes = UINT64_MAX;
		if (jsonx_u64(info, "granularity", &granularity) && granularity <= UINT32_MAX)
			b->granularity = (uint32_t)granularity;
	}
	return 0;
}

static int read_chain(const json_t *chain, struct guest_disk *d, struct error *err)
{
	size_t n = json_array_size(chain);
	int r = 0;

	d->chain = calloc(n + 1, sizeof(*d->chain));
	if (!d->chain)
		return error_nomem(err);
	for (size_t i = 1; !r && i < n; i++) {
		const json_t *v = json_array_get(chain, i);
		struct disk_layer *l = &d->chain[d->nchain++];

		r = text_copy(jsonx_text(v, "filename") ? jsonx_text(v, "filename") : "?", &l->file,
			      err);
		if (!r)
			r = text_copy(jsonx_text(v, "format") ? jsonx_text(v, "format") : "?",
				      &l->format, err);
		if (!r)
			r = disk_data_file(v, &l->data_file, err);
		(void)jsonx_u64(v, "virtual-size", &l->size);
	}
	if (!r)
		disk_identify_chain(d);
	return r;
}

static int read_info(const json_t *chain, const char *file, struct guest_disk *d, struct error *err)
{
	const json_t *info = json_array_get(chain, 0);
	const json_t *data = json_object_get(json_object_get(info, "format-specific"), "data");
	const char *format = jsonx_text(info, "format"), *compat = jsonx_text(data, "compat");
	int r;

	if (!format || !jsonx_u64(info, "virtual-size", &d->size))
		return error_set(err, TM_E_PEER, "qemu-img says neither format nor size of %s",
				 file);
	d->can_persist = strcmp(format, "qcow2") == 0 && compat && strcmp(compat, "0.10") != 0 &&
			 !jsonx_text(data, "data-file");
	r = text_copy(format, &d->format, err);
	if (!r && jsonx_flag(info, "encrypted"))
		r = text_copy("its image is encrypted", &d->left_out, err);
	if (!r)
		r = read_bitmaps(data, d, err);
	if (!r)
		r = read_chain(chain, d, err);
	if (!r && text_ends_with(file, OVERLAY_SUFFIX) && d->nchain)
		r = text_copy(d->chain[0].file, &d->overlay_of, err);
	return r;
}

static int name_image(const char *file, struct guest_disk *d, struct error *err)
{
	const char *slash = strrchr(file, '/'), *name = slash ? slash + 1 : file;
	const char *dot = strrchr(name, '.');
	size_t len = dot && dot != name ? (size_t)(dot - name) : strlen(name);
	int r = text_copy(file, &d->file, err);

	return r ? r : text_format(&d->name, err, "%.*s", (int)len, name);
}

/*
 * Whoever writes a raw disk can make it look like a qcow2 image with any file of this host below
 * it. So a name that says raw is believed, and the format can be told.
 */
static const char *told_format(const struct guest *g, const char *file)
{
	return g->image_format ? g->image_format : text_ends_with(file, ".raw") ? "raw" : NULL;
}

static int check_file(const char *file, struct error *err)
{
	struct stat st;

	if (stat(file, &st) < 0)
		return errno == ENOENT ? error_set(err, TM_E_NOTFOUND, "there is no image %s", file)
				       : error_errno(err, errno, "the image %s", file);
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return error_set(err, TM_E_UNSUPPORTED,
				 "%s is no image: neither a regular file nor a block device", file);
	return 0;
}

int image_look(const char *file, const char *format, struct guest_disk *d, struct error *err)
{
	const char *const argv[] = {
		"qemu-img", "info", "--output=json", "--backing-chain", file, format ? "-f" : NULL,
		format,     NULL};
	auto_buf struct buf out = {0};
	auto_json json_t *chain = NULL;
	json_error_t je;
	int r = name_image(file, d, err);

	if (!r)
		r = check_file(file, err);
	if (!r && access(file, R_OK) < 0)
		r = error_set(err, TM_E_DENIED, "the image %s cannot be read: permission denied",
			      file);
	if (!r)
		r = run_img(argv, file, INFO_TIMEOUT_MS, &out, err);
	if (r)
		return r;
	d->read_only = access(file, W_OK) < 0;
	chain = json_loadb((const char *)out.data, out.len, 0, &je);
	if (json_array_size(chain) == 0)
		return error_set(err, TM_E_PEER, "qemu-img says nothing about %s", file);
	return read_info(chain, file, d, err);
}

/* Two disks of one image would be read as two, and share its bitmaps. */
static int check_other_files(const struct guest *g, size_t n, struct error *err)
{
	for (size_t i = 0; i < n; i++) {
		if (same_file(g->images[i], g->images[n]))
			return error_set(err, TM_E_USAGE,
					 "disks %zu and %zu are the same image, %s", i + 1, n + 1,
					 g->images[n]);
	}
	return 0;
}

int image_disks(struct guest *g, struct guest_disk **ret, size_t *ret_n, struct error *err)
{
	struct guest_disk *v = calloc(g->nimages + 1, sizeof(*v));
	int r = v ? 0 : error_nomem(err);

	for (size_t i = 0; !r && i < g->nimages; i++) {
		r = check_other_files(g, i, err);
		if (!r)
			r = image_look(g->images[i], told_format(g, g->images[i]), &v[i], err);
	}
	if (!r)
		r = disks_unique_names(v, g->nimages, err);
	if (r) {
		if (v)
			guest_disks_free(v, g->nimages);
		return r;
	}
	*ret = v;
	*ret_n = g->nimages;
	return 0;
}

/* ---- its bitmaps ---- */

int image_bitmap_add(const struct guest_disk *d, const char *name, uint32_t granularity,
		     struct error *err)
{
	char bytes[16];
	const char *const argv[] = {"qemu-img", "bitmap", "-f",    d->format, "--add",
				    "-g",       bytes,    d->file, name,      NULL};

	(void)snprintf(bytes, sizeof(bytes), "%u", granularity);
	return run_img(argv, d->file, BITMAP_TIMEOUT_MS, NULL, err);
}

int image_bitmap_remove(const struct guest_disk *d, const char *name, struct error *err)
{
	const char *const argv[] = {"qemu-img", "bitmap", "-f", d->format,
				    "--remove", d->file,  name, NULL};

	return run_img(argv, d->file, BITMAP_TIMEOUT_MS, NULL, err);
}

int image_bitmap_enable(const struct guest_disk *d, const char *name, struct error *err)
{
	const char *const argv[] = {"qemu-img", "bitmap", "-f", d->format,
				    "--enable", d->file,  name, NULL};

	return run_img(argv, d->file, BITMAP_TIMEOUT_MS, NULL, err);
}

int image_bitmap_merge(const struct guest_disk *d, const char *target, const char *source,
		       struct error *err)
{
	const char *const argv[] = {"qemu-img", "bitmap", "-f",   d->format, "--merge",
				    source,     d->file,  target, NULL};

	return run_img(argv, d->file, BITMAP_TIMEOUT_MS, NULL, err);
}

/* ---- the cycle ---- */

/* Adds the new bitmap where the image can have one; without it the next run reads all. */
static int add_bitmap(struct snapshot *s, size_t i, struct error *err)
{
	struct journal_disk *jd = &s->j->disks[i];
	const struct guest_disk *d = prepare_disk(s, i);
	struct error e = {0};
	int r = TM_E_UNSUPPORTED;

	if (d->can_persist)
		r = image_bitmap_add(d, jd->new_bitmap, s->granularity, &e);
	if (!r) {
		s->info.disks[i].persistent = true;
		return 0;
	}
	if (r == TM_E_BUSY)
		return error_pass(err, r, &e);
	free(jd->new_bitmap);
	jd->new_bitmap = NULL;
	if (e.code)
		return text_list_add(&s->info.warnings, err, "disk %s: no bitmap can be kept: %s",
				     jd->name, e.text);
	return 0;
}

/* Whoever writes it is found, and nobody begins to; *ret is -1 where it has no locks. */
static int lock_file(struct snapshot *s, size_t i, const char *file, int *ret, struct error *err)
{
	struct error e = {0};
	int r = image_lock(file, ret, &e);

	if (r == TM_E_BUSY)
		return in_use(file, err);
	return r ? text_list_add(&s->info.warnings, err,
				 "disk %s: its image is not kept locked: %s", s->j->disks[i].name,
				 e.text)
		 : 0;
}

/* The disk's own file, and those below it that are files: they are read as well. */
static int lock_images(struct snapshot *s, size_t i, struct error *err)
{
	const struct guest_disk *d = prepare_disk(s, i);
	int *v = reallocarray(s->locks_below, s->nlocks_below + d->nchain + 1, sizeof(*v));
	int r = v ? 0 : error_nomem(err);

	if (r)
		return r;
	s->locks_below = v;
	r = lock_file(s, i, s->j->disks[i].base, &s->j->disks[i].lock, err);
	for (size_t k = 0; !r && k < d->nchain; k++) {
		int fd = -1;

		if (access(d->chain[k].file, F_OK) < 0)
			continue;
		r = lock_file(s, i, d->chain[k].file, &fd, err);
		if (fd >= 0)
			v[s->nlocks_below++] = fd;
	}
	return r;
}

void image_unlock(struct snapshot *s)
{
	for (size_t i = 0; i < s->j->ndisks; i++)
		base_unlock(&s->j->disks[i]);
	for (size_t i = 0; i < s->nlocks_below; i++)
		(void)close(s->locks_below[i]);
	free(tm_steal(s->locks_below));
	s->nlocks_below = 0;
}

static int serve(struct snapshot *s, size_t i, struct error *err)
{
	const struct journal_disk *jd = &s->j->disks[i];
	struct export *e = &s->exports[i];
	int r = text_format(&e->socket, err, "%s/nbd%zu.sock", s->j->socket_dir, i);

	if (!r)
		r = export_serve(jd->base, jd->format, jd->old_bitmap, e->socket, &e->server, err);
	return r ? r : export_wait(jd->base, e->socket, &e->server, err);
}

int image_begin(struct snapshot *s, const struct snapshot_options *opt, struct error *err)
{
	int r = 0;

	(void)opt;
	for (size_t i = 0; !r && i < s->j->ndisks; i++)
		r = add_bitmap(s, i, err);
	if (!r)
		r = journal_write(s->j, JOURNAL_FREEZING, err);
	s->info.created_ms = clock_unix_ms(&clock_system);
	for (size_t i = 0; !r && i < s->j->ndisks; i++) {
		r = lock_images(s, i, err);
		if (!r)
			r = serve(s, i, err);
		if (!r)
			r = guest_tick(s->g, "export", s->j->disks[i].name, 0, 0, err);
	}
	return r ? r : journal_write(s->j, JOURNAL_FROZEN, err);
}

int image_collapse(struct snapshot *s, struct error *err)
{
	(void)err;
	exports_stop_servers(s->j, s->exports);
	image_unlock(s); /* its bitmaps are changed next */
	return 0;
}
