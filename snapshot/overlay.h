/* SPDX-License-Identifier: Apache-2.0 */
/* The file that takes the guest's writes while its disk is read. */
#pragma once

#include "guest.h"
#include "journal.h"

#define IMG_TIMEOUT_MS 60000 /* qemu-img on metadata */
#define OVERLAY_STEM   180   /* characters of the base's name that the overlay's begins with */

/*
 * Where the overlay of a base goes, and what it is called: by what becomes of it.  dir NULL: beside
 * the base.
 */
int overlay_path(const char *base, const char *dir, const struct tm_id *point, size_t index,
		 enum collapse_how how, char **ret, struct error *err) TM_WUR;

/*
 * Makes an empty overlay of exactly `size` bytes over base, with the base's owner and mode,
 * durably. Nothing is left behind on failure.
 */
int overlay_create(const char *path, const char *base, const char *format, uint64_t size,
		   struct error *err) TM_WUR;

/* Is there nothing of the guest in it?  No such file is true as well. */
int overlay_empty(const char *path, bool *ret, struct error *err) TM_WUR;
