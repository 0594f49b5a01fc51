/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of transport/ share. */
#pragma once

#include "transport.h"

#include <stddef.h>

/* ---- unix_socket.c ---- */

/*
 * One attempt to connect a unix stream socket: close-on-exec, non-blocking, any
 * length of path.  TM_E_NOTFOUND when there is no such socket or nobody listens
 * on it; TM_E_BUSY when the listener's queue is full, which may pass.
 */
int unix_socket_connect(const char *path, int *ret_fd, struct error *err) TM_WUR;
