/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client whose epoll is held up: epoll_wait(2) asks a FUSE file that does not answer (held_file.h), and whoever
 * reads the fdinfo of the epoll waits for that, so that not even SIGKILL ends the wait.
 *
 *   held_epoll FILE
 *
 * FILE is an ordinary file, the mount point.  It says "at ADDRESS", where a page of shared memory is whose descriptor
 * comes after that of the epoll, and "held POLL".  It ends at the end of stdin or after a minute.
 * Source: epoll(7), <linux/fuse.h> (FUSE_POLL).
 */
#define _GNU_SOURCE
#include "held_file.h"
#include <sys/epoll.h>

enum { SECONDS = 60 };

int main(int argc, char **argv)
{
	struct epoll_event event = {.events = EPOLLIN};
	char poll_kind[] = "POLL";
	int file, epoll, memory;
	void *page;

	CHECK(argc == 2);
	file = held_file(argv[1], kinds_of(poll_kind), SECONDS, geteuid() ? IN_USER_NAMESPACE : AS_ROOT, 0);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	memory = memfd_create("behind the epoll", MFD_CLOEXEC);
	CHECK(epoll >= 0 && memory > epoll && write(memory, "found", 5) == 5 && !ftruncate(memory, PAGE));
	page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	CHECK(page != MAP_FAILED && !epoll_ctl(epoll, EPOLL_CTL_ADD, file, &event));
	dprintf(1, "at %p\n", page);
	held->armed = 1;
	(void)epoll_wait(epoll, &event, 1, -1);
	return 0;
}
