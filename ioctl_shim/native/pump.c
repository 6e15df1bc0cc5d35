/* SPDX-License-Identifier: Apache-2.0 */
/* The pump: the only reader of /dev/fuse. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pump.h"

/* cffi defines it (callbacks.cdef). */
void lane_on_interrupt(uint64_t unique);

#define BUFFER_SIZE (MAX_DATA + 4096u)
#define STOP_MS 2000

static int tid;	     /* of the pump thread, 0 while there is none */
static int stopping; /* the pump has to end */

/* FLUSH and FSYNC: nothing is buffered, so there is nothing to do.  After ENOSYS the kernel does not send
 * them again as long as the tree is mounted, which makes close(2) faster: it waits for FLUSH. */
static void on_unneeded(const struct request *r)
{
	send_error(r->header->unique, -ENOSYS);
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

static const struct action all_actions[] = {
	[FUSE_LOOKUP] = {on_lookup, 2},
	[FUSE_GETATTR] = {on_getattr, 0},
	[FUSE_READLINK] = {on_readlink, 0},
};

static const struct action attr_actions[] = {
	[FUSE_OPEN] = {on_attr_open, sizeof(struct fuse_open_in)},
	[FUSE_READ] = {on_attr_read, sizeof(struct fuse_read_in)},
	[FUSE_WRITE] = {on_attr_write, sizeof(struct fuse_write_in)},
	[FUSE_RELEASE] = {on_attr_release, sizeof(struct fuse_release_in)},
	[FUSE_FLUSH] = {on_unneeded, 0},
	[FUSE_FSYNC] = {on_unneeded, 0},
};

#define ACTION(table, opcode) ((opcode) < sizeof(table) / sizeof(*(table)) ? &(table)[opcode] : NULL)

static const struct action *find_action(const struct fuse_in_header *header)
{
	const struct action *action = ACTION(all_actions, header->opcode);

	if (action && action->run)
		return action;
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
		/* the kernel sends it only after we have read the request; it has no answer itself */
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

/* Runs until lane_stop(), or the filesystem is unmounted (0), or the connection breaks (-errno). */
int lane_pump(void)
{
	char *in = malloc(BUFFER_SIZE), *out = malloc(MAX_DATA);
	ssize_t got = 0;

	prctl(PR_SET_NAME, "device-lane");
	__atomic_store_n(&tid, gettid(), __ATOMIC_RELEASE);
	while (in && out && !__atomic_load_n(&stopping, __ATOMIC_ACQUIRE)) {
		got = read(session_fuse(), in, BUFFER_SIZE);
		if (got >= (ssize_t)sizeof(struct fuse_in_header))
			serve(in, (size_t)got, out);
		else if (got >= 0 || (errno != EINTR && errno != EAGAIN && errno != ENOENT))
			break;
	}
	int error = !in || !out ? -ENOMEM : got >= 0 || errno == ENODEV ? 0 : -errno;
	session_end();
	free(in);
	free(out);
	__atomic_store_n(&tid, 0, __ATOMIC_RELEASE);
	return error;
}

static void on_wake(int number)
{
	(void)number; /* the only purpose is to interrupt the pump's read(2) */
}

/* Ends the pump; called before the interpreter ends.  Returns 0, or -ETIMEDOUT when the pump is in a call
 * that does not return.  Requests that come later are not answered: their clients get an error when this
 * process ends. */
int lane_stop(void)
{
	struct sigaction wake = {.sa_handler = on_wake};
	int pump;

	sigaction(SIGRTMAX, &wake, NULL);
	__atomic_store_n(&stopping, 1, __ATOMIC_RELEASE);
	for (int i = 0; (pump = __atomic_load_n(&tid, __ATOMIC_ACQUIRE)); i++) {
		if (i == STOP_MS)
			return -ETIMEDOUT;
		syscall(SYS_tgkill, getpid(), pump, SIGRTMAX); /* again: it may come just before read(2) */
		usleep(1000);
	}
	return 0;
}
