/* SPDX-License-Identifier: Apache-2.0 */
/* The public header of common/: leaf helpers that every folder may use. */
#pragma once

#include "buf.h"
#include "checked.h"
#include "cleanup.h"
#include "clock.h"
#include "container.h"
#include "crc32c.h"
#include "endian.h"
#include "error.h"
#include "id.h"
#include "io.h"
#include "log.h"
#include "loop.h"
#include "piece.h"
#include "pool.h"
#include "rundir.h"
#include "server.h"
#include "spawn.h"
#include "text.h"
