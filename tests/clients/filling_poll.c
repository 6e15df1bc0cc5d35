/* SPDX-License-Identifier: Apache-2.0 */
/*
 * poll(2) for LD_PRELOAD: it plays a client that fills the counter of an eventfd just after a server has seen
 * that the counter has room.  A server that then calls write(2) waits for the client.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MOST (UINT64_MAX - 1)

static int is_eventfd(int fd)
{
	char path[32], file[32] = "";

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return readlink(path, file, sizeof(file) - 1) > 0 && !strcmp(file, "anon_inode:[eventfd]");
}

static uint64_t counter(int fd)
{
	char path[40], line[80];
	unsigned long long count = 0;
	FILE *info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = fopen(path, "re");
	while (info && fgets(line, sizeof(line), info))
		sscanf(line, "eventfd-count: %llx", &count);
	if (info)
		fclose(info);
	return count;
}

int poll(struct pollfd *files, nfds_t count, int timeout)
{
	int (*real)(struct pollfd *, nfds_t, int) = dlsym(RTLD_NEXT, "poll");
	int ready = real(files, count, timeout);

	if (count == 1 && !timeout && files->events == POLLOUT && files->revents == POLLOUT && is_eventfd(files->fd)) {
		uint64_t room = MOST - counter(files->fd);

		if (write(files->fd, &room, sizeof(room)) < 0)
			return -1;
	}
	return ready;
}
