/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fault queues of iommufd, under `vfsfuse run`: a client as somebody would write it, and the errnos of Linux.
 *
 *	fault_queue DEV queue
 *	fault_queue DEV VFIO pages      VFIO: a function in DEV/vfio/devices whose model asks for pages (iommufd/asker.py)
 *	fault_queue DEV VFIO none       VFIO: a function that cannot ask for pages
 *
 * Prints "ok".
 */
#define _GNU_SOURCE
#include "../../examples/iommufd.h"
#include "check.h"
#include "open_below.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#ifndef IOMMU_FAULT_QUEUE_ALLOC
#define IOMMU_HWPT_ALLOC _IO(IOMMUFD_TYPE, 0x89)
#define IOMMU_FAULT_QUEUE_ALLOC _IO(IOMMUFD_TYPE, 0x8e)
#define IOMMU_HWPT_FAULT_ID_VALID 4
struct iommu_hwpt_alloc {
	uint32_t size, flags, dev_id, pt_id, out_hwpt_id, __reserved, data_type, data_len;
	uint64_t data_uptr;
	uint32_t fault_id, __reserved2;
};
struct iommu_fault_alloc {
	uint32_t size, flags, out_fault_id, out_fault_fd;
};
struct iommu_hwpt_pgfault {
	uint32_t flags, dev_id, pasid, grpid, perm, __reserved;
	uint64_t addr;
	uint32_t length, cookie;
};
struct iommu_hwpt_page_response {
	uint32_t cookie, code;
};
#endif
#ifndef IOMMU_VEVENTQ_ALLOC
#define IOMMU_VEVENTQ_ALLOC _IO(IOMMUFD_TYPE, 0x93)
struct iommu_veventq_alloc {
	uint32_t size, flags, viommu_id, type, veventq_depth, out_veventq_id, out_veventq_fd, __reserved;
};
#endif

enum { PAGE = 4096, IOVA = 1 << 20, LAST_PAGE = 2, BOTH = 3, SUCCESS = 0, INVALID = 1, ADDRESS = 0, PAGES = 8,
	COMMAND = 12, STATUS = 16, DONE = 1 + SUCCESS, REFUSED = 1 + INVALID };
typedef struct iommu_hwpt_pgfault fault_t;
typedef struct iommu_hwpt_page_response response_t;
static int iommufd, device;

static struct iommu_fault_alloc new_queue(void)
{
	struct iommu_fault_alloc made = {.size = sizeof(made)};

	CHECK(!ioctl(iommufd, IOMMU_FAULT_QUEUE_ALLOC, &made));
	CHECK(made.size == sizeof(made) && made.out_fault_id && (int)made.out_fault_fd > 2);
	CHECK(fcntl((int)made.out_fault_fd, F_GETFD) == FD_CLOEXEC);
	return made;
}

static int destroy(uint32_t id)
{
	struct iommu_destroy gone = {.size = sizeof(gone), .id = id};

	return ioctl(iommufd, IOMMU_DESTROY, &gone);
}

static uint32_t new_ioas(void)
{
	struct iommu_ioas_alloc made = {.size = sizeof(made)};

	CHECK(!ioctl(iommufd, IOMMU_IOAS_ALLOC, &made));
	return made.out_ioas_id;
}

static int next_fd(void)
{
	int fd = dup(0);

	CHECK(fd >= 0 && !close(fd));
	return fd;
}

static int events(int queue, int milliseconds)
{
	struct pollfd ready = {.fd = queue, .events = milliseconds ? POLLIN : POLLIN | POLLOUT};

	CHECK(poll(&ready, 1, milliseconds) >= 0);
	return ready.revents;
}

static void use_a_queue(void)
{
	struct iommu_fault_alloc first = new_queue(), second = new_queue();
	int queue = (int)first.out_fault_fd;
	char buffer[256] = {0};

	CHECK(first.out_fault_id != second.out_fault_id && first.out_fault_fd != second.out_fault_fd);
	CHECK(read(queue, buffer, 2 * sizeof(fault_t)) == 0 && read(queue, buffer, 0) == 0);
	FAILS(read(queue, buffer, sizeof(fault_t) - 1), ESPIPE);
	FAILS(write(queue, buffer, sizeof(response_t) + 1), ESPIPE);
	FAILS(write(queue, buffer, sizeof(response_t)), EINVAL);
	FAILS(lseek(queue, 0, SEEK_CUR), ESPIPE);
	FAILS(pread(queue, buffer, sizeof(fault_t), 0), ESPIPE);
	FAILS(ioctl(queue, IOMMU_DESTROY, buffer), ENOTTY);
	CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, queue, 0) == MAP_FAILED && errno == ENODEV);
	CHECK(events(queue, 0) == POLLOUT);
	FAILS(destroy(first.out_fault_id), EBUSY);
	CHECK(!close(queue) && !destroy(first.out_fault_id));
	FAILS(destroy(first.out_fault_id), ENOENT);
	CHECK(!close((int)second.out_fault_fd) && !destroy(second.out_fault_id));
}

static void refuse(void)
{
	struct iommu_fault_alloc asked = {.size = sizeof(asked), .flags = 1};
	struct { struct iommu_fault_alloc head; char tail[20]; } longer = {.head.size = sizeof(longer)};
	struct iommu_veventq_alloc events_of = {.size = sizeof(events_of), .type = 1, .viommu_id = 77, .veventq_depth = 1};
	struct iommu_fault_alloc *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int free_fd = next_fd(), null = open("/dev/null", O_RDWR);
	uint32_t next = new_ioas();
	struct rlimit limit, none;

	CHECK(!destroy(next) && page != MAP_FAILED && null == free_fd && !close(null));
	FAILS(ioctl(iommufd, IOMMU_FAULT_QUEUE_ALLOC, &asked), EOPNOTSUPP);
	asked.size = sizeof(asked) - 4;
	FAILS(ioctl(iommufd, IOMMU_FAULT_QUEUE_ALLOC, &asked), EINVAL);
	FAILS(ioctl(iommufd, IOMMU_FAULT_QUEUE_ALLOC, NULL), EFAULT);
	FAILS(ioctl(-1, IOMMU_FAULT_QUEUE_ALLOC, &asked), EBADF);
	FAILS(ioctl(0, IOMMU_FAULT_QUEUE_ALLOC, &asked), ENOTTY);
	longer.tail[15] = 1;
	FAILS(ioctl(iommufd, IOMMU_FAULT_QUEUE_ALLOC, &longer), E2BIG);
	FAILS(ioctl(iommufd, IOMMU_VEVENTQ_ALLOC, &events_of), ENOENT);
	events_of.veventq_depth = 0;
	FAILS(ioctl(iommufd, IOMMU_VEVENTQ_ALLOC, &events_of), EINVAL);

	page->size = sizeof(*page); /* a struct that cannot be written */
	CHECK(!mprotect(page, PAGE, PROT_READ));
	FAILS(ioctl(iommufd, IOMMU_FAULT_QUEUE_ALLOC, page), EFAULT);
	CHECK(next_fd() == free_fd && page->out_fault_id == 0);

	CHECK(!getrlimit(RLIMIT_NOFILE, &limit));
	none = limit;
	none.rlim_cur = (rlim_t)free_fd;
	CHECK(!setrlimit(RLIMIT_NOFILE, &none));
	asked = (struct iommu_fault_alloc){.size = sizeof(asked)};
	FAILS(ioctl(iommufd, IOMMU_FAULT_QUEUE_ALLOC, &asked), EMFILE);
	CHECK(!setrlimit(RLIMIT_NOFILE, &limit) && asked.out_fault_id == 0 && asked.out_fault_fd == 0);

	longer.tail[15] = 0;
	CHECK(!ioctl(iommufd, IOMMU_FAULT_QUEUE_ALLOC, &longer));
	CHECK(longer.head.out_fault_id == next && (int)longer.head.out_fault_fd == free_fd); /* nothing is left of the others */
	CHECK(!close(free_fd) && !destroy(next));
}

/* The queue keeps the context: its file works when that of the context is closed. */
static void outlive(const char *dev)
{
	struct iommu_fault_alloc made = new_queue();
	char buffer[sizeof(fault_t)];

	CHECK(!close(iommufd) && read((int)made.out_fault_fd, buffer, sizeof(buffer)) == 0);
	CHECK(!close((int)made.out_fault_fd));
	iommufd = open_below(dev, "iommu");
	made = new_queue();
	CHECK(made.out_fault_id == 1 && !close((int)made.out_fault_fd));
}

static uint64_t region(uint32_t index)
{
	struct vfio_region_info info = {.argsz = sizeof(info), .index = index};

	CHECK(!ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info));
	return info.offset;
}

static void put(unsigned at, uint64_t value, unsigned size)
{
	CHECK(pwrite(device, &value, size, (off_t)(region(0) + at)) == (ssize_t)size);
}

static unsigned status(void)
{
	unsigned value = 0, waits = 0;

	while (!value && waits++ < 10000) {
		CHECK(pread(device, &value, 4, (off_t)(region(0) + STATUS)) == 4);
		usleep(1000);
	}
	put(STATUS, 0, 4);
	return value;
}

static void ask(uint64_t address, unsigned pages)
{
	put(ADDRESS, address, 8);
	put(PAGES, pages, 4);
	put(COMMAND, 1, 4);
}

static uint32_t bind_device(void)
{
	struct vfio_device_bind_iommufd bound = {.argsz = sizeof(bound), .iommufd = iommufd};
	uint16_t decode_and_master = 6;

	CHECK(!ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bound));
	CHECK(pwrite(device, &decode_and_master, 2, (off_t)(region(VFIO_PCI_CONFIG_REGION_INDEX) + 4)) == 2);
	return bound.out_devid;
}

static int attach(uint32_t pt)
{
	struct vfio_device_attach_iommufd_pt to = {.argsz = sizeof(to), .pt_id = pt};

	return ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &to);
}

static void detach(void)
{
	struct vfio_device_detach_iommufd_pt from = {.argsz = sizeof(from)};

	CHECK(!ioctl(device, VFIO_DEVICE_DETACH_IOMMUFD_PT, &from));
}

static struct iommu_hwpt_alloc hwpt_with(uint32_t dev_id, uint32_t ioas, uint32_t queue)
{
	struct iommu_hwpt_alloc made = {.size = sizeof(made), .flags = IOMMU_HWPT_FAULT_ID_VALID, .dev_id = dev_id,
		.pt_id = ioas, .fault_id = queue};

	CHECK(!ioctl(iommufd, IOMMU_HWPT_ALLOC, &made));
	return made;
}

static fault_t next_fault(int queue, uint32_t dev_id, unsigned pages)
{
	fault_t faults[8] = {0};
	unsigned page;

	CHECK(events(queue, 10000) & POLLIN);
	if (pages > 1) /* a group comes whole, or not at all */
		CHECK(read(queue, faults, (pages - 1) * sizeof(fault_t)) == 0);
	CHECK(read(queue, faults, sizeof(faults)) == (ssize_t)(pages * sizeof(fault_t)));
	for (page = 0; page < pages; page++) {
		CHECK(faults[page].addr == IOVA + page * PAGE && faults[page].dev_id == dev_id);
		CHECK(faults[page].perm == BOTH && faults[page].length == 0 && faults[page].cookie == faults[0].cookie);
		CHECK(faults[page].flags == (page + 1 == pages ? LAST_PAGE : 0) && faults[page].grpid == faults[0].grpid);
	}
	CHECK(faults[0].cookie && events(queue, 0) == POLLOUT);
	return faults[0];
}

static void respond(int queue, uint32_t cookie, uint32_t code)
{
	response_t response = {.cookie = cookie, .code = code};

	CHECK(write(queue, &response, sizeof(response)) == sizeof(response));
	FAILS(write(queue, &response, sizeof(response)), EINVAL); /* it has been answered */
}

static void give_pages(void)
{
	uint32_t id = bind_device(), ioas = new_ioas();
	struct iommu_fault_alloc queue = new_queue();
	int fd = (int)queue.out_fault_fd;
	uint32_t *memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct iommu_ioas_map map = {.size = sizeof(map), .flags = 7, .ioas_id = ioas, .user_va = (uintptr_t)memory,
		.length = 2 * PAGE, .iova = IOVA};
	struct iommu_hwpt_alloc missing = {.size = sizeof(missing), .flags = IOMMU_HWPT_FAULT_ID_VALID, .dev_id = id,
		.pt_id = ioas, .fault_id = ioas};
	response_t unknown = {.code = 9};

	FAILS(ioctl(iommufd, IOMMU_HWPT_ALLOC, &missing), ENOENT);
	struct iommu_hwpt_alloc hwpt = hwpt_with(id, ioas, queue.out_fault_id);
	ask(IOVA, 1);
	CHECK(status() == 0xff); /* attached to nothing */
	CHECK(!attach(ioas));
	ask(IOVA, 1);
	CHECK(status() == REFUSED); /* nobody to ask */
	CHECK(!attach(hwpt.out_hwpt_id));

	ask(IOVA, 2);
	fault_t fault = next_fault(fd, id, 2);
	unknown.cookie = fault.cookie;
	FAILS(write(fd, &unknown, sizeof(unknown)), EINVAL);
	*memory = 41;
	CHECK(!ioctl(iommufd, IOMMU_IOAS_MAP, &map));
	respond(fd, fault.cookie, SUCCESS);
	CHECK(status() == DONE && *memory == 42);

	ask(IOVA, 1);
	respond(fd, next_fault(fd, id, 1).cookie, INVALID);
	CHECK(status() == REFUSED && *memory == 42);

	ask(IOVA, 1); /* one that is read, and one that is not: nobody answers them any more */
	fault = next_fault(fd, id, 1);
	detach();
	CHECK(status() == REFUSED);
	FAILS(write(fd, &(response_t){.cookie = fault.cookie}, sizeof(response_t)), EINVAL);
	CHECK(!attach(hwpt.out_hwpt_id));
	ask(IOVA, 1);
	CHECK(events(fd, 10000) & POLLIN);
	CHECK(!attach(ioas) && status() == REFUSED && events(fd, 0) == POLLOUT);

	CHECK(!close(fd));
	FAILS(destroy(queue.out_fault_id), EBUSY); /* the HWPT has it */
	CHECK(!destroy(hwpt.out_hwpt_id) && !destroy(queue.out_fault_id));

	queue = new_queue();
	hwpt = hwpt_with(id, ioas, queue.out_fault_id);
	CHECK(!attach(hwpt.out_hwpt_id));
	ask(IOVA, 1);
	CHECK(events((int)queue.out_fault_fd, 10000) & POLLIN);
	CHECK(!close(device) && events((int)queue.out_fault_fd, 0) == POLLOUT);
}

static void give_none(void)
{
	uint32_t id = bind_device(), ioas = new_ioas();
	struct iommu_fault_alloc queue = new_queue();
	struct iommu_hwpt_alloc hwpt = hwpt_with(id, ioas, queue.out_fault_id);

	FAILS(attach(hwpt.out_hwpt_id), ENODEV);
	CHECK(!attach(ioas));
	FAILS(attach(hwpt.out_hwpt_id), ENODEV);
}

int main(int argc, char **argv)
{
	CHECK(argc == 3 || argc == 4);
	iommufd = open_below(argv[1], "iommu");
	if (argc == 4) {
		char name[256];

		snprintf(name, sizeof(name), "vfio/devices/%s", argv[2]);
		device = open_below(argv[1], name);
		strcmp(argv[3], "pages") ? give_none() : give_pages();
	} else {
		use_a_queue();
		refuse();
		outlive(argv[1]);
	}
	puts("ok");
	return 0;
}
