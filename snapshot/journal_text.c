/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The journal's text: one line of JSON, then a line {"crc32c":"xxxxxxxx"} over all bytes before
 * it.  A reader checks the sum before it looks at anything else.
 */
#include "journal.h"
#include "jsonx.h"

#include <stdio.h>
#include <string.h>

#define SUM_LEN 22 /* {"crc32c":"xxxxxxxx"}\n */

static void sum_line(const void *bytes, size_t len, char text[SUM_LEN + 1])
{
	if (snprintf(text, SUM_LEN + 1, "{\"crc32c\":\"%08x\"}\n", crc32c(0, bytes, len)) < 0)
		text[0] = '\0';
}

static const char *const pivot_names[] = {"none", "begun", "done"};
static const char *const how_names[] = {"commit", "pull", "pull-keep"};
static const char *const kind_names[] = {"", "qmp", "image"};

/* The index of text in names, or -1. */
static int find_name(const char *const *names, size_t n, const char *text)
{
	for (size_t i = 0; text && i < n; i++) {
		if (strcmp(names[i], text) == 0)
			return (int)i;
	}
	return -1;
}

/* ---- writing ---- */

static int encode_disk(const struct journal_disk *d, json_t *list, struct error *err)
{
	json_t *v = json_pack(
		"{s:s, s:s?, s:s?, s:s, s:s, s:s?, s:s?, s:s?, s:s?, s:I, s:I, s:I, s:I, s:I, s:I, "
		"s:s, s:s, s:s, s:b}",
		"disk", d->name, "qdev", d->qdev, "drive", d->drive, "base", d->base, "format",
		d->format, "overlay", d->overlay, "overlay_node", d->overlay_node, "old_bitmap",
		d->old_bitmap, "new_bitmap", d->new_bitmap, "size", (json_int_t)d->size,
		"frozen_mtime", (json_int_t)d->frozen_mtime, "base_inode",
		(json_int_t)d->base_id.inode, "base_born", (json_int_t)d->base_id.born,
		"overlay_inode", (json_int_t)d->overlay_id.inode, "overlay_born",
		(json_int_t)d->overlay_id.born, "frozen_device", d->frozen_device, "collapse",
		how_names[d->how], "pivot", pivot_names[d->pivot], "void_epoch", d->void_epoch);

	return jsonx_append(list, v, err);
}

static int encode_body(const struct journal *j, json_t **ret, struct error *err)
{
	auto_json json_t *disks = json_array();
	int r = disks ? 0 : error_nomem(err);

	for (size_t i = 0; !r && i < j->ndisks; i++)
		r = encode_disk(&j->disks[i], disks, err);
	if (r)
		return r;
	return jsonx_make(ret, err,
			  "{s:i, s:I, s:s, s:s, s:s, s:s?, s:s?, s:s?, s:s, s:s, s:s?, s:s?, "
			  "s:I, s:I, s:O}",
			  "tidemark_journal", JOURNAL_FORMAT, "sequence", (json_int_t)j->sequence,
			  "phase", journal_phase_name(j->phase), "kind", kind_names[j->kind],
			  "guest", j->guest, "qmp_socket", j->qmp_socket, "agent_socket",
			  j->agent_socket, "repo_url", j->repo_url, "repo", id_text(&j->repo).s,
			  "point", id_text(&j->point).s, "state", j->state, "socket_dir",
			  j->socket_dir, "agent_pid", (json_int_t)j->agent_pid, "agent_start",
			  (json_int_t)j->agent_start, "disks", disks);
}

int journal_encode(const struct journal *j, struct buf *ret, struct error *err)
{
	auto_json json_t *body = NULL;
	auto_free char *text = NULL;
	char sum[SUM_LEN + 1];
	int r = encode_body(j, &body, err);

	if (r)
		return r;
	text = json_dumps(body, JSON_COMPACT);
	if (!text)
		return error_nomem(err);
	r = buf_printf(ret, err, "%s\n", text);
	if (r)
		return r;
	sum_line(ret->data, ret->len, sum);
	return buf_add(ret, sum, strlen(sum), err);
}

/* ---- reading ---- */

static int need_text(const json_t *v, const char *key, char **ret, struct error *err)
{
	if (!jsonx_text(v, key))
		return error_set(err, TM_E_CORRUPT, "the field '%s' is missing", key);
	return jsonx_copy(v, key, ret, err);
}

static int decode_disk(const json_t *v, struct journal_disk *d, struct error *err)
{
	int pivot = find_name(pivot_names, ARRAY_SIZE(pivot_names), jsonx_text(v, "pivot"));
	const char *how_text = jsonx_text(v, "collapse"); /* older ones knew one way only */
	const char *device = jsonx_text(v, "frozen_device");
	int how = how_text ? find_name(how_names, ARRAY_SIZE(how_names), how_text) : 0;
	int r = need_text(v, "disk", &d->name, err);

	if (!r)
		r = need_text(v, "base", &d->base, err);
	if (!r)
		r = need_text(v, "format", &d->format, err);
	if (!r)
		r = jsonx_copy(v, "qdev", &d->qdev, err);
	if (!r)
		r = jsonx_copy(v, "drive", &d->drive, err);
	if (!r)
		r = jsonx_copy(v, "overlay", &d->overlay, err);
	if (!r)
		r = jsonx_copy(v, "overlay_node", &d->overlay_node, err);
	if (!r)
		r = jsonx_copy(v, "old_bitmap", &d->old_bitmap, err);
	if (!r)
		r = jsonx_copy(v, "new_bitmap", &d->new_bitmap, err);
	if (r)
		return r;
	if (pivot < 0 || how < 0 || !jsonx_u64(v, "size", &d->size) ||
	    !jsonx_u64(v, "frozen_mtime", &d->frozen_mtime))
		return error_set(err, TM_E_CORRUPT, "a field of disk '%s' makes no sense", d->name);
	/* Older ones did not know which files they were, nor about devices. */
	if (device && strlen(device) < sizeof(d->frozen_device))
		memcpy(d->frozen_device, device, strlen(device) + 1);
	(void)jsonx_u64(v, "base_inode", &d->base_id.inode);
	(void)jsonx_u64(v, "base_born", &d->base_id.born);
	(void)jsonx_u64(v, "overlay_inode", &d->overlay_id.inode);
	(void)jsonx_u64(v, "overlay_born", &d->overlay_id.born);
	d->pivot = (enum journal_pivot)pivot;
	d->void_epoch = json_is_true(json_object_get(v, "void_epoch"));
	d->how = (enum collapse_how)how;
	return 0;
}

static int decode_head(const json_t *v, struct journal *j, struct error *err)
{
	int kind = find_name(kind_names, ARRAY_SIZE(kind_names), jsonx_text(v, "kind"));
	const char *phase = jsonx_text(v, "phase"), *repo = jsonx_text(v, "repo"),
		   *point = jsonx_text(v, "point");
	int r;

	if (kind <= 0 || !phase || !journal_phase_parse(phase, &j->phase) || !repo ||
	    !id_parse(repo, &j->repo) || !point || !id_parse(point, &j->point) ||
	    !jsonx_u64(v, "sequence", &j->sequence) || !jsonx_u64(v, "agent_pid", &j->agent_pid) ||
	    !jsonx_u64(v, "agent_start", &j->agent_start))
		return error_set(err, TM_E_CORRUPT, "a field makes no sense");
	j->kind = (enum guest_kind)kind;
	r = need_text(v, "guest", &j->guest, err);
	if (!r)
		r = jsonx_copy(v, "qmp_socket", &j->qmp_socket, err);
	if (!r)
		r = jsonx_copy(v, "agent_socket", &j->agent_socket, err);
	if (!r)
		r = jsonx_copy(v, "repo_url", &j->repo_url, err);
	if (!r)
		r = jsonx_copy(v, "state", &j->state, err);
	if (!r)
		r = jsonx_copy(v, "socket_dir", &j->socket_dir, err);
	if (!r && j->kind == GUEST_QMP && !j->qmp_socket)
		r = error_set(err, TM_E_CORRUPT, "it names no QMP socket");
	return r;
}

static int decode_body(const json_t *v, struct journal *j, struct error *err)
{
	const json_t *disks = json_object_get(v, "disks");
	uint64_t format;
	int r;

	if (!jsonx_u64(v, "tidemark_journal", &format))
		return error_set(err, TM_E_CORRUPT, "it is no journal");
	if (format != JOURNAL_FORMAT)
		return error_set(err, TM_E_UNSUPPORTED,
				 "its format is %llu, this program knows %d: use the newer "
				 "tidemark that wrote it",
				 (unsigned long long)format, JOURNAL_FORMAT);
	r = decode_head(v, j, err);
	if (!r && !json_is_array(disks))
		r = error_set(err, TM_E_CORRUPT, "it lists no disks");
	for (size_t i = 0; !r && i < json_array_size(disks); i++) {
		struct journal_disk *d;

		r = journal_add_disk(j, &d, err);
		if (!r)
			r = decode_disk(json_array_get(disks, i), d, err);
	}
	return r;
}

int journal_decode(const void *bytes, size_t len, const char *path, struct journal **ret,
		   struct error *err)
{
	auto_clean(journal_free) struct journal *j = NULL;
	auto_json json_t *body = NULL;
	char sum[SUM_LEN + 1] = "";
	json_error_t je;
	int r;

	if (len >= SUM_LEN)
		sum_line(bytes, len - SUM_LEN, sum);
	if (!*sum || memcmp((const char *)bytes + len - strlen(sum), sum, strlen(sum)) != 0)
		return error_set(err, TM_E_CORRUPT, "the journal %s is torn or damaged", path);
	body = json_loadb(bytes, len - strlen(sum), 0, &je);
	r = journal_new(&j, err);
	if (!r)
		r = decode_body(body, j, err);
	if (r) {
		error_prefix(err, "journal %s", path);
		return r;
	}
	*ret = tm_steal(j);
	return 0;
}
