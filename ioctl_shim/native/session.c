/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one FUSE session of the process: its connection, the queue to pyfuse3, and the replies.  The queue is
 * under `lock`, and `unmappable` is atomic.  Any thread may send replies, because one writev() of a reply is
 * atomic.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "pump.h"

#define NEVER -4095 /* not an errno, see session.unmappable */
#define ERRNO_END 512 /* <linux/errno.h>: errnos from here on are for use within the kernel */

/* There is one session a process, because libfuse's entry points have no parameter for a pointer of ours. */
static struct {
	int fuse;
	int event;
	int ended;
	int passthrough;
	int unmappable; /* backing id; 0: not made yet, NEVER: the kernel cannot make it */
	pthread_mutex_t lock;
	struct lane_message *head;
	struct lane_message **tail;
} session = {.fuse = -1, .event = -1, .lock = PTHREAD_MUTEX_INITIALIZER, .tail = &session.head};

static void wake(void)
{
	uint64_t one = 1;

	while (write(session.event, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

int lane_attach(int fuse_fd)
{
	/* a duplicate: libfuse closes its descriptor on unmount, while the pump still reads */
	session.fuse = fcntl(fuse_fd, F_DUPFD_CLOEXEC, 0);
	session.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
	return session.fuse < 0 || session.event < 0 ? -1 : 0;
}

int lane_event_fd(void)
{
	return session.event;
}

int session_fuse(void)
{
	return session.fuse;
}

/* The pump will read no more requests. */
void session_end(void)
{
	__atomic_store_n(&session.ended, 1, __ATOMIC_RELEASE);
	wake();
}

/* Gives up our descriptor of the connection.  The connection ends with the last one, and then all its clients
 * get an error.  A thread that a client holds up would keep the descriptor open beyond the end of this process.
 * The number stays taken, because a retired pump may still write an answer to it. */
void session_close(void)
{
	int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (nothing < 0)
		return;
	dup3(nothing, session.fuse, O_CLOEXEC);
	close(nothing);
}

int lane_ended(void)
{
	return __atomic_load_n(&session.ended, __ATOMIC_ACQUIRE);
}

int lane_passthrough(void)
{
	return session.passthrough;
}

/* ---- the queue to pyfuse3 ---- */

static int push(const void *data, size_t size)
{
	struct lane_message *message = malloc(sizeof(*message));
	char *copy = malloc(size);

	if (!message || !copy) {
		free(message);
		free(copy);
		return -ENOMEM;
	}
	memcpy(copy, data, size);
	*message = (struct lane_message){.size = size, .data = copy};
	pthread_mutex_lock(&session.lock);
	*session.tail = message;
	session.tail = &message->next;
	pthread_mutex_unlock(&session.lock);
	wake();
	return 0;
}

struct lane_message *lane_pop(void)
{
	struct lane_message *message = NULL;
	uint64_t taken;

	if (lane_ended() || read(session.event, &taken, sizeof(taken)) < 0)
		return NULL; /* once ended, the event stays readable so that every worker wakes */
	pthread_mutex_lock(&session.lock);
	message = session.head;
	if (message && !(session.head = message->next))
		session.tail = &session.head;
	pthread_mutex_unlock(&session.lock);
	return message;
}

/* ---- replies ---- */

static int send_reply(uint64_t unique, int error, const void *body, size_t size, const void *data, size_t more)
{
	int known = error <= 0 && error > -ERRNO_END; /* the kernel rejects others: the client would hang */
	struct fuse_out_header header = {.len = (uint32_t)(sizeof(header) + size + more),
		.error = known || !unique ? error : -EIO, .unique = unique};
	struct iovec iov[3] = {{&header, sizeof(header)}, {(void *)body, size}, {(void *)data, more}};

	return writev(session.fuse, iov, more ? 3 : size ? 2 : 1) < 0 ? -errno : 0;
}

/* 0 or a negative errno.  It is no error when the request was aborted, and nobody waits for the answer. */
int send_data(uint64_t unique, int error, const void *body, size_t size, const void *data, size_t more)
{
	int result = send_reply(unique, error, body, size, data, more);

	return result == -ENOENT ? 0 : result;
}

/* 0 when the kernel has taken the open file.  Otherwise it does not have it: -ENOENT when nobody waits for
 * it. */
int send_open(uint64_t unique, const struct vfs_open_out *out)
{
	return send_reply(unique, 0, out, sizeof(*out), NULL, 0);
}

void send_error(uint64_t unique, int64_t error)
{
	send_data(unique, (int)error, NULL, 0, NULL, 0);
}

void send_ioctl(uint64_t unique, int64_t result, const void *out, uint32_t out_size)
{
	struct fuse_ioctl_out body = {.result = (int32_t)result};

	if (result < 0)
		send_error(unique, result);
	else
		send_data(unique, 0, &body, sizeof(body), out, out_size);
}

int lane_reply(uint64_t unique, int32_t result, const void *out, uint32_t out_size)
{
	send_ioctl(unique, result, out, out_size);
	return 0;
}

/* Answers a deferred request: a read with its data, a write with a struct fuse_write_out, or either with a
 * negative errno. */
int lane_send(uint64_t unique, int32_t error, const void *data, uint32_t size)
{
	return send_data(unique, error, data, size, NULL, 0);
}

/* Has the kernel send an INTERRUPT for the request again, if that has no answer yet. */
int lane_interrupt_again(uint64_t unique)
{
	return send_data(unique | 1 /* FUSE_INT_REQ_BIT */, -EAGAIN, NULL, 0, NULL, 0);
}

/* Makes clients that poll the file of this handle ask again.  It does not wait, and the file may be closed
 * already. */
int lane_wake_poll(uint64_t handle)
{
	struct fuse_notify_poll_wakeup_out body = {.kh = handle};

	return send_data(0, FUSE_NOTIFY_POLL, &body, sizeof(body), NULL, 0);
}

/* Has the kernel ask again for the stat of these inodes, which waits for nobody.  0, or a negative errno: the
 * mount is going. */
int lane_forget_stats(const uint64_t *inodes, uint32_t count)
{
	int result = 0;

	for (uint32_t i = 0; i < count && !result; i++) {
		struct fuse_notify_inval_inode_out body = {.ino = inodes[i], .off = -1};

		result = send_data(0, FUSE_NOTIFY_INVAL_INODE, &body, sizeof(body), NULL, 0);
	}
	return result;
}

void lane_init_reply(const void *in, void *body)
{
	const struct vfs_init_in *request = in;
	struct vfs_init_out *out = body;

	/* open(2) with O_TRUNC then sends an OPEN alone: a SETATTR of a size is a truncate(2) */
	out->flags |= request->flags & FUSE_ATOMIC_O_TRUNC;
	if (!(request->flags & FUSE_INIT_EXT) || !(request->flags2 & VFS_PASSTHROUGH_FLAG2))
		return;
	out->flags |= FUSE_INIT_EXT;
	out->flags &= ~(uint32_t)FUSE_WRITEBACK_CACHE; /* the kernel refuses both together */
	out->flags2 |= VFS_PASSTHROUGH_FLAG2;
	out->max_stack_depth = 1;
	session.passthrough = 1;
}

/* Leaves the request to pyfuse3, which answers it.  If that fails, it is answered here, and the result is negative. */
int hand_on(const struct request *r)
{
	int error = push(r->header, sizeof(*r->header) + r->size);

	if (error)
		send_error(r->header->unique, error);
	return error;
}

/* Answers a read with `got` bytes of r->out, or with the negative errno `got`. */
void send_read(const struct request *r, int64_t got)
{
	if (got < 0)
		send_error(r->header->unique, got);
	else
		send_data(r->header->unique, 0, r->out, (size_t)got, NULL, 0);
}

/* ---- files that cannot be mapped ---- */

/* Minus the errno of what failed for now, 0 for what fails every time: a kernel that is too old, no
 * CAP_SYS_ADMIN in the initial user namespace, no /proc. */
static int for_now(int error)
{
	switch (error) {
	case EAGAIN:
	case EMFILE:
	case ENFILE:
	case ENOMEM:
	case ENOSPC:
		return -error;
	default:
		return 0;
	}
}

/* The backing id, NEVER, or a negative errno for now as lane_backing_open().  If two threads come here at
 * once, the first one wins: all opens of an inode must have the same backing file. */
static int make_unmappable(void)
{
	int id = 0, there = 0;

	if (session.passthrough) {
		int fd = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);

		id = fd < 0 ? for_now(errno) : lane_backing_open(fd);
		if (fd >= 0)
			close(fd);
	}
	if (id < 0)
		return id;
	id = id ? id : NEVER;
	if (__atomic_compare_exchange_n(&session.unmappable, &there, id, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return id;
	if (id > 0)
		lane_backing_close(id);
	return there;
}

/*
 * Makes a file that cannot be mapped.  It gets a backing file without mmap (the file of a namespace: a
 * regular file that always exists and does nothing), so mmap fails with ENODEV, as in sysfs, for private
 * mappings too.  Without it, a page of such a mapping would be read through this pump.  A client could give
 * us a pointer into it, and the pump would wait for itself.  Returns 0, also where the kernel cannot do this,
 * or the negative errno that the open has to fail with.
 */
int lane_forbid_mapping(struct vfs_open_out *out)
{
	int id = __atomic_load_n(&session.unmappable, __ATOMIC_ACQUIRE);

	if (!id)
		id = make_unmappable();
	if (id > 0) {
		out->open_flags |= VFS_FOPEN_PASSTHROUGH;
		out->backing_id = id;
	}
	return id < 0 && id != NEVER ? id : 0;
}

/* Whether files can be opened that cannot be mapped: 0, or a negative errno as lane_forbid_mapping(). */
int lane_can_forbid(void)
{
	struct vfs_open_out out = {0};

	return lane_forbid_mapping(&out);
}

/* ---- passthrough and identity ---- */

/* Registers a file for passthrough: its id; 0 when the kernel cannot do it, now or later; or a negative errno
 * for now. */
int lane_backing_open(int fd)
{
	struct vfs_backing_map map = {.fd = fd};
	int id;

	if (!session.passthrough)
		return 0;
	while ((id = ioctl(session.fuse, VFS_BACKING_OPEN, &map)) < 0 && errno == EINTR)
		;
	return id < 0 ? for_now(errno) : id;
}

int lane_backing_close(int backing_id)
{
	uint32_t id = (uint32_t)backing_id;

	return ioctl(session.fuse, VFS_BACKING_CLOSE, &id) < 0 ? -errno : 0;
}

/* The token of the open file behind `fd`, or -errno.  Never call it from the pump thread, because the pump
 * answers it. */
int lane_identify(int fd)
{
	int token = ioctl(fd, IDENTIFY);

	return token < 0 ? -errno : token;
}
