/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests on names and attributes.  The device lane answers those that change nothing.  While the lab is
 * being changed, Python returns None, and the request goes to pyfuse3.  Pump thread.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "pump.h"

/* One open of an attribute, with the text that was shown to it last.  A read that goes on where
 * the last one ended gets more of that text, as with the kernel's seq_file.  So a reader meets the end even
 * if the attribute changes. */
struct attr_open {
	int writes; /* opened for writing */
	int was_read;
	uint64_t next; /* where a read would go on */
	size_t size;   /* of text */
	char *text;
};

/* Deals with a result that is an errno or LANE_DEFERRED: 1 if it was one of them, 0 for a result to send. */
static int is_other(const struct request *r, int64_t result)
{
	if (result == LANE_DEFERRED)
		hand_on(r);
	else if (result < 0)
		send_error(r->header->unique, result);
	return result < 0;
}

static struct attr_open *attr_of_handle(uint64_t fh)
{
	return (struct attr_open *)(uintptr_t)fh; /* only the kernel hands it back: a client cannot forge it */
}

/* How many opens for writing there are, by a hash of the inode: a sum over all attributes with that hash. */
static uint32_t writers[256];

static uint32_t *writers_of(uint64_t node)
{
	return &writers[(node * 0x9e3779b97f4a7c15ull) >> 56];
}

/* Whether a client has the attribute open for writing.  Its write(2) may be under way: the kernel locks the
 * inode while it copies the data, and a client decides how long that takes.  Another attribute may be taken for
 * this one. */
int lane_is_being_written(uint64_t node)
{
	return __atomic_load_n(writers_of(node), __ATOMIC_ACQUIRE) != 0;
}

/* The blocks whose entries were removed last; a number stands for itself and one more. */
#define MOST_GONE 4096
static uint64_t gone[MOST_GONE];

/* No attribute of this block exists any more. */
void lane_files_are_gone(uint64_t block)
{
	__atomic_store_n(&gone[block % MOST_GONE], block + 1, __ATOMIC_RELEASE);
}

static int is_gone(uint64_t node)
{
	uint64_t block = ((node & ((1ull << LANE_DEVICE_BIT) - 1)) - 1) >> LANE_BLOCK_SHIFT;

	return __atomic_load_n(&gone[block % MOST_GONE], __ATOMIC_ACQUIRE) == block + 1;
}

void on_attr_open(const struct request *r)
{
	const struct fuse_open_in *in = r->body;
	uint64_t node = r->header->nodeid;
	unsigned mode = in->flags & O_ACCMODE;
	int readable = node >> LANE_ATTR_READ_BIT & 1, writable = node >> LANE_ATTR_WRITE_BIT & 1;
	struct attr_open *attr;

	/* as in sysfs: without a show() even root cannot open an attribute for reading, without a store() for
	 * writing */
	if ((mode != O_WRONLY && !readable) || (mode != O_RDONLY && !writable))
		return send_error(r->header->unique, -EACCES);
	if (in->flags & O_DIRECT)
		return send_error(r->header->unique, -EINVAL);
	if (is_gone(node))
		return send_error(r->header->unique, -ESTALE); /* the kernel looks the name up anew */
	attr = calloc(1, sizeof(*attr));
	struct vfs_open_out out = {.fh = (uintptr_t)attr, .open_flags = FOPEN_DIRECT_IO | VFS_FOPEN_NOFLUSH};
	int error = attr ? lane_forbid_mapping(&out) : -ENOMEM;
	if (error) {
		free(attr);
		return send_error(r->header->unique, error);
	}
	if ((attr->writes = mode != O_RDONLY))
		__atomic_add_fetch(writers_of(node), 1, __ATOMIC_ACQ_REL);
	send_data(r->header->unique, 0, &out, sizeof(out), NULL, 0);
}

void on_attr_release(const struct request *r)
{
	struct attr_open *attr = attr_of_handle(((const struct fuse_release_in *)r->body)->fh);

	if (attr->writes)
		__atomic_sub_fetch(writers_of(r->header->nodeid), 1, __ATOMIC_ACQ_REL);
	free(attr->text);
	free(attr);
	send_error(r->header->unique, 0);
}

/* Two threads of a client may read one open file at once, and two pumps serve them when one was held up.  So
 * `text` is changed, and sent, under this. */
static pthread_mutex_t text_lock = PTHREAD_MUTEX_INITIALIZER;

/* Keeps a copy of the text of `size` bytes, which may be 0.  Returns 0 or -ENOMEM. */
static int keep(struct attr_open *attr, const char *text, size_t size)
{
	char *copy = size ? realloc(attr->text, size) : attr->text;

	if (size && !copy)
		return -ENOMEM;
	if (size)
		memcpy(copy, text, size);
	attr->text = copy;
	attr->size = size;
	return 0;
}

void on_attr_write(const struct request *r)
{
	struct fuse_write_in *in = (struct fuse_write_in *)r->body;

	if (is_attended() & LANE_STEERED && in->size <= r->size - sizeof(*in)) {
		int64_t result = call_steered_store(r->header->unique, r->header->nodeid, r->header->pid, in + 1, in->size);

		if (result == LANE_TAKEN)
			return;
		if (result != LANE_DEFERRED)
			return send_error(r->header->unique, result);
	}
	in->fh = r->header->nodeid;  /* as for a read */
	in->offset = r->header->pid; /* a store is always from the start; its handler is told who makes it */
	hand_on(r);
}

/* Whether the attribute still exists.  The kernel also checks this before it reports the end of a file. */
static int64_t look(const struct request *r)
{
	struct lane_name found;
	int64_t result = call_stat(r->header->nodeid, &found);

	return result == -ESTALE ? -ENODEV : result; /* no name is looked up anew */
}

/* Whether a read needs the text anew, and, if not, whether it is at the end. */
static int reads_anew(const struct attr_open *attr, uint64_t offset, int *at_end)
{
	pthread_mutex_lock(&text_lock);
	int anew = !offset || offset != attr->next;

	*at_end = offset >= attr->size;
	pthread_mutex_unlock(&text_lock);
	return anew;
}

/* Sends what is at `offset` of the text.  With `text_lock`. */
static void send_text(uint64_t unique, struct attr_open *attr, uint64_t offset, size_t room)
{
	size_t from = offset < attr->size ? offset : attr->size;
	size_t size = attr->size - from < room ? attr->size - from : room;

	attr->next = offset + size;
	send_data(unique, 0, attr->text + from, size, NULL, 0);
}

/* A read that was left to pyfuse3, which shows the whole text.  The answer is sent from here: the text is kept, and
 * the end of one that was read stays the end.  With `text_lock`, as the list of all. */
struct shown {
	uint64_t unique, offset;
	uint32_t room;
	int at_end;
	struct attr_open *attr; /* the kernel releases it when the read has its answer */
	struct shown *next;
};
static struct shown *left; /* looked at without the lock whether there are any */

static struct shown *take_shown(uint64_t unique)
{
	struct shown *found = NULL;

	for (struct shown **at = &left; *at; at = &(*at)->next)
		if ((*at)->unique == unique) {
			found = *at;
			__atomic_store_n(at, found->next, __ATOMIC_RELEASE);
			break;
		}
	return found;
}

/* Leaves a read to pyfuse3.  With `text_lock`. */
static void leave_read(const struct request *r, struct attr_open *attr, int at_end)
{
	struct fuse_read_in *in = (struct fuse_read_in *)r->body;
	struct shown *shown = malloc(sizeof(*shown));

	if (!shown)
		return send_error(r->header->unique, -ENOMEM);
	*shown = (struct shown){r->header->unique, in->offset, in->size, at_end, attr, left};
	__atomic_store_n(&left, shown, __ATOMIC_RELEASE);
	in->fh = r->header->nodeid; /* pyfuse3 knows an open attribute by its inode */
	in->offset = 0;
	in->size = MAX_DATA;
	if (hand_on(r))
		free(take_shown(shown->unique));
}

/* Answers a read that leave_read() has left to pyfuse3, with the `text` that it gives, or its error.  Trio thread. */
int answer_shown(const struct fuse_out_header *header, const void *text)
{
	if (!__atomic_load_n(&left, __ATOMIC_ACQUIRE))
		return 0;
	pthread_mutex_lock(&text_lock);
	struct shown *shown = take_shown(header->unique);
	int error = header->error;

	if (shown && !error && !shown->at_end)
		error = keep(shown->attr, text, header->len - sizeof(*header));
	if (shown && error)
		send_error(header->unique, error);
	else if (shown)
		send_text(header->unique, shown->attr, shown->offset, shown->room);
	pthread_mutex_unlock(&text_lock);
	free(shown);
	return shown != NULL;
}

void on_attr_read(const struct request *r)
{
	const struct fuse_read_in *in = r->body;
	struct attr_open *attr = attr_of_handle(in->fh);
	int at_end, anew = reads_anew(attr, in->offset, &at_end);
	int64_t got = anew ? call_show(r->header->nodeid, r->out, MAX_DATA) : at_end ? look(r) : 0;

	pthread_mutex_lock(&text_lock);
	if (anew && got >= 0)
		got = keep(attr, r->out, (size_t)got);
	attr->next = 0;
	attr->was_read = 1;
	if (got >= 0)
		send_text(r->header->unique, attr, in->offset, in->size);
	else if (got == LANE_DEFERRED)
		leave_read(r, attr, !anew);
	else
		send_error(r->header->unique, got);
	pthread_mutex_unlock(&text_lock);
}

/* As in kernfs, what was not read since it was opened may have changed.  No attribute tells of a change later. */
void on_attr_poll(const struct request *r)
{
	const struct fuse_poll_in *in = r->body;
	struct fuse_poll_out out = {.revents = POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM};

	pthread_mutex_lock(&text_lock);
	if (!attr_of_handle(in->fh)->was_read)
		out.revents |= POLLERR | POLLPRI;
	pthread_mutex_unlock(&text_lock);
	send_data(r->header->unique, 0, &out, sizeof(out), NULL, 0);
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

void send_entry(const struct request *r, const struct lane_name *found)
{
	struct fuse_entry_out out = {.nodeid = found->inode, .attr = attr_of(found),
		.entry_valid = found->name_ns / SECOND, .entry_valid_nsec = (uint32_t)(found->name_ns % SECOND),
		.attr_valid = found->timeout_ns / SECOND, .attr_valid_nsec = (uint32_t)(found->timeout_ns % SECOND)};

	send_data(r->header->unique, 0, &out, sizeof(out), NULL, 0);
}

void on_lookup(const struct request *r)
{
	const char *name = r->body; /* the kernel ends it with a NUL */
	struct lane_name found;

	if (!is_other(r, call_lookup(r->header->nodeid, name, &found)))
		send_entry(r, &found);
}

void on_getattr(const struct request *r)
{
	const struct fuse_getattr_in *in = r->body;
	struct lane_name found;
	int64_t result = call_stat(r->header->nodeid, &found);

	/* lseek(2): no name is looked up anew */
	if (result == -ESTALE && in->getattr_flags & FUSE_GETATTR_FH)
		result = -ENODEV;
	if (is_other(r, result))
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
