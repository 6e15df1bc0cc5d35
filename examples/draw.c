/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A user-space driver of a vGPU: it draws a picture by commands of the engine, and waits for the interrupt.
 *
 *	draw UUID [MNT]
 *
 * MNT is where a lab is mounted.  Without it the driver uses /dev and /sys, as on a machine with such a GPU, or under
 * `vfsfuse run`.  It needs nothing but the kernel's VFIO and iommufd interfaces, and what docs/vgpu.md says of the device.
 * draw.py is the same in Python.
 */
#define _GNU_SOURCE
#include "iommufd.h"
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { COMMAND = 4, BUS_MASTER = 4, DISPI = 0x500, ENGINE = 0x1000 };
enum { CONTROL = 0x04, STATUS = 0x08, RING_BASE = 0x20, RING_SIZE = 0x28, RING_TAIL = 0x30 };
enum { ENABLE = 1, RESET = 2 };
enum { FILL = 1, BLIT = 3, FENCE = 4 };
enum { WIDTH = 640, HEIGHT = 480, PITCH = WIDTH * 4, SPRITE = 64, BORDER = 8, PAGE = 4096 };
enum { IOVA = 1 << 30, RING = 0, FENCES = PAGE, TEXTURE = 2 * PAGE, SIZE = TEXTURE + 4 * SPRITE * SPRITE };
#define SYSTEM ((uint64_t)1 << 40)
#define AT(x, y) ((uint64_t)(y) * PITCH + 4 * (x)) /* graphics address of a pixel */

struct packet {
	uint32_t opcode, flags;
	union {
		struct { uint64_t target; uint32_t pitch, width, height, pattern; } fill;
		struct { uint64_t target, source; uint32_t target_pitch, source_pitch, width, height; } blit;
		struct { uint64_t address, value; } fence;
		char room[56];
	};
};

static int iommufd, device;
static uint32_t ioas;
static struct vfio_region_info video, gtt, registers, config;

#define CHECK(what) \
	do { \
		if (!(what)) { \
			perror("draw: " #what); \
			exit(1); \
		} \
	} while (0)

static void put(const struct vfio_region_info *region, off_t at, const void *data, size_t size)
{
	CHECK(pwrite(device, data, size, region->offset + at) == (ssize_t)size);
}

static void put32(off_t at, uint32_t value)
{
	put(&registers, at, &value, sizeof(value));
}

static int open_node(const char *root, const char *node)
{
	char path[1024];

	snprintf(path, sizeof(path), "%s/dev/%s", root, node);
	return open(path, O_RDWR | O_CLOEXEC);
}

static struct vfio_region_info region_of(uint32_t index)
{
	struct vfio_region_info info = {.argsz = sizeof(info), .index = index};

	CHECK(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info));
	return info;
}

/* The iommufd, an address space in it (an IOAS), and the device, whose DMA goes there. */
static void open_device(const char *name, const char *root)
{
	struct vfio_device_bind_iommufd bind = {.argsz = sizeof(bind)};
	struct iommu_ioas_alloc alloc = {.size = sizeof(alloc)};
	struct vfio_device_attach_iommufd_pt attach = {.argsz = sizeof(attach)};
	char path[512];
	struct dirent *entry;
	DIR *listing;

	snprintf(path, sizeof(path), "%s/sys/bus/mdev/devices/%s/vfio-dev", root, name);
	CHECK((listing = opendir(path)));
	while ((entry = readdir(listing)) && strncmp(entry->d_name, "vfio", 4))
		;
	CHECK(entry);
	snprintf(path, sizeof(path), "vfio/devices/%.200s", entry->d_name);
	CHECK((iommufd = open_node(root, "iommu")) >= 0);
	CHECK((device = open_node(root, path)) >= 0);
	bind.iommufd = iommufd;
	CHECK(!ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	CHECK(!ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc));
	attach.pt_id = ioas = alloc.out_ioas_id;
	CHECK(!ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
	video = region_of(VFIO_PCI_BAR0_REGION_INDEX), gtt = region_of(VFIO_PCI_BAR1_REGION_INDEX);
	registers = region_of(VFIO_PCI_BAR2_REGION_INDEX), config = region_of(VFIO_PCI_CONFIG_REGION_INDEX);
}

static char *map_memory(void)
{
	char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct iommu_ioas_map map = {.size = sizeof(map), .ioas_id = ioas, .iova = IOVA, .length = SIZE,
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE};
	uint64_t entries[SIZE / PAGE];
	uint16_t command;

	CHECK(memory != MAP_FAILED);
	map.user_va = (uintptr_t)memory;
	CHECK(!ioctl(iommufd, IOMMU_IOAS_MAP, &map));
	for (int page = 0; page < SIZE / PAGE; page++)
		entries[page] = (IOVA + (uint64_t)page * PAGE) | 3;
	put(&gtt, 0, entries, sizeof(entries));
	CHECK(pread(device, &command, sizeof(command), config.offset + COMMAND) == sizeof(command));
	command |= BUS_MASTER;
	put(&config, COMMAND, &command, sizeof(command));
	return memory;
}

static int fence_interrupt(void)
{
	struct { struct vfio_irq_set set; int eventfd; } irq = {.eventfd = eventfd(0, 0)};

	irq.set.argsz = sizeof(irq), irq.set.index = VFIO_PCI_MSIX_IRQ_INDEX, irq.set.count = 1;
	irq.set.flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
	CHECK(!ioctl(device, VFIO_DEVICE_SET_IRQS, &irq));
	return irq.eventfd;
}

static size_t picture(struct packet *ring)
{
	const struct packet packets[] = {
		{FILL, .fill = {0, PITCH, 4 * WIDTH, HEIGHT, 0x204060}},
		{FILL, .fill = {AT(40, 30), PITCH, 4 * 200, 100, 0xffcc00}},
		{BLIT, .blit = {AT(60, 50), AT(40, 30), PITCH, PITCH, 4 * 200, 100}}, /* over a part of itself */
		{BLIT, .blit = {AT(300, 200), SYSTEM + TEXTURE, PITCH, 4 * SPRITE, 4 * SPRITE, SPRITE}},
		{BLIT, .blit = {AT(500, 400), AT(300, 200), PITCH, PITCH, 4 * SPRITE, SPRITE}},
		{FENCE, 1, .fence = {SYSTEM + FENCES, 1}},
	};

	memcpy(ring, packets, sizeof(packets));
	return sizeof(packets);
}

/* White lines at the top, by the processor: in the mapped video memory where it can be mapped. */
static void border(void)
{
	static unsigned char white[BORDER * PITCH];
	unsigned char *pixels;

	memset(white, 0xff, sizeof(white));
	if (!(video.flags & VFIO_REGION_INFO_FLAG_MMAP)) {
		put(&video, 0, white, sizeof(white));
		return;
	}
	pixels = mmap(NULL, video.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, video.offset);
	CHECK(pixels != MAP_FAILED);
	memcpy(pixels, white, sizeof(white));
	munmap(pixels, video.size);
}

int main(int argc, char **argv)
{
	const uint16_t mode[] = {WIDTH, HEIGHT, 32, 0x41};
	uint64_t base = SYSTEM + RING;
	struct pollfd done;
	char *memory;
	uint32_t *texture, tail, state[4];

	CHECK(argc == 2 || argc == 3);
	open_device(argv[1], argc == 3 ? argv[2] : "");
	memory = map_memory();
	done = (struct pollfd){.fd = fence_interrupt(), .events = POLLIN};
	put(&registers, DISPI + 2, mode, sizeof(mode));
	texture = (uint32_t *)(memory + TEXTURE);
	for (uint32_t y = 0; y < SPRITE; y++)
		for (uint32_t x = 0; x < SPRITE; x++)
			*texture++ = (4 * x) << 16 | (4 * y) << 8 | 128;
	tail = picture((struct packet *)(memory + RING));

	put32(ENGINE + CONTROL, RESET);
	put(&registers, ENGINE + RING_BASE, &base, sizeof(base));
	put32(ENGINE + RING_SIZE, PAGE);
	put32(ENGINE + CONTROL, ENABLE);
	put32(ENGINE + RING_TAIL, tail);

	if (poll(&done, 1, 10000) == 1 && *(volatile uint64_t *)(memory + FENCES) == 1) {
		border();
		return 0;
	}
	CHECK(pread(device, state, sizeof(state), registers.offset + ENGINE + STATUS) == sizeof(state));
	fprintf(stderr, "draw: the engine did not finish: status %#x, error %u\n", state[0], state[1]);
	return 1;
}
