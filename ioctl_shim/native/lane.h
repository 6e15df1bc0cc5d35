/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The native edge: one pump thread reads /dev/fuse, answers what needs no decision, calls Python once for
 * device-lane requests and queues the rest for pyfuse3.  Protocol: <linux/fuse.h> (FUSE_KERNEL_VERSION 7).
 */
#ifndef VFSFUSE_LANE_H
#define VFSFUSE_LANE_H

#include <stddef.h>
#include <stdint.h>

#include "lane.cdef"

/* One load or store, as a processor does it, whoever does another at the same time; `width` is 1, 2, 4 or 8. */
static inline uint64_t load_register(const char *from, uint64_t width)
{
	switch (width) {
	case 8:
		return __atomic_load_n((const uint64_t *)from, __ATOMIC_RELAXED);
	case 4:
		return __atomic_load_n((const uint32_t *)from, __ATOMIC_RELAXED);
	case 2:
		return __atomic_load_n((const uint16_t *)from, __ATOMIC_RELAXED);
	default:
		return *(const uint8_t *)from;
	}
}

static inline void store_register(char *to, uint64_t width, uint64_t value)
{
	switch (width) {
	case 8:
		__atomic_store_n((uint64_t *)to, value, __ATOMIC_RELAXED);
		break;
	case 4:
		__atomic_store_n((uint32_t *)to, (uint32_t)value, __ATOMIC_RELAXED);
		break;
	case 2:
		__atomic_store_n((uint16_t *)to, (uint16_t)value, __ATOMIC_RELAXED);
		break;
	default:
		*(uint8_t *)to = (uint8_t)value;
	}
}

#define LANE_OFFSET_MASK ((1ull << LANE_REGION_SHIFT) - 1)

/* A register of an open device, `found` unless NULL. */
struct lane_place {
	const struct lane_memory *memory;
	uint64_t region;
	const struct lane_register *found;
};

/* interpose.c <-> pump.c */
struct lane_message {
	struct lane_message *next;
	size_t size;
	char *data;
};

int lane_attach(int fuse_fd);
int lane_event_fd(void);
struct lane_message *lane_pop(void);
int lane_ended(void);
void lane_init_reply(const void *in, void *body);
struct vfs_open_out;
void lane_forbid_mapping(struct vfs_open_out *out);

/* regions.c and call.c <-> pump.c; bytes, a number or 0, a negative errno, or LANE_DEFERRED: Python says None. */
char *find_memory(const struct lane_file *file, uint64_t offset, uint64_t size);
int read_plain(const struct lane_file *file, uint64_t offset, uint64_t size, void *value);
struct lane_place find_register(const struct lane_file *file, uint64_t offset, uint64_t size);
int is_shown(const struct lane_memory *m, uint64_t index);
int64_t call_read(const struct lane_file *file, uint64_t offset, uint32_t size, char *out);
int64_t call_write(const struct lane_file *file, uint64_t offset, const void *in, uint32_t size);
int64_t call_register(const struct lane_place *place, uint64_t *value, int write);
int64_t call_ioctl(const struct lane_file *file, uint32_t cmd, uint64_t arg, uint32_t tid);
int64_t call_show(uint64_t inode, uint64_t offset, uint32_t size, char *out);

#endif
