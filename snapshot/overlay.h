/* SPDX-License-Identifier: Apache-2.0 */
/* The file that takes the guest's writes while its disk is read. */
#pragma once

#include "guest.h"
#include "journal.h"

#include <sys/stat.h>

#define IMG_TIMEOUT_MS   60000 /* qemu-img on metadata */
#define CHECK_TIMEOUT_MS (3600u * 1000)
#define OVERLAY_STEM     180 /* characters of the base's name that the overlay's begins with */

/*
 * Where the overlay of a base goes, and what it is called: by what becomes of it.  dir NULL: beside
 * the base.
 */
int overlay_path(const char *base, const char *dir, const struct tm_id *point, size_t index,
		 enum collapse_how how, char **ret, struct error *err) TM_WUR;

/*
 * Makes an empty overlay of exactly `size` bytes over base, with the base's owner and mode,
 * durably. Nothing is left behind on failure.
 *
 * *apart: whether the guest's data shall go, and then whether they do go, into a file of their own
 * (overlay_data_path), at the offsets they have on the disk.  In a qcow2 image that holds its data
 * a cluster which the guest has zeroed is soon another's, and when QEMU dies before it has written
 * that, the guest finds the other's data where zeroes were, also such as it had flushed.
 */
int overlay_create(const char *path, const char *base, const char *format, uint64_t size,
		   bool *apart, struct error *err) TM_WUR;

/* Where the data of an overlay lie that has them apart. */
int overlay_data_path(const char *path, char **ret, struct error *err) TM_WUR;

/* What stat says, with the blocks of both files, and the later time of change. */
int overlay_stat(const char *path, struct stat *ret, struct error *err) TM_WUR;

/* Removes it and its data, durably; also what a removal that was cut short left. */
int overlay_remove(const char *path, struct error *err) TM_WUR;

/*
 * Is it fit to be merged?  TM_E_CORRUPT: its tables contradict each other.  Space that is lost in
 * it, as after each sudden end of QEMU, is fine.
 */
int overlay_check(const char *path, struct error *err) TM_WUR;

/* *ret: which of its files is not there, itself or its data.  NULL: none. */
int overlay_missing(const char *path, char **ret, struct error *err) TM_WUR;

/* Is there nothing of the guest in it?  No such file is true, one whose data are gone is not. */
int overlay_empty(const char *path, bool *ret, struct error *err) TM_WUR;
