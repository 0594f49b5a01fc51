/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Passwords and key files: where they come from, and that they go again.  A secret is never an
 * argument; it is kept in locked memory that is wiped, and while there is one the process leaves
 * no core dump.
 */
#pragma once

#include "agent.h"

/* Takes TIDEMARK_PASSWORD out of the environment, so that no child inherits it.  Before threads. */
int secrets_start(struct agent *a, struct error *err) TM_WUR;
void secrets_stop(struct agent *a);

/* For repo_open_with(): asks for the secret only when it is needed, and once. */
struct repo_credentials secret_credentials(struct agent *a);

/* The secret that the repository was opened with. */
struct repo_secret secret_used(const struct agent *a);

/*
 * The secret of a key to be made: for init those named for every command (a key file is made when
 * it does not exist), else --new-password-file or --new-key-file (made, too); without any, a
 * password is asked for twice.  A key file that is there already is used.
 */
int secret_new(struct agent *a, struct repo_secret *ret, struct error *err) TM_WUR;

/* The key was not made after all: removes the file that secret_new() made for it. */
void secret_forget(struct agent *a);

/* Names a secret in the options or the environment? */
bool secret_given(const struct agent *a);
