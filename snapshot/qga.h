/* SPDX-License-Identifier: Apache-2.0 */
/* The guest agent inside the guest, over its socket on the host.  Every call is bounded. */
#pragma once

#include "snapshot.h"

struct qga;

/* Connects and synchronises.  TM_E_TIMEOUT: nobody answers inside the guest. */
int qga_open(const char *path, unsigned timeout_ms, struct qga **ret, struct error *err) TM_WUR;
int qga_open_channel(struct channel *ch, const char *path, unsigned timeout_ms, struct qga **ret,
		     struct error *err) TM_WUR;
void qga_free(struct qga *a);
TM_CLEANUP(struct qga, qga_free)

int qga_ping(struct qga *a, unsigned timeout_ms, struct error *err) TM_WUR;
/* The agent's version, owned by the caller. */
int qga_info(struct qga *a, unsigned timeout_ms, char **ret_version, struct error *err) TM_WUR;
int qga_frozen(struct qga *a, unsigned timeout_ms, bool *ret, struct error *err) TM_WUR;
/*
 * Freezes all file systems that can be; *ret_count: how many, perhaps none.  After a failure, and
 * an answer that is no such number is one (TM_E_PEER), the guest may be frozen: thaw.
 */
int qga_freeze(struct qga *a, unsigned timeout_ms, uint64_t *ret_count, struct error *err) TM_WUR;
/*
 * Thaws, asks whether it is thawed, and tries again after a lost reply, all within timeout_ms.
 * 0 only when the agent says that it is thawed.
 */
int qga_thaw(struct qga *a, unsigned timeout_ms, struct error *err) TM_WUR;
