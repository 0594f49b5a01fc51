/* SPDX-License-Identifier: Apache-2.0 */
/* CRC-32C (Castagnoli, reflected polynomial 0x82f63b78; RFC 3720 appendix B.4). */
#pragma once

#include <stddef.h>
#include <stdint.h>

/* crc is 0 at the start, or the value so far. */
uint32_t crc32c(uint32_t crc, const void *data, size_t len);
