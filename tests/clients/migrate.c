/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client that moves the state of one device to another by their data_fd, under `vfsfuse run`, and the errnos of Linux.
 *
 *	migrate FROM TO         files in /dev/vfio/devices of two counters (vfio/counter.py)
 *
 * Prints "ok".
 */
#define _GNU_SOURCE
#include "../../examples/iommufd.h"
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

enum { PAGE = 4096, VALUE = 0, COUNT = 4, ERROR = 0, STOP = 1, RUNNING = 2, STOP_COPY = 3, RESUMING = 4, P2P = 5, STATE_SIZE = 12 };

struct state {
	uint32_t argsz, flags, device_state;
	int32_t data_fd;
};

static int open_bound(const char *name)
{
	char path[512];
	struct vfio_device_bind_iommufd bound = {.argsz = sizeof(bound), .iommufd = open("/dev/iommu", O_RDWR)};

	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", name);
	int device = open(path, O_RDWR);
	CHECK(device >= 0 && !ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bound) && !close(bound.iommufd));
	return device;
}

static uint32_t get(int device, unsigned at)
{
	uint32_t value;

	CHECK(pread(device, &value, 4, at) == 4); /* region 0 is at 0 */
	return value;
}

static void put(int device, uint32_t value)
{
	CHECK(pwrite(device, &value, 4, VALUE) == 4);
}

static struct state asked(uint32_t state)
{
	return (struct state){.argsz = sizeof(struct state), .flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE,
		.device_state = state, .data_fd = 77};
}

/* Change the state: the descriptor that it gives, -1 if it gives none. */
static int change(int device, uint32_t to)
{
	struct state state = asked(to);

	CHECK(!ioctl(device, VFIO_DEVICE_FEATURE, &state));
	CHECK(state.device_state == to && (state.data_fd == -1 || fcntl(state.data_fd, F_GETFD) == FD_CLOEXEC));
	return state.data_fd;
}

static uint32_t state_of(int device)
{
	struct state state = {.argsz = sizeof(state), .flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE};

	CHECK(!ioctl(device, VFIO_DEVICE_FEATURE, &state) && state.data_fd == -1);
	return state.device_state;
}

static void move_state(int from, int to)
{
	char data[64];

	put(from, 4711);
	while (get(from, COUNT) < 2)
		usleep(1000);
	int saved = change(from, STOP_COPY); /* by way of STOP */
	uint32_t count = get(from, COUNT);
	usleep(20000);
	CHECK(saved >= 0 && get(from, COUNT) == count && state_of(from) == STOP_COPY);
	CHECK(change(from, STOP_COPY) == -1); /* it is there already */
	FAILS(lseek(saved, 0, SEEK_CUR), ESPIPE);
	FAILS(write(saved, data, 1), EBADF);
	CHECK(read(saved, data, 5) == 5 && read(saved, data + 5, sizeof(data) - 5) == STATE_SIZE - 5);
	CHECK(read(saved, data, sizeof(data)) == 0);
	CHECK(change(from, STOP) == -1);
	FAILS(read(saved, data + 32, 1), ENODEV);
	CHECK(!close(saved));

	int loaded = change(to, RESUMING);
	FAILS(read(loaded, data + 32, 1), EBADF);
	CHECK(write(loaded, data, 7) == 7 && write(loaded, data + 7, STATE_SIZE - 7) == STATE_SIZE - 7);
	CHECK(change(to, RUNNING) == -1 && get(to, VALUE) == 4711 && get(to, COUNT) >= count);
	FAILS(write(loaded, data, 1), ENODEV);
	CHECK(!close(loaded));
	while (get(to, COUNT) == count)
		usleep(1000);
}

static void refuse(int device)
{
	struct state bad = asked(P2P), probe = asked(0);
	struct state *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int free_fd = dup(0), container = open("/dev/vfio/vfio", O_RDWR), loaded;
	struct vfio_iommu_type1_dirty_bitmap pages = {.argsz = sizeof(pages), .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_START};
	struct rlimit limit, none;

	CHECK(page != MAP_FAILED && container >= 0 && free_fd >= 0 && !close(free_fd));
	FAILS(ioctl(device, VFIO_DEVICE_FEATURE, &bad), EINVAL);
	bad = asked(ERROR);
	FAILS(ioctl(device, VFIO_DEVICE_FEATURE, &bad), EINVAL);
	bad = asked(STOP_COPY);
	bad.argsz = sizeof(bad) - 1;
	FAILS(ioctl(device, VFIO_DEVICE_FEATURE, &bad), EINVAL);
	FAILS(ioctl(device, VFIO_DEVICE_FEATURE, NULL), EFAULT);
	probe.flags |= VFIO_DEVICE_FEATURE_PROBE;
	CHECK(!ioctl(device, VFIO_DEVICE_FEATURE, &probe) && state_of(device) == RUNNING);
	FAILS(ioctl(0, VFIO_DEVICE_FEATURE, &probe), ENOTTY);
	FAILS(ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &pages), EINVAL); /* the same number; no IOMMU is set */

	*page = asked(STOP_COPY); /* as on Linux, the device has changed its state all the same */
	CHECK(!mprotect(page, PAGE, PROT_READ));
	FAILS(ioctl(device, VFIO_DEVICE_FEATURE, page), EFAULT);
	CHECK(state_of(device) == STOP_COPY && change(device, RUNNING) == -1);
	CHECK(!getrlimit(RLIMIT_NOFILE, &limit));
	none = limit;
	none.rlim_cur = (rlim_t)free_fd;
	bad = asked(STOP_COPY);
	CHECK(!setrlimit(RLIMIT_NOFILE, &none));
	FAILS(ioctl(device, VFIO_DEVICE_FEATURE, &bad), EMFILE);
	CHECK(!setrlimit(RLIMIT_NOFILE, &limit) && state_of(device) == STOP_COPY && change(device, STOP) == -1);

	loaded = change(device, RESUMING);
	CHECK(write(loaded, "nonsense", 8) == 8);
	bad = asked(STOP);
	FAILS(ioctl(device, VFIO_DEVICE_FEATURE, &bad), EINVAL);
	CHECK(state_of(device) == ERROR);
	FAILS(ioctl(device, VFIO_DEVICE_FEATURE, &bad), EINVAL);
	CHECK(!ioctl(device, VFIO_DEVICE_RESET) && state_of(device) == RUNNING && !close(loaded));
	loaded = change(device, STOP_COPY);
	CHECK(!ioctl(device, VFIO_DEVICE_RESET) && state_of(device) == RUNNING);
	FAILS(read(loaded, &bad, 1), ENODEV);
	CHECK(!close(loaded) && !close(container));
}

int main(int argc, char **argv)
{
	struct { uint32_t argsz, flags; uint64_t migration; } flags = {.argsz = sizeof(flags),
		.flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION};

	CHECK(argc == 3);
	int from = open_bound(argv[1]), to = open_bound(argv[2]);
	CHECK(!ioctl(from, VFIO_DEVICE_FEATURE, &flags) && flags.migration == VFIO_MIGRATION_STOP_COPY);
	move_state(from, to);
	refuse(to);
	puts("ok");
	return 0;
}
