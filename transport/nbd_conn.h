/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One connection to an NBD server: libnbd's asynchronous calls, driven by polls on
 * the loop.  What the source and the sink are made of.
 *
 *	connecting ──▸ ready ──▸ lost      the server went away, or broke the protocol
 *	                 └─────▸ aborted   nbd_conn_abort()
 *
 * In the last two states libnbd's handle is closed, and every call that was running
 * or is started later ends with an error.
 */
#pragma once

#include "internal.h"

struct nbd_handle;
struct nbd_conn;

/* One request.  Embedded in the caller's object; the connection's until done(). */
struct nbd_call {
	/* code is 0 or TM_E_*, then err says what failed and where.  Never called from
	 * inside the function that starts the call. */
	void (*done)(struct nbd_call *call, int code);
	struct error err;
	const char *verb; /* for messages */
	uint64_t offset;
	uint64_t length;
	/* The rest is the connection's own. */
	struct nbd_conn *conn;
	struct nbd_call *prev, *next;
	int64_t cookie;      /* libnbd's name for it; 0: none */
	int errnum;          /* the server's answer */
	struct extents seen; /* reads: what of the export has been delivered so far */
	bool set;            /* maps: which value of the flags counts … */
	uint32_t mask;       /* … and of which flag */
	uint64_t reach;      /* maps: end of the answer */
	struct extents *ret;
};

struct nbd_conn {
	struct loop *loop;
	struct nbd_handle *h; /* NULL when lost or aborted */
	const char *context;  /* the one metadata context asked for, or NULL; borrowed */
	uint64_t size;        /* of the export */
	uint32_t min_block;   /* requests are multiples of it (a power of two) */
	uint32_t max_payload; /* of a read or write, a multiple of min_block */
	bool has_context;     /* the server agreed to `context` */
	bool multi_conn;
	bool can_flush, can_zero, read_only;
	unsigned in_flight;
	/* own */
	struct nbd_call *running;
	struct nbd_call *finished, **finished_end;
	struct loop_op readable, writable, deliver;
	bool ready;
	int why;           /* code when lost or aborted */
	struct error lost; /* and its text */
};

/*
 * Connects and negotiates; context NULL: none.  That the server does not know the context is no
 * error, see has_context.  Runs the loop.
 */
int nbd_conn_open(struct loop *loop, const struct nbd_address *addr, const char *context,
		  uint64_t deadline_ms, struct nbd_conn **ret, struct error *err) TM_WUR;

/* No call may be running.  Runs the loop. */
void nbd_conn_free(struct nbd_conn *conn);
TM_CLEANUP(struct nbd_conn, nbd_conn_free)

/* Ends all calls with TM_E_CANCELED. */
void nbd_conn_abort(struct nbd_conn *conn);

/* call->done, offset and length have to be set.  buf is borrowed until done(). */
void nbd_conn_read(struct nbd_conn *conn, struct nbd_call *call, void *buf);
void nbd_conn_write(struct nbd_conn *conn, struct nbd_call *call, const void *buf);
void nbd_conn_zero(struct nbd_conn *conn, struct nbd_call *call);
void nbd_conn_flush(struct nbd_conn *conn, struct nbd_call *call);

/*
 * Block status of the connection's context.  The parts whose flag `mask` is set (or is
 * not, with set = false) are added to *ret; call->reach is how far the answer goes.
 */
void nbd_conn_map(struct nbd_conn *conn, struct nbd_call *call, uint32_t mask, bool set,
		  struct extents *ret);

/* length bytes at offset in one request of nbd_conn_map() at most. */
#define NBD_MAP_MAX ((uint64_t)UINT32_MAX - UINT16_MAX)
