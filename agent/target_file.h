/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where a restored disk goes: a raw or qcow2 file, a block device, or an NBD
 * server, behind one sink.  A file is written under a temporary name beside its
 * own and gets its name only when it is complete and synced.
 */
#pragma once

#include "transport/transport.h"

struct target_file;

struct target_file_options {
	struct loop *loop;
	const char *to;     /* path or nbd address; borrowed until target_file_free() */
	const char *format; /* "raw", "qcow2" */
	uint64_t size;      /* bytes of the disk */
	uint32_t block_size;
	bool force; /* an existing file is replaced */
};

/* An address of an NBD server, not a path. */
bool target_file_is_nbd(const char *to);

/*
 * Refuses now what target_file_open() would refuse for what is there.  *ret_place is the caller's:
 * the file or device behind a link, else `to`.  What is opened as that is replaced itself, and not
 * the link.
 */
int target_file_look(const struct target_file_options *opt, char **ret_place,
		     struct error *err) TM_WUR;

int target_file_open(const struct target_file_options *opt, struct target_file **ret,
		     struct error *err) TM_WUR;
struct piece_sink *target_file_sink(struct target_file *t);

/* True when what is there may not be zero already, so that zero runs have to be written. */
bool target_file_needs_zeroes(const struct target_file *t);

/* As disk_sink_abort(). */
void target_file_abort(struct target_file *t, const char *why);

/* Makes what was written durable, unless ret->unflushed, and gives it its name.  *ret is written in
 * any case. */
int target_file_finish(struct target_file *t, struct disk_sink_counts *ret,
		       struct error *err) TM_WUR;

/* Without a successful finish the temporary file is removed. */
void target_file_free(struct target_file *t);
TM_CLEANUP(struct target_file, target_file_free)
