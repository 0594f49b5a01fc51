/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From QEMU's devices and nodes to disks as a person knows them.  A disk is known by its device
 * (qdev path or name of -drive) and its file; names of nodes are good for one look only.
 */
#include "names.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

void guest_disks_free(struct guest_disk *v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		struct guest_disk *d = &v[i];

		for (size_t k = 0; k < d->nchain; k++) {
			free(d->chain[k].file);
			free(d->chain[k].format);
			free(d->chain[k].data_file);
		}
		for (size_t k = 0; k < d->nbitmaps; k++)
			free(d->bitmaps[k].name);
		free(d->chain);
		free(d->bitmaps);
		free(d->name);
		free(d->qdev);
		free(d->drive);
		free(d->file);
		free(d->alias);
		free(d->format);
		free(d->left_out);
		free(d->overlay_of);
		free(d->top_node);
		free(d->node);
	}
	free(v);
}

bool text_ends_with(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);

	return n >= m && strcmp(text + n - m, end) == 0;
}

bool same_file(const char *a, const char *b)
{
	struct stat sa, sb;

	if (strcmp(a, b) == 0)
		return true;
	return stat(a, &sa) == 0 && stat(b, &sb) == 0 && sa.st_dev == sb.st_dev &&
	       sa.st_ino == sb.st_ino;
}

static int leave_out(struct guest_disk *d, struct error *err, const char *reason)
{
	return d->left_out ? 0 : text_copy(reason, &d->left_out, err);
}

/* "/machine/peripheral/vd0/virtio-backend" → "vd0" */
static int device_id(const char *qdev, char **ret, struct error *err)
{
	static const char prefix[] = "/machine/peripheral/";

	*ret = NULL;
	if (qdev && *qdev != '/')
		return text_copy(qdev, ret, err); /* a device with an id of its own: scsi-hd */
	if (!qdev || strncmp(qdev, prefix, strlen(prefix)) != 0)
		return 0;
	qdev += strlen(prefix);
	return text_format(ret, err, "%.*s", (int)strcspn(qdev, "/"), qdev);
}

static int name_disk(struct guest_disk *d, size_t index, struct error *err)
{
	int r = device_id(d->qdev, &d->name, err);

	if (r || d->name)
		return r;
	if (d->drive)
		return text_copy(d->drive, &d->name, err);
	if (d->node && d->node[0] != '#')
		return text_copy(d->node, &d->name, err);
	return text_format(&d->name, err, "disk%zu", index);
}

int disks_unique_names(struct guest_disk *v, size_t n, struct error *err)
{
	for (size_t i = 0; i < n; i++) {
		unsigned copy = 1;

		for (size_t k = 0; k < i; k++) {
			char *name;
			int r;

			if (strcmp(v[k].name, v[i].name) != 0)
				continue;
			r = text_format(&name, err, "%.*s#%u", (int)strcspn(v[i].name, "#"),
					v[i].name, ++copy);
			if (r)
				return r;
			free(v[i].name);
			v[i].name = name;
			k = SIZE_MAX; /* once more from the first */
		}
	}
	return 0;
}

/* The graph has absolute names where they could be found out. */
static bool is_here(const char *name)
{
	struct stat st;

	return name[0] == '/' && stat(name, &st) == 0;
}

static int read_bitmaps(const struct block_node *node, struct guest_disk *d, struct error *err)
{
	const json_t *list = json_object_get(node->info, "dirty-bitmaps");
	size_t n = json_array_size(list);

	d->bitmaps = calloc(n + 1, sizeof(*d->bitmaps));
	if (!d->bitmaps)
		return error_nomem(err);
	for (size_t i = 0; i < n; i++) {
		const json_t *info = json_array_get(list, i);
		struct disk_bitmap *b = &d->bitmaps[d->nbitmaps];
		uint64_t granularity;
		int r;

		if (!jsonx_text(info, "name"))
			continue; /* a job's own */
		r = jsonx_copy(info, "name", &b->name, err);
		if (r)
			return r;
		d->nbitmaps++;
		b->ours = bitmap_name_parse(b->name, &b->id);
		b->recording = jsonx_flag(info, "recording");
		b->inconsistent = jsonx_flag(info, "inconsistent");
		b->busy = jsonx_flag(info, "busy");
		b->persistent = jsonx_flag(info, "persistent");
		if (jsonx_u64(info, "granularity", &granularity) && granularity <= UINT32_MAX)
			b->granularity = (uint32_t)granularity;
		if (!jsonx_u64(info, "count", &b->dirty_bytes))
			b->dirty_bytes = UINT64_MAX;
	}
	return 0;
}

/* An image below another is not written while that is in use: with another content it has another
 * time. */
static uint32_t crc_content(uint32_t crc, const char *file)
{
	struct stat st;
	struct le64 v[3];

	if (stat(file, &st) < 0 || !S_ISREG(st.st_mode))
		return crc;
	v[0] = le64_of((uint64_t)st.st_size);
	v[1] = le64_of((uint64_t)st.st_mtim.tv_sec);
	v[2] = le64_of((uint64_t)st.st_mtim.tv_nsec);
	return crc32c(crc, v, sizeof(v));
}

/* A file under another name, as through a symbolic link, is the same file. */
static uint32_t crc_file(uint32_t crc, const char *file, const char *format)
{
	auto_free char *real = realpath(file, NULL);
	const char *name = real ? real : file;

	crc = crc32c(crc, name, strlen(name) + 1);
	crc = crc32c(crc, format, strlen(format) + 1);
	return crc_content(crc, name);
}

static uint32_t crc_layer(uint32_t crc, const struct disk_layer *l)
{
	crc = crc_file(crc, l->file, l->format);
	return l->data_file ? crc_file(crc, l->data_file, "raw") : crc;
}

/*
 * Formats that keep all in one file, but for qcow2, which says where else.  A name in its header
 * that is no absolute path begins at whatever QEMU's working directory was; a description in JSON
 * may name any number of files.
 */
static bool is_covered(const struct disk_layer *l)
{
	static const char *const formats[] = {"raw", "qcow2", "qcow", "qed", "vdi", "vhdx", "vpc"};

	if (strncmp(l->file, "json:", 5) == 0 || (l->data_file && l->data_file[0] != '/'))
		return false;
	for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
		if (strcmp(l->format, formats[i]) == 0)
			return true;
	}
	return false;
}

void disk_identify_chain(struct guest_disk *d)
{
	d->chain_id = 0;
	d->chain_hidden = false;
	for (size_t i = 0; i < d->nchain; i++) {
		struct disk_layer *l = &d->chain[i];

		d->chain_id = crc_layer(d->chain_id, l);
		d->chain_hidden |= !is_covered(l);
		l->id = crc_layer(0, l);
	}
}

/* Bitmaps are put in order in the files of the guest's disks, also where one is below another. */
static bool is_a_disk(const struct guest *g, const char *file)
{
	for (size_t i = 0; i < g->ndisks; i++) {
		if (g->disks[i].file && same_file(g->disks[i].file, file))
			return true;
	}
	return false;
}

int disk_check_chain(const struct guest *g, const struct guest_disk *d, struct error *err)
{
	for (size_t i = 0; i < d->nchain; i++) {
		const struct disk_layer *l = &d->chain[i];

		if (crc_layer(0, l) != l->id && !is_a_disk(g, l->file))
			return error_set(err, TM_E_STALE,
					 "%s below it was written or replaced during the backup: "
					 "what is read is not the disk.  Run the backup again",
					 l->file);
	}
	return 0;
}

int disk_data_file(const json_t *info, char **ret, struct error *err)
{
	const json_t *data = json_object_get(json_object_get(info, "format-specific"), "data");
	const char *file = jsonx_text(data, "data-file");

	*ret = NULL;
	return file ? text_copy(file, ret, err) : 0;
}

static int read_chain(const struct block_node *node, struct guest_disk *d, struct error *err)
{
	const struct block_node *layer = block_node_format(node->backing_child);
	int r = 0;

	for (; !r && layer && d->nchain < 1024; layer = block_node_format(layer->backing_child)) {
		struct disk_layer *v = reallocarray(d->chain, d->nchain + 1, sizeof(*v));
		struct disk_layer *l;

		if (!v)
			return error_nomem(err);
		d->chain = v;
		l = &v[d->nchain++];
		*l = (struct disk_layer){.size = layer->size};
		r = names_true(block_node_storage(layer)->file, &l->file, err);
		if (!r)
			r = text_copy(block_node_format_name(layer), &l->format, err);
		if (!r)
			r = disk_data_file(json_object_get(layer->info, "image"), &l->data_file,
					   err);
	}
	if (!r)
		disk_identify_chain(d);
	return r;
}

/*
 * With QEMU gone an overlay is merged by qemu-img, which opens images as their headers say.  NULL:
 * so did QEMU, all the way down.
 */
static const char *opened_otherwise(const struct block_node *node)
{
	for (unsigned depth = 0; node && depth < 1024; depth++) {
		const struct block_node *below = block_node_format(node->backing_child);
		const char *name =
			jsonx_text(json_object_get(node->info, "image"), "full-backing-filename");

		if (strncmp(node->file, "json:", 5) == 0 && strcmp(node->drv, "raw") == 0)
			return "it is not the whole of its file";
		if (!name != !below)
			return "its image was opened with another backing file than it names";
		if (name && name[0] == '/' && !same_file(name, block_node_storage(below)->file))
			return "its image was opened with another backing file than it names";
		node = below;
	}
	return NULL;
}

static int judge(const struct block_device *dev, const struct block_node *node,
		 const struct block_node *storage, bool found, struct guest_disk *d,
		 struct error *err)
{
	const char *otherwise;

	if (!dev->qdev)
		return leave_out(d, err, "it is not attached to a device of the guest");
	if (dev->removable)
		return leave_out(d, err, "it is a removable medium");
	if (!node->size)
		return leave_out(d, err, "it has no size");
	if (node->ro)
		return leave_out(d, err, "it is read-only");
	if (node->encrypted)
		return leave_out(d, err,
				 "its image is encrypted, an overlay would hold it in plain text");
	if (strcmp(storage->drv, "file") != 0 && strcmp(storage->drv, "host_device") != 0) {
		d->left_out = NULL;
		return text_format(&d->left_out, err,
				   "its storage is of the kind '%s', not a file or "
				   "block device",
				   storage->drv);
	}
	if (!found)
		return text_format(&d->left_out, err, "its file '%s' is not found on this machine",
				   storage->file);
	otherwise = opened_otherwise(node);
	return otherwise ? leave_out(d, err, otherwise) : 0;
}

static int fill_medium(const struct block_device *dev, struct guest_disk *d, struct error *err)
{
	const struct block_node *node = block_node_format(dev->top), *storage;
	bool found;
	int r;

	if (!node)
		return leave_out(d, err, "its block nodes are of an unknown shape");
	storage = block_node_storage(node);
	d->size = node->size;
	d->read_only = node->ro;
	d->can_persist = block_node_can_persist(node) && !node->ro;
	found = is_here(storage->file);
	r = names_true(storage->file, &d->file, err);
	if (!r && strcmp(d->file, storage->file) != 0)
		r = text_copy(storage->file, &d->alias, err);
	if (!r)
		r = text_copy(block_node_format_name(node), &d->format, err);
	if (!r)
		r = text_copy(dev->top->name, &d->top_node, err);
	if (!r)
		r = text_copy(node->name, &d->node, err);
	if (!r)
		r = read_bitmaps(node, d, err);
	if (!r)
		r = read_chain(node, d, err);
	if (!r && text_ends_with(d->file, OVERLAY_SUFFIX) && d->nchain)
		r = text_copy(d->chain[0].file, &d->overlay_of, err);
	return r ? r : judge(dev, node, storage, found, d, err);
}

static int fill_disk(const struct block_device *dev, size_t index, struct guest_disk *d,
		     struct error *err)
{
	int r = 0;

	d->removable = dev->removable;
	if (dev->qdev)
		r = text_copy(dev->qdev, &d->qdev, err);
	if (!r && dev->drive)
		r = text_copy(dev->drive, &d->drive, err);
	if (!r && dev->top) {
		r = fill_medium(dev, d, err);
	} else if (!r) {
		d->empty = true;
		r = leave_out(d, err, "the drive is empty");
	}
	return r ? r : name_disk(d, index, err);
}

/* Two devices on one image: one backup is enough. */
static int leave_out_doubles(struct guest_disk *v, size_t n, struct error *err)
{
	for (size_t i = 0; i < n; i++) {
		for (size_t k = 0; k < i && !v[i].left_out; k++) {
			int r;

			if (v[k].left_out || !v[k].node || strcmp(v[k].node, v[i].node) != 0)
				continue;
			r = text_format(&v[i].left_out, err, "it is the same image as disk '%s'",
					v[k].name);
			if (r)
				return r;
		}
	}
	return 0;
}

int disks_from_graph(const struct block_graph *graph, struct guest_disk **ret, size_t *ret_n,
		     struct error *err)
{
	struct guest_disk *v = calloc(graph->ndevices + 1, sizeof(*v));
	int r = 0;

	if (!v)
		return error_nomem(err);
	for (size_t i = 0; !r && i < graph->ndevices; i++)
		r = fill_disk(&graph->devices[i], i, &v[i], err);
	if (!r)
		r = disks_unique_names(v, graph->ndevices, err);
	if (!r)
		r = leave_out_doubles(v, graph->ndevices, err);
	if (r) {
		guest_disks_free(v, graph->ndevices);
		return r;
	}
	*ret = v;
	*ret_n = graph->ndevices;
	return 0;
}

int disks_from_node(const struct block_node *format, struct guest_disk **ret, struct error *err)
{
	struct guest_disk *d = calloc(1, sizeof(*d));
	int r = d ? text_copy(format->name, &d->node, err) : error_nomem(err);

	if (!r)
		r = text_copy(block_node_storage(format)->file, &d->file, err);
	if (!r)
		r = read_bitmaps(format, d, err);
	if (r) {
		if (d)
			guest_disks_free(d, 1);
		return r;
	}
	d->read_only = format->ro;
	*ret = d;
	return 0;
}

static bool same_text(const char *a, const char *b)
{
	return a && b && strcmp(a, b) == 0;
}

const struct block_device *graph_find_device(const struct block_graph *graph, const char *qdev,
					     const char *drive)
{
	for (size_t i = 0; i < graph->ndevices; i++) {
		const struct block_device *d = &graph->devices[i];

		if (qdev ? same_text(d->qdev, qdev) : same_text(d->drive, drive))
			return d;
	}
	return NULL;
}
