/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The I/O loop.  Requests are prepared from the fields of their op, so that one
 * which finds the ring full can wait in `starved` and be prepared later.  The
 * number of requests in the kernel never exceeds the completion queue, which
 * therefore never overflows.
 *
 * Other threads reach the loop through an eventfd that is always being polled.
 */
#include "loop.h"

#include "checked.h"
#include "clock.h"
#include "container.h"
#include "log.h"

#include <assert.h>
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>

#define WATCH_EVERY_MS 200

enum op_kind {
	OP_READ = 1,
	OP_WRITE,
	OP_FSYNC,
	OP_FALLOCATE,
	OP_OPENAT,
	OP_MKDIRAT,
	OP_RENAMEAT,
	OP_UNLINKAT,
	OP_POLL,
	OP_TIMER,
	OP_DEFERRED,
};

struct op_queue {
	struct loop_op *first, **end;
};

struct loop {
	struct io_uring ring;
	unsigned in_kernel;      /* requests whose completion is still to come */
	unsigned limit;          /* of in_kernel */
	struct op_queue starved; /* waiting for in_kernel < limit */
	struct op_queue deferred;
	int event_fd;
	struct loop_op wake_op;
	struct loop_waker *wakers;
	struct loop_watch *watch;
	bool completed;         /* something but a timer, in this turn */
	uint64_t ticked_ms;     /* the watch's last call; monotonic, as the next two */
	uint64_t left_ms;       /* the end of the last turn */
	uint64_t idle_since_ms; /* the last completion */
};

static void queue_init(struct op_queue *q)
{
	q->first = NULL;
	q->end = &q->first;
}

static void queue_push(struct op_queue *q, struct loop_op *op)
{
	op->next = NULL;
	*q->end = op;
	q->end = &op->next;
}

static struct loop_op *queue_pop(struct op_queue *q)
{
	struct loop_op *op = q->first;

	if (op) {
		q->first = op->next;
		if (!q->first)
			q->end = &q->first;
	}
	return op;
}

static void prepare(struct io_uring_sqe *sqe, struct loop_op *op)
{
	switch ((enum op_kind)op->kind) {
	case OP_READ:
		io_uring_prep_read(sqe, op->fd, (void *)(uintptr_t)op->buf, op->len, op->offset);
		break;
	case OP_WRITE:
		io_uring_prep_write(sqe, op->fd, op->buf, op->len, op->offset);
		break;
	case OP_FSYNC:
		io_uring_prep_fsync(sqe, op->fd, op->flags);
		break;
	case OP_FALLOCATE:
		io_uring_prep_fallocate(sqe, op->fd, (int)op->flags, (off_t)op->offset,
					(off_t)op->timespec[0]);
		break;
	case OP_OPENAT:
		io_uring_prep_openat(sqe, op->fd, op->buf, (int)op->flags, (mode_t)op->len);
		break;
	case OP_MKDIRAT:
		io_uring_prep_mkdirat(sqe, op->fd, op->buf, (mode_t)op->len);
		break;
	case OP_RENAMEAT:
		io_uring_prep_renameat(sqe, op->fd, op->buf, op->fd2, op->buf2, op->flags);
		break;
	case OP_UNLINKAT:
		io_uring_prep_unlinkat(sqe, op->fd, op->buf, 0);
		break;
	case OP_POLL:
		io_uring_prep_poll_add(sqe, op->fd, op->flags);
		break;
	case OP_TIMER:
		io_uring_prep_timeout(sqe, (struct __kernel_timespec *)(void *)op->timespec, 0, 0);
		break;
	case OP_DEFERRED:
		abort(); /* they never reach the ring */
	}
	io_uring_sqe_set_data(sqe, op);
}

/* A free submission entry, or NULL when the kernel takes no more at the moment. */
static struct io_uring_sqe *free_sqe(struct loop *loop)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&loop->ring);

	if (!sqe && io_uring_submit(&loop->ring) >= 0)
		sqe = io_uring_get_sqe(&loop->ring);
	return sqe;
}

static bool start(struct loop *loop, struct loop_op *op)
{
	struct io_uring_sqe *sqe;

	if (loop->in_kernel >= loop->limit)
		return false;
	sqe = free_sqe(loop);
	if (!sqe)
		return false;
	prepare(sqe, op);
	loop->in_kernel++;
	return true;
}

static void submit(struct loop *loop, struct loop_op *op, enum op_kind kind)
{
	assert(!op->armed && op->done);
	op->kind = (uint8_t)kind;
	op->armed = true;
	if (loop->starved.first || !start(loop, op))
		queue_push(&loop->starved, op);
}

void loop_read(struct loop *loop, struct loop_op *op, int fd, void *buf, uint32_t len,
	       uint64_t offset)
{
	op->fd = fd;
	op->buf = buf;
	op->len = len;
	op->offset = offset;
	submit(loop, op, OP_READ);
}

void loop_write(struct loop *loop, struct loop_op *op, int fd, const void *buf, uint32_t len,
		uint64_t offset)
{
	op->fd = fd;
	op->buf = buf;
	op->len = len;
	op->offset = offset;
	submit(loop, op, OP_WRITE);
}

void loop_fdatasync(struct loop *loop, struct loop_op *op, int fd)
{
	op->fd = fd;
	op->flags = IORING_FSYNC_DATASYNC;
	submit(loop, op, OP_FSYNC);
}

void loop_fsync(struct loop *loop, struct loop_op *op, int fd)
{
	op->fd = fd;
	op->flags = 0;
	submit(loop, op, OP_FSYNC);
}

void loop_fallocate(struct loop *loop, struct loop_op *op, int fd, int mode, uint64_t offset,
		    uint64_t len)
{
	assert(len <= INT64_MAX);
	op->fd = fd;
	op->flags = (uint32_t)mode;
	op->offset = offset;
	op->timespec[0] = (int64_t)len;
	submit(loop, op, OP_FALLOCATE);
}

void loop_openat(struct loop *loop, struct loop_op *op, int dirfd, const char *path, int flags,
		 uint32_t mode)
{
	op->fd = dirfd;
	op->buf = path;
	op->flags = (uint32_t)flags;
	op->len = mode;
	submit(loop, op, OP_OPENAT);
}

void loop_mkdirat(struct loop *loop, struct loop_op *op, int dirfd, const char *path, uint32_t mode)
{
	op->fd = dirfd;
	op->buf = path;
	op->len = mode;
	submit(loop, op, OP_MKDIRAT);
}

void loop_renameat(struct loop *loop, struct loop_op *op, int olddir, const char *old, int newdir,
		   const char *new, uint32_t flags)
{
	op->fd = olddir;
	op->buf = old;
	op->fd2 = newdir;
	op->buf2 = new;
	op->flags = flags;
	submit(loop, op, OP_RENAMEAT);
}

void loop_unlinkat(struct loop *loop, struct loop_op *op, int dirfd, const char *path)
{
	op->fd = dirfd;
	op->buf = path;
	submit(loop, op, OP_UNLINKAT);
}

void loop_poll(struct loop *loop, struct loop_op *op, int fd, unsigned events)
{
	op->fd = fd;
	op->flags = events;
	submit(loop, op, OP_POLL);
}

void loop_timer(struct loop *loop, struct loop_op *op, uint64_t ms)
{
	op->timespec[0] = (int64_t)(ms / 1000);
	op->timespec[1] = (int64_t)(ms % 1000) * 1000000;
	submit(loop, op, OP_TIMER);
}

void loop_defer(struct loop *loop, struct loop_op *op)
{
	assert(!op->armed && op->done);
	op->kind = OP_DEFERRED;
	op->fd = 0;
	op->armed = true;
	queue_push(&loop->deferred, op);
}

/* Takes op out of a queue it may be in. */
static bool queue_remove(struct op_queue *q, struct loop_op *op)
{
	for (struct loop_op **p = &q->first; *p; p = &(*p)->next) {
		if (*p != op)
			continue;
		*p = op->next;
		if (!*p)
			q->end = p;
		return true;
	}
	return false;
}

void loop_cancel(struct loop *loop, struct loop_op *op)
{
	struct io_uring_sqe *sqe;

	if (!op->armed || op->kind == OP_DEFERRED)
		return;
	if (queue_remove(&loop->starved, op)) {
		op->kind = OP_DEFERRED;
		op->fd = -ECANCELED; /* the result that run_deferred() reports */
		queue_push(&loop->deferred, op);
		return;
	}
	sqe = free_sqe(loop);
	if (!sqe)
		return; /* the op ends by itself */
	io_uring_prep_cancel(sqe, op, 0);
	io_uring_sqe_set_data(sqe, NULL);
	loop->in_kernel++;
}

static void wake_arrived(struct loop_op *op, int res);

static void wake_arm(struct loop *loop)
{
	loop_poll(loop, &loop->wake_op, loop->event_fd, POLLIN);
}

int loop_new(unsigned depth, struct loop **ret, struct error *err)
{
	struct loop *loop = calloc(1, sizeof(*loop));
	int r;

	if (!loop)
		return error_nomem(err);
	loop->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (loop->event_fd < 0) {
		r = error_errno(err, errno, "eventfd");
		free(loop);
		return r;
	}
	r = io_uring_queue_init(depth, &loop->ring, 0);
	if (r < 0) {
		(void)close(loop->event_fd);
		free(loop);
		return error_errno(err, -r, "cannot set up io_uring with %u entries%s", depth,
				   r == -EPERM ? " (see /proc/sys/kernel/io_uring_disabled)" : "");
	}
	/* One place is kept for the eventfd's poll, some for cancellations. */
	loop->limit = *loop->ring.cq.kring_entries - *loop->ring.cq.kring_entries / 4;
	queue_init(&loop->starved);
	queue_init(&loop->deferred);
	loop->wake_op.done = wake_arrived;
	wake_arm(loop);
	*ret = loop;
	return 0;
}

void loop_free(struct loop *loop)
{
	if (!loop)
		return;
	io_uring_queue_exit(&loop->ring);
	(void)close(loop->event_fd);
	free(loop);
}

static void finish(struct loop_op *op, int res)
{
	op->armed = false;
	op->done(op, res);
}

static void run_deferred(struct loop *loop)
{
	struct op_queue now = loop->deferred;
	struct loop_op *op;

	if (!now.first)
		return;
	if (now.end == &loop->deferred.first)
		now.end = &now.first;
	queue_init(&loop->deferred);
	while ((op = queue_pop(&now)))
		finish(op, op->fd);
}

static void run_starved(struct loop *loop)
{
	while (loop->starved.first && start(loop, loop->starved.first))
		(void)queue_pop(&loop->starved);
}

static void wake_arrived(struct loop_op *op, int res)
{
	struct loop *loop = container_of(op, struct loop, wake_op);
	struct loop_waker *next;
	uint64_t count;

	if (res < 0 && res != -EINTR)
		log_debug("poll of the loop's eventfd: %s", strerror(-res));
	if (read(loop->event_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		log_debug("read of the loop's eventfd: %s", strerror(errno));
	wake_arm(loop);
	for (struct loop_waker *w = loop->wakers; w; w = next) {
		next = w->next;
		w->woken(w);
	}
}

static void reap(struct loop *loop)
{
	struct io_uring_cqe *cqe;

	while (io_uring_peek_cqe(&loop->ring, &cqe) == 0 && cqe) {
		struct loop_op *op = io_uring_cqe_get_data(cqe);
		int res = cqe->res;

		io_uring_cqe_seen(&loop->ring, cqe);
		loop->in_kernel--;
		if (!op)
			continue; /* the answer to a cancellation */
		loop->completed |= op->kind != OP_TIMER;
		if (op->kind == OP_TIMER && res == -ETIME)
			res = 0;
		finish(op, res);
	}
}

void loop_set_watch(struct loop *loop, struct loop_watch *watch)
{
	loop->watch = watch;
	loop->ticked_ms = loop->left_ms = loop->idle_since_ms = clock_monotonic_ms(&clock_system);
}

/* Time in which nobody ran the loop does not count as idle. */
static void watch_enter(struct loop *loop)
{
	uint64_t now = clock_monotonic_ms(&clock_system);

	if (now - loop->left_ms >= WATCH_EVERY_MS)
		loop->idle_since_ms = now;
	loop->completed = false;
}

static void watch_leave(struct loop *loop)
{
	uint64_t now = clock_monotonic_ms(&clock_system);

	loop->left_ms = now;
	if (loop->completed)
		loop->idle_since_ms = now;
	if (now - loop->ticked_ms < WATCH_EVERY_MS)
		return;
	loop->ticked_ms = now;
	loop->watch->tick(loop->watch, now - loop->idle_since_ms);
}

static int turn(struct loop *loop, int timeout_ms, struct error *err)
{
	struct __kernel_timespec ts = {.tv_sec = timeout_ms / 1000,
				       .tv_nsec = (long long)(timeout_ms % 1000) * 1000000};
	struct io_uring_cqe *cqe;
	int r;

	run_starved(loop);
	if (loop->deferred.first)
		ts = (struct __kernel_timespec){0};
	r = io_uring_submit_and_wait_timeout(
		&loop->ring, &cqe, 1, timeout_ms < 0 && !loop->deferred.first ? NULL : &ts, NULL);
	if (r < 0 && r != -ETIME && r != -EINTR && r != -EAGAIN && r != -EBUSY)
		return error_errno(err, -r, "io_uring");
	reap(loop);
	run_deferred(loop);
	return 0;
}

int loop_run_once(struct loop *loop, int timeout_ms, struct error *err)
{
	int r;

	if (!loop->watch)
		return turn(loop, timeout_ms, err);
	watch_enter(loop);
	if (timeout_ms < 0 || timeout_ms > WATCH_EVERY_MS)
		timeout_ms = WATCH_EVERY_MS;
	r = turn(loop, timeout_ms, err);
	if (loop->watch)
		watch_leave(loop);
	return r;
}

void loop_add_waker(struct loop *loop, struct loop_waker *w)
{
	w->next = loop->wakers;
	loop->wakers = w;
}

void loop_del_waker(struct loop *loop, struct loop_waker *w)
{
	for (struct loop_waker **p = &loop->wakers; *p; p = &(*p)->next) {
		if (*p == w) {
			*p = w->next;
			return;
		}
	}
}

void loop_wake(struct loop *loop)
{
	uint64_t one = 1;
	ssize_t r;

	/* A full counter (EAGAIN) means that a wake-up is already on its way. */
	do {
		r = write(loop->event_fd, &one, sizeof(one));
	} while (r < 0 && errno == EINTR);
}
