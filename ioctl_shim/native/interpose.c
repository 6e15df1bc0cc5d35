/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The libfuse entry points that pyfuse3 calls and that we replace.  The extension is loaded with
 * RTLD_GLOBAL before pyfuse3, so pyfuse3's dynamic symbols bind here; RTLD_NEXT is libfuse3 itself.
 * pyfuse3 calls them from the trio thread only.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 312
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fuse3/fuse_lowlevel.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fuse_abi.h"
#include "pump.h"

static uint64_t init_unique;
static struct vfs_init_in init_request;
static int supplied;

static void *next_symbol(const char *name)
{
	void *symbol = dlsym(RTLD_NEXT, name);

	if (!symbol)
		abort(); /* linked against libfuse3: cannot be missing */
	return symbol;
}

/* True once pyfuse3 has come through here, false when its symbols bound elsewhere. */
int lane_supplied(void)
{
	return supplied;
}

static ssize_t send_reply(int fd, struct iovec *iov, int count, void *userdata)
{
	struct fuse_out_header header;
	struct vfs_init_out body;

	(void)userdata;
	if (count && iov[0].iov_len == sizeof(header)) {
		memcpy(&header, iov[0].iov_base, sizeof(header));
		if (answer_shown(&header, count > 1 ? iov[1].iov_base : NULL))
			return header.len; /* libfuse compares the result with the length that it gave us */
	}
	if (count < 2 || !init_unique || iov[0].iov_len != sizeof(header))
		return writev(fd, iov, count);
	memcpy(&header, iov[0].iov_base, sizeof(header));
	if (header.unique != init_unique || header.error || iov[1].iov_len > sizeof(body))
		return writev(fd, iov, count);
	memset(&body, 0, sizeof(body));
	memcpy(&body, iov[1].iov_base, iov[1].iov_len);
	init_unique = 0;
	lane_init_reply(&init_request, &body);
	header.len = sizeof(header) + sizeof(body);
	struct iovec patched[2] = {{&header, sizeof(header)}, {&body, header.len - sizeof(header)}};
	ssize_t sent = writev(fd, patched, 2);

	/* libfuse compares the result with the length that it gave us */
	return sent == (ssize_t)header.len ? (ssize_t)(iov[0].iov_len + iov[1].iov_len) : sent;
}

static ssize_t refuse_read(int fd, void *buf, size_t size, void *userdata)
{
	(void)fd, (void)buf, (void)size, (void)userdata;
	errno = EIO; /* the pump is the only reader of /dev/fuse */
	return -1;
}

/* Every other symbol of the extension is hidden, because it is loaded with RTLD_GLOBAL. */
#pragma GCC visibility push(default)

int fuse_session_fd(struct fuse_session *se)
{
	(void)se;
	return lane_event_fd();
}

int fuse_session_mount(struct fuse_session *se, const char *mountpoint)
{
	int (*mount)(struct fuse_session *, const char *) = next_symbol("fuse_session_mount");
	int (*session_fd)(struct fuse_session *) = next_symbol("fuse_session_fd");
	static const struct fuse_custom_io io = {.writev = send_reply, .read = refuse_read};
	int result = mount(se, mountpoint);

	if (result)
		return result;
	result = fuse_session_custom_io(se, &io, session_fd(se));
	if (!result)
		result = lane_attach(session_fd(se));
	if (result)
		fuse_session_unmount(se);
	supplied = !result;
	return result;
}

/* Answers for directories and files that pyfuse3 opened.  Only files have direct_io; they must not be
 * mapped. */
int fuse_reply_open(fuse_req_t req, const struct fuse_file_info *fi)
{
	int (*reply_open)(fuse_req_t, const struct fuse_file_info *) = next_symbol("fuse_reply_open");
	struct vfs_open_out out = {.fh = fi->fh, .open_flags = FOPEN_DIRECT_IO | VFS_FOPEN_NOFLUSH};

	if (!fi->direct_io)
		return reply_open(req, fi);
	int error = lane_forbid_mapping(&out);

	if (error)
		return fuse_reply_err(req, -error);
	return fuse_reply_buf(req, (const char *)&out, sizeof(out));
}

/* An entry of a listing.  The kernel takes no st_rdev of a regular file, so it is the sign of a file whose type the
 * listing is not to tell (kernfs/operations.py). */
size_t fuse_add_direntry_plus(fuse_req_t req, char *buf, size_t size, const char *name,
	const struct fuse_entry_param *entry, off_t off)
{
	static size_t (*add)(fuse_req_t, char *, size_t, const char *, const struct fuse_entry_param *, off_t);

	if (!add)
		add = next_symbol("fuse_add_direntry_plus");
	size_t used = add(req, buf, size, name, entry, off);

	if (buf && used <= size && entry->attr.st_rdev)
		((struct fuse_direntplus *)buf)->dirent.type = DT_UNKNOWN;
	return used;
}

#pragma GCC visibility pop

static void note_init(const struct lane_message *message)
{
	const struct fuse_in_header *header = (const void *)message->data;
	size_t body = message->size - sizeof(*header);

	if (header->opcode != FUSE_INIT)
		return;
	memset(&init_request, 0, sizeof(init_request));
	memcpy(&init_request, header + 1, body < sizeof(init_request) ? body : sizeof(init_request));
	init_unique = header->unique;
}

#pragma GCC visibility push(default)
int fuse_session_receive_buf(struct fuse_session *se, struct fuse_buf *buf)
{
	struct lane_message *message = lane_pop();

	if (!message && lane_ended()) {
		fuse_session_exit(se);
		return 0;
	}
	if (!message)
		return -EINTR; /* another task took it: pyfuse3 waits again */
	note_init(message);
	/* pyfuse3 keeps one buffer per worker and frees it with free(): swap it for ours. */
	free(buf->mem);
	buf->mem = message->data;
	buf->size = message->size;
	buf->flags = 0;
	free(message);
	return (int)buf->size;
}
