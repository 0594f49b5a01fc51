/* SPDX-License-Identifier: Apache-2.0 */
#include "sink.h"

#include <assert.h>

#define WAIT_MS 1000

/* A piece that is being written. */
struct sink_slot {
	struct piece *piece;
	uint32_t run;    /* next one to be started … */
	uint64_t place;  /* … from this byte of it */
	unsigned ops;    /* running */
	bool all_issued; /* run and place are at the end */
	struct sink_slot *next;
};

static struct disk_sink *sink_of(struct piece_sink *ps)
{
	return container_of(ps, struct disk_sink, pieces);
}

static void fail(struct disk_sink *sink, int code, const struct error *err)
{
	if (sink->code)
		return;
	sink->code = code;
	sink->err = *err;
}

void sink_add_op(struct disk_sink *sink, struct sink_op *op)
{
	op->sink = sink;
	op->next = sink->idle;
	sink->idle = op;
}

/* ---- slots ---- */

static struct sink_slot *slot_new(struct disk_sink *sink, struct piece *piece)
{
	struct sink_slot *slot = sink->idle_slots;

	if (slot)
		sink->idle_slots = slot->next;
	else
		slot = malloc(sizeof(*slot));
	if (!slot)
		return NULL;
	*slot = (struct sink_slot){.piece = piece};
	sink->nslots_busy++;
	return slot;
}

static void slot_end(struct disk_sink *sink, struct sink_slot *slot)
{
	struct piece *piece = slot->piece;

	slot->next = sink->idle_slots;
	sink->idle_slots = slot;
	sink->nslots_busy--;
	piece_release(piece);
}

/* ---- cutting a piece into ops ---- */

static void skip_run(struct sink_slot *slot)
{
	slot->run++;
	slot->place = 0;
}

/* In whole units of the target; what follows the disk's end there is padding. */
static uint64_t op_length(const struct disk_sink *sink, uint64_t offset, uint64_t left,
			  uint64_t max)
{
	uint64_t length = min_u64(left, sink->size - offset), padded;

	if (length > max)
		return max;
	if (align_up(length, sink->write_unit, &padded) && padded <= left &&
	    range_inside(offset, padded, sink->write_limit))
		return padded;
	return length;
}

/* Fills op with the next part of the slot's piece, as it lies in the disk.  False: there is none.
 */
static bool next_part(const struct disk_sink *sink, struct sink_slot *slot, struct sink_op *op)
{
	const struct piece *p = slot->piece;
	uint64_t bs = sink->block_size;

	for (; slot->run < p->nruns; skip_run(slot)) {
		const struct piece_run *run = &p->run[slot->run];
		uint64_t bytes = run->count * bs, offset = run->block * bs + slot->place;
		uint64_t left = bytes - slot->place;

		if ((run->zero && sink->skip_zeroes) || !left || offset >= sink->size)
			continue;
		op->into = NULL;
		op->offset = offset;
		if (run->zero) {
			op->data = NULL;
			op->length = op_length(sink, offset, left, sink->zero_max);
		} else {
			op->data = p->data + run->first * bs + slot->place;
			op->length = op_length(sink, offset, left, sink->write_max);
		}
		return true;
	}
	return false;
}

/* Takes op off the idle ones. */
static void start_op(struct disk_sink *sink, struct sink_op *op)
{
	sink->idle = op->next;
	sink->running++;
	if (op->into)
		sink->ops->read(sink, op);
	else if (op->data)
		sink->ops->write(sink, op);
	else
		sink->ops->zero(sink, op);
}

/* A part of the piece, or what the layout needs first. */
static void start_part(struct disk_sink *sink, struct sink_slot *slot, struct sink_op *op)
{
	uint64_t in_disk = op->offset;

	sink->held = sink->layout && !sink->layout->ops->place(sink->layout, op);
	op->slot = NULL;
	op->disk_bytes = 0;
	if (!sink->held) {
		op->slot = slot;
		op->disk_bytes = op->data ? min_u64(op->length, sink->size - in_disk) : 0;
		slot->ops++;
		slot->place += op->length;
	}
	start_op(sink, op);
}

/* Starts what there are ops for.  After a failure the rest is dropped. */
static void pump(struct disk_sink *sink)
{
	struct sink_slot *slot;

	while ((slot = sink->queue) && sink->idle && !sink->held) {
		struct sink_op *op = sink->idle;

		if (!sink->code && next_part(sink, slot, op)) {
			start_part(sink, slot, op);
			continue;
		}
		sink->queue = slot->next;
		if (!sink->queue)
			sink->queue_end = &sink->queue;
		slot->all_issued = true;
		if (!slot->ops)
			slot_end(sink, slot);
	}
}

void sink_op_end(struct sink_op *op, int code, const struct error *err)
{
	struct disk_sink *sink = op->sink;
	struct sink_slot *slot = op->slot;

	if (code)
		fail(sink, code, err);
	else
		sink->written_bytes += op->disk_bytes;
	sink->running--;
	if (!slot)
		sink->held = false;
	op->slot = NULL;
	op->next = sink->idle;
	sink->idle = op;
	if (slot && --slot->ops == 0 && slot->all_issued)
		slot_end(sink, slot);
	pump(sink);
}

/* ---- the piece_sink ---- */

static int check_runs(const struct disk_sink *sink, const struct piece *piece, struct error *err)
{
	uint64_t blocks = div_round_up(sink->size, sink->block_size);

	for (uint32_t i = 0; i < piece->nruns; i++) {
		const struct piece_run *run = &piece->run[i];

		if (!range_inside(run->block, run->count, blocks))
			return error_set(err, TM_E_RANGE,
					 "blocks %llu + %llu lie behind the end of the disk",
					 (unsigned long long)run->block,
					 (unsigned long long)run->count);
	}
	return 0;
}

static int sink_put(struct piece_sink *ps, struct piece *piece, struct error *err)
{
	struct disk_sink *sink = sink_of(ps);
	struct sink_slot *slot;
	int r;

	if (sink->code) {
		return error_pass(err, sink->code, &sink->err);
	}
	r = check_runs(sink, piece, err);
	if (r)
		return r;
	slot = slot_new(sink, piece);
	if (!slot)
		return error_nomem(err);
	*sink->queue_end = slot;
	sink->queue_end = &slot->next;
	pump(sink);
	return 0;
}

struct piece_sink *disk_sink_pieces(struct disk_sink *sink)
{
	return &sink->pieces;
}

/* ---- life ---- */

int sink_init(struct disk_sink *sink, struct error *err)
{
	if (!sink->block_size || (sink->block_size & (sink->block_size - 1)))
		return error_set(err, TM_E_RANGE, "blocks of %u bytes", sink->block_size);
	if (sink->size > (uint64_t)INT64_MAX - sink->block_size)
		return error_set(err, TM_E_RANGE, "a disk of %llu bytes is too large",
				 (unsigned long long)sink->size);
	sink->pieces.put = sink_put;
	sink->queue_end = &sink->queue;
	return 0;
}

static int wait_idle(struct disk_sink *sink, struct error *err)
{
	while (sink->running || sink->queue) {
		int r = loop_run_once(sink->loop, WAIT_MS, err);

		if (r)
			return r;
	}
	return 0;
}

static int write_rest(struct disk_sink *sink, struct error *err)
{
	int r = 0;

	while (!r && !sink->code) {
		struct sink_op *op = sink->idle;

		if (!op) {
			r = loop_run_once(sink->loop, WAIT_MS, err);
			continue;
		}
		op->into = NULL;
		op->disk_bytes = 0;
		if (!sink->layout->ops->rest(sink->layout, op))
			break;
		start_op(sink, op);
	}
	return r ? r : wait_idle(sink, err);
}

int disk_sink_finish(struct disk_sink *sink, struct disk_sink_counts *ret, struct error *err)
{
	int r = wait_idle(sink, err);

	if (!r && sink->layout)
		r = write_rest(sink, err);
	if (!r && !sink->code && !sink->no_flush) {
		struct sink_op *op = sink->idle;

		sink->idle = op->next;
		op->disk_bytes = 0;
		sink->running++;
		sink->ops->flush(sink, op);
		r = wait_idle(sink, err);
	}
	ret->written_bytes = sink->written_bytes;
	ret->unflushed = sink->no_flush;
	return r ? r : error_pass(err, sink->code, &sink->err);
}

void sink_done(struct disk_sink *sink)
{
	assert(!sink->nslots_busy);
	while (sink->idle_slots) {
		struct sink_slot *slot = sink->idle_slots;

		sink->idle_slots = slot->next;
		free(slot);
	}
	if (sink->layout)
		sink->layout->ops->free(sink->layout);
}

void disk_sink_abort(struct disk_sink *sink, const char *why)
{
	struct error err = {0};
	int code = error_set(&err, TM_E_CANCELED, "%s", why);

	fail(sink, code, &err);
	if (sink->ops->abort)
		sink->ops->abort(sink);
}

void disk_sink_free(struct disk_sink *sink)
{
	if (!sink)
		return;
	if (sink->running || sink->queue) {
		disk_sink_abort(sink, "given up");
		if (wait_idle(sink, NULL))
			return; /* the loop is broken: it still holds the ops */
	}
	sink->ops->free(sink);
}
