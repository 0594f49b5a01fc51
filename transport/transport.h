/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public header of transport/: sockets that speak lines, disks as sources
 * (NBD) and as sinks (file, qcow2 image, NBD), and the reader that turns changed ranges of a
 * source into pieces.
 */
#pragma once

#include "bitmap/bitmap.h"
#include "common/common.h"

/* ---- channel.c: a unix stream socket that speaks lines, every wait bounded ---- */

struct channel;

struct channel_ops {
	int (*send)(struct channel *ch, const void *bytes, size_t len, uint64_t deadline_ms,
		    struct error *err);
	/*
	 * One line without its end (LF or CR LF), NUL-terminated, in *ret (overwritten).  A line of
	 * more than `max` bytes is TM_E_PEER.  NUL bytes inside are passed on; ret->len tells.
	 * After TM_E_TIMEOUT what has arrived of the line is kept for the next call.
	 */
	int (*recv_line)(struct channel *ch, size_t max, uint64_t deadline_ms, struct buf *ret,
			 struct error *err);
	void (*free)(struct channel *ch);
};

/* Not on the loop: a call blocks its thread, at most until its deadline. */
struct channel {
	const struct channel_ops *ops;
};

/* deadline_ms is on clock_monotonic_ms().  TM_E_TIMEOUT when it passes; TM_E_NOTFOUND when there is
 * no such socket or nobody listens on it; TM_E_PEER when the other side closes. */
int channel_connect(const char *path, uint64_t deadline_ms, struct channel **ret,
		    struct error *err) TM_WUR;
int channel_send(struct channel *ch, const void *bytes, size_t len, uint64_t deadline_ms,
		 struct error *err) TM_WUR;
int channel_recv_line(struct channel *ch, size_t max, uint64_t deadline_ms, struct buf *ret,
		      struct error *err) TM_WUR;
void channel_free(struct channel *ch);
TM_CLEANUP(struct channel, channel_free)

/* ---- block_source: a disk to read from ---- */

enum source_map {
	SOURCE_MAP_DIRTY, /* set bits of the dirty bitmap */
	SOURCE_MAP_DATA,  /* everything that is not known to read as zeroes */
};

struct source_req {
	/*
	 * code 0 or TM_E_*; looked at first.  err is valid when code is not 0.  Never called
	 * from inside the function that starts the request; may start others.
	 */
	void (*done)(struct source_req *req, int code);
	struct error err;
	struct source_req *next;
};

struct block_source;

struct block_source_ops {
	/*
	 * Asks which parts of [offset, offset + length) are set in `map`, adds them to *ret
	 * (clipped to the range asked), and stores in *ret_end how far the answer reaches
	 * (> offset; perhaps short of offset + length: ask again from there).  ret and
	 * ret_end are borrowed until done().
	 */
	void (*map)(struct block_source *src, enum source_map map, uint64_t offset, uint64_t length,
		    struct extents *ret, uint64_t *ret_end, struct source_req *req);
	/* Reads exactly len bytes.  buf is borrowed until done(). */
	void (*read)(struct block_source *src, void *buf, uint32_t len, uint64_t offset,
		     struct source_req *req);
	/*
	 * Gives up: every request in flight is called back soon, with TM_E_CANCELED unless it
	 * has a result already, also when the other side does not answer.  The source can only
	 * be freed then.
	 */
	void (*abort)(struct block_source *src);
	/* No request may be in flight.  Runs the loop. */
	void (*free)(struct block_source *src);
};

struct block_source {
	const struct block_source_ops *ops;
	uint64_t size;     /* bytes */
	uint32_t max_read; /* bytes in one read */
	uint32_t depth;    /* reads worth having in flight at most */
	bool has_dirty;    /* SOURCE_MAP_DIRTY can be asked */
	bool has_data;     /* SOURCE_MAP_DATA can be asked; else everything counts as data */
};

static inline void block_source_free(struct block_source *src)
{
	if (src)
		src->ops->free(src);
}
TM_CLEANUP(struct block_source, block_source_free)

/* ---- nbd_source.c: NBD through libnbd's asynchronous calls on the loop ---- */

struct nbd_address {
	const char *uri;         /* nbd://…, nbd+unix:///…; or NULL and: */
	const char *socket;      /* path of a unix socket */
	const char *export_name; /* with socket; NULL is "" */
	const char *bitmap;      /* name in the context "qemu:dirty-bitmap:<name>", or NULL */
};

/*
 * Connects (bounded by timeout_ms) and negotiates structured replies, base:allocation
 * and the bitmap's context.  No such socket, nobody behind it, no such export, and a
 * missing bitmap context are TM_E_NOTFOUND.  Opens up to `connections` connections
 * for reading where the server allows several (multi_conn), and one more for the bitmap.
 * Runs the loop.
 */
int nbd_source_open(struct loop *loop, const struct nbd_address *addr, unsigned connections,
		    unsigned timeout_ms, struct block_source **ret, struct error *err) TM_WUR;

/* ---- reader.c: from a source to pieces ---- */

struct reader_counts {
	uint64_t dirty_bytes; /* named by the map so far, in whole blocks, clipped to the disk;
			       * SOURCE_MAP_DATA: the whole disk from the start */
	bool mapped;          /* the map is complete: dirty_bytes is final */
	uint64_t read_bytes;  /* really requested from the source */
	uint64_t zero_bytes;  /* known as zero without reading */
	uint64_t done_bytes;  /* dirty bytes handed to the sink */
};

struct reader_options {
	enum source_map
		map; /* DIRTY: changed blocks only. DATA: the whole disk, zero ranges unread */
	/*
	 * DIRTY: NULL, or the parts of the disk to look at, in whole blocks but for its end.  What
	 * of them is clean is reported then, as if that were what is dirty, and nothing else.
	 * Borrowed.
	 */
	const struct extents *sample;
	uint32_t block_size;  /* power of two; 64 KiB */
	unsigned pieces;      /* buffers of PIECE_CLUSTERS blocks; the bound on memory */
	unsigned workers;     /* of the sink: with fewer pieces than that it would do more */
	const uint64_t *rate; /* bytes per second, 0: no limit; looked at again after each tick, so
			       * that the tick may change it; NULL: no limit */
	unsigned stall_ms;    /* the source answers nothing for so long: TM_E_TIMEOUT; 0: waits */
	/* Called at least every 200 ms while the reader runs, also when source or sink stand still;
	 * a negative code ends the run with it.  May be NULL. */
	int (*tick)(void *data, const struct reader_counts *counts, struct error *err);
	void *data;
};

/*
 * Reads a disk: maps ahead in windows while reading, keeps as many reads in flight as the sink
 * keeps up with, at most source->depth, hands the pieces to the sink in any order with ascending
 * seq, and returns when every piece has been released.  Ranges that the map names are reported
 * either as data or as a zero run.  With SOURCE_MAP_DATA every block of the disk is reported (as
 * data or zero run).  Runs the loop.
 *
 * *ret is written in any case.  On failure the source has been aborted, all I/O has ended and all
 * pieces are back, unless the sink kept them for longer than 30 s, which is TM_E_TIMEOUT and leaks
 * them on purpose.
 */
int reader_run(struct loop *loop, struct block_source *src, struct piece_sink *sink,
	       const struct reader_options *opt, struct reader_counts *ret,
	       struct error *err) TM_WUR;

/*
 * The number of bytes that reader_run would report (DIRTY) or read (DATA), in whole
 * blocks, without reading any.  Keeps to stall_ms and tick as reader_run does, and on failure
 * aborts the source; else it can be read afterwards.  Runs the loop.
 */
int reader_estimate(struct loop *loop, struct block_source *src, const struct reader_options *opt,
		    uint64_t *ret_bytes, struct error *err) TM_WUR;

/*
 * Where the last block ends that reader_run would report (DIRTY) or read (DATA); 0: none.
 * Otherwise like reader_estimate.
 */
int reader_reach(struct loop *loop, struct block_source *src, const struct reader_options *opt,
		 uint64_t *ret_end, struct error *err) TM_WUR;

/* ---- sinks: a disk to write to, as a piece_sink ---- */

struct disk_sink;

struct disk_sink_counts {
	uint64_t written_bytes; /* data; zero runs do not count */
	bool unflushed; /* the target offers no flush: nothing says that the data are durable */
};

/*
 * A raw file or block device at path.  A regular file is made (0600), sized, and zero runs become
 * holes; one that exists is TM_E_EXISTS, unless `force`: then it is emptied first.  On a device
 * zero runs are written (as discards where those read as zeroes); one that is mounted or smaller
 * than size is TM_E_BUSY or TM_E_RANGE.
 */
int file_sink_open(struct loop *loop, const char *path, uint64_t size, uint32_t block_size,
		   bool force, struct disk_sink **ret, struct error *err) TM_WUR;

/*
 * A new qcow2 image at path (0600; one that exists is TM_E_EXISTS), standalone, its virtual size
 * rounded up to 512 bytes as QEMU does.  Zero runs, and what is not put, are not allocated.  It is
 * an image once disk_sink_finish() has succeeded.  A disk of more than 1 PiB is TM_E_RANGE.  Takes
 * about 5 MiB of memory, and 256 KiB more for a disk of 16 TiB.
 */
int qcow2_sink_open(struct loop *loop, const char *path, uint64_t size, uint32_t block_size,
		    struct disk_sink **ret, struct error *err) TM_WUR;

/* Any NBD server, also one that cannot flush. The export must be at least size bytes. */
int nbd_sink_open(struct loop *loop, const struct nbd_address *addr, uint64_t size,
		  uint32_t block_size, unsigned timeout_ms, struct disk_sink **ret,
		  struct error *err) TM_WUR;

/* Its put() may release the piece before it returns. */
struct piece_sink *disk_sink_pieces(struct disk_sink *sink);

/* Waits for all writes, flushes where it can, reports the first failure.  Runs the loop. */
int disk_sink_finish(struct disk_sink *sink, struct disk_sink_counts *ret,
		     struct error *err) TM_WUR;

/*
 * Gives up: the sink fails with TM_E_CANCELED and the text, unless it has failed already, and
 * pieces come back as soon as what was begun has ended.  What waits for a server does not go on
 * waiting; a write to a file or device ends when the kernel ends it.
 */
void disk_sink_abort(struct disk_sink *sink, const char *why);

/* Also after failures; outstanding pieces are released first.  Does not remove the file.  Runs the
 * loop. */
void disk_sink_free(struct disk_sink *sink);
TM_CLEANUP(struct disk_sink, disk_sink_free)
