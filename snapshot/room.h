/* SPDX-License-Identifier: Apache-2.0 */
/* Room for what the guest writes while it is on its overlays. */
#pragma once

#include "journal.h"

/*
 * Is there room on the file system of the disk's overlay, for the guest's writes of the moment and
 * for the merge?  *sum grows by what the overlay takes.  TM_E_NOSPACE: there is not.
 */
int room_check_disk(const struct journal_disk *d, uint64_t *sum, struct error *err) TM_WUR;
