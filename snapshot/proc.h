/* SPDX-License-Identifier: Apache-2.0 */
/* What /proc tells about other processes.  Best effort: without rights there is no answer. */
#pragma once

#include "snapshot.h"

#include <sys/types.h>

#define PROC_NAME_MAX   64
#define PROC_GUARD_NAME "tidemark-guard" /* of the process that watches over a run */

/* A process other than ours that has the file open. */
bool proc_find_holder(const char *path, pid_t *ret_pid, char name[PROC_NAME_MAX]);
bool proc_has_open(pid_t pid, const char *path);
/* Is it a QEMU all of whose open files can be seen, and none of them is the one at `path`? */
bool proc_qemu_lacks(pid_t pid, const char *path);
/* The process whose command line holds `program` as its program's name and an argument that ends
 * with `argument_end`. */
bool proc_find_command(const char *program, const char *argument_end, pid_t *ret_pid);
/*
 * The process that listens on a unix socket.  *ret_pid may be NULL.  Takes a place in the queue of
 * connections for a moment, of which QEMU's monitor has one.
 */
bool proc_listener(const char *path, pid_t *ret_pid);
/* When a process started, in clock ticks since boot; 0: there is no such process, or it is dead. */
uint64_t proc_start(pid_t pid);
/* 'R', 'S', 'D', 'T', 'Z', …: what it is doing; 'X': there is no such process. */
char proc_state(pid_t pid);
/* Is it the guard of a run that ended? */
bool proc_is_guard(pid_t pid);
/* " (process 12, qemu-system-x86)" for messages, "" when nobody is found. */
void proc_holder_text(const char *path, char text[PROC_NAME_MAX + 32]);
