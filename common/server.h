/* SPDX-License-Identifier: Apache-2.0 */
/* A program that is started to serve us, and what it says on its stderr. */
#pragma once

#include "error.h"

#include <stdbool.h>
#include <sys/types.h>

/* All zero: none. */
struct server {
	pid_t pid;        /* 0: none, or it has ended */
	const char *name; /* argv[0], borrowed; NULL: none was started */
	int said;         /* read end of its stderr; valid with name */
	int ended_by;     /* the signal, or 0; valid when it has ended */
};

/* As spawn_start().  What it says and nobody reads is lost: it never waits for us. */
int server_start(const char *const argv[], struct server *ret, struct error *err) TM_WUR;

bool server_ended(struct server *s);

/*
 * Where it has ended, appends that to a message, and the last line that it said, without control
 * characters.
 */
void server_explain(struct server *s, struct error *err);

/* Ends it: SIGTERM, SIGKILL after timeout_ms. */
void server_stop(struct server *s, unsigned timeout_ms);
