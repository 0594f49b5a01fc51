/* SPDX-License-Identifier: Apache-2.0 */
/* Frozen bases made readable over NBD, and the end of that. */
#pragma once

#include "guest.h"
#include "journal.h"

/* One disk to export. */
struct export
{
	char *image;             /* the base as QEMU has it open, for qemu-nbd; owned */
	const char *node;        /* of the base */
	const char *bitmap;      /* or NULL */
	bool persistent;         /* the bitmap is in the file, where another process can see it */
	struct server server;    /* qemu-nbd of ours */
	char *socket;            /* owned */
	char bitmap_reason[256]; /* why a transient bitmap cannot be seen; "" when it can */
};

/* Fills image; base is the format node of the frozen base. */
int export_describe(struct export *e, const struct block_node *base, struct error *err) TM_WUR;

/*
 * The same of a file by itself, without the images below.  unlocked: others may have it open for
 * writing, and may begin to.
 */
int export_alone(const char *file, const char *format, bool unlocked, char **ret,
		 struct error *err) TM_WUR;

/* A description of an image as qemu-img and qemu-nbd take it for a name. */
int export_text(const json_t *description, char **ret, struct error *err) TM_WUR;

/* Serves each of j->ndisks exports, which have been described: fills socket, pid. */
int exports_start(struct guest *g, struct journal *j, struct export *v, struct error *err) TM_WUR;

/* Ends whatever the journal's run exports, with or without v (recovery). */
int exports_end(struct guest *g, struct journal *j, struct export *v, struct error *err) TM_WUR;

/* The same where there is no QEMU: ends the servers, removes their directory. */
void exports_stop_servers(const struct journal *j, struct export *v);

/*
 * Starts qemu-nbd -r of one image, a file or, with format NULL, a "json:" description, on a private
 * socket.
 */
int export_serve(const char *image, const char *format, const char *bitmap, const char *socket,
		 struct server *ret, struct error *err) TM_WUR;
/* Waits until it listens. Stops it when it does not. `file` is for the message. */
int export_wait(const char *file, const char *socket, struct server *server,
		struct error *err) TM_WUR;

void exports_free(struct export *v, size_t n);
