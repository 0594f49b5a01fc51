/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one I/O loop: an io_uring that carries file reads and writes, fsyncs, polls
 * of sockets and timers.  Everything happens on the thread that runs the loop;
 * only loop_wake() may be called from another one.
 *
 * A struct loop_op is embedded in the caller's object and belongs to the loop
 * from the moment it is submitted until its callback is called; callbacks get
 * the result (>= 0, or -errno) as their first concern.  An op is never called
 * back from inside the function that submits it.
 */
#pragma once

#include "error.h"

#include <stdbool.h>
#include <stdint.h>

struct loop;
struct loop_op;

typedef void loop_done_fn(struct loop_op *op, int res);

struct loop_op {
	loop_done_fn *done;
	bool armed; /* owned by the loop */
	/* The rest is the loop's own. */
	uint8_t kind;
	int fd, fd2;
	const void *buf;
	const void *buf2;
	uint32_t len;
	uint32_t flags;
	uint64_t offset;
	int64_t timespec[2];
	struct loop_op *next; /* deferred, or waiting for a free place in the ring */
};

/* depth: requests the kernel may hold at once. */
int loop_new(unsigned depth, struct loop **ret, struct error *err) TM_WUR;
void loop_free(struct loop *loop);

/* buf is borrowed until the callback. Short transfers are reported as they are. */
void loop_read(struct loop *loop, struct loop_op *op, int fd, void *buf, uint32_t len,
	       uint64_t offset);
void loop_write(struct loop *loop, struct loop_op *op, int fd, const void *buf, uint32_t len,
		uint64_t offset);
void loop_fdatasync(struct loop *loop, struct loop_op *op, int fd);
void loop_fsync(struct loop *loop, struct loop_op *op, int fd);
void loop_fallocate(struct loop *loop, struct loop_op *op, int fd, int mode, uint64_t offset,
		    uint64_t len);

/* Paths are borrowed until the callback.  openat: res is the new descriptor, the caller's. */
void loop_openat(struct loop *loop, struct loop_op *op, int dirfd, const char *path, int flags,
		 uint32_t mode);
void loop_mkdirat(struct loop *loop, struct loop_op *op, int dirfd, const char *path,
		  uint32_t mode);
/* flags: RENAME_NOREPLACE or 0 */
void loop_renameat(struct loop *loop, struct loop_op *op, int olddir, const char *old, int newdir,
		   const char *new, uint32_t flags);
void loop_unlinkat(struct loop *loop, struct loop_op *op, int dirfd, const char *path);

/* One shot; res is the revents mask. events: POLLIN, POLLOUT. */
void loop_poll(struct loop *loop, struct loop_op *op, int fd, unsigned events);

/* One shot; res is 0 when ms milliseconds have passed. */
void loop_timer(struct loop *loop, struct loop_op *op, uint64_t ms);

/* Calls back soon with res 0, on a fresh stack. */
void loop_defer(struct loop *loop, struct loop_op *op);

/* Asks for the end of an armed op; its callback still comes (with -ECANCELED or its result). */
void loop_cancel(struct loop *loop, struct loop_op *op);

/*
 * Waits for at least one event, at most timeout_ms (-1: no limit), and runs the
 * callbacks of all that are there.
 */
int loop_run_once(struct loop *loop, int timeout_ms, struct error *err) TM_WUR;

/*
 * A watch is called at least every 200 ms from inside loop_run_once(), whoever waits there, with
 * the time in which nothing was completed but timers.  For what has to happen even when a wait
 * never ends.  One per loop; NULL removes it.
 */
struct loop_watch {
	void (*tick)(struct loop_watch *watch, uint64_t idle_ms);
};
void loop_set_watch(struct loop *loop, struct loop_watch *watch);

/* A function to call on the loop thread after each loop_wake(); one per owner. */
struct loop_waker {
	void (*woken)(struct loop_waker *);
	struct loop_waker *next;
};
void loop_add_waker(struct loop *loop, struct loop_waker *w);
void loop_del_waker(struct loop *loop, struct loop_waker *w);

/* From any thread: makes loop_run_once() return after calling every waker. */
void loop_wake(struct loop *loop);
