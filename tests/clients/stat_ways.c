/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What fstat(2), newfstatat(2) and statx(2) say of descriptors, called well and badly:
 *
 *   stat_ways FILE...
 *
 * FILE is opened; CONTAINER,GROUP,NAME is the device of a group, by VFIO_GROUP_GET_DEVICE_FD.  For each file there
 * is a line for each row of `ways`:
 *
 *   FILE WAY ERRNO type=OCTAL perm=OCTAL rdev=MAJOR:MINOR size=N blocks=N nlink=N ino=N uid=N gid=N dev=MAJOR:MINOR
 *
 * with the errno's name, or OK and the members.  Nothing else is on stdout.
 */
#define _GNU_SOURCE
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { PAGE = 4096, NOWHERE = 8, BOTH = AT_STATX_FORCE_SYNC | AT_STATX_DONT_SYNC };
static char *pages; /* one that can be written, one without access, one that can be read */
static int path_fd; /* an O_PATH descriptor of the file */

static const char *read_only(void) { return pages + 2 * PAGE; }
static const char *last_bytes(void) { return pages + PAGE - 16; }

static int fstat_of(int fd, const void *buffer)
{
	return syscall(SYS_fstat, fd, buffer);
}

static int at(int fd, const void *path, const void *buffer, int flags)
{
	return syscall(SYS_newfstatat, fd, path, buffer, flags);
}

static int extended(int fd, const void *path, int flags, unsigned mask, const void *buffer)
{
	return syscall(SYS_statx, fd, path, flags, mask, buffer);
}

#define WAY(function, expression) \
	static int function(int fd, void *out) { (void)fd, (void)out; return expression; }
WAY(fstat_, fstat_of(fd, out))
WAY(fstat_path, fstat_of(path_fd, out))
WAY(fstat_none, fstat_of(-1, out))
WAY(fstat_closed, fstat_of(1000, out))
WAY(fstat_cwd, fstat_of(AT_FDCWD, out))
WAY(fstat_nowhere, fstat_of(fd, (void *)NOWHERE))
WAY(fstat_null, fstat_of(fd, NULL))
WAY(fstat_read_only, fstat_of(fd, read_only()))
WAY(fstat_end, fstat_of(fd, last_bytes()))
WAY(at_empty, at(fd, "", out, AT_EMPTY_PATH))
WAY(at_path_fd, at(path_fd, "", out, AT_EMPTY_PATH))
WAY(at_more, at(fd, "", out, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT))
WAY(at_null, at(fd, NULL, out, AT_EMPTY_PATH))
WAY(at_without, at(fd, "", out, 0))
WAY(at_nowhere, at(fd, (void *)NOWHERE, out, AT_EMPTY_PATH))
WAY(at_buffer, at(fd, "", (void *)NOWHERE, AT_EMPTY_PATH))
WAY(at_below, at(fd, "x", out, AT_EMPTY_PATH))
WAY(at_root, at(fd, "/", out, AT_EMPTY_PATH))
WAY(at_cwd, at(AT_FDCWD, "", out, AT_EMPTY_PATH))
WAY(at_none, at(-1, "", out, AT_EMPTY_PATH))
WAY(x_empty, extended(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, out))
WAY(x_all, extended(fd, "", AT_EMPTY_PATH, 0x7fffffff, out))
WAY(x_path_fd, extended(path_fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, out))
WAY(x_nothing, extended(fd, "", AT_EMPTY_PATH, 0, out))
WAY(x_type, extended(fd, "", AT_EMPTY_PATH, STATX_TYPE, out))
WAY(x_sync, extended(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, out))
WAY(x_no_sync, extended(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, out))
WAY(x_both, extended(fd, "", AT_EMPTY_PATH | BOTH, STATX_BASIC_STATS, out))
WAY(x_reserved, extended(fd, "", AT_EMPTY_PATH, 0x80000000u, out))
WAY(x_null, extended(fd, NULL, AT_EMPTY_PATH, STATX_BASIC_STATS, out))
WAY(x_nowhere, extended(fd, (void *)NOWHERE, AT_EMPTY_PATH, STATX_BASIC_STATS, out))
WAY(x_buffer, extended(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, (void *)NOWHERE))
WAY(x_read_only, extended(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, read_only()))
WAY(x_cwd, extended(AT_FDCWD, "", AT_EMPTY_PATH, STATX_BASIC_STATS, out))

static const struct way {
	const char *name;
	int is_statx; /* which kind of struct it fills in */
	int (*call)(int fd, void *buffer);
} ways[] = {
	{"fstat", 0, fstat_}, {"fstat/O_PATH", 0, fstat_path}, {"fstat/-1", 0, fstat_none},
	{"fstat/closed", 0, fstat_closed}, {"fstat/AT_FDCWD", 0, fstat_cwd}, {"fstat/nowhere", 0, fstat_nowhere},
	{"fstat/NULL", 0, fstat_null}, {"fstat/read-only", 0, fstat_read_only}, {"fstat/end", 0, fstat_end},
	{"newfstatat", 0, at_empty}, {"newfstatat/O_PATH", 0, at_path_fd}, {"newfstatat/more", 0, at_more},
	{"newfstatat/NULL", 0, at_null}, {"newfstatat/without", 0, at_without},
	{"newfstatat/nowhere", 0, at_nowhere}, {"newfstatat/buffer", 0, at_buffer}, {"newfstatat/below", 0, at_below},
	{"newfstatat/root", 0, at_root}, {"newfstatat/AT_FDCWD", 0, at_cwd}, {"newfstatat/-1", 0, at_none},
	{"statx", 1, x_empty}, {"statx/all", 1, x_all}, {"statx/O_PATH", 1, x_path_fd}, {"statx/nothing", 1, x_nothing},
	{"statx/type", 1, x_type}, {"statx/sync", 1, x_sync}, {"statx/no-sync", 1, x_no_sync},
	{"statx/both", 1, x_both}, {"statx/reserved", 1, x_reserved},
	{"statx/NULL", 1, x_null}, {"statx/nowhere", 1, x_nowhere}, {"statx/buffer", 1, x_buffer},
	{"statx/read-only", 1, x_read_only}, {"statx/AT_FDCWD", 1, x_cwd},
};

static void print(unsigned mode, unsigned rmajor, unsigned rminor, unsigned long long size, unsigned long long blocks,
	unsigned nlink, unsigned long long ino, unsigned uid, unsigned gid, unsigned dmajor, unsigned dminor)
{
	printf(" OK type=%o perm=%o rdev=%u:%u size=%llu blocks=%llu nlink=%u ino=%llu uid=%u gid=%u dev=%u:%u\n",
		mode & S_IFMT, mode & 07777, rmajor, rminor, size, blocks, nlink, ino, uid, gid, dmajor, dminor);
}

static void say(const char *file, const struct way *way, int fd)
{
	static union {
		struct stat plain;
		struct statx extended;
		char bytes[1024];
	} out;

	memset(&out, 0x5a, sizeof(out));
	printf("%s %s", file, way->name);
	if (way->call(fd, &out)) {
		printf(" %s\n", strerrorname_np(errno));
		return;
	}
	size_t size = way->is_statx ? sizeof(out.extended) : sizeof(out.plain);

	for (size_t byte = size; byte < sizeof(out); byte++)
		CHECK(out.bytes[byte] == 0x5a); /* nothing is written behind the struct */
	if (way->is_statx) {
		struct statx *s = &out.extended;

		print(s->stx_mode, s->stx_rdev_major, s->stx_rdev_minor, s->stx_size, s->stx_blocks, s->stx_nlink, s->stx_ino,
			s->stx_uid, s->stx_gid, s->stx_dev_major, s->stx_dev_minor);
	} else {
		struct stat *s = &out.plain;

		print(s->st_mode, major(s->st_rdev), minor(s->st_rdev), s->st_size, s->st_blocks, s->st_nlink, s->st_ino,
			s->st_uid, s->st_gid, major(s->st_dev), minor(s->st_dev));
	}
}

static int open_device(char *names)
{
	int container = open(strtok(names, ","), O_RDWR | O_CLOEXEC), group = open(strtok(NULL, ","), O_RDWR | O_CLOEXEC);
	int device;

	CHECK(container >= 0 && group >= 0);
	CHECK(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	CHECK(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, strtok(NULL, ","));
	CHECK(device >= 0);
	return device;
}

int main(int count, char **files)
{
	char link[64];

	pages = mmap(NULL, 3 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(pages != MAP_FAILED);
	CHECK(!mprotect(pages + PAGE, PAGE, PROT_NONE) && !mprotect(pages + 2 * PAGE, PAGE, PROT_READ));
	for (int file = 1; file < count; file++) {
		int is_device = strchr(files[file], ',') != NULL;
		char *name = strdup(is_device ? "device" : files[file]);
		int fd = is_device ? open_device(files[file]) : open(name, O_RDONLY | O_CLOEXEC);

		CHECK(fd >= 0);
		snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		path_fd = open(link, O_PATH | O_CLOEXEC);
		CHECK(path_fd >= 0);
		for (size_t way = 0; way < sizeof(ways) / sizeof(*ways); way++)
			say(name, &ways[way], fd);
	}
	return 0;
}
