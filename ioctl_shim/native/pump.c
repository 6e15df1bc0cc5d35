/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pump: the only reader of /dev/fuse.  Owner of all state here is the pump thread, except the queue
 * (under `lock`), `unmappable` (atomic), and the reply write, which any thread may do because one writev() of a reply
 * is atomic.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include <fcntl.h>

#include "fuse_abi.h"
#include "lane.h"

/* cffi defines these (callbacks.cdef). */
int lane_on_open(struct lane_open *open);
int64_t lane_on_read(const struct lane_transfer *read, void *out);
int64_t lane_on_write(const struct lane_transfer *write, const void *in);
int64_t lane_on_ioctl(struct lane_ioctl *call);
uint32_t lane_on_poll(uint64_t token, uint64_t handle);
void lane_on_interrupt(uint64_t unique);
void lane_on_release(uint64_t token);

#define MAX_DATA (1u << 20)
#define BUFFER_SIZE (MAX_DATA + 4096u)
#define IDENTIFY _IO('V', 0x41)
#define VFIO_FIRST (';' << 8 | 100) /* _IO(VFIO_TYPE, VFIO_BASE) */

/* One session a process: libfuse's entry points carry no place for a pointer of ours. */
static struct {
	int fuse;
	int event;
	int ended;
	int passthrough;
	int unmappable; /* backing id; 0: not asked for yet, -1: not to be had */
	pthread_mutex_t lock;
	struct lane_message *head;
	struct lane_message **tail;
} session = {.fuse = -1, .event = -1, .lock = PTHREAD_MUTEX_INITIALIZER, .tail = &session.head};

int lane_attach(int fuse_fd)
{
	/* our own descriptor: libfuse closes its own on unmount while the pump still reads */
	session.fuse = fcntl(fuse_fd, F_DUPFD_CLOEXEC, 0);
	session.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
	return session.fuse < 0 || session.event < 0 ? -1 : 0;
}

int lane_event_fd(void)
{
	return session.event;
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

static void wake(void)
{
	uint64_t one = 1;

	while (write(session.event, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

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

static int send_data(uint64_t unique, int error, const void *body, size_t size, const void *data, size_t more)
{
	struct fuse_out_header header = {
		.len = (uint32_t)(sizeof(header) + size + more), .error = error, .unique = unique};
	struct iovec iov[3] = {{&header, sizeof(header)}, {(void *)body, size}, {(void *)data, more}};

	/* ENOENT: the request was aborted and nobody waits for the answer */
	return writev(session.fuse, iov, more ? 3 : size ? 2 : 1) < 0 && errno != ENOENT ? -errno : 0;
}

static void send_error(uint64_t unique, int64_t error)
{
	send_data(unique, (int)error, NULL, 0, NULL, 0);
}

static void send_ioctl(uint64_t unique, int64_t result, const void *out, uint32_t out_size)
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

/* The answer to a read (its data) or a write (a struct fuse_write_out) that was deferred, or a negative errno. */
int lane_send(uint64_t unique, int32_t error, const void *data, uint32_t size)
{
	return send_data(unique, error, data, size, NULL, 0);
}

/* Whoever polls the file of this handle asks again; it neither waits nor needs a file that is still open. */
int lane_wake_poll(uint64_t handle)
{
	struct fuse_notify_poll_wakeup_out body = {.kh = handle};

	return send_data(0, FUSE_NOTIFY_POLL, &body, sizeof(body), NULL, 0);
}

void lane_init_reply(const void *in, void *body)
{
	const struct vfs_init_in *request = in;
	struct vfs_init_out *out = body;

	if (!(request->flags & FUSE_INIT_EXT) || !(request->flags2 & VFS_PASSTHROUGH_FLAG2))
		return;
	out->flags |= FUSE_INIT_EXT;
	out->flags &= ~(uint32_t)FUSE_WRITEBACK_CACHE; /* the kernel refuses both together */
	out->flags2 |= VFS_PASSTHROUGH_FLAG2;
	out->max_stack_depth = 1;
	session.passthrough = 1;
}

/* ---- what cannot be mapped ---- */

/* The first of two threads that come here at once wins: an inode has one backing file, whoever opens it. */
static int make_unmappable(void)
{
	int fd = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
	int id = fd < 0 ? -1 : lane_backing_open(fd), there = 0;

	if (fd >= 0)
		close(fd);
	id = id > 0 ? id : -1;
	if (__atomic_compare_exchange_n(&session.unmappable, &there, id, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return id;
	if (id > 0)
		lane_backing_close(id);
	return there;
}

/*
 * What cannot be mapped is opened with a backing file that has no mmap (a namespace's: a regular file that is always
 * there and does nothing), so that mmap is ENODEV, as sysfs has it, for a private mapping too.  Otherwise a page
 * of such a mapping would be read through this pump, and a client that hands us a pointer into it would have the pump
 * wait for itself.
 */
void lane_forbid_mapping(struct vfs_open_out *out)
{
	int id = __atomic_load_n(&session.unmappable, __ATOMIC_ACQUIRE);

	if (!id)
		id = make_unmappable();
	if (id > 0) {
		out->open_flags |= VFS_FOPEN_PASSTHROUGH;
		out->backing_id = id;
	}
}

/* ---- requests on device inodes ---- */

struct request {
	const struct fuse_in_header *header;
	const void *body;
	size_t size; /* of body */
	char *out;
};

/* To pyfuse3, which answers. */
static void hand_on(const struct request *r)
{
	int error = push(r->header, sizeof(*r->header) + r->size);

	if (error)
		send_error(r->header->unique, error);
}

static struct lane_file *file_of(uint64_t fh)
{
	return (struct lane_file *)(uintptr_t)fh; /* only the kernel hands it back: a client cannot forge it */
}

static void on_open(const struct request *r)
{
	const struct fuse_open_in *in = r->body;
	struct lane_open open = {.nodeid = r->header->nodeid, .flags = in->flags, .tid = r->header->pid,
		.uid = r->header->uid, .gid = r->header->gid, .region = LANE_WHOLE};
	struct lane_file *file = calloc(1, sizeof(*file));
	int error = file ? lane_on_open(&open) : -ENOMEM;

	if (error) {
		free(file);
		send_error(r->header->unique, error);
		return;
	}
	*file = (struct lane_file){.token = open.token, .memory = open.memory /* with the reference Python took */,
		.region = open.region, .by_region = open.by_region, .read = open.read, .write = open.write,
		.ioctl = open.ioctl, .rows = open.rows};
	struct vfs_open_out out = {.fh = (uintptr_t)file, .open_flags = FOPEN_DIRECT_IO};
	if (open.stream) {
		/* the kernel takes no backing file with it; a mapping of it is harmless, as beyond size 0 all is SIGBUS */
		out.open_flags |= VFS_FOPEN_STREAM;
	} else if (open.backing_id > 0) {
		out.open_flags |= VFS_FOPEN_PASSTHROUGH;
		out.backing_id = open.backing_id;
	} else
		lane_forbid_mapping(&out);
	send_data(r->header->unique, 0, &out, sizeof(out), NULL, 0);
}

static void on_release(const struct request *r)
{
	const struct fuse_release_in *in = r->body;
	struct lane_file *file = file_of(in->fh);

	lane_on_release(file->token);
	lane_memory_put(file->memory);
	free(file);
	send_error(r->header->unique, 0);
}

/* Answers a read with what is in r->out. */
static void send_read(const struct request *r, int64_t got)
{
	if (got < 0)
		send_error(r->header->unique, got);
	else
		send_data(r->header->unique, 0, r->out, (size_t)got, NULL, 0);
}

static void on_read(const struct request *r)
{
	const struct fuse_read_in *in = r->body;
	const struct lane_file *file = file_of(in->fh);
	uint32_t size = in->size > MAX_DATA ? MAX_DATA : in->size;
	const char *memory = find_memory(file, in->offset, size);
	uint64_t value;

	if (memory) {
		/* the kernel copies straight from the region; it may have no page left for a hole of it */
		if (send_data(r->header->unique, 0, memory, size, NULL, 0))
			send_error(r->header->unique, -EIO);
		return;
	}
	if (read_plain(file, in->offset, size, &value)) {
		send_data(r->header->unique, 0, &value, size, NULL, 0);
		return;
	}
	struct lane_place place = find_register(file, in->offset, size);
	if (place.found) {
		int64_t error = call_register(&place, &value, 0);

		memcpy(r->out, &value, size);
		if (error != LANE_DEFERRED)
			return send_read(r, error ? error : size);
	}
	if (file->read)
		return send_read(r, call_read(file, in->offset, size, r->out));
	struct lane_transfer read = {r->header->unique, file->token, in->offset, size, in->flags};
	int64_t got = lane_on_read(&read, r->out);
	if (got != LANE_DEFERRED)
		send_read(r, got);
}

/* Bytes taken, a negative errno, or LANE_DEFERRED: whoever took them answers. */
static int64_t take_write(const struct request *r, const struct fuse_write_in *in)
{
	const struct lane_file *file = file_of(in->fh);
	const void *data = in + 1;
	char *memory = find_memory(file, in->offset, in->size);
	struct lane_place place = find_register(file, in->offset, in->size);
	struct lane_transfer write = {r->header->unique, file->token, in->offset, in->size, in->flags};
	uint64_t value = 0;

	if (in->size > r->size - sizeof(*in))
		return -EIO;
	if (memory) {
		memcpy(memory, data, in->size);
		return in->size;
	}
	if (place.found) {
		memcpy(&value, data, in->size);
		int64_t error = call_register(&place, &value, 1);
		if (error != LANE_DEFERRED)
			return error ? error : in->size;
	}
	return file->write ? call_write(file, in->offset, data, in->size) : lane_on_write(&write, data);
}

static void on_write(const struct request *r)
{
	const struct fuse_write_in *in = r->body;
	int64_t put = take_write(r, in);

	if (put == LANE_DEFERRED)
		return;
	if (put < 0) {
		send_error(r->header->unique, put);
		return;
	}
	struct fuse_write_out out = {.size = (uint32_t)put};
	send_data(r->header->unique, 0, &out, sizeof(out), NULL, 0);
}

static int is_own_thread(uint32_t tid)
{
	return !syscall(SYS_tgkill, getpid(), tid, 0);
}

struct lane_argument *lane_argument(void)
{
	static struct lane_argument argument;

	return &argument;
}

/* What the ioctl's row says of the struct behind its argument, as Python will look at it first. */
static void fetch_argument(const struct lane_file *file, const struct fuse_ioctl_in *in, uint32_t tid)
{
	struct lane_argument *argument = lane_argument();
	uint32_t row = in->cmd - VFIO_FIRST;

	argument->reply = 0;
	if (!file->rows || row >= LANE_ROWS || !file->rows->minsz[row])
		return;
	memset(argument->data, 0, file->rows->size[row]);
	argument->error = (int32_t)shim_peek(tid, in->arg, argument->data, file->rows->minsz[row]);
}

/* An ioctl that has no size, which is all of VFIO's; 0 when it is not for this thread. */
static int answer_ioctl(const struct request *r)
{
	const struct fuse_ioctl_in *in = r->body;
	const struct lane_file *file = file_of(in->fh);
	const struct lane_argument *argument = lane_argument();
	uint32_t tid = r->header->pid;

	fetch_argument(file, in, tid);
	int64_t result = call_ioctl(file, in->cmd, in->arg, tid), error = 0;
	if (result == LANE_DEFERRED)
		return 0;
	if (result >= 0 && argument->reply)
		error = shim_poke(tid, in->arg, argument->data, argument->reply);
	send_ioctl(r->header->unique, error ? error : result, NULL, 0);
	return 1;
}

static void on_ioctl(const struct request *r)
{
	const struct fuse_ioctl_in *in = r->body;
	const struct lane_file *file = file_of(in->fh);
	struct lane_ioctl call = {.unique = r->header->unique, .token = file->token, .arg = in->arg,
		.cmd = in->cmd, .tid = r->header->pid, .data = in + 1, .data_size = in->in_size,
		.out_size = in->out_size, .out = r->out};
	int64_t result;

	if (in->cmd == IDENTIFY && is_own_thread(call.tid)) {
		send_ioctl(call.unique, (int64_t)(file->token & 0x7fffffff), NULL, 0);
		return;
	}
	if (file->ioctl && !in->in_size && !in->out_size && answer_ioctl(r))
		return;
	if (in->in_size > r->size - sizeof(*in) || in->out_size > MAX_DATA)
		result = -EIO;
	else
		result = lane_on_ioctl(&call);
	if (result == LANE_DEFERRED)
		return;
	send_ioctl(call.unique, result, r->out, result < 0 ? 0 : call.out_size);
}

static void on_poll(const struct request *r)
{
	const struct fuse_poll_in *in = r->body;
	uint64_t handle = in->flags & FUSE_POLL_SCHEDULE_NOTIFY ? in->kh : 0;
	struct fuse_poll_out out = {.revents = lane_on_poll(file_of(in->fh)->token, handle)};

	send_data(r->header->unique, 0, &out, sizeof(out), NULL, 0);
}

static void on_nothing(const struct request *r)
{
	send_error(r->header->unique, 0);
}

/* FLUSH and FSYNC, of which close(2) waits for the former: nothing is buffered, and so told, the kernel does not
 * ask again for as long as it is mounted. */
static void on_unneeded(const struct request *r)
{
	send_error(r->header->unique, -ENOSYS);
}

/* ---- attributes: no state per open, so no trio round for it ---- */

static void on_attr_open(const struct request *r)
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
static void on_attr_read(const struct request *r)
{
	const struct fuse_read_in *in = r->body;
	uint32_t size = in->size > MAX_DATA ? MAX_DATA : in->size;
	int64_t got = call_show(r->header->nodeid, in->offset, size, r->out);

	if (got == LANE_DEFERRED)
		hand_on(r);
	else
		send_read(r, got);
}

struct action {
	void (*run)(const struct request *);
	size_t body; /* least size of the request's body */
};

static const struct action device_actions[] = {
	[FUSE_OPEN] = {on_open, sizeof(struct fuse_open_in)},
	[FUSE_RELEASE] = {on_release, sizeof(struct fuse_release_in)},
	[FUSE_READ] = {on_read, sizeof(struct fuse_read_in)},
	[FUSE_WRITE] = {on_write, sizeof(struct fuse_write_in)},
	[FUSE_IOCTL] = {on_ioctl, sizeof(struct fuse_ioctl_in)},
	[FUSE_POLL] = {on_poll, sizeof(struct fuse_poll_in)},
	[FUSE_FLUSH] = {on_unneeded, 0},
	[FUSE_FSYNC] = {on_unneeded, 0},
};

static const struct action attr_actions[] = {
	[FUSE_OPEN] = {on_attr_open, sizeof(struct fuse_open_in)},
	[FUSE_READ] = {on_attr_read, sizeof(struct fuse_read_in)},
	[FUSE_RELEASE] = {on_nothing, 0},
	[FUSE_FLUSH] = {on_unneeded, 0},
	[FUSE_FSYNC] = {on_unneeded, 0},
};

#define ACTION(table, opcode) ((opcode) < sizeof(table) / sizeof(*(table)) ? &(table)[opcode] : NULL)

static const struct action *find_action(const struct fuse_in_header *header)
{
	const struct action *action = NULL;

	if (header->nodeid >> LANE_DEVICE_BIT & 1)
		action = ACTION(device_actions, header->opcode);
	else if (header->nodeid >> LANE_ATTR_BIT & 1)
		action = ACTION(attr_actions, header->opcode);
	return action && action->run ? action : NULL;
}

static void serve(const char *data, size_t size, char *out)
{
	const struct fuse_in_header *header = (const void *)data;
	struct request r = {.header = header, .body = header + 1, .size = size - sizeof(*header), .out = out};
	const struct action *action = find_action(header);

	if (header->opcode == FUSE_FORGET || header->opcode == FUSE_BATCH_FORGET)
		return; /* inode numbers are never used again, so nothing is counted */
	if (header->opcode == FUSE_INTERRUPT) {
		/* after the request, as the kernel sends it only for what we have read; itself it has no answer */
		if (r.size >= sizeof(struct fuse_interrupt_in))
			lane_on_interrupt(((const struct fuse_interrupt_in *)r.body)->unique);
		return;
	}
	if (action)
		r.size < action->body ? send_error(header->unique, -EIO) : action->run(&r);
	else if (header->opcode == FUSE_IOCTL)
		send_error(header->unique, -ENOTTY);
	else
		hand_on(&r);
}

/* Runs until the filesystem is unmounted (0) or the connection breaks (-errno). */
int lane_pump(void)
{
	char *in = malloc(BUFFER_SIZE), *out = malloc(MAX_DATA);
	ssize_t got = 0;

	while (in && out) {
		got = read(session.fuse, in, BUFFER_SIZE);
		if (got >= (ssize_t)sizeof(struct fuse_in_header))
			serve(in, (size_t)got, out);
		else if (got >= 0 || (errno != EINTR && errno != EAGAIN && errno != ENOENT))
			break;
	}
	int error = !in || !out ? -ENOMEM : got >= 0 || errno == ENODEV ? 0 : -errno;
	__atomic_store_n(&session.ended, 1, __ATOMIC_RELEASE);
	wake();
	free(in);
	free(out);
	return error;
}

/* ---- passthrough and identity ---- */

int lane_backing_open(int fd)
{
	struct vfs_backing_map map = {.fd = fd};
	int id = session.passthrough ? ioctl(session.fuse, VFS_BACKING_OPEN, &map) : -(errno = EOPNOTSUPP, 1);

	return id < 0 ? -errno : id;
}

int lane_backing_close(int backing_id)
{
	uint32_t id = (uint32_t)backing_id;

	return ioctl(session.fuse, VFS_BACKING_CLOSE, &id) < 0 ? -errno : 0;
}

/* Token of the open file behind `fd`, or -errno.  Never call it from the pump thread: the pump answers it. */
int lane_identify(int fd)
{
	int token = ioctl(fd, IDENTIFY);

	return token < 0 ? -errno : token;
}
