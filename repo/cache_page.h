/* SPDX-License-Identifier: Apache-2.0 */
/* Between the files of the cache: cache.c has tables, cache_page.c pages. */
#pragma once

#include "cache.h"

/* Compactions that may happen while a segment is being read. */
#define MAX_RELISTS 8

struct cache {
	struct repo *repo;
	struct tables *tables; /* most recently used first */
	struct page *pages;    /* most recently used last; an array, for it is gone through often */
	size_t npages, pages_cap;
	uint8_t scratch[PAGE_MAX_BYTES]; /* of a page that is being decoded */
	struct tables_load *tables_loads;
	struct page_load *page_loads;
};

/* Drops the pages that were used least recently, beyond `max` bytes. */
void cache_trim_pages(struct cache *c, size_t max);

/* Answers all that wait. */
void cache_wake(struct cache_wait *list, int code, const struct error *err);
void cache_wait_add(struct cache_wait **list, struct cache_wait *w);
/* Error text names the object once. */
void cache_name_object(struct error *err, const char *key);
