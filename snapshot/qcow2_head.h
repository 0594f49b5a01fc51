/* SPDX-License-Identifier: Apache-2.0 */
/* What the header of a qcow2 image says (docs/interop/qcow2 of QEMU), read without QEMU. */
#pragma once

#include "common/common.h"

#define QCOW2_NAME_LONGEST 1023 /* longer ones QEMU does not open */

struct qcow2_head {
	bool data_apart;                      /* its data are in a file of their own */
	char backing[QCOW2_NAME_LONGEST + 1]; /* as it stands there; "" for none */
};

/* False: it cannot be read, or is no such image. */
bool qcow2_head_read(const char *path, struct qcow2_head *ret);
