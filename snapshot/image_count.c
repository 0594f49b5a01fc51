/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How much a bitmap of an image at rest names: qemu-nbd shows it, as when the image is backed up.
 * Here it asks for no lock, so that a guest can start meanwhile, and opens no image below.
 */
#include "epochs.h"
#include "exports.h"

#include <unistd.h>

#define CONNECT_MS 15000
#define STALL_MS   15000
#define STOP_MS    5000

static int count(struct loop *loop, const char *socket, const struct disk_bitmap *b, uint64_t *ret,
		 struct error *err)
{
	auto_clean(block_source_free) struct block_source *src = NULL;
	const struct nbd_address addr = {.socket = socket, .bitmap = b->name};
	const struct reader_options opt = {.map = SOURCE_MAP_DIRTY,
					   .block_size = b->granularity,
					   .pieces = 1,
					   .stall_ms = STALL_MS};
	int r = nbd_source_open(loop, &addr, 1, CONNECT_MS, &src, err);

	return r ? r : reader_estimate(loop, src, &opt, ret, err);
}

static int serve(const struct guest_disk *d, const char *dir, const struct disk_bitmap *b,
		 char **ret_socket, struct server *server, struct error *err)
{
	auto_free char *image = NULL;
	int r = export_alone(d->file, d->format, true, &image, err);

	if (!r)
		r = io_join(dir, "count.sock", ret_socket, err);
	if (!r)
		r = export_serve(image, NULL, b->name, *ret_socket, server, err);
	return r ? r : export_wait(d->file, *ret_socket, server, err);
}

void image_count(const struct guest_disk *d, struct loop *loop, struct disk_bitmap *b)
{
	auto_free char *dir = NULL, *socket = NULL;
	struct server server = {0};
	auto_close int lock = -1;
	struct error e = {0};
	uint64_t bytes;
	int r = rundir_make(NULL, &dir, &lock, &e);

	if (!r)
		r = serve(d, dir, b, &socket, &server, &e);
	if (!r)
		r = count(loop, socket, b, &bytes, &e);
	server_stop(&server, STOP_MS);
	if (dir)
		rundir_remove(dir);
	if (r)
		log_debug("%s: %s is not counted: %s", d->file, b->name, e.text);
	else
		b->dirty_bytes = bytes;
}
