/* SPDX-License-Identifier: Apache-2.0 */
/* A file or block device as the target of a restore: raw, or a file with a layout. */
#include "sink_file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#define FILE_DEPTH     32
#define FILE_WRITE_MAX (1 << 20)
#define FILE_ZERO_MAX                                                                   \
	((uint64_t)16 << 20)      /* a device may write them out, and cannot be stopped \
				   */
#define FILE_ZERO_BYTES (1 << 18) /* written zeroes, where nothing else works */

/* Ways to zero a part, each one tried when the one before is not supported. */
enum zero_way {
	ZERO_PUNCH,
	ZERO_RANGE,
	ZERO_WRITE,
};

struct file_op {
	struct sink_op op; /* first */
	struct loop_op io;
	enum zero_way way;
	uint64_t done; /* bytes of the op */
};

struct file_sink {
	struct disk_sink sink;
	int fd;
	char *path;
	struct file_op ops[FILE_DEPTH];
	enum zero_way way; /* the best that works here */
	uint8_t *zeroes;   /* FILE_ZERO_BYTES, once needed */
};

static struct file_sink *file_sink_of(struct disk_sink *sink)
{
	return container_of(sink, struct file_sink, sink);
}

static struct file_op *file_op_of(struct sink_op *op)
{
	return container_of(op, struct file_op, op);
}

static void end_with_errno(struct file_op *fo, const char *what, int errnum)
{
	struct file_sink *fs = file_sink_of(fo->op.sink);
	struct error err = {0};
	int r = error_errno(&err, errnum, "%s: %s at offset %llu", fs->path, what,
			    (unsigned long long)(fo->op.offset + fo->done));

	sink_op_end(&fo->op, r, &err);
}

/* ---- writing and reading ---- */

static void transfer_more(struct file_op *fo)
{
	struct file_sink *fs = file_sink_of(fo->op.sink);
	const struct sink_op *op = &fo->op;
	uint64_t offset = op->offset + fo->done, left = op->length - fo->done;
	uint32_t len = (uint32_t)min_u64(left, FILE_WRITE_MAX);

	if (op->into)
		loop_read(fs->sink.loop, &fo->io, fs->fd, op->into + fo->done, len, offset);
	else if (op->data)
		loop_write(fs->sink.loop, &fo->io, fs->fd, op->data + fo->done, len, offset);
	else
		loop_write(fs->sink.loop, &fo->io, fs->fd, fs->zeroes,
			   (uint32_t)min_u64(left, FILE_ZERO_BYTES), offset);
}

static void transferred(struct loop_op *io, int res)
{
	struct file_op *fo = container_of(io, struct file_op, io);
	const struct disk_sink *sink = fo->op.sink;

	if (res == -EINTR || res == -EAGAIN)
		res = 0;
	else if (res <= 0) {
		end_with_errno(fo, fo->op.into ? "read" : "write", res ? -res : EIO);
		return;
	}
	fo->done += (uint64_t)res;
	if (fo->done < fo->op.length && !sink->code)
		transfer_more(fo);
	else
		sink_op_end(&fo->op, sink->code, &sink->err);
}

static void file_transfer(struct disk_sink *sink, struct sink_op *op)
{
	struct file_op *fo = file_op_of(op);

	(void)sink;
	fo->done = 0;
	fo->io.done = transferred;
	transfer_more(fo);
}

/* ---- zeroing ---- */

static void zero_try(struct file_op *fo);

static void zeroed(struct loop_op *io, int res)
{
	struct file_op *fo = container_of(io, struct file_op, io);
	struct file_sink *fs = file_sink_of(fo->op.sink);

	if (res == -EINTR || res == -EAGAIN) {
		zero_try(fo);
	} else if (res == -EOPNOTSUPP || res == -ENOSYS || res == -ENODEV || res == -EINVAL) {
		/* EINVAL is about this one place (alignment), the others about the device. */
		fo->way++;
		if (res != -EINVAL && fs->way < fo->way)
			fs->way = fo->way;
		zero_try(fo);
	} else if (res < 0) {
		end_with_errno(fo, "zeroing", -res);
	} else {
		sink_op_end(&fo->op, 0, NULL);
	}
}

static void zero_deferred_nomem(struct loop_op *io, int res)
{
	(void)res;
	end_with_errno(container_of(io, struct file_op, io), "zeroing", ENOMEM);
}

static void zero_try(struct file_op *fo)
{
	struct file_sink *fs = file_sink_of(fo->op.sink);

	fo->io.done = zeroed;
	switch (fo->way) {
	case ZERO_PUNCH:
		loop_fallocate(fs->sink.loop, &fo->io, fs->fd,
			       FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, fo->op.offset,
			       fo->op.length);
		return;
	case ZERO_RANGE:
		loop_fallocate(fs->sink.loop, &fo->io, fs->fd,
			       FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, fo->op.offset,
			       fo->op.length);
		return;
	case ZERO_WRITE:
		break;
	}
	if (!fs->zeroes)
		fs->zeroes = calloc(1, FILE_ZERO_BYTES);
	fo->io.done = fs->zeroes ? transferred : zero_deferred_nomem;
	if (fs->zeroes)
		transfer_more(fo);
	else
		loop_defer(fs->sink.loop, &fo->io);
}

static void file_zero(struct disk_sink *sink, struct sink_op *op)
{
	struct file_op *fo = file_op_of(op);

	fo->done = 0;
	fo->way = file_sink_of(sink)->way;
	zero_try(fo);
}

/* ---- end ---- */

static void flushed(struct loop_op *io, int res)
{
	struct file_op *fo = container_of(io, struct file_op, io);

	if (res < 0)
		end_with_errno(fo, "sync", -res);
	else
		sink_op_end(&fo->op, 0, NULL);
}

static void file_flush(struct disk_sink *sink, struct sink_op *op)
{
	struct file_op *fo = file_op_of(op);

	fo->done = 0;
	fo->op.offset = 0;
	fo->io.done = flushed;
	loop_fsync(sink->loop, &fo->io, file_sink_of(sink)->fd);
}

static void file_free(struct disk_sink *sink)
{
	struct file_sink *fs = file_sink_of(sink);

	sink_done(sink);
	if (fs->fd >= 0)
		(void)close(fs->fd);
	free(fs->zeroes);
	free(fs->path);
	free(fs);
}

static const struct disk_sink_ops file_ops = {
	.write = file_transfer,
	.zero = file_zero,
	.read = file_transfer,
	.flush = file_flush,
	.free = file_free,
};

/* ---- opening ---- */

static int open_device(struct file_sink *fs, struct error *err)
{
	uint64_t bytes;

	/* O_EXCL: nobody has mounted it or is using it in another such way. */
	fs->fd = open(fs->path, O_RDWR | O_EXCL | O_CLOEXEC);
	if (fs->fd < 0 && errno == EBUSY)
		return error_set(err, TM_E_BUSY, "device %s is in use (mounted?)", fs->path);
	if (fs->fd < 0)
		return error_errno(err, errno, "cannot open device %s", fs->path);
	if (ioctl(fs->fd, BLKGETSIZE64, &bytes) < 0)
		return error_errno(err, errno, "cannot learn the size of device %s", fs->path);
	if (bytes < fs->sink.size)
		return error_set(err, TM_E_RANGE, "device %s has %llu bytes, the disk has %llu",
				 fs->path, (unsigned long long)bytes,
				 (unsigned long long)fs->sink.size);
	fs->sink.write_limit = bytes;
	return 0;
}

static int open_regular(struct file_sink *fs, bool exists, struct error *err)
{
	int flags = exists ? O_TRUNC | O_NOFOLLOW : O_CREAT | O_EXCL;

	fs->fd = open(fs->path, O_RDWR | O_CLOEXEC | O_NOCTTY | flags, 0600);
	if (fs->fd < 0)
		return error_errno(err, errno, exists ? "cannot open %s" : "cannot create %s",
				   fs->path);
	if (!fs->sink.layout && ftruncate(fs->fd, (off_t)fs->sink.size) < 0) {
		int r = error_errno(err, errno, "cannot make %s %llu bytes large", fs->path,
				    (unsigned long long)fs->sink.size);

		if (!exists)
			(void)unlink(fs->path); /* ours, and empty */
		return r;
	}
	fs->sink.skip_zeroes = true;
	fs->sink.write_limit = fs->sink.size;
	return 0;
}

static int open_target(struct file_sink *fs, bool force, struct error *err)
{
	struct stat st;
	bool exists = stat(fs->path, &st) == 0;

	if (!exists && errno != ENOENT)
		return error_errno(err, errno, "cannot look at %s", fs->path);
	if (exists && S_ISBLK(st.st_mode))
		return open_device(fs, err);
	if (exists && !S_ISREG(st.st_mode))
		return error_set(err, TM_E_USAGE, "%s is neither a regular file nor a block device",
				 fs->path);
	if (exists && !force)
		return error_set(err, TM_E_EXISTS, "%s exists", fs->path);
	return open_regular(fs, exists, err);
}

static int open_sink(struct loop *loop, const char *path, uint64_t size, uint32_t block_size,
		     struct sink_layout *layout, bool force, struct disk_sink **ret,
		     struct error *err)
{
	struct file_sink *fs = calloc(1, sizeof(*fs));
	int r;

	if (!fs) {
		if (layout)
			layout->ops->free(layout);
		return error_nomem(err);
	}
	fs->fd = -1;
	fs->sink.layout = layout;
	fs->sink.ops = &file_ops;
	fs->sink.loop = loop;
	fs->sink.size = size;
	fs->sink.block_size = block_size;
	fs->sink.write_unit = 1;
	fs->sink.write_max = FILE_WRITE_MAX;
	fs->sink.zero_max = FILE_ZERO_MAX;
	r = sink_init(&fs->sink, err);
	for (unsigned i = 0; i < FILE_DEPTH; i++)
		sink_add_op(&fs->sink, &fs->ops[i].op);
	if (!r)
		r = text_copy(path, &fs->path, err);
	if (!r)
		r = layout ? open_regular(fs, false, err) : open_target(fs, force, err);
	if (r) {
		file_free(&fs->sink);
		return r;
	}
	*ret = &fs->sink;
	return 0;
}

int file_sink_open(struct loop *loop, const char *path, uint64_t size, uint32_t block_size,
		   bool force, struct disk_sink **ret, struct error *err)
{
	return open_sink(loop, path, size, block_size, NULL, force, ret, err);
}

int file_sink_open_layout(struct loop *loop, const char *path, uint64_t size, uint32_t block_size,
			  struct sink_layout *layout, struct disk_sink **ret, struct error *err)
{
	return open_sink(loop, path, size, block_size, layout, false, ret, err);
}
