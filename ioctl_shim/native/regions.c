/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The regions of a device as the pump knows them.  With these it reads and writes memory, and reads registers
 * that have no hooks, by itself.  Any thread makes, hides and revokes regions; only the pump looks them up
 * (find_*).  A pump that copies from or to memory says so (pump.memory), so that a region that is hidden can be
 * mapped elsewhere once no pump is in it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "guard.h"
#include "pump.h"

struct lane_memory *lane_memory_new(void)
{
	struct lane_memory *m = calloc(1, sizeof(*m));

	if (m)
		m->refs = 1;
	return m;
}

/* Maps a region, or maps it anew: then it has to be hidden, and lane_memory_settle() has returned. */
int lane_memory_map(struct lane_memory *m, uint32_t index, int fd, uint64_t offset, uint64_t size)
{
	struct lane_region *region = &m->region[index];
	void *base;

	if (index >= LANE_REGIONS || region->stored || (region->base && region->size != size))
		return -EINVAL;
	base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)offset);
	if (base == MAP_FAILED)
		return -errno;
	if (region->base)
		munmap(region->base, size);
	region->base = base;
	region->size = size;
	return 0;
}

/* The caller owns what `registers` points at, and keeps it as long as a file with this memory is open. */
int lane_memory_show(struct lane_memory *m, uint32_t index, const struct lane_region *registers)
{
	if (index >= LANE_REGIONS || m->region[index].base || registers->base)
		return -EINVAL;
	m->region[index] = *registers;
	return 0;
}

void lane_memory_revoke(struct lane_memory *m)
{
	__atomic_store_n(&m->revoked, 1, __ATOMIC_RELEASE);
}

void lane_memory_hide(struct lane_memory *m, uint32_t regions)
{
	__atomic_store_n(&m->hidden, regions, __ATOMIC_SEQ_CST);
}

void lane_memory_get(struct lane_memory *m)
{
	__atomic_add_fetch(&m->refs, 1, __ATOMIC_ACQ_REL);
}

void lane_memory_put(struct lane_memory *m)
{
	if (!m || __atomic_sub_fetch(&m->refs, 1, __ATOMIC_ACQ_REL))
		return;
	for (unsigned i = 0; i < LANE_REGIONS; i++)
		if (m->region[i].base)
			munmap(m->region[i].base, m->region[i].size);
	free(m);
}

/* Whether the pump may answer for the region: the device has not gone, and it decodes the region. */
int is_shown(const struct lane_memory *m, uint64_t index)
{
	return !__atomic_load_n(&m->revoked, __ATOMIC_ACQUIRE) && index < LANE_REGIONS &&
	       !(__atomic_load_n(&m->hidden, __ATOMIC_SEQ_CST) >> index & 1);
}

/* The region that holds [*offset, *offset + size) of the file, NULL when the pump may not answer for it.
 * Changes *offset to the offset in the region. */
static const struct lane_region *find_region(const struct lane_file *file, uint64_t *offset, uint64_t size)
{
	const struct lane_memory *m = file->memory;
	const struct lane_region *region;
	uint64_t index = file->region;

	if (!m)
		return NULL;
	if (file->region == LANE_WHOLE) {
		index = *offset >> LANE_REGION_SHIFT;
		*offset &= LANE_OFFSET_MASK;
	}
	if (!is_shown(m, index))
		return NULL;
	region = &m->region[index];
	if (*offset > region->size || size > region->size - *offset)
		return NULL;
	if (*offset < region->hole_end && *offset + size > region->hole_first)
		return NULL;
	return region;
}

/* The address of memory; leave_memory() has to follow.  NULL, and nothing to follow, when the pump may not answer.
 * The region is looked at again once this pump has said that it is there: it may have been hidden meanwhile. */
char *find_memory(const struct lane_file *file, uint64_t offset, uint64_t size)
{
	const struct lane_region *region = find_region(file, &offset, size);
	struct pump *pump = own_pump();

	if (!region || !region->base)
		return NULL;
	__atomic_store_n(&pump->memory, file->memory, __ATOMIC_SEQ_CST);
	if (is_shown(file->memory, (uint64_t)(region - file->memory->region)))
		return region->base + offset;
	leave_memory();
	return NULL;
}

void leave_memory(void)
{
	__atomic_store_n(&own_pump()->memory, NULL, __ATOMIC_RELEASE);
}

/* Reads memory: `size`, -EIO where the host has no page for it, or LANE_DEFERRED where the pump may not answer. */
int64_t read_memory(const struct lane_file *file, uint64_t offset, void *to, uint32_t size)
{
	const char *memory = find_memory(file, offset, size);

	if (!memory)
		return LANE_DEFERRED;
	int error = guarded_move(to, memory, size);

	leave_memory();
	return error ? -EIO : (int64_t)size;
}

/* The same for a write. */
int64_t write_memory(const struct lane_file *file, uint64_t offset, const void *from, uint32_t size)
{
	char *memory = find_memory(file, offset, size);

	if (!memory)
		return LANE_DEFERRED;
	int error = guarded_move(memory, from, size);

	leave_memory();
	return error ? -EIO : (int64_t)size;
}

/* Reads plain registers only: fills `value` (8 bytes) and returns 1 for an aligned access of 1, 2, 4 or 8
 * bytes to those. */
int read_plain(const struct lane_file *file, uint64_t offset, uint64_t size, void *value)
{
	const struct lane_region *region;

	if (size > 8 || !size || size & (size - 1) || offset & (size - 1))
		return 0;
	region = find_region(file, &offset, size);
	if (!region || !region->stored)
		return 0;
	for (uint64_t i = 0; i < size; i++)
		if (!region->plain[offset + i])
			return 0;
	*(uint64_t *)value = load_register(region->stored + offset, size);
	return 1;
}

/* The register that an access covers exactly; its `found` is NULL when there is none. */
struct lane_place find_register(const struct lane_file *file, uint64_t offset, uint64_t size)
{
	const struct lane_region *region = find_region(file, &offset, size);
	uint64_t first = 0, end = region ? region->count : 0;

	while (first < end) {
		uint64_t middle = (first + end) / 2;
		const struct lane_register *here = &region->registers[middle];

		if (here->offset == offset && here->width == size)
			return (struct lane_place){file->memory, (uint64_t)(region - file->memory->region), here};
		if (here->offset < offset)
			first = middle + 1;
		else
			end = middle;
	}
	return (struct lane_place){0};
}
