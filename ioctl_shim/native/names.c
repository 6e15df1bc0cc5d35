/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests on names and attributes that the device lane answers, as they change nothing: an attribute has no state for each
 * open.  Python says None while the lab is being changed, and then pyfuse3 is asked.  Pump thread.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>

#include "pump.h"

void on_attr_open(const struct request *r)
{
	const struct fuse_open_in *in = r->body;
	uint64_t node = r->header->nodeid;
	unsigned mode = in->flags & O_ACCMODE;
	struct vfs_open_out out = {.fh = node, .open_flags = FOPEN_DIRECT_IO};
	int readable = node >> LANE_ATTR_READ_BIT & 1, writable = node >> LANE_ATTR_WRITE_BIT & 1;

	/* as sysfs: even root cannot open an attribute for what it has no show() or store() for */
	if ((mode != O_WRONLY && !readable) || (mode != O_RDONLY && !writable))
		return send_error(r->header->unique, -EACCES);
	lane_forbid_mapping(&out);
	send_data(r->header->unique, 0, &out, sizeof(out), NULL, 0);
}

/* Shown here unless the lab is being changed, or it is one that takes time. */
void on_attr_read(const struct request *r)
{
	const struct fuse_read_in *in = r->body;
	uint32_t size = in->size > MAX_DATA ? MAX_DATA : in->size;
	int64_t got = call_show(r->header->nodeid, in->offset, size, r->out);

	if (got == LANE_DEFERRED)
		hand_on(r);
	else
		send_read(r, got);
}

#define SECOND 1000000000u
#define BLOCK 4096

static struct fuse_attr attr_of(const struct lane_name *name)
{
	uint64_t seconds = name->ctime_ns / SECOND;
	uint32_t rest = (uint32_t)(name->ctime_ns % SECOND);

	return (struct fuse_attr){.ino = name->inode, .size = name->size, .mode = (uint32_t)name->mode,
		.nlink = (uint32_t)name->nlink, .uid = (uint32_t)name->uid, .gid = (uint32_t)name->gid,
		.atime = seconds, .mtime = seconds, .ctime = seconds, .atimensec = rest, .mtimensec = rest,
		.ctimensec = rest, .blksize = BLOCK};
}

/* An answer that is not what was asked for: 1 when it has been dealt with. */
static int is_other(const struct request *r, int64_t result)
{
	if (result == LANE_DEFERRED)
		hand_on(r);
	else if (result < 0)
		send_error(r->header->unique, result);
	return result < 0;
}

void on_lookup(const struct request *r)
{
	const char *name = r->body; /* the kernel ends it with a NUL */
	struct lane_name found;

	if (is_other(r, call_lookup(r->header->nodeid, name, &found)))
		return;
	struct fuse_entry_out out = {.nodeid = found.inode, .attr = attr_of(&found),
		.entry_valid = found.timeout_ns / SECOND, .entry_valid_nsec = (uint32_t)(found.timeout_ns % SECOND)};
	out.attr_valid = out.entry_valid;
	out.attr_valid_nsec = out.entry_valid_nsec;
	send_data(r->header->unique, 0, &out, sizeof(out), NULL, 0);
}

void on_getattr(const struct request *r)
{
	struct lane_name found;

	if (is_other(r, call_stat(r->header->nodeid, &found)))
		return;
	struct fuse_attr_out out = {.attr = attr_of(&found), .attr_valid = found.timeout_ns / SECOND,
		.attr_valid_nsec = (uint32_t)(found.timeout_ns % SECOND)};
	send_data(r->header->unique, 0, &out, sizeof(out), NULL, 0);
}

void on_readlink(const struct request *r)
{
	int64_t got = call_readlink(r->header->nodeid, r->out, MAX_DATA);

	if (!is_other(r, got))
		send_read(r, got);
}
