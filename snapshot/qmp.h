/* SPDX-License-Identifier: Apache-2.0 */
/* QEMU's monitor protocol: one command at a time, each with a deadline. */
#pragma once

#include "jsonx.h"
#include "snapshot.h"

/* One line may be this long: a guest with hundreds of nodes stays far below. */
#define QMP_LINE_MAX ((size_t)32 << 20)
/* Events kept for qmp_next_event(); older ones are dropped: nothing depends on events. */
#define QMP_EVENTS_MAX     64
#define QMP_EVENT_NAME_MAX 48
/* How long a command may take that does no work on images. */
#define QMP_TIMEOUT_MS 30000

struct qmp;

/* What QEMU answered to a command it refused. */
struct qmp_fault {
	char class[64];
	char desc[512];
};

/*
 * Connects, waits for the greeting, negotiates.  hooks are borrowed for the life of the client.
 * TM_E_NOTFOUND: nobody listens; TM_E_BUSY: no greeting within timeout_ms, for QEMU serves one
 * client at a time; TM_E_PEER: not QMP.
 */
int qmp_open(const char *path, unsigned timeout_ms, const struct snapshot_hooks *hooks,
	     struct qmp **ret, struct error *err) TM_WUR;

/* The same over a channel that is there already (taken over, also on failure). */
int qmp_open_channel(struct channel *ch, const char *path, unsigned timeout_ms,
		     const struct snapshot_hooks *hooks, struct qmp **ret,
		     struct error *err) TM_WUR;
void qmp_free(struct qmp *q);
TM_CLEANUP(struct qmp, qmp_free)

/*
 * Runs one command.  args is stolen, also on failure, and may be NULL.  *ret (may be NULL) is the
 * value of "return", a new reference.  TM_E_PEER: QEMU refused, qmp_fault() says how; TM_E_TIMEOUT:
 * no answer yet, the command may still run; TM_E_STALE: the connection is lost (qmp_lost()).
 */
int qmp_call(struct qmp *q, const char *command, json_t *args, unsigned timeout_ms, json_t **ret,
	     struct error *err) TM_WUR;

const struct qmp_fault *qmp_fault(const struct qmp *q); /* of the last refused command */
bool qmp_lost(const struct qmp *q);

/* QEMU's process; 0 when it cannot be told.  Asked once per connection. */
pid_t qmp_peer(struct qmp *q);

/* Waits until an event comes, at most ms; shortens a poll, never replaces it. */
void qmp_pause(struct qmp *q, unsigned ms);

/* The oldest event not yet taken; false when there is none. */
bool qmp_next_event(struct qmp *q, char name[QMP_EVENT_NAME_MAX]);
