/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the C programs of the campaigns share: random numbers that a seed repeats, the report, and VFIO's dialogue.
 *
 * A program prints lines that tests/stress/program.py reads: "count NAME N", "most NAME N" and "fault TEXT".  The page
 * `progress` is shared with the campaign, which reads there what a call that does not return was doing.
 */
#pragma once
#define _GNU_SOURCE
#include "../../examples/iommufd.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, REGION_SHIFT = 40 };
#define REGION(index) ((off_t)(index) << REGION_SHIFT)
#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))
#define CHECK(what) \
	do { \
		if (!(what)) { \
			printf("fault line %d: %s: %s\n", __LINE__, #what, strerror(errno)); \
			fflush(stdout); \
			exit(1); \
		} \
	} while (0)

/* struct Progress of tests/stress/program.py */
struct progress {
	_Atomic uint64_t calls;
	_Atomic uint64_t begun; /* CLOCK_MONOTONIC in ns; 0 between two calls */
	char doing[48];
	uint64_t details[4];
};

static struct progress *progress;

static inline uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The progress page is the file `path`, or a page of this process when it is "-". */
static inline void open_progress(const char *path)
{
	int fd = strcmp(path, "-") ? open(path, O_RDWR | O_CLOEXEC) : memfd_create("progress", MFD_CLOEXEC);

	CHECK(fd >= 0 && !ftruncate(fd, PAGE));
	progress = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(progress != MAP_FAILED);
	close(fd);
	setvbuf(stdout, NULL, _IOLBF, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static inline void begin(const char *doing, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	memccpy(progress->doing, doing, 0, sizeof(progress->doing) - 1);
	progress->details[0] = a, progress->details[1] = b, progress->details[2] = c, progress->details[3] = d;
	atomic_store(&progress->begun, now_ns());
}

static inline uint64_t end(void)
{
	uint64_t took = now_ns() - atomic_exchange(&progress->begun, 0);

	atomic_fetch_add(&progress->calls, 1);
	return took;
}

static inline void fault(const char *format, ...)
{
	va_list list;

	printf("fault call %llu: ", (unsigned long long)progress->calls);
	va_start(list, format);
	vprintf(format, list);
	va_end(list);
	putchar('\n');
}

/* ---- random numbers: splitmix64 ---- */

static uint64_t random_state;

static inline uint64_t random64(void)
{
	uint64_t z = random_state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

static inline uint64_t below(uint64_t end)
{
	return random64() % end;
}

static inline bool chance(unsigned percent)
{
	return below(100) < percent;
}

/* Numbers at which code errs: small ones, powers of two and their neighbours, all ones, and any. */
static inline uint64_t edge64(void)
{
	switch (below(6)) {
	case 0:
		return below(10);
	case 1:
		return (1ull << below(64)) + below(3) - 1;
	case 2:
		return -below(5) - 1;
	case 3:
		return below(64) * PAGE;
	case 4:
		return random64() >> below(64);
	default:
		return random64();
	}
}

/* ---- VFIO ---- */

static inline int open_below(const char *root, const char *name, int flags)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s", root, name);
	return open(path, flags | O_CLOEXEC);
}

static inline int open_vfio(const char *root, const char *name)
{
	char path[300];

	snprintf(path, sizeof(path), "dev/vfio/%s", name);
	return open_below(root, path, O_RDWR);
}

/* A device through its group, in a container; or by its own file, bound to an iommufd and attached to `ioas`. */
struct opened {
	int container, group, device, iommufd;
	uint32_t ioas;
};

static const struct opened NOTHING = {-1, -1, -1, -1, 0};

static inline void close_device(struct opened *o)
{
	int fds[] = {o->device, o->group, o->container, o->iommufd};

	for (unsigned i = 0; i < LENGTH(fds); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	*o = NOTHING;
}

/*
 * The device `name` of `group` in a container of its own, as a program under `vfsfuse run` opens it; false with errno.
 * The container is an open of dev/vfio/vfio or of dev/iommu.
 */
static inline bool open_device_in(const char *root, const char *container, const char *group, const char *name,
				  struct opened *o)
{
	*o = NOTHING;
	if ((o->container = open_below(root, container, O_RDWR)) >= 0 && (o->group = open_vfio(root, group)) >= 0 &&
	    !ioctl(o->group, VFIO_GROUP_SET_CONTAINER, &o->container) &&
	    !ioctl(o->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) &&
	    (o->device = ioctl(o->group, VFIO_GROUP_GET_DEVICE_FD, name)) >= 0)
		return true;
	int error = errno;
	close_device(o);
	errno = error;
	return false;
}

static inline bool open_device(const char *root, const char *group, const char *name, struct opened *o)
{
	return open_device_in(root, "dev/vfio/vfio", group, name, o);
}

static inline bool bind_device(int device, int iommufd)
{
	struct vfio_device_bind_iommufd bind = {.argsz = sizeof(bind), .iommufd = iommufd};

	return !ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind);
}

static inline bool attach_device(int device, uint32_t pt)
{
	struct vfio_device_attach_iommufd_pt attach = {.argsz = sizeof(attach), .pt_id = pt};

	return !ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
}

/* The id of a new IOAS, or 0. */
static inline uint32_t ioas_alloc(int iommufd)
{
	struct iommu_ioas_alloc made = {.size = sizeof(made)};

	return ioctl(iommufd, IOMMU_IOAS_ALLOC, &made) ? 0 : made.out_ioas_id;
}

/* The device of the file `cdev` below dev/vfio, attached to an IOAS of its own; false with errno. */
static inline bool open_bound(const char *root, const char *cdev, struct opened *o)
{
	*o = NOTHING;
	if ((o->iommufd = open_below(root, "dev/iommu", O_RDWR)) >= 0 && (o->device = open_vfio(root, cdev)) >= 0 &&
	    bind_device(o->device, o->iommufd) && (o->ioas = ioas_alloc(o->iommufd)) && attach_device(o->device, o->ioas))
		return true;
	int error = errno;
	close_device(o);
	errno = error;
	return false;
}

static inline int ioas_map(int iommufd, uint32_t ioas, uint64_t iova, const void *address, uint64_t size)
{
	struct iommu_ioas_map map = {.size = sizeof(map), .ioas_id = ioas, .user_va = (uintptr_t)address, .iova = iova,
		.length = size, .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE};

	return ioctl(iommufd, IOMMU_IOAS_MAP, &map);
}

static inline int ioas_unmap(int iommufd, uint32_t ioas, uint64_t iova, uint64_t size)
{
	struct iommu_ioas_unmap unmap = {.size = sizeof(unmap), .ioas_id = ioas, .iova = iova, .length = size};

	return ioctl(iommufd, IOMMU_IOAS_UNMAP, &unmap);
}

static inline int map_dma(int container, uint64_t iova, const void *address, uint64_t size, uint32_t flags)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map), .flags = flags, .vaddr = (uintptr_t)address, .iova = iova, .size = size};

	return ioctl(container, VFIO_IOMMU_MAP_DMA, &map);
}

static inline int unmap_dma(int container, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof(unmap), .iova = iova, .size = size};

	return ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap);
}

/* ---- the engine of a vGPU: docs/vgpu.md ---- */

#define ENGINE (REGION(VFIO_PCI_BAR2_REGION_INDEX) + 0x1000)
#define GTT REGION(VFIO_PCI_BAR1_REGION_INDEX)
#define SYSTEM_BASE (1ull << 40)
enum { CONTROL = 4, STATUS = 8, RING_BASE = 0x20, RING_SIZE = 0x28, RING_HEAD = 0x2c, RING_TAIL = 0x30 };
enum { ENABLE = 1, RESET = 2 };
enum { IDLE = 1, DONE = 2, ERROR = 4, HANG = 8 };
enum { GTT_ENTRIES = 16384, VALID = 1, WRITABLE = 2 };
enum { NOP, FILL, COPY, BLIT, FENCE, WAIT };

/* The fields of each opcode follow each other without gaps, which packing keeps. */
struct packet {
	uint32_t opcode, flags;
	union {
		struct {
			uint64_t target;
			uint32_t pitch, width, height, pattern;
		} fill;
		struct {
			uint64_t target, source, size;
		} copy;
		struct {
			uint64_t target, source;
			uint32_t target_pitch, source_pitch, width, height;
		} blit;
		struct {
			uint64_t address, value;
		} word;
		uint64_t raw[7];
	};
} __attribute__((packed, aligned(8)));

static inline bool put(int device, off_t at, uint64_t value, size_t size)
{
	return pwrite(device, &value, size, at) == (ssize_t)size;
}

static inline uint64_t get(int device, off_t at, size_t size)
{
	uint64_t value = 0;

	return pread(device, &value, size, at) == (ssize_t)size ? value : UINT64_MAX;
}

static inline bool be_master(int device)
{
	return put(device, REGION(VFIO_PCI_CONFIG_REGION_INDEX) + 4, 7, 2);
}

static inline bool enable_engine(int device, uint64_t ring, uint32_t size)
{
	return put(device, ENGINE + CONTROL, RESET, 4) && put(device, ENGINE + RING_BASE, ring, 8) &&
	       put(device, ENGINE + RING_SIZE, size, 4) && put(device, ENGINE + CONTROL, ENABLE, 4);
}
