/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libnbd calls our completion callbacks under its lock, where nothing may be asked
 * of it.  So a callback only notes its result and moves the call from `running` to
 * `finished`; deliver() hands the calls over when libnbd has returned.
 */
#include "nbd_conn.h"

#include <assert.h>
#include <errno.h>
#include <libnbd.h>
#include <poll.h>
#include <string.h>

#define RETRY_MS     10         /* between attempts to enter a full queue of connections */
#define MAX_PAYLOAD  (32 << 20) /* what every server has to accept that says nothing else */
#define NOTIFY_TURNS 16         /* receives in one go before others have their turn */
#define PARTS_MAX    1024       /* of a reply, apart from each other: every other sector of 1 MiB */

/* ---- the list of running calls ---- */

static void push_running(struct nbd_conn *conn, struct nbd_call *call)
{
	call->prev = NULL;
	call->next = conn->running;
	if (call->next)
		call->next->prev = call;
	conn->running = call;
	conn->in_flight++;
}

static void move_to_finished(struct nbd_conn *conn, struct nbd_call *call)
{
	if (call->prev)
		call->prev->next = call->next;
	else
		conn->running = call->next;
	if (call->next)
		call->next->prev = call->prev;
	conn->in_flight--;
	extents_done(&call->seen);
	call->next = NULL;
	*conn->finished_end = call;
	conn->finished_end = &call->next;
}

/* The code of a finished call, its error filled in. */
static int call_result(struct nbd_call *call)
{
	const struct nbd_conn *conn = call->conn;

	if (call->err.code)
		return call->err.code;
	if (!call->errnum)
		return 0;
	if (!conn->h)
		return error_set(&call->err, (enum tm_code)conn->why,
				 "%s of %llu bytes at offset %llu: %s", call->verb,
				 (unsigned long long)call->length, (unsigned long long)call->offset,
				 conn->lost.text);
	error_set_at(&call->err, TM_E_PEER, call->errnum, __FILE__, __LINE__,
		     "%s of %llu bytes at offset %llu: the NBD server answered: %s", call->verb,
		     (unsigned long long)call->length, (unsigned long long)call->offset,
		     strerror(call->errnum));
	if (call->errnum == ENOSPC)
		call->err.code = TM_E_NOSPACE;
	return call->err.code;
}

/*
 * Commands are retired by hand, after the call into libnbd that completed them has returned: when a
 * connection dies while libnbd 1.14 sends a command, it looks at the command once more, which it
 * would have freed by then had our callback retired it.  Our callback had the result already.
 */
static void retire(struct nbd_conn *conn, struct nbd_call *call)
{
	if (conn->h && call->cookie > 0)
		(void)nbd_aio_command_completed(conn->h, (uint64_t)call->cookie);
	call->cookie = 0;
}

static void deliver(struct nbd_conn *conn)
{
	struct nbd_call *call;

	while ((call = conn->finished)) {
		conn->finished = call->next;
		if (!conn->finished)
			conn->finished_end = &conn->finished;
		retire(conn, call);
		call->done(call, call_result(call));
	}
}

static void deliver_deferred(struct loop_op *op, int res)
{
	(void)res;
	deliver(container_of(op, struct nbd_conn, deliver));
}

/* What has finished inside the caller's own call is handed over later. */
static void deliver_soon(struct nbd_conn *conn)
{
	if (conn->finished && !conn->deliver.armed)
		loop_defer(conn->loop, &conn->deliver);
}

/* ---- the end of a connection ---- */

static void close_handle(struct nbd_conn *conn)
{
	struct nbd_handle *h = tm_steal(conn->h);

	loop_cancel(conn->loop, &conn->readable);
	loop_cancel(conn->loop, &conn->writable);
	/* Frees libnbd's commands without a word: ours end here. */
	nbd_close(h);
	while (conn->running) {
		conn->running->errnum = ENOTCONN;
		move_to_finished(conn, conn->running);
	}
}

static int code_of_failure(int errnum)
{
	switch (errnum) {
	case ENOENT:
	case ECONNREFUSED:
		return TM_E_NOTFOUND;
	case ENOMEM:
		return TM_E_NOMEM;
	case EACCES:
	case EPERM:
		return TM_E_DENIED;
	default:
		return TM_E_PEER;
	}
}

/* Called right after the libnbd call that failed. */
static void lose(struct nbd_conn *conn, bool failed)
{
	const char *text = failed ? nbd_get_error() : NULL;
	int errnum = failed ? nbd_get_errno() : 0;

	conn->why = conn->ready ? TM_E_PEER : code_of_failure(errnum);
	error_set_at(&conn->lost, (enum tm_code)conn->why, errnum, __FILE__, __LINE__,
		     "%s the NBD server%s%s", conn->ready ? "lost" : "cannot connect to",
		     text ? ": " : ": it ended the connection", text ? text : "");
	close_handle(conn);
}

void nbd_conn_abort(struct nbd_conn *conn)
{
	if (!conn->h)
		return;
	conn->why = TM_E_CANCELED;
	(void)error_set(&conn->lost, TM_E_CANCELED, "given up");
	close_handle(conn);
	deliver_soon(conn);
}

/* ---- libnbd's events on the loop ---- */

/* Follows libnbd's state after each call into it. */
static void update(struct nbd_conn *conn, bool failed)
{
	unsigned direction;
	int fd;

	if (!conn->h)
		return;
	if (failed || nbd_aio_is_dead(conn->h) || nbd_aio_is_closed(conn->h)) {
		lose(conn, failed);
		return;
	}
	if (!conn->ready && nbd_aio_is_ready(conn->h))
		conn->ready = true;
	direction = nbd_aio_get_direction(conn->h);
	fd = nbd_aio_get_fd(conn->h);
	if ((direction & LIBNBD_AIO_DIRECTION_READ) && !conn->readable.armed)
		loop_poll(conn->loop, &conn->readable, fd, POLLIN);
	if ((direction & LIBNBD_AIO_DIRECTION_WRITE) && !conn->writable.armed)
		loop_poll(conn->loop, &conn->writable, fd, POLLOUT);
}

/*
 * libnbd has to be told only what is true at this moment: notified of a reply that is not
 * there, it waits in its midst and sends no further command, which may be for ever.
 */
static bool is_due(const struct nbd_conn *conn, unsigned direction)
{
	struct pollfd p = {
		.fd = nbd_aio_get_fd(conn->h),
		.events = direction == LIBNBD_AIO_DIRECTION_READ ? POLLIN : POLLOUT,
	};

	return p.fd >= 0 && (nbd_aio_get_direction(conn->h) & direction) && poll(&p, 1, 0) > 0;
}

static void poll_done(struct nbd_conn *conn, unsigned direction, int res)
{
	int r = 0;

	if (!conn->h)
		return;
	if (res < 0) {
		log_debug("poll of an NBD connection: %s", strerror(-res));
		update(conn, false);
		return;
	}
	/* libnbd receives once a call: go on as long as there is something. */
	for (unsigned i = 0; r == 0 && i < NOTIFY_TURNS && is_due(conn, direction); i++)
		r = direction == LIBNBD_AIO_DIRECTION_READ ? nbd_aio_notify_read(conn->h)
							   : nbd_aio_notify_write(conn->h);
	update(conn, r < 0);
	deliver(conn);
}

static void became_readable(struct loop_op *op, int res)
{
	poll_done(container_of(op, struct nbd_conn, readable), LIBNBD_AIO_DIRECTION_READ, res);
}

static void became_writable(struct loop_op *op, int res)
{
	poll_done(container_of(op, struct nbd_conn, writable), LIBNBD_AIO_DIRECTION_WRITE, res);
}

/* ---- connecting ---- */

static int libnbd_failed(const char *what, struct error *err)
{
	const char *text = nbd_get_error();

	return error_set(err, (enum tm_code)code_of_failure(nbd_get_errno()), "%s: %s", what,
			 text ? text : "unknown error");
}

static uint64_t now_ms(void)
{
	return clock_monotonic_ms(&clock_system);
}

/* A socket of our own: libnbd gives up when the listener's queue is full or the path is long. */
static int connect_socket(struct nbd_conn *conn, const struct nbd_address *addr,
			  uint64_t deadline_ms, struct error *err)
{
	for (;;) {
		struct error e = {0};
		int fd, r = unix_socket_connect(addr->socket, &fd, &e);

		if (r == 0) {
			/* The descriptor is libnbd's from here on. */
			r = nbd_aio_connect_socket(conn->h, fd);
			return r < 0 ? libnbd_failed(addr->socket, err) : 0;
		}
		if (r != TM_E_BUSY || now_ms() >= deadline_ms) {
			return error_pass(err, r, &e);
		}
		r = loop_run_once(conn->loop, RETRY_MS, err);
		if (r)
			return r;
	}
}

static int start_connecting(struct nbd_conn *conn, const struct nbd_address *addr,
			    uint64_t deadline_ms, struct error *err)
{
	if (nbd_set_pread_initialize(conn->h, false) < 0)
		return libnbd_failed("NBD", err);
	/* Only the server knows what it accepts at the end of an odd-sized export. */
	if (nbd_set_strict_mode(conn->h, nbd_get_strict_mode(conn->h) & ~LIBNBD_STRICT_ALIGN) < 0)
		return libnbd_failed("NBD", err);
	if (conn->context && nbd_add_meta_context(conn->h, conn->context) < 0)
		return libnbd_failed(conn->context, err);
	if (addr->uri) {
		if (nbd_aio_connect_uri(conn->h, addr->uri) < 0)
			return libnbd_failed(addr->uri, err);
		return 0;
	}
	if (nbd_set_export_name(conn->h, addr->export_name ? addr->export_name : "") < 0)
		return libnbd_failed("NBD export name", err);
	return connect_socket(conn, addr, deadline_ms, err);
}

static int wait_ready(struct nbd_conn *conn, uint64_t deadline_ms, struct error *err)
{
	update(conn, false);
	while (conn->h && !conn->ready) {
		uint64_t now = now_ms();
		int r;

		if (now >= deadline_ms)
			return error_set(err, TM_E_TIMEOUT, "the NBD server does not answer");
		r = loop_run_once(conn->loop, (int)min_u64(deadline_ms - now, 1000), err);
		if (r)
			return r;
	}
	if (!conn->h) {
		return error_pass(err, conn->why, &conn->lost);
	}
	return 0;
}

static bool is_power_of_two(uint64_t v)
{
	return v && (v & (v - 1)) == 0;
}

/* What was negotiated. */
static int learn_limits(struct nbd_conn *conn, struct error *err)
{
	int64_t size = nbd_get_size(conn->h);
	int64_t min = nbd_get_block_size(conn->h, LIBNBD_SIZE_MINIMUM);
	int64_t max = nbd_get_block_size(conn->h, LIBNBD_SIZE_MAXIMUM);

	if (size < 0)
		return libnbd_failed("size of the NBD export", err);
	if (min <= 0)
		min = 1; /* the server said nothing */
	if (max <= 0 || max > MAX_PAYLOAD)
		max = MAX_PAYLOAD;
	if (!is_power_of_two((uint64_t)min) || min > 65536 || max < min)
		return error_set(err, TM_E_PEER,
				 "the NBD server wants requests of %lld to %lld bytes",
				 (long long)min, (long long)max);
	conn->size = (uint64_t)size;
	conn->min_block = (uint32_t)min;
	conn->max_payload = (uint32_t)align_down((uint64_t)max, (uint64_t)min);
	conn->multi_conn = nbd_can_multi_conn(conn->h) == 1;
	conn->can_flush = nbd_can_flush(conn->h) == 1;
	conn->can_zero = nbd_can_zero(conn->h) == 1;
	conn->read_only = nbd_is_read_only(conn->h) == 1;
	conn->has_context = conn->context && nbd_can_meta_context(conn->h, conn->context) == 1;
	return 0;
}

int nbd_conn_open(struct loop *loop, const struct nbd_address *addr, const char *context,
		  uint64_t deadline_ms, struct nbd_conn **ret, struct error *err)
{
	auto_clean(nbd_conn_free) struct nbd_conn *conn = calloc(1, sizeof(*conn));
	int r;

	if (!conn)
		return error_nomem(err);
	conn->loop = loop;
	conn->context = context;
	conn->finished_end = &conn->finished;
	conn->readable.done = became_readable;
	conn->writable.done = became_writable;
	conn->deliver.done = deliver_deferred;
	conn->h = nbd_create();
	if (!conn->h)
		return libnbd_failed("NBD", err);
	r = start_connecting(conn, addr, deadline_ms, err);
	if (!r)
		r = wait_ready(conn, deadline_ms, err);
	if (!r)
		r = learn_limits(conn, err);
	if (r)
		return r;
	*ret = tm_steal(conn);
	return 0;
}

void nbd_conn_free(struct nbd_conn *conn)
{
	struct error err = {0};

	if (!conn)
		return;
	assert(!conn->running && !conn->finished);
	if (conn->h) {
		/* Polite, and without waiting: what does not fit into the socket is not sent. */
		if (conn->ready)
			(void)nbd_aio_disconnect(conn->h, 0);
		close_handle(conn);
	}
	while (conn->readable.armed || conn->writable.armed || conn->deliver.armed) {
		if (loop_run_once(conn->loop, -1, &err))
			return; /* the loop is broken: the ops stay its own */
	}
	free(conn);
}

/* ---- requests ---- */

static int call_completed(void *data, int *error)
{
	struct nbd_call *call = data;

	call->errnum = *error;
	move_to_finished(call->conn, call);
	return 0; /* see retire() */
}

static int bad_answer(struct nbd_call *call, const char *what)
{
	(void)error_set(&call->err, TM_E_PEER,
			"%s of %llu bytes at offset %llu: the NBD server's answer %s", call->verb,
			(unsigned long long)call->length, (unsigned long long)call->offset, what);
	return 0; /* keeps the connection in step; the call fails when it completes */
}

static int bad_part(struct nbd_call *call, const char *what, uint64_t offset)
{
	(void)bad_answer(call, what);
	error_append(&call->err, " offset %llu", (unsigned long long)offset);
	return 0;
}

/*
 * A part of a read's reply is in the buffer.  NBD allows parts in any order, but none over another,
 * and together they have to be the whole.  libnbd sees to it that they lie inside, and no more:
 * what is left out keeps what the buffer held before.
 */
static int part_arrived(void *data, const void *bytes, size_t len, uint64_t offset, unsigned status,
			int *error)
{
	struct nbd_call *call = data;
	uint64_t before = extents_bytes(&call->seen);

	(void)bytes;
	if (*error || status == LIBNBD_READ_ERROR || call->err.code)
		return 0;
	if (extents_add(&call->seen, offset, len, &call->err))
		return 0;
	if (extents_bytes(&call->seen) != before + len)
		return bad_part(call, "has parts that overlap, at", offset);
	if (call->seen.n > PARTS_MAX)
		return bad_part(call, "is in too many pieces, at", offset);
	return 0;
}

/* First of all the error: a read that failed leaves the buffer as it was. */
static int read_completed(void *data, int *error)
{
	struct nbd_call *call = data;
	const struct extent *first = call->seen.v;
	uint64_t end = call->offset;

	if (call->seen.n && first->offset == call->offset)
		end += first->length;
	if (*error == 0 && !call->err.code && end != call->offset + call->length)
		(void)bad_part(call, "lacks the part from", end);
	return call_completed(data, error);
}

/* False: the connection has ended and so has the call. */
static bool begin(struct nbd_conn *conn, struct nbd_call *call, const char *verb)
{
	error_clear(&call->err);
	call->verb = verb;
	call->conn = conn;
	call->cookie = 0;
	call->errnum = 0;
	call->seen = (struct extents){0};
	push_running(conn, call);
	if (conn->h)
		return true;
	call->errnum = ENOTCONN;
	move_to_finished(conn, call);
	deliver_soon(conn);
	return false;
}

/* After the libnbd call; a refused one was never taken. */
static void started(struct nbd_conn *conn, struct nbd_call *call, int64_t cookie)
{
	call->cookie = cookie;
	if (cookie < 0) {
		(void)error_set(&call->err, TM_E_PEER, "%s of %llu bytes at offset %llu: %s",
				call->verb, (unsigned long long)call->length,
				(unsigned long long)call->offset, nbd_get_error());
		move_to_finished(conn, call);
	}
	update(conn, false);
	deliver_soon(conn);
}

void nbd_conn_read(struct nbd_conn *conn, struct nbd_call *call, void *buf)
{
	if (!begin(conn, call, "read"))
		return;
	started(conn, call,
		nbd_aio_pread_structured(conn->h, buf, call->length, call->offset,
					 (nbd_chunk_callback){part_arrived, call, NULL},
					 (nbd_completion_callback){read_completed, call, NULL}, 0));
}

void nbd_conn_write(struct nbd_conn *conn, struct nbd_call *call, const void *buf)
{
	if (!begin(conn, call, "write"))
		return;
	started(conn, call,
		nbd_aio_pwrite(conn->h, buf, call->length, call->offset,
			       (nbd_completion_callback){call_completed, call, NULL}, 0));
}

void nbd_conn_zero(struct nbd_conn *conn, struct nbd_call *call)
{
	if (!begin(conn, call, "zeroing"))
		return;
	started(conn, call,
		nbd_aio_zero(conn->h, call->length, call->offset,
			     (nbd_completion_callback){call_completed, call, NULL}, 0));
}

void nbd_conn_flush(struct nbd_conn *conn, struct nbd_call *call)
{
	call->offset = 0;
	call->length = 0;
	if (!begin(conn, call, "flush"))
		return;
	started(conn, call,
		nbd_aio_flush(conn->h, (nbd_completion_callback){call_completed, call, NULL}, 0));
}

/* ---- block status ---- */

/*
 * Adds the extents of one answer.  Only the last one may reach over the end of what was
 * asked, as the protocol allows; it is cut there.
 */
static int add_entries(struct nbd_call *call, const uint32_t *entries, size_t n)
{
	uint64_t at = call->offset, end = call->offset + call->length;

	for (size_t i = 0; i + 1 < n; i += 2) {
		uint64_t len = min_u64(entries[i], end - at);

		if (!entries[i])
			return bad_answer(call, "has an empty extent");
		if (!len)
			return bad_answer(call, "lies outside");
		if (((entries[i + 1] & call->mask) != 0) == call->set &&
		    extents_add(call->ret, at, len, &call->err))
			return 0;
		at += len;
	}
	call->reach = at;
	return 0;
}

static int extents_arrived(void *data, const char *context, uint64_t offset, uint32_t *entries,
			   size_t n, int *error)
{
	struct nbd_call *call = data;

	if (*error || call->err.code)
		return 0;
	if (strcmp(context, call->conn->context) != 0)
		return bad_answer(call, "is about another context");
	if (offset != call->offset || call->reach != call->offset)
		return bad_answer(call, "comes twice or is about another place");
	return add_entries(call, entries, n);
}

static int map_completed(void *data, int *error)
{
	struct nbd_call *call = data;

	if (*error == 0 && !call->err.code && call->reach == call->offset)
		(void)bad_answer(call, "says nothing");
	return call_completed(data, error);
}

void nbd_conn_map(struct nbd_conn *conn, struct nbd_call *call, uint32_t mask, bool set,
		  struct extents *ret)
{
	assert(call->length <= NBD_MAP_MAX && conn->has_context);
	call->mask = mask;
	call->set = set;
	call->ret = ret;
	call->reach = call->offset;
	if (!begin(conn, call, "map"))
		return;
	started(conn, call,
		nbd_aio_block_status(conn->h, call->length, call->offset,
				     (nbd_extent_callback){extents_arrived, call, NULL},
				     (nbd_completion_callback){map_completed, call, NULL}, 0));
}
