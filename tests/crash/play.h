/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A script of commands on a repository in a directory, and what must be there between them.
 * Points are called p0, p1, …, after what they hold; secrets s0, s1, … are key files.
 */
#pragma once

#include "crash.h"

#define MAX_POINTS  5
#define MAX_SECRETS 4

enum step_kind {
	STEP_INIT,
	STEP_BACKUP,  /* point `arg` */
	STEP_ABANDON, /* a backup that ends before its commit */
	STEP_FORGET,  /* points of the mask `arg` */
	STEP_PROTECT,
	STEP_UNPROTECT,
	STEP_PRUNE,
	STEP_REPAIR,     /* of what play_damage() does before */
	STEP_KEY_ADD,    /* secret `arg`, full */
	STEP_KEY_REMOVE, /* that of secret `arg` */
	STEP_KEY_CHANGE, /* to secret `arg`, from `from` */
	STEP_KEY_ROTATE, /* with secret `arg` */
};

struct step {
	enum step_kind kind;
	unsigned arg, from;
};

/* Sets as bit masks. */
struct model {
	bool made;
	bool any;     /* at least one point */
	bool damaged; /* points may be unreadable, which has to be said */
	unsigned points, held, secrets;
};

struct play {
	struct place place;
	struct rig rig;
	const struct step *script;
	unsigned steps;
	bool encrypted;
	bool lazy;                     /* the store does not sync what others have left */
	struct image past[MAX_POINTS]; /* what point i holds */
	char error[1200];              /* of the first thing that is wrong */
};

void play_up(struct play *p, const struct step *script, unsigned steps, bool encrypted,
	     uint64_t seed);
void play_down(struct play *p);

const char *step_name(enum step_kind kind);
/* What is there when the first `done` steps have been done. */
struct model play_model(const struct play *p, unsigned done);

/* What both have, and what one of them has. */
struct model model_both(const struct model *a, const struct model *b);
struct model model_either(const struct model *a, const struct model *b);

/*
 * Does step i on the repository at path, or what is left to do of it: a person who runs a command
 * again.  Opens and closes the repository.
 */
int play_step(struct play *p, unsigned i, const char *path, struct error *err);

/* Damages a map segment of the newest session. */
void play_damage(const char *path);

/* Opens with a secret that works; TM_E_NOTFOUND: there is no repository. */
int play_open(struct play *p, const char *path, unsigned secrets, struct error *err);
/* The points that are listed, and which of them are protected. */
int play_points(struct play *p, unsigned *ret_points, unsigned *ret_held, struct error *err);

/* Removes all that is stale by then and compacts all that can be compacted. */
int play_prune(struct play *p, struct error *err);
/* Forgets all unprotected points but the newest one; *ret: what is kept. */
int play_forget_old(struct play *p, unsigned *ret, struct error *err);

/*
 * What lies at path is right: the points of `least` are there, perhaps those of `most`, and no
 * others; each reads bit by bit; verify finds no damage.  Otherwise -1 and p->error.
 */
int play_check(struct play *p, const char *path, const struct model *least,
	       const struct model *most);
