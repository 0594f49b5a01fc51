/* SPDX-License-Identifier: Apache-2.0 */
/* Frozen bases made readable over NBD, and the end of that. */
#pragma once

#include "guest.h"
#include "journal.h"

/* One disk to export. */
struct export
{
	const char *node;   /* of the base */
	const char *bitmap; /* or NULL */
	bool persistent;    /* the bitmap is in the file, where another process can see it */
	pid_t pid;          /* qemu-nbd of ours, 0 with QEMU's own server */
	char *socket;       /* owned */
	char *name;         /* of the export, owned */
	bool bitmap_lost;   /* qemu-nbd cannot see it */
};

/* Fills socket, name, pid of each of j->ndisks exports; what was started is in the journal. */
int exports_start(struct guest *g, struct journal *j, struct export *v, struct error *err) TM_WUR;

/* Ends whatever the journal's run exports, with or without v (recovery), and waits until gone. */
int exports_end(struct guest *g, struct journal *j, struct export *v, struct error *err) TM_WUR;

/* True when exports_end() would find something to do in QEMU. */
int exports_found(struct guest *g, const struct journal *j, bool *ret, struct error *err) TM_WUR;

/* Ends the qemu-nbd processes of the journal's run, also when QEMU is dead. */
void exports_stop_servers(const struct journal *j, struct export *v);

/* qemu-nbd -r of one image on a private socket; returns once it listens. */
int export_serve_file(const char *file, const char *format, const char *bitmap, const char *socket,
		      pid_t *ret, struct error *err) TM_WUR;

void exports_free(struct export *v, size_t n);
