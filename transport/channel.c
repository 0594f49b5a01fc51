/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A unix stream socket that speaks lines.  The descriptor is non-blocking; every
 * wait is a poll() bounded by the caller's deadline.  Bytes that arrived but were
 * not yet asked for stay in `in`.
 */
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#define RECV_BYTES 65536 /* in one go; answers of QEMU go up to some hundred KiB */
#define RETRY_MS   5     /* between attempts to enter a full queue of connections */

struct socket_channel {
	struct channel ch;
	int fd;
	struct buf in;  /* received; the first `used` bytes have been handed out */
	size_t used;    /* start of the present line */
	size_t scanned; /* up to here there is no line end; >= used */
	char *path;     /* for messages */
};

static uint64_t now_ms(void)
{
	return clock_monotonic_ms(&clock_system);
}

static struct socket_channel *socket_channel_of(struct channel *ch)
{
	return container_of(ch, struct socket_channel, ch);
}

/* Waits for events; TM_E_TIMEOUT when the deadline passes. */
static int wait_for(struct socket_channel *sc, short events, uint64_t deadline_ms,
		    struct error *err)
{
	for (;;) {
		struct pollfd p = {.fd = sc->fd, .events = events};
		uint64_t now = now_ms();
		int r = poll(&p, 1, now < deadline_ms ? (int)min_u64(deadline_ms - now, 60000) : 0);

		if (r > 0)
			return 0;
		if (r < 0 && errno != EINTR)
			return error_errno(err, errno, "cannot wait for socket %s", sc->path);
		if (now_ms() >= deadline_ms)
			return error_set(err, TM_E_TIMEOUT, "socket %s: no answer in time",
					 sc->path);
	}
}

static int peer_failed(struct socket_channel *sc, int errnum, struct error *err)
{
	if (errnum == EPIPE || errnum == ECONNRESET || errnum == ENOTCONN)
		return error_set(err, TM_E_PEER, "socket %s: the other side closed it", sc->path);
	return error_errno(err, errnum, "socket %s", sc->path);
}

static int socket_send(struct channel *ch, const void *bytes, size_t len, uint64_t deadline_ms,
		       struct error *err)
{
	struct socket_channel *sc = socket_channel_of(ch);
	const uint8_t *p = bytes;

	while (len) {
		ssize_t n = send(sc->fd, p, len, MSG_NOSIGNAL);

		if (n >= 0) {
			p += n;
			len -= (size_t)n;
		} else if (errno == EAGAIN) {
			int r = wait_for(sc, POLLOUT, deadline_ms, err);

			if (r)
				return r;
		} else if (errno != EINTR) {
			return peer_failed(sc, errno, err);
		}
	}
	return 0;
}

/* Moves the unread bytes to the front when that is worth it. */
static void compact(struct socket_channel *sc)
{
	if (sc->used < sc->in.len && sc->used < RECV_BYTES)
		return;
	if (sc->used < sc->in.len)
		(void)memmove(sc->in.data, sc->in.data + sc->used, sc->in.len - sc->used);
	sc->in.len -= sc->used;
	sc->scanned -= sc->used;
	sc->used = 0;
}

/* Receives what is there, waiting for the first byte. */
static int receive(struct socket_channel *sc, uint64_t deadline_ms, struct error *err)
{
	int r;

	compact(sc);
	r = buf_reserve(&sc->in, RECV_BYTES, err);
	if (r)
		return r;
	for (;;) {
		ssize_t n = recv(sc->fd, sc->in.data + sc->in.len, RECV_BYTES, 0);

		if (n > 0) {
			sc->in.len += (size_t)n;
			return 0;
		}
		if (n == 0)
			return peer_failed(sc, EPIPE, err);
		if (errno == EAGAIN) {
			r = wait_for(sc, POLLIN, deadline_ms, err);
			if (r)
				return r;
		} else if (errno != EINTR) {
			return peer_failed(sc, errno, err);
		}
	}
}

static int line_too_long(struct socket_channel *sc, size_t max, struct error *err)
{
	return error_set(err, TM_E_PEER, "socket %s: a line is longer than %zu bytes", sc->path,
			 max);
}

/* The line is in.data[used, end), its LF at `end`. */
static int hand_out(struct socket_channel *sc, size_t end, size_t max, struct buf *ret,
		    struct error *err)
{
	size_t len = end - sc->used;
	int r;

	if (len && sc->in.data[end - 1] == '\r')
		len--;
	if (len > max)
		return line_too_long(sc, max, err);
	ret->len = 0;
	r = buf_reserve(ret, len + 1, err);
	if (r)
		return r;
	(void)memcpy(ret->data, sc->in.data + sc->used, len);
	ret->data[len] = '\0';
	ret->len = len;
	sc->used = end + 1;
	sc->scanned = sc->used;
	return 0;
}

static int socket_recv_line(struct channel *ch, size_t max, uint64_t deadline_ms, struct buf *ret,
			    struct error *err)
{
	struct socket_channel *sc = socket_channel_of(ch);

	for (;;) {
		size_t left = sc->in.len - sc->scanned;
		const uint8_t *lf = left ? memchr(sc->in.data + sc->scanned, '\n', left) : NULL;
		int r;

		if (lf)
			return hand_out(sc, (size_t)(lf - sc->in.data), max, ret, err);
		sc->scanned = sc->in.len;
		/* One more byte than max: it may be the CR of the line end. */
		if (sc->in.len - sc->used > max && sc->in.len - sc->used - max > 1)
			return line_too_long(sc, max, err);
		r = receive(sc, deadline_ms, err);
		if (r)
			return r;
	}
}

static void socket_free(struct channel *ch)
{
	struct socket_channel *sc = socket_channel_of(ch);

	if (sc->fd >= 0)
		(void)close(sc->fd);
	buf_done(&sc->in);
	free(sc->path);
	free(sc);
}

static const struct channel_ops socket_ops = {
	.send = socket_send,
	.recv_line = socket_recv_line,
	.free = socket_free,
};

/* Tries again as long as the listener's queue is full. */
static int connect_until(const char *path, uint64_t deadline_ms, int *ret_fd, struct error *err)
{
	for (;;) {
		struct error e = {0};
		int r = unix_socket_connect(path, ret_fd, &e);

		if (r != TM_E_BUSY) {
			return error_pass(err, r, &e);
		}
		if (now_ms() >= deadline_ms)
			return error_set(err, TM_E_TIMEOUT,
					 "socket %s: others are waiting and none is served", path);
		clock_sleep_ms(&clock_system, RETRY_MS);
	}
}

int channel_connect(const char *path, uint64_t deadline_ms, struct channel **ret, struct error *err)
{
	struct socket_channel *sc = calloc(1, sizeof(*sc));
	int r;

	if (!sc)
		return error_nomem(err);
	sc->ch.ops = &socket_ops;
	sc->fd = -1;
	r = text_copy(path, &sc->path, err);
	if (!r)
		r = connect_until(path, deadline_ms, &sc->fd, err);
	if (r) {
		socket_free(&sc->ch);
		return r;
	}
	*ret = &sc->ch;
	return 0;
}

int channel_send(struct channel *ch, const void *bytes, size_t len, uint64_t deadline_ms,
		 struct error *err)
{
	return ch->ops->send(ch, bytes, len, deadline_ms, err);
}

int channel_recv_line(struct channel *ch, size_t max, uint64_t deadline_ms, struct buf *ret,
		      struct error *err)
{
	return ch->ops->recv_line(ch, max, deadline_ms, ret, err);
}

void channel_free(struct channel *ch)
{
	if (ch)
		ch->ops->free(ch);
}
