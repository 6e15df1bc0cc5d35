/* SPDX-License-Identifier: Apache-2.0 */
/* The client's memory and descriptors: process_vm_readv(2), process_vm_writev(2), pidfd_getfd(2). */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "lane.h"

typedef ssize_t (*transfer)(pid_t, const struct iovec *, unsigned long, const struct iovec *, unsigned long,
			    unsigned long);

static int64_t move_all(transfer move, uint32_t tid, uint64_t vaddr, void *buf, uint64_t size)
{
	uint64_t done = 0;

	while (done < size) {
		struct iovec local = {(char *)buf + done, size - done};
		struct iovec remote = {(void *)(uintptr_t)(vaddr + done), size - done};
		ssize_t moved = move((pid_t)tid, &local, 1, &remote, 1, 0);

		if (moved <= 0)
			return moved < 0 ? -errno : -EFAULT;
		done += (uint64_t)moved;
	}
	return 0;
}

/* 0, or -EFAULT (not mapped for this access), -ESRCH (the thread has ended), -EPERM (no permission). */
int64_t shim_peek(uint32_t tid, uint64_t vaddr, void *buf, uint64_t size)
{
	return move_all(process_vm_readv, tid, vaddr, buf, size);
}

int64_t shim_poke(uint32_t tid, uint64_t vaddr, const void *buf, uint64_t size)
{
	return move_all(process_vm_writev, tid, vaddr, (void *)buf, size);
}

int shim_pidfd_getfd(int pidfd, int fd)
{
	int copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);

	return copy < 0 ? -errno : copy;
}

/* Adds 1 to an eventfd's counter: 1, or 0 when the counter is full.  write(2) to a full one would wait. */
int shim_signal(int eventfd)
{
	struct pollfd room = {.fd = eventfd, .events = POLLOUT};
	const uint64_t one = 1;

	if (poll(&room, 1, 0) != 1 || !(room.revents & POLLOUT))
		return 0;
	return write(eventfd, &one, sizeof(one)) == sizeof(one);
}
