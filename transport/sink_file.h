/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

#include "sink.h"

/*
 * A new file at path (0600; one that exists is TM_E_EXISTS), in which the disk lies as layout says.
 * Takes layout over, also on failure.
 */
int file_sink_open_layout(struct loop *loop, const char *path, uint64_t size, uint32_t block_size,
			  struct sink_layout *layout, struct disk_sink **ret,
			  struct error *err) TM_WUR;
