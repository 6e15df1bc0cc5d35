/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An iommufd client as somebody would write it: a device by its own file, an address space, DMA and an interrupt.
 *
 *	iommufd_client [DEV] VFIO
 *
 * DEV is /dev unless given, VFIO the name in DEV/vfio/devices of a vGPU (docs/vgpu.md).  Its engine executes one command,
 * a fence: it writes a word to the memory of this program and raises the interrupt of vector 0.
 */
#include "../../examples/iommufd.h"
#include "check.h"
#include "open_below.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, IOVA = 1 << 30, ENGINE = 0x1000, VALID = 1, WRITABLE = 2, RESET = 2, ENABLE = 1, FENCE = 4, INTERRUPT = 1 };
static const uint64_t SYSTEM = 1ull << 40;
static int device;

static struct vfio_region_info region(unsigned index)
{
	struct vfio_region_info info = {.argsz = sizeof(info), .index = index};

	CHECK(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info));
	return info;
}

static void put(unsigned index, unsigned at, uint64_t value, unsigned size)
{
	CHECK(pwrite(device, &value, size, (off_t)region(index).offset + at) == (ssize_t)size);
}

/* The first word of the video memory, mapped where it can be mapped. */
static void use_video_memory(void)
{
	struct vfio_region_info video = region(VFIO_PCI_BAR0_REGION_INDEX);
	uint32_t maps = !!(video.flags & VFIO_REGION_INFO_FLAG_MMAP);
	uint32_t word = 0;

	put(VFIO_PCI_BAR0_REGION_INDEX, 0, 0xdecade, 4);
	if (maps) {
		uint32_t *map = mmap(NULL, video.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)video.offset);
		CHECK(map != MAP_FAILED && map[0] == 0xdecade);
		map[0]++;
	}
	CHECK(pread(device, &word, 4, (off_t)video.offset) == 4 && word == 0xdecade + maps);
	puts(maps ? "mmap" : "no mmap");
}

/* The ring is at `memory`, with a fence in it whose word is in the next page. */
static void execute_a_fence(uint64_t *memory)
{
	struct { struct vfio_irq_set set; int eventfd; } irq = {.set = {.argsz = sizeof(irq), .index = VFIO_PCI_MSIX_IRQ_INDEX,
		.count = 1, .flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER}, .eventfd = eventfd(0, 0)};
	struct pollfd done = {.fd = irq.eventfd, .events = POLLIN};

	CHECK(!ioctl(device, VFIO_DEVICE_SET_IRQS, &irq));
	memory[0] = FENCE | (uint64_t)INTERRUPT << 32, memory[1] = SYSTEM + PAGE, memory[2] = 42;
	put(VFIO_PCI_CONFIG_REGION_INDEX, 4, 6, 2); /* decodes memory, and is a bus master */
	put(VFIO_PCI_BAR1_REGION_INDEX, 0, IOVA | VALID | WRITABLE, 8);
	put(VFIO_PCI_BAR1_REGION_INDEX, 8, (IOVA + PAGE) | VALID | WRITABLE, 8);
	put(VFIO_PCI_BAR2_REGION_INDEX, ENGINE + 0x04, RESET, 4);
	put(VFIO_PCI_BAR2_REGION_INDEX, ENGINE + 0x20, SYSTEM, 8);
	put(VFIO_PCI_BAR2_REGION_INDEX, ENGINE + 0x28, PAGE, 4);
	put(VFIO_PCI_BAR2_REGION_INDEX, ENGINE + 0x04, ENABLE, 4);
	put(VFIO_PCI_BAR2_REGION_INDEX, ENGINE + 0x30, 64, 4);
	CHECK(poll(&done, 1, 10000) == 1);
	printf("an interrupt, and %lu by DMA\n", (unsigned long)((volatile uint64_t *)memory)[PAGE / 8]);
}

int main(int argc, char **argv)
{
	const char *dev = argc == 3 ? argv[1] : "/dev";
	uint64_t *memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vfio_device_bind_iommufd bind = {.argsz = sizeof(bind)};
	struct iommu_ioas_alloc alloc = {.size = sizeof(alloc)};
	struct vfio_device_attach_iommufd_pt attach = {.argsz = sizeof(attach)};
	struct iommu_ioas_map map = {.size = sizeof(map), .user_va = (uintptr_t)memory, .length = 2 * PAGE, .iova = IOVA,
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE};
	struct iommu_ioas_unmap unmap = {.size = sizeof(unmap), .iova = IOVA, .length = 2 * PAGE};
	char node[256];

	CHECK(argc == 2 || argc == 3);
	snprintf(node, sizeof(node), "vfio/devices/%.200s", argv[argc - 1]);
	int iommufd = open_below(dev, "iommu");
	device = open_below(dev, node);
	bind.iommufd = iommufd;
	CHECK(!ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind));
	CHECK(!ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc));
	attach.pt_id = map.ioas_id = unmap.ioas_id = alloc.out_ioas_id;
	CHECK(!ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach));
	CHECK(!ioctl(iommufd, IOMMU_IOAS_MAP, &map));
	use_video_memory();
	execute_a_fence(memory);
	CHECK(!ioctl(iommufd, IOMMU_IOAS_UNMAP, &unmap) && unmap.length == 2 * PAGE);
	puts("ok");
	return 0;
}
