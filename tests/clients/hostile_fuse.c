/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile client: it hands in a file that answers nothing (held_file.h), or memory that waits when it is touched
 * (held_memory.h), at one place of VFIO's interface, and says what came of it.
 *
 *   hostile_fuse [-u | -f] [-k] [-s SECONDS] [-H KIND,KIND] [-d DESCRIPTOR] [-m MEMORY] [-b BYTES] [-i INDEX] [-n COUNT]
 *                [-p PATH] [-a] FILE CALL DEVDIR GROUP CDEV
 *
 * FILE is an ordinary file, the mount point.  CALL is a row of `calls`.  It is made on DEVDIR/GROUP and a container
 * of its own, or on DEVDIR/devices/CDEV, which is bound to DEVDIR/../iommu and attached to an IOAS.  Nobody opens the
 * group of a bound device, so a call on the device opens GROUP only for -d group, and that has to be another device's.
 * CDEV "-" is the device of the group that PATH names, by GET_DEVICE_FD.  GROUP "-" leaves group and container out.
 * -u mounts in a user namespace, -f through fusermount3, as an ordinary user does; -k keeps the mount where mountinfo shows it; -H says what is held.
 * -d is what stands where the call takes a descriptor, a row of `descriptors`: the hostile file unless given.
 * -m is the memory of the call's struct, or what the struct points to: a row of `memories`, plain unless given.
 * -b is how many bytes of the struct lie in plain memory before that, from its end if negative.
 * -i is the index for SET_IRQS; -n, how many descriptors, the one of -d in the middle.
 * -p is the path of an attribute, a directory, or the file of -d path; or the name of a device.
 * -a has a second process ask for the device all the while (GET_DEVICE_FD), which says "asked" each time that it has
 * done so OFTEN times.
 *
 * It says "held KIND" when a request is held, "returned 0" or "returned ERRNO" when the call has returned, and
 * "differs" when a call that only asks has another answer afterwards.  A byte on stdin releases what is held; then
 * it ends, with 0.  It ends after SECONDS in any case, and what is held with it.  Exits with 77 when the machine has
 * no such memory, and says why.
 */
#define _GNU_SOURCE
#include "held_file.h"
#include "held_memory.h"
#include "../../examples/iommufd.h"
#include <sys/eventfd.h>

enum { LONGEST = 600, CONFIG = 7 };
static const uint64_t IOVA = 1ull << 32, RING_IOVA = 2ull << 32, SPARE_IOVA = 3ull << 32, SYSTEM = 1ull << 40;

static int handed = -1, container = -1, group = -1, device = -1, iommufd = -1, file = -1;
static uint32_t ioas;
static unsigned irq_index = VFIO_PCI_MSIX_IRQ_INDEX, count = 1;
static const char *path = "", *devdir, *group_number, *cdev;
static const struct memory *kind_of_memory;

static void say(const char *what, long result)
{
	dprintf(1, "%s %s\n", what, result < 0 ? strerrorname_np(errno) : "0");
}

static int open_in(const char *below, const char *name)
{
	char whole[512];

	snprintf(whole, sizeof(whole), "%s%s%s", devdir, below, name);
	return open(whole, O_RDWR | O_CLOEXEC);
}

/* ---- descriptors ---- */

static int again(int fd, int flags)
{
	char link[64];

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	return open(link, flags | O_CLOEXEC);
}

static int full(void)
{
	int fd = eventfd(0, EFD_CLOEXEC);

	CHECK(!eventfd_write(fd, UINT64_MAX - 1));
	return fd;
}

static int by_path(void)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);

	return fd < 0 ? open(path, O_RDONLY | O_CLOEXEC) : fd;
}

static int the_hostile(void) { return hostile; }
static int the_device(void) { return device; }
static int the_group(void) { return group; }
static int the_container(void) { return container; }
static int the_iommufd(void) { return iommufd; }
static int hostile_path(void) { return again(hostile, O_PATH); }
static int device_path(void) { return again(device, O_PATH); }
static int group_path(void) { return again(group, O_PATH); }
static int container_path(void) { return again(container, O_PATH); }
static int iommufd_path(void) { return again(iommufd, O_PATH); }
static int an_eventfd(void) { return eventfd(0, EFD_CLOEXEC); }
static int eventfd_path(void) { return again(an_eventfd(), O_PATH); }
static int semaphore(void) { return eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE); }
static int directory(void) { return open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC); }
static int a_socket(void) { return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0); }
static int a_pidfd(void) { return syscall(SYS_pidfd_open, getpid(), 0); }
static int a_memfd(void) { return memfd_create("plain", MFD_CLOEXEC); }

static const struct descriptor {
	const char *name;
	int (*open)(void);
} descriptors[] = {
	{"hostile", the_hostile}, {"hostile-path", hostile_path}, {"device", the_device}, {"device-path", device_path},
	{"group", the_group}, {"group-path", group_path}, {"container", the_container},
	{"container-path", container_path}, {"iommufd", the_iommufd}, {"iommufd-path", iommufd_path}, {"eventfd", an_eventfd}, {"eventfd-path", eventfd_path}, {"semaphore", semaphore},
	{"full", full}, {"directory", directory}, {"socket", a_socket}, {"pidfd", a_pidfd}, {"memfd", a_memfd},
	{"path", by_path}, {0},
};

/* ---- what the struct of an ioctl has; each gives its size ---- */

#define STRUCT(type, ...) (*(struct type *)at = (struct type){.argsz = sizeof(struct type), __VA_ARGS__}, sizeof(struct type))
static uint64_t bitmap;

static size_t device_info(char *at)
{
	return STRUCT(vfio_device_info, .flags = 0);
}

static size_t region_info(char *at)
{
	return STRUCT(vfio_region_info, .index = 2);
}

static size_t irq_info(char *at)
{
	return STRUCT(vfio_irq_info, .index = irq_index);
}

static size_t gfx_plane(char *at)
{
	return STRUCT(vfio_device_gfx_plane_info, .flags = VFIO_GFX_PLANE_TYPE_REGION);
}

static size_t reset_info(char *at)
{
	size_t size = STRUCT(vfio_pci_hot_reset_info, .flags = 0) + LONGEST / 2;

	return ((struct vfio_pci_hot_reset_info *)at)->argsz = size;
}

static size_t group_status(char *at)
{
	return STRUCT(vfio_group_status, .flags = 0);
}

static size_t iommu_info(char *at)
{
	size_t size = STRUCT(vfio_iommu_type1_info, .flags = 0) + LONGEST / 2;

	return ((struct vfio_iommu_type1_info *)at)->argsz = size;
}

static size_t map_dma(char *at)
{
	return STRUCT(vfio_iommu_type1_dma_map, .flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)memory, .iova = IOVA, .size = MAPPED);
}

static size_t unmap_dma(char *at)
{
	return STRUCT(vfio_iommu_type1_dma_unmap, .iova = IOVA, .size = MAPPED);
}

static size_t unmap_into(char *at, void *dirty)
{
	struct vfio_bitmap behind = {.pgsize = PAGE, .size = 8, .data = dirty};
	size_t size = STRUCT(vfio_iommu_type1_dma_unmap, .flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP, .iova = IOVA,
		.size = MAPPED);

	memcpy(at + size, &behind, sizeof(behind));
	return ((struct vfio_iommu_type1_dma_unmap *)at)->argsz = size + sizeof(behind);
}

static size_t dirty_into(char *at, void *dirty)
{
	struct vfio_iommu_type1_dirty_bitmap_get behind = {.iova = IOVA, .size = MAPPED,
		.bitmap = {.pgsize = PAGE, .size = 8, .data = dirty}};
	size_t size = STRUCT(vfio_iommu_type1_dirty_bitmap, .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP);

	memcpy(at + size, &behind, sizeof(behind));
	return ((struct vfio_iommu_type1_dirty_bitmap *)at)->argsz = size + sizeof(behind);
}

static size_t unmap_dirty(char *at)
{
	return unmap_into(at, &bitmap);
}

static size_t unmap_bitmap(char *at)
{
	return unmap_into(at, memory);
}

static size_t dirty_pages(char *at)
{
	return dirty_into(at, &bitmap);
}

static size_t dirty_bitmap(char *at)
{
	return dirty_into(at, memory);
}

/* Numbers of descriptors: good ones, with that of -d in the middle. */
static size_t numbers(char *at, int good)
{
	for (unsigned i = 0; i < count; i++)
		((int *)at)[i] = i == count / 2 ? handed : good;
	return count * sizeof(int);
}

static size_t irqs(char *at, unsigned index, unsigned flags)
{
	size_t size = STRUCT(vfio_irq_set, .flags = flags, .index = index, .count = count);

	if (flags & VFIO_IRQ_SET_DATA_EVENTFD)
		size += numbers(at + size, an_eventfd());
	return ((struct vfio_irq_set *)at)->argsz = size;
}

static size_t set_irqs(char *at)
{
	return irqs(at, irq_index, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER);
}

static size_t unmask(char *at)
{
	return irqs(at, VFIO_PCI_INTX_IRQ_INDEX, VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK);
}

static size_t trigger(char *at)
{
	return irqs(at, irq_index, VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER);
}

static size_t ioeventfd(char *at)
{
	return STRUCT(vfio_device_ioeventfd, .flags = VFIO_DEVICE_IOEVENTFD_32, .offset = 2ull << 40 | 0xc, .fd = handed);
}

static size_t hot_reset(char *at)
{
	size_t size = STRUCT(vfio_pci_hot_reset, .count = count);

	return ((struct vfio_pci_hot_reset *)at)->argsz = size + numbers(at + size, group);
}

#define SIZED(type, ...) (*(struct type *)at = (struct type){.size = sizeof(struct type), __VA_ARGS__}, sizeof(struct type))

static size_t bind_iommufd(char *at)
{
	return STRUCT(vfio_device_bind_iommufd, .iommufd = handed);
}

static size_t attach(char *at)
{
	return STRUCT(vfio_device_attach_iommufd_pt, .pt_id = ioas);
}

static size_t detach(char *at)
{
	return STRUCT(vfio_device_detach_iommufd_pt, .flags = 0);
}

static size_t ioas_alloc(char *at)
{
	return SIZED(iommu_ioas_alloc, .flags = 0);
}

static size_t ioas_map_of(char *at, uint64_t iova, void *vaddr, uint64_t size)
{
	return SIZED(iommu_ioas_map, .flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = ioas, .user_va = (uintptr_t)vaddr, .iova = iova, .length = size);
}

static size_t ioas_map(char *at)
{
	return ioas_map_of(at, IOVA, memory, MAPPED);
}

static size_t ioas_unmap(char *at)
{
	return SIZED(iommu_ioas_unmap, .ioas_id = ioas, .iova = IOVA, .length = MAPPED);
}

/* LOW_POWER_ENTRY_WITH_WAKEUP, which headers before Linux 6.6 do not name. */
static size_t wake_up(char *at)
{
	size_t size = STRUCT(vfio_device_feature, .flags = VFIO_DEVICE_FEATURE_SET | 4);
	int behind[2] = {handed, 0};

	memcpy(at + size, behind, sizeof(behind));
	return ((struct vfio_device_feature *)at)->argsz = size + sizeof(behind);
}

static size_t number(char *at)
{
	memcpy(at, &handed, sizeof(handed));
	return sizeof(handed);
}

static size_t name(char *at)
{
	CHECK(strlen(path) < LONGEST);
	return strlen(strcpy(at, path)) + 1;
}

/* The ioctl with its struct in plain memory. */
static int plainly(int fd, unsigned long request, size_t (*build)(char *at))
{
	char data[LONGEST] __attribute__((aligned(8))) = {0};

	build(data);
	return ioctl(fd, request, data);
}

/* ---- what has to happen before ---- */

static int map_at(uint64_t iova, void *vaddr, uint64_t size)
{
	struct vfio_iommu_type1_dma_map pages = {.argsz = sizeof(pages), .flags = VFIO_DMA_MAP_FLAG_READ |
		VFIO_DMA_MAP_FLAG_WRITE, .vaddr = (uintptr_t)vaddr, .iova = iova, .size = size};

	if (ioas) {
		char area[sizeof(struct iommu_ioas_map)] __attribute__((aligned(8)));

		ioas_map_of(area, iova, vaddr, size);
		return ioctl(iommufd, IOMMU_IOAS_MAP, area);
	}
	return ioctl(container, VFIO_IOMMU_MAP_DMA, &pages);
}

static long unmap(void)
{
	return ioas ? plainly(iommufd, IOMMU_IOAS_UNMAP, ioas_unmap) : plainly(container, VFIO_IOMMU_UNMAP_DMA, unmap_dma);
}

static void mapped(void)
{
	CHECK(!map_at(IOVA, memory, MAPPED));
}

static void tracked(void)
{
	struct vfio_iommu_type1_dirty_bitmap start = {.argsz = sizeof(start), .flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_START};

	CHECK(!map_at(IOVA, plain_pages(MAPPED), MAPPED) && !ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &start));
}

static void area_mapped(void)
{
	CHECK(!map_at(IOVA, plain_pages(MAPPED), MAPPED));
}

static void has_irqs(void)
{
	CHECK(!plainly(device, VFIO_DEVICE_SET_IRQS, set_irqs));
}

static void has_intx(void)
{
	int other = handed;

	handed = an_eventfd(), irq_index = VFIO_PCI_INTX_IRQ_INDEX;
	has_irqs();
	handed = other;
}

static void has_file(void)
{
	file = by_path();
	CHECK(file >= 0);
}

static void has_store(void)
{
	file = open(path, O_WRONLY | O_CLOEXEC);
	CHECK(file >= 0);
	held->content[0] = '\n';
}

/* ---- read(2), write(2), getdents(2) ---- */

static off_t region(uint64_t index)
{
	return (off_t)(index << 40);
}

static long read_config(void)
{
	return pread(device, memory, 64, region(CONFIG));
}

static long write_config(void)
{
	return pwrite(device, memory, 2, region(CONFIG) + 4);
}

static long read_memory(void)
{
	return pread(device, memory, PAGE, region(0));
}

static long write_memory(void)
{
	return pwrite(device, memory, PAGE, region(0));
}

static long read_file(void)
{
	return pread(file, memory, PAGE, 0);
}

static long write_file_held(void)
{
	return pwrite(file, memory, 1, 0);
}

static long list(void)
{
	return syscall(SYS_getdents64, file, memory, PAGE);
}

/* ---- DMA of a vGPU's engine: docs/vgpu.md ---- */

enum { ENGINE = 0x1000, CONTROL = 4, STATUS = 8, RING_BASE = 0x20, RING_SIZE = 0x28, RING_TAIL = 0x30 };
static struct packet {
	uint32_t opcode, flags;
	uint64_t operands[7];
} *ring; /* a page, and one for the fence */

static void put(int at, uint64_t value, int size)
{
	CHECK(pwrite(device, &value, size, region(2) + ENGINE + at) == size);
}

/* From graphics address SYSTEM on are the pages of the ring, then those of `memory`. */
static void engine(void)
{
	uint64_t entries[2 + PAGES];
	uint16_t command = 6; /* decode memory, be bus master */

	ring = plain_pages(2 * PAGE);
	CHECK(!map_at(RING_IOVA, ring, 2 * PAGE));
	for (int i = 0; i < 2 + PAGES; i++)
		entries[i] = (i < 2 ? RING_IOVA + i * PAGE : IOVA + (i - 2) * PAGE) | 3;
	CHECK(pwrite(device, entries, sizeof(entries), region(1)) == sizeof(entries));
	CHECK(pwrite(device, &command, 2, region(CONFIG) + 4) == 2);
	put(CONTROL, 2, 4), put(RING_BASE, SYSTEM, 8), put(RING_SIZE, PAGE, 4), put(CONTROL, 1, 4);
}

static void engine_mapped(void)
{
	mapped();
	engine();
}

static void copy(uint64_t target, uint64_t source)
{
	ring[0] = (struct packet){2, 0, {target, source, 64}};
	ring[1] = (struct packet){4, 0, {SYSTEM + PAGE, 1}};
	put(RING_TAIL, 2 * sizeof(*ring), 4);
}

static int finished(void)
{
	return ((volatile uint64_t *)ring)[PAGE / 8] == 1;
}

static int failed(void)
{
	uint32_t status;

	CHECK(pread(device, &status, 4, region(2) + ENGINE + STATUS) == 4);
	return status >> 2 & 1;
}

/* Wait until the commands are done or have failed.  The device's registers answer meanwhile. */
static long executed(void)
{
	while (!finished() && !failed())
		usleep(2000);
	errno = EFAULT;
	return finished() ? 0 : -1;
}

static long dma_read(void)
{
	copy(0, SYSTEM + 2 * PAGE);
	return executed();
}

static long dma_write(void)
{
	copy(SYSTEM + 2 * PAGE, 0);
	return executed();
}

/* A DMA that is held, if it can be. */
static void start_dma(void)
{
	copy(0, SYSTEM + 2 * PAGE);
	while (!held->kinds && !finished() && !failed())
		usleep(1000);
}

static long dma_unmap(void)
{
	start_dma();
	return unmap();
}

static long dma_map(void)
{
	start_dma();
	return map_at(SPARE_IOVA, ring, PAGE);
}

static long dma_reset(void)
{
	start_dma();
	return ioctl(device, VFIO_DEVICE_RESET);
}

static long dma_close(void)
{
	start_dma();
	return close(device);
}

/* ---- a second process, whose memory is mapped ---- */

static void calls_exec(void)
{
	execl("/bin/true", "true", NULL);
}

static void exits(void)
{
	_exit(0);
}

static void stops(void)
{
	say_held("STOPPED", NO_OPCODE - 1);
	raise(SIGSTOP);
}

static void waits_in_vfork(void)
{
	say_held("VFORK", NO_OPCODE - 2);
	if (!vfork()) {
		while (!held->released)
			poll(NULL, 0, 1);
		_exit(0);
	}
}

/* It maps its memory, and goes into a state where it may be held.  This process then uses the container. */
static long beside(void (*last)(void))
{
	long result;
	pid_t child = fork();

	CHECK(child >= 0);
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		mapped();
		held->reached = 1;
		last();
		_exit(0);
	}
	engine();
	await(&held->reached);
	while (!held->kinds)
		usleep(1000);
	usleep(20000);
	say("info", plainly(container, VFIO_IOMMU_GET_INFO, iommu_info));
	say("dma", dma_read());
	say("map", map_at(SPARE_IOVA, ring, PAGE));
	result = unmap();
	say("returned", result);
	await(&held->released);
	kill(child, SIGKILL);
	CHECK(waitpid(child, NULL, 0) == child);
	return result;
}

/* ---- a second process in the same `vfsfuse run` ---- */

enum { OFTEN = 20 };

static pid_t ask_all_the_while(void)
{
	pid_t child = fork();
	long times = 0;

	CHECK(child >= 0);
	if (child)
		return child;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (!held->released) {
		int fd = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, path);

		CHECK(fd >= 0 && !close(fd));
		if (++times % OFTEN == 0)
			dprintf(1, "asked\n");
		usleep(3000);
	}
	_exit(0);
}

/* ---- the calls ---- */

#define IOCTL(text, file, number, struct_of, ...) \
	{.name = text, .fd = &file, .request = number, .build = struct_of, ##__VA_ARGS__}
static const struct call {
	const char *name;
	int *fd;
	unsigned long request;
	size_t (*build)(char *at);
	void (*prepare)(void);
	/* only asks; its struct is in plain memory; sets no container, and binds no device */
	enum { ASKS = 1, POINTS = 2, FREE = 4 } flags;
	long (*act)(void);  /* in place of an ioctl */
	void (*last)(void); /* what a second process does */
} calls[] = {
	IOCTL("device-info", device, VFIO_DEVICE_GET_INFO, device_info, .flags = ASKS),
	IOCTL("region-info", device, VFIO_DEVICE_GET_REGION_INFO, region_info, .flags = ASKS),
	IOCTL("irq-info", device, VFIO_DEVICE_GET_IRQ_INFO, irq_info, .flags = ASKS),
	IOCTL("gfx-plane", device, VFIO_DEVICE_QUERY_GFX_PLANE, gfx_plane, .flags = ASKS),
	IOCTL("hot-reset-info", device, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, reset_info, .flags = ASKS),
	IOCTL("hot-reset", device, VFIO_DEVICE_PCI_HOT_RESET, hot_reset),
	IOCTL("set-irqs", device, VFIO_DEVICE_SET_IRQS, set_irqs),
	IOCTL("unmask", device, VFIO_DEVICE_SET_IRQS, unmask, .prepare = has_intx),
	IOCTL("trigger", device, VFIO_DEVICE_SET_IRQS, trigger, .prepare = has_irqs),
	IOCTL("ioeventfd", device, VFIO_DEVICE_IOEVENTFD, ioeventfd),
	IOCTL("wake-up", device, VFIO_DEVICE_FEATURE, wake_up),
	IOCTL("group-status", group, VFIO_GROUP_GET_STATUS, group_status, .flags = ASKS),
	IOCTL("set-container", group, VFIO_GROUP_SET_CONTAINER, number, .flags = FREE),
	IOCTL("get-device-fd", group, VFIO_GROUP_GET_DEVICE_FD, name),
	IOCTL("get-device-fd-of", handed, VFIO_GROUP_GET_DEVICE_FD, name),
	IOCTL("iommu-info", container, VFIO_IOMMU_GET_INFO, iommu_info, .flags = ASKS),
	IOCTL("map-dma", container, VFIO_IOMMU_MAP_DMA, map_dma),
	IOCTL("map-dma-vaddr", container, VFIO_IOMMU_MAP_DMA, map_dma, .flags = POINTS),
	IOCTL("unmap-dma", container, VFIO_IOMMU_UNMAP_DMA, unmap_dma, .prepare = tracked),
	IOCTL("unmap-dirty", container, VFIO_IOMMU_UNMAP_DMA, unmap_dirty, .prepare = tracked),
	IOCTL("unmap-bitmap", container, VFIO_IOMMU_UNMAP_DMA, unmap_bitmap, .prepare = tracked, .flags = POINTS),
	IOCTL("dirty-pages", container, VFIO_IOMMU_DIRTY_PAGES, dirty_pages, .prepare = tracked),
	IOCTL("dirty-bitmap", container, VFIO_IOMMU_DIRTY_PAGES, dirty_bitmap, .prepare = tracked, .flags = POINTS),
	IOCTL("bind", device, VFIO_DEVICE_BIND_IOMMUFD, bind_iommufd, .flags = FREE),
	IOCTL("attach", device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, attach),
	IOCTL("detach", device, VFIO_DEVICE_DETACH_IOMMUFD_PT, detach),
	IOCTL("ioas-alloc", iommufd, IOMMU_IOAS_ALLOC, ioas_alloc),
	IOCTL("ioas-map", iommufd, IOMMU_IOAS_MAP, ioas_map),
	IOCTL("ioas-map-vaddr", iommufd, IOMMU_IOAS_MAP, ioas_map, .flags = POINTS),
	IOCTL("ioas-unmap", iommufd, IOMMU_IOAS_UNMAP, ioas_unmap, .prepare = area_mapped),
	{.name = "read-config", .act = read_config},
	{.name = "write-config", .act = write_config},
	{.name = "read-memory", .act = read_memory},
	{.name = "write-memory", .act = write_memory},
	{.name = "read-file", .prepare = has_file, .act = read_file},
	{.name = "write-file", .prepare = has_store, .act = write_file_held},
	{.name = "list", .prepare = has_file, .act = list},
	{.name = "dma-read", .prepare = engine_mapped, .act = dma_read},
	{.name = "dma-write", .prepare = engine_mapped, .act = dma_write},
	{.name = "dma-unmap", .prepare = engine_mapped, .act = dma_unmap},
	{.name = "dma-map", .prepare = engine_mapped, .act = dma_map},
	{.name = "dma-reset", .prepare = engine_mapped, .act = dma_reset},
	{.name = "dma-close", .prepare = engine_mapped, .act = dma_close},
	{.name = "exec", .last = calls_exec},
	{.name = "exit", .last = exits},
	{.name = "stop", .last = stops},
	{.name = "vfork", .last = waits_in_vfork},
	{0},
};

static void open_group(int is_free, int has_group)
{
	container = open_in("/", "vfio"), group = has_group ? open_in("/", group_number) : -1;
	CHECK(container >= 0 && (group >= 0 || !has_group));
	if (!is_free)
		CHECK(!ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) && !ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
}

static void open_device(void)
{
	device = strcmp(cdev, "-") ? open_in("/devices/", cdev) : ioctl(group, VFIO_GROUP_GET_DEVICE_FD, path);
	CHECK(device >= 0);
}

/* The device's own file, bound to an iommufd and attached to an IOAS. */
static void open_bound_device(int is_free)
{
	int other = handed;

	open_device();
	handed = iommufd = open_in("/../", "iommu");
	CHECK(iommufd >= 0);
	if (!is_free) {
		struct iommu_ioas_alloc made = {.size = sizeof(made)};

		CHECK(!plainly(device, VFIO_DEVICE_BIND_IOMMUFD, bind_iommufd) && !ioctl(iommufd, IOMMU_IOAS_ALLOC, &made));
		ioas = made.out_ioas_id;
		CHECK(!plainly(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, attach));
	}
	handed = other;
}

/* What the call is made on, and what -d hands in. */
static void open_files(const struct call *call, const char *handed_name)
{
	int has_group = strcmp(group_number, "-"), has_cdev = strcmp(cdev, "-");
	int on_device = has_cdev && (!call->fd || call->fd == &device || call->fd == &iommufd);
	int hands_group = !strncmp(handed_name, "group", 5);

	if (on_device)
		open_bound_device(call->flags & FREE);
	else if (!strncmp(handed_name, "iommufd", 7))
		CHECK((iommufd = open_in("/../", "iommu")) >= 0);
	if (has_group && (!on_device || hands_group || !strncmp(handed_name, "container", 9)))
		open_group(call->flags & FREE || on_device, !on_device || hands_group);
	if (!on_device && (has_cdev || (group >= 0 && !(call->flags & FREE))))
		open_device();
}

static long make(const struct call *call, long plain)
{
	char data[LONGEST] __attribute__((aligned(8))) = {0}, *argument = data;
	size_t size = call->build(data);
	long result;

	if (!(call->flags & POINTS))
		argument = place(kind_of_memory, data, size, plain < 0 ? size + plain : (size_t)plain);
	arm_memory(kind_of_memory);
	result = ioctl(*call->fd, call->request, argument);
	say("returned", result);
	await(&held->released);
	if (result >= 0 && call->flags & ASKS) {
		char other[LONGEST] __attribute__((aligned(8))) = {0};

		call->build(other);
		CHECK(!ioctl(*call->fd, call->request, other));
		if (memcmp(argument, other, size))
			puts("differs");
	}
	return result;
}

static void act(const struct call *call, long plain)
{
	if (call->build) {
		make(call, plain);
		return;
	}
	arm_memory(kind_of_memory);
	if (call->last)
		beside(call->last);
	else
		say("returned", call->act());
	await(&held->released);
}

#define FIND(found, table, wanted) \
	do { \
		for (found = table; found->name && strcmp(found->name, wanted); found++) \
			; \
		CHECK(found->name != NULL); \
	} while (0)

int main(int argc, char **argv)
{
	const char *handed_name = "hostile", *memory_name = "plain";
	char hold[256] = "FLUSH,GETATTR,OPEN,READ,RELEASE,WRITE";
	const struct descriptor *descriptor;
	const struct call *call;
	int option, keep = 0, asks = 0;
	enum how how = AS_ROOT;
	pid_t asker = 0;
	unsigned seconds = 150;
	long plain = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	while ((option = getopt(argc, argv, "ufkas:H:d:m:b:i:n:p:")) != -1) {
		switch (option) {
		case 'u': how = IN_USER_NAMESPACE; break;
		case 'f': how = BY_FUSERMOUNT; break;
		case 'k': keep = 1; break;
		case 'a': asks = 1; break;
		case 's': seconds = strtoul(optarg, NULL, 10); break;
		case 'H': snprintf(hold, sizeof(hold), "%s", optarg); break;
		case 'd': handed_name = optarg; break;
		case 'm': memory_name = optarg; break;
		case 'b': plain = strtol(optarg, NULL, 10); break;
		case 'i': irq_index = strtoul(optarg, NULL, 10); break;
		case 'n': count = strtoul(optarg, NULL, 10); break;
		case 'p': path = optarg; break;
		default: return 2;
		}
	}
	if (argc - optind != 5)
		return 2;
	devdir = argv[optind + 2], group_number = argv[optind + 3], cdev = argv[optind + 4];
	FIND(call, calls, argv[optind + 1]);
	FIND(descriptor, descriptors, handed_name);
	FIND(kind_of_memory, memories, memory_name);
	hostile = held_file(argv[optind], kinds_of(hold), seconds, how, keep);
	alarm(seconds + 2);
	make_memory(kind_of_memory);
	open_files(call, handed_name);
	handed = descriptor->open();
	CHECK(handed >= 0);
	if (call->prepare)
		call->prepare();
	if (asks)
		asker = ask_all_the_while();
	act(call, plain);
	if (asks)
		CHECK(waitpid(asker, NULL, 0) == asker);
	return 0;
}
