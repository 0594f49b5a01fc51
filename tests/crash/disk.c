/* SPDX-License-Identifier: Apache-2.0 */
#include "disk.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BLOCK       4096u
#define SECTOR      512u
#define ALL_SUBSETS 6   /* so many changes of entries are tried in every combination */
#define BLOCK_MODES 4   /* all there, none there, two at random */
#define FOLDER      "/" /* what stands for the inode of a folder */

enum choice {
	CHOICE_ABSENT,
	CHOICE_THERE,
	CHOICE_TORN,
};

/* One change that the disk makes or does not make. */
struct effect {
	bool add; /* entry: else it goes */
	bool tmp; /* entry in tmp/ */
	const char *path;
	size_t path_len;
	const char *inode; /* what the file was called when it was made, or FOLDER */
	const uint8_t *bytes;
	size_t len;
	uint64_t offset;
	unsigned issued, done, synced; /* ticks; synced: from then on it is certain */
	enum choice choice;
	bool open; /* at the tick chosen for: may be there or not */
};

struct effect_list {
	struct effect *v;
	size_t n, cap;
};

struct disk {
	struct effect_list entries, blocks; /* each in the order of issue */
	unsigned *marks;
	size_t nmarks;
	bool keep_sizes; /* files are as long as they should be, whatever is in them */
};

static void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

/* ---- effects ---- */

static bool in_folder(const char *path, const char *folder)
{
	const char *slash = strrchr(path, '/');
	size_t len = slash ? (size_t)(slash - path) : 0;

	return strlen(folder) == len && memcmp(path, folder, len) == 0;
}

static struct effect *effect_add(struct effect_list *l, const struct shim_event *e,
				 const char *path)
{
	if (l->n == l->cap) {
		l->cap = l->cap ? 2 * l->cap : 1024;
		l->v = must(reallocarray(l->v, l->cap, sizeof(*l->v)));
	}
	l->v[l->n] = (struct effect){.path = path,
				     .path_len = strlen(path),
				     .issued = e->issued,
				     .done = e->done,
				     .synced = UINT32_MAX};
	return &l->v[l->n++];
}

static void add_entry(struct disk *d, const struct shim_event *e, const char *path,
		      const char *inode, bool add)
{
	struct effect *f = effect_add(&d->entries, e, path);

	f->inode = inode;
	f->add = add;
	f->tmp = strstr(path, "/tmp/") != NULL;
}

static const char *inode_of(const struct disk *d, const char *path)
{
	for (size_t i = d->entries.n; i-- > 0;)
		if (d->entries.v[i].add && strcmp(d->entries.v[i].path, path) == 0)
			return d->entries.v[i].inode;
	return path;
}

static void add_write(struct disk *d, const struct shim_event *e)
{
	for (size_t at = 0; at < e->len;) {
		size_t len = BLOCK - (size_t)((e->offset + at) % BLOCK);
		struct effect *f = effect_add(&d->blocks, e, e->path);

		f->inode = e->path;
		f->bytes = e->bytes + at;
		f->len = len < e->len - at ? len : e->len - at;
		f->offset = e->offset + at;
		at += f->len;
	}
}

static void sync_effect(struct effect *f, const struct shim_event *e)
{
	if (f->done < e->issued && f->synced == UINT32_MAX)
		f->synced = e->done;
}

static void add_sync(struct disk *d, const struct shim_event *e, enum disk_lie lie)
{
	for (size_t i = 0; i < d->blocks.n && lie != LIE_FILES; i++)
		if (strcmp(d->blocks.v[i].inode, e->path) == 0)
			sync_effect(&d->blocks.v[i], e);
	for (size_t i = 0; i < d->entries.n && lie != LIE_FOLDERS; i++)
		if (in_folder(d->entries.v[i].path, e->path))
			sync_effect(&d->entries.v[i], e);
}

static void add_event(struct disk *d, const struct shim_event *e, enum disk_lie lie)
{
	switch (e->kind) {
	case SHIM_CREATE:
		add_entry(d, e, e->path, e->path, true);
		break;
	case SHIM_MKDIR:
		add_entry(d, e, e->path, FOLDER, true);
		break;
	case SHIM_RENAME:
	case SHIM_LINK:
		add_entry(d, e, e->to, inode_of(d, e->path), true);
		if (e->kind == SHIM_RENAME)
			add_entry(d, e, e->path, NULL, false);
		break;
	case SHIM_UNLINK:
		add_entry(d, e, e->path, NULL, false);
		break;
	case SHIM_WRITE:
		add_write(d, e);
		break;
	case SHIM_SYNC:
		add_sync(d, e, lie);
		break;
	case SHIM_MARK:
		d->marks = must(reallocarray(d->marks, d->nmarks + 1, sizeof(*d->marks)));
		d->marks[d->nmarks++] = e->done;
		break;
	}
}

struct disk *disk_new(const struct shim_event *events, size_t n, enum disk_lie lie)
{
	struct disk *d = must(calloc(1, sizeof(*d)));

	for (size_t i = 0; i < n; i++)
		if (events[i].res >= 0)
			add_event(d, &events[i], lie);
	return d;
}

void disk_free(struct disk *d)
{
	free(d->entries.v);
	free(d->blocks.v);
	free(d->marks);
	free(d);
}

unsigned disk_marks(const struct disk *d, unsigned tick)
{
	unsigned n = 0;

	for (size_t i = 0; i < d->nmarks; i++)
		n += d->marks[i] <= tick;
	return n;
}

/* ---- choices ---- */

static uint64_t next_random(uint64_t *state)
{
	*state ^= *state >> 12;
	*state ^= *state << 25;
	*state ^= *state >> 27;
	return *state * UINT64_C(2685821657736338717) >> 11;
}

/* Which entry changes of the open ones happen: choice number k of them. */
static bool entry_happens(unsigned k, unsigned index, unsigned open, uint64_t *random)
{
	if (open <= ALL_SUBSETS)
		return k >> index & 1;
	if (k < 2)
		return k == 0;
	if (k < 2 + open)
		return k - 2 == index;
	if (k < 2 + 2 * open)
		return k - 2 - open != index;
	return next_random(random) & 1;
}

static enum choice block_choice(unsigned mode, uint64_t *random)
{
	if (mode < 2)
		return mode == 0 ? CHOICE_THERE : CHOICE_ABSENT;
	return (enum choice)(next_random(random) % 3);
}

static unsigned find_open(struct effect_list *l, unsigned tick)
{
	unsigned n = 0;

	for (size_t i = 0; i < l->n; i++) {
		struct effect *f = &l->v[i];

		f->open = f->issued <= tick && f->synced > tick;
		f->choice = f->issued <= tick ? CHOICE_THERE : CHOICE_ABSENT;
		n += f->open && !f->tmp;
	}
	return n;
}

bool disk_choose(struct disk *d, unsigned tick, unsigned k, unsigned samples, uint64_t *random)
{
	unsigned entries = find_open(&d->entries, tick), blocks = find_open(&d->blocks, tick);
	unsigned modes = blocks ? BLOCK_MODES : 1, index = 0;
	unsigned choices = entries <= ALL_SUBSETS ? 1U << entries : 2 + 2 * entries + samples;

	if (k >= modes * choices)
		return false;
	d->keep_sizes = next_random(random) & 1;
	for (size_t i = 0; i < d->blocks.n; i++)
		if (d->blocks.v[i].open)
			d->blocks.v[i].choice = block_choice(k % modes, random);
	for (size_t i = 0; i < d->entries.n; i++) {
		struct effect *f = &d->entries.v[i];

		if (!f->open)
			continue;
		if (f->tmp ? next_random(random) & 1
			   : entry_happens(k / modes, index++, entries, random))
			f->choice = CHOICE_THERE;
		else
			f->choice = CHOICE_ABSENT;
	}
	return true;
}

/* ---- what is left ---- */

/* The inode that path leads to, or NULL. */
static const char *entry(const struct disk *d, const char *path, size_t len)
{
	for (size_t i = d->entries.n; i-- > 0;) {
		const struct effect *f = &d->entries.v[i];

		if (f->choice == CHOICE_THERE && f->path_len == len &&
		    memcmp(f->path, path, len) == 0)
			return f->add ? f->inode : NULL;
	}
	return NULL;
}

/* Entry change f is what is seen under its name, and all folders above are there. */
static bool is_seen(const struct disk *d, const struct effect *f)
{
	if (!f->add || f->choice != CHOICE_THERE || entry(d, f->path, f->path_len) != f->inode)
		return false;
	for (const char *s = strchr(f->path, '/'); s; s = strchr(s + 1, '/'))
		if (!entry(d, f->path, (size_t)(s - f->path)))
			return false;
	return true;
}

static uint64_t mix(uint64_t h, uint64_t v)
{
	h = (h ^ v) * UINT64_C(0x9e3779b97f4a7c15);
	return h ^ h >> 29;
}

uint64_t disk_signature(const struct disk *d)
{
	uint64_t h = 1;

	for (size_t i = 0; i < d->entries.n; i++) {
		const struct effect *f = &d->entries.v[i];

		if (f->tmp || !is_seen(d, f))
			continue;
		h = mix(h, i + 1);
		for (size_t k = 0; k < d->blocks.n; k++) {
			const struct effect *b = &d->blocks.v[k];

			if (strcmp(b->inode, f->inode) != 0 || b->choice == CHOICE_THERE)
				continue;
			h = mix(h, 8 * k + 2 * b->choice + (d->keep_sizes ? 1 : 0));
		}
	}
	return h;
}

static void write_block(FILE *file, const struct effect *f)
{
	uint8_t torn[BLOCK];
	size_t keep = f->len / 2 / SECTOR * SECTOR;

	memset(torn, 0xa5, sizeof(torn));
	memcpy(torn, f->bytes, keep);
	if (fseek(file, (long)f->offset, SEEK_SET) != 0 ||
	    fwrite(f->choice == CHOICE_TORN ? torn : f->bytes, 1, f->len, file) != f->len)
		abort();
}

static void write_file(const struct disk *d, const char *path, const char *inode)
{
	FILE *file = must(fopen(path, "we"));
	uint64_t size = 0;

	for (size_t i = 0; i < d->blocks.n; i++) {
		const struct effect *f = &d->blocks.v[i];

		if (strcmp(f->inode, inode) != 0)
			continue;
		if (f->choice != CHOICE_ABSENT)
			write_block(file, f);
		else if (d->keep_sizes && f->offset + f->len > size)
			size = f->offset + f->len;
	}
	if (fflush(file) != 0 || fseek(file, 0, SEEK_END) != 0)
		abort();
	if (size > (uint64_t)ftell(file) && ftruncate(fileno(file), (off_t)size) < 0)
		abort();
	if (fclose(file) != 0)
		abort();
}

void disk_write(const struct disk *d, const char *path)
{
	for (size_t i = 0; i < d->entries.n; i++) {
		const struct effect *f = &d->entries.v[i];
		char *name = NULL;

		if (!is_seen(d, f))
			continue;
		if (asprintf(&name, "%s/%s", path, f->path) < 0)
			abort();
		if (strcmp(f->inode, FOLDER) != 0)
			write_file(d, name, f->inode);
		else if (mkdir(name, 0700) < 0)
			abort();
		free(name);
	}
}
