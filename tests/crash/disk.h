/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a power cut may leave of the files that the shim has seen.
 *
 * The rules are those of POSIX, not of one kind of file system:
 *	- a write is 4 KiB blocks, each of which is there, not there (zeroes, or the file ends
 *	  before), or torn: its first sectors are there, the rest is garbage;
 *	- making, renaming and removing change entries of folders; each change is there or not,
 *	  by itself and in any order, also the two halves of a rename;
 *	- a change is certain when an fsync of its file or folder that was issued after the
 *	  change was answered has been answered with success;
 *	- a file or folder whose entry is not there is lost with all that is in it.
 */
#pragma once

#include "shim.h"

/* What the disk forgets to do, for the control that such a disk is found out. */
enum disk_lie {
	LIE_NONE,
	LIE_FILES,   /* fsync of files does nothing */
	LIE_FOLDERS, /* fsync of folders does nothing */
};

struct disk;

struct disk *disk_new(const struct shim_event *events, size_t n, enum disk_lie lie);
void disk_free(struct disk *d);

/* Commands that had returned by then. */
unsigned disk_marks(const struct disk *d, unsigned tick);

/*
 * Chooses outcome number k of a cut after `tick`; false when there are no more.  At most
 * 64 + samples choices of entries are tried; everything random comes from *random.
 */
bool disk_choose(struct disk *d, unsigned tick, unsigned k, unsigned samples, uint64_t *random);
/* Equal for choices that leave the same files (those in tmp/ do not count). */
uint64_t disk_signature(const struct disk *d);
/* Makes the chosen files and folders below path, which is empty. */
void disk_write(const struct disk *d, const char *path);
