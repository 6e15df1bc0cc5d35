/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A VFIO client as somebody would write it: container, group, IOMMU, device, regions.
 *
 *   vfio_client [-d DEVDIR] [-t] [-f] GROUP NAME [RESOURCE0]
 *
 * DEVDIR is /dev/vfio unless given; the device is NAME of the group.  -t works in a thread, -f in a forked child.
 * RESOURCE0 is the sysfs file of BAR 0.  DEVDIR/vfio is VFIO's container, or iommufd's, which refuses some things by
 * another errno.
 */
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *devdir = "/dev/vfio", *group_number, *name, *resource0;
static int iommufd; /* the container is iommufd's */

static int open_node(const char *what)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", devdir, what);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0);
	return fd;
}

static void use_iommu(int container)
{
	struct vfio_iommu_type1_info info = {.argsz = sizeof(info)};
	void *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vfio_iommu_type1_dma_map map = {.argsz = sizeof(map), .flags = VFIO_DMA_MAP_FLAG_READ |
		VFIO_DMA_MAP_FLAG_WRITE, .vaddr = (unsigned long)page, .iova = 0x100000, .size = 8192};
	struct vfio_iommu_type1_dma_unmap unmap = {.argsz = sizeof(unmap), .iova = 0x100000, .size = 8192};

	CHECK(!ioctl(container, VFIO_IOMMU_GET_INFO, &info) && info.flags & VFIO_IOMMU_INFO_PGSIZES);
	CHECK(info.iova_pgsizes & 4096 && info.argsz > sizeof(info));
	info.argsz = 8;
	FAILS(ioctl(container, VFIO_IOMMU_GET_INFO, &info), EINVAL);
	FAILS(ioctl(container, VFIO_IOMMU_GET_INFO, (void *)8), EFAULT);
	CHECK(!ioctl(container, VFIO_IOMMU_MAP_DMA, &map));
	FAILS(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), EEXIST);
	map.size = 100;
	FAILS(ioctl(container, VFIO_IOMMU_MAP_DMA, &map), iommufd ? EEXIST : EINVAL); /* iommufd takes any size yet */
	CHECK(!ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) && unmap.size == 8192);
	CHECK(!ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) && unmap.size == 0);
	FAILS(ioctl(container, 0x3bff, 0), ENOTTY);
}

static void use_bar0(int device, const struct vfio_region_info *bar)
{
	unsigned word = 0xdecade00, got = 0;

	CHECK(pwrite(device, &word, 4, (off_t)bar->offset + 64) == 4);
	CHECK(pread(device, &got, 4, (off_t)bar->offset + 64) == 4 && got == word);
	FAILS(pread(device, &got, 4, (off_t)(bar->offset + bar->size)), EINVAL);
	if (resource0) {
		int file = open(resource0, O_RDWR);
		CHECK(pread(file, &got, 4, 64) == 4 && got == word);
		word++;
		CHECK(pwrite(file, &word, 4, 64) == 4);
		CHECK(pread(device, &got, 4, (off_t)bar->offset + 64) == 4 && got == word);
		close(file);
	}
	if (!(bar->flags & VFIO_REGION_INFO_FLAG_MMAP)) {
		puts("no mmap");
		return;
	}
	volatile unsigned *map = mmap(NULL, bar->size, PROT_READ | PROT_WRITE, MAP_SHARED, device, (off_t)bar->offset);
	CHECK(map != MAP_FAILED && map[16] == word);
	map[17] = 0xfeed;
	CHECK(pread(device, &got, 4, (off_t)bar->offset + 68) == 4 && got == 0xfeed);
	puts("mmap");
}

static void use_device(int device)
{
	struct vfio_device_info info = {.argsz = sizeof(info)};
	struct vfio_region_info region = {.argsz = sizeof(region), .index = VFIO_PCI_CONFIG_REGION_INDEX};
	struct vfio_irq_info irq = {.argsz = sizeof(irq), .index = VFIO_PCI_INTX_IRQ_INDEX};
	unsigned char config[256];

	CHECK(!ioctl(device, VFIO_DEVICE_GET_INFO, &info) && info.flags & VFIO_DEVICE_FLAGS_PCI);
	CHECK(info.num_regions >= 8 && info.num_irqs >= 3);
	CHECK(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region) && region.size >= 256);
	CHECK(region.offset == 7ull << 40 && pread(device, config, 256, (off_t)region.offset) == 256);
	CHECK(config[0] == 0x34 && config[1] == 0x12);
	region.index = 0;
	CHECK(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region) && region.offset == 0 && region.size >= 1 << 20);
	use_bar0(device, &region);
	region.index = 99;
	FAILS(ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &region), EINVAL);
	CHECK(!ioctl(device, VFIO_DEVICE_GET_IRQ_INFO, &irq));
	CHECK(!ioctl(device, VFIO_DEVICE_RESET));
}

static void *work(void *unused)
{
	int container = open_node("vfio"), group = open_node(group_number), device;
	struct vfio_group_status status = {.argsz = sizeof(status)};

	CHECK(ioctl(container, VFIO_GET_API_VERSION) == 0 && ioctl(container, VFIO_CHECK_EXTENSION, VFIO_TYPE1_IOMMU) == 1);
	CHECK(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU) == -1 && (errno == EINVAL || errno == ENODEV));
	iommufd = errno == ENODEV;
	CHECK(!ioctl(group, VFIO_GROUP_GET_STATUS, &status) && status.flags == VFIO_GROUP_FLAGS_VIABLE);
	CHECK(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	CHECK(!ioctl(group, VFIO_GROUP_GET_STATUS, &status) && status.flags & VFIO_GROUP_FLAGS_CONTAINER_SET);
	CHECK(!ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	use_iommu(container);
	FAILS(ioctl(group, VFIO_GROUP_GET_DEVICE_FD, "no-such-device"), ENODEV);
	device = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name);
	CHECK(device >= 0);
	use_device(device);
	close(device);
	CHECK(!ioctl(group, VFIO_GROUP_UNSET_CONTAINER));
	puts("ok");
	return unused;
}

int main(int argc, char **argv)
{
	int option, thread = 0, child = 0, status = 0;
	pthread_t other;

	while ((option = getopt(argc, argv, "d:tf")) != -1)
		option == 'd' ? (devdir = optarg) : option == 't' ? (thread = 1, "") : option == 'f' ? (child = 1, "") :
			(exit(2), "");
	if (argc - optind < 2)
		return 2;
	group_number = argv[optind], name = argv[optind + 1], resource0 = argv[optind + 2];
	if (child && fork())
		return wait(&status) < 0 ? 1 : WEXITSTATUS(status);
	if (thread)
		pthread_create(&other, NULL, work, NULL), pthread_join(other, NULL);
	else
		work(NULL);
	return 0;
}
