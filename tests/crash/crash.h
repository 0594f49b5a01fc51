/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of this folder share: a place, a repository in a directory, images. */
#pragma once

#include "../unit/test_repo.h"
#include "shim.h"

#define BS 4096

struct place {
	char base[64]; /* in memory where possible: nothing here depends on a real disk */
	char run[96];  /* root of the recorded run */
	char repo[112];
	char left[96]; /* what a power cut left */
	char left_repo[112];
};

void place_up(struct place *p);
void place_down(struct place *p);
void remove_tree(const char *path);
/* to is replaced. */
void copy_tree(const char *from, const char *to);

void rig_start(struct rig *rig, uint64_t seed);
void rig_stop(struct rig *rig);

/* Opens, or makes, the repository at path as rig->repo. */
int rig_repo(struct rig *rig, const char *path, bool create, struct error *err);
void rig_close(struct rig *rig);

/* Reads the point; 1 when it is as the image, 0 when it differs, or an error. */
int rig_matches(struct rig *rig, const struct point *p, const struct image *im, struct error *err);

/* Mostly well compressible, so that files stay small; with full: noise, too. */
void image_fill(struct image *im, uint64_t *random, unsigned times);
