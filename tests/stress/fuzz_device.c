/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Structure-aware fuzz of the VFIO files: every ioctl with a struct of nearly the right shape, reads and writes at the
 * edges of regions, mmap and partial munmap of device memory. Runs under `vfsfuse run`, in sessions: open, fuzz, close.
 *
 *	fuzz_device PROGRESS ROOT KINDS SEED CALLS PROTECTED...
 *
 * KINDS is any of "ioctl,region,mmap"; PROTECTED are names below dev/vfio that are left alone. Source: <linux/vfio.h>.
 */
#include "arena.h"
#include <dirent.h>
#include <setjmp.h>
#include <sys/uio.h>

enum { CONTAINER = 1, GROUP = 2, DEVICE = 4, IOMMUFD = 8, ANY = 15 };
enum { SESSION = 400, FILES = 8, NAMES = 256, MOST = 1 << 16, ERRNOS = 134 };
enum { OPEN_TRIES = 2000 }; /* a fault rule may refuse many of them */

/*
 * One ioctl: the members of its struct in order, and of what may follow it.
 *   a argsz or size  f flags  i index  c count  v vaddr  o iova  s size  g page size  d descriptor  (32 bits: afic x d, else 64)
 *   j id of an object  z zero  (32 bits)
 *   x any 32 bits  X any 64 bits  p pointer  D descriptors behind the struct  B bytes behind it
 * "=" is an argument by value, "n" the name of a device.
 */
struct row {
	unsigned nr, files;
	const char *name, *members;
	uint32_t flags; /* bits that mean something */
};

static const struct row ROWS[] = {
	{0, CONTAINER | IOMMUFD, "GET_API_VERSION", "=", 0},
	{1, CONTAINER | IOMMUFD, "CHECK_EXTENSION", "=", 0},
	{2, CONTAINER | IOMMUFD, "SET_IOMMU", "=", 0},
	{3, GROUP, "GROUP_GET_STATUS", "af", 3},
	{4, GROUP, "GROUP_SET_CONTAINER", "d", 0},
	{5, GROUP, "GROUP_UNSET_CONTAINER", "=", 0},
	{6, GROUP, "GROUP_GET_DEVICE_FD", "n", 0},
	{7, DEVICE, "DEVICE_GET_INFO", "afxxxx", 0},
	{8, DEVICE, "DEVICE_GET_REGION_INFO", "afixXXB", 15},
	{9, DEVICE, "DEVICE_GET_IRQ_INFO", "afix", 15},
	{10, DEVICE, "DEVICE_SET_IRQS", "afiicD", 63},
	{10, DEVICE, "DEVICE_SET_IRQS bool", "afiicB", 63},
	{11, DEVICE, "DEVICE_RESET", "=", 0},
	{12, DEVICE, "DEVICE_GET_PCI_HOT_RESET_INFO", "afcB", 3},
	{13, DEVICE, "DEVICE_PCI_HOT_RESET", "afcD", 0},
	{14, DEVICE, "DEVICE_QUERY_GFX_PLANE", "afxxXxxxxxxxxx", 7},
	{15, DEVICE, "DEVICE_GET_GFX_DMABUF", "=", 0},
	{16, DEVICE, "DEVICE_IOEVENTFD", "afoXdx", 15},
	{17, DEVICE, "DEVICE_FEATURE", "afdxB", 0x7000f},
	{17, DEVICE, "DEVICE_FEATURE large", "afXXXXB", 0x7000f},
	{18, DEVICE, "DEVICE_BIND_IOMMUFD", "afdxp", 1},
	{18, DEVICE, "DEVICE_BIND_IOMMUFD short", "azdx", 0},
	{19, DEVICE, "DEVICE_ATTACH_IOMMUFD_PT", "afjx", 1},
	{19, DEVICE, "DEVICE_ATTACH_IOMMUFD_PT short", "azj", 0},
	{20, DEVICE, "DEVICE_DETACH_IOMMUFD_PT", "afx", 1},
	{28, IOMMUFD, "IOMMU_DESTROY", "aj", 0},
	{29, IOMMUFD, "IOMMU_IOAS_ALLOC", "azx", 0},
	{30, IOMMUFD, "IOMMU_IOAS_ALLOW_IOVAS", "ajczp", 0},
	{31, IOMMUFD, "IOMMU_IOAS_COPY", "afjjsoo", 7},
	{32, IOMMUFD, "IOMMU_IOAS_IOVA_RANGES", "ajczpX", 0},
	{33, IOMMUFD, "IOMMU_IOAS_MAP", "afjzvso", 7},
	{34, IOMMUFD, "IOMMU_IOAS_UNMAP", "ajos", 0},
	{35, IOMMUFD, "IOMMU_OPTION", "ajjjX", 0},
	{36, IOMMUFD, "IOMMU_VFIO_IOAS", "ajj", 0},
	{37, IOMMUFD, "IOMMU_HWPT_ALLOC", "afjjxzzzpxx", 15},
	{38, IOMMUFD, "IOMMU_GET_HW_INFO", "afjcpzzX", 1},
	{39, IOMMUFD, "IOMMU_HWPT_SET_DIRTY_TRACKING", "afjz", 1},
	{40, IOMMUFD, "IOMMU_HWPT_GET_DIRTY_BITMAP", "ajfzosgp", 1},
	{41, IOMMUFD, "IOMMU_HWPT_INVALIDATE", "ajpjccz", 0},
	{42, IOMMUFD, "IOMMU_FAULT_QUEUE_ALLOC", "afxx", 1},
	{43, IOMMUFD, "IOMMU_IOAS_MAP_FILE", "afjdoso", 7},
	{44, IOMMUFD, "IOMMU_VIOMMU_ALLOC", "afjjjxczp", 1},
	{45, IOMMUFD, "IOMMU_VDEVICE_ALLOC", "ajjxX", 0},
	{46, IOMMUFD, "IOMMU_IOAS_CHANGE_PROCESS", "az", 0},
	{47, IOMMUFD, "IOMMU_VEVENTQ_ALLOC", "afjjcxxz", 1},
	{48, IOMMUFD, "IOMMU_HW_QUEUE_ALLOC", "afjjjxos", 1},
	{49, IOMMUFD, "IOMMU_IOAS_NOIOMMU_GET_PA", "afjzosX", 1},
	{12, CONTAINER | IOMMUFD, "IOMMU_GET_INFO", "afXxxB", 3},
	{13, CONTAINER | IOMMUFD, "IOMMU_MAP_DMA", "afvos", 7},
	{14, CONTAINER | IOMMUFD, "IOMMU_UNMAP_DMA", "afos", 7},
	{14, CONTAINER, "IOMMU_UNMAP_DMA bitmap", "afosgsp", 7},
	{15, CONTAINER, "IOMMU_ENABLE", "=", 0},
	{16, CONTAINER, "IOMMU_DISABLE", "=", 0},
	{17, CONTAINER, "IOMMU_DIRTY_PAGES", "af", 7},
	{17, CONTAINER, "IOMMU_DIRTY_PAGES get", "afosgsp", 7},
};

struct file {
	int fd;
	unsigned is;
	uint64_t sizes[9];
};

static const char *root;
static char **protected_names;
static struct file files[FILES];
static unsigned opened;
static char groups[NAMES][32], cdevs[NAMES][32], devices[NAMES][64];
static unsigned group_count, cdev_count, device_count;
static uint64_t errors[ERRNOS], longest;
static unsigned char scratch[MOST + PAGE];
static sigjmp_buf touched;
static volatile sig_atomic_t touching;

/* ---- what is there ---- */

static bool is_protected(const char *name)
{
	for (char **each = protected_names; *each; each++)
		if (!strcmp(*each, name))
			return true;
	return false;
}

static unsigned list(const char *directory, char *names, size_t width)
{
	char path[4096];
	unsigned count = 0;

	snprintf(path, sizeof(path), "%s/%s", root, directory);
	DIR *stream = opendir(path);
	for (struct dirent *entry; stream && (entry = readdir(stream));) {
		size_t length = strlen(entry->d_name);
		if (entry->d_name[0] == '.' || length >= width || count == NAMES || is_protected(entry->d_name))
			continue;
		memcpy(names + width * count++, entry->d_name, length + 1);
	}
	if (stream)
		closedir(stream);
	return count;
}

static void look_round(void)
{
	group_count = list("dev/vfio", groups[0], sizeof(groups[0]));
	cdev_count = list("dev/vfio/devices", cdevs[0], sizeof(cdevs[0]));
	device_count = 0;
	if (group_count) {
		char directory[128];
		const char *group = groups[below(group_count)];
		snprintf(directory, sizeof(directory), "sys/kernel/iommu_groups/%s/devices", group);
		device_count = list(directory, devices[0], sizeof(devices[0]));
	}
}

/* ---- calls ---- */

static void done(const char *name, int64_t result, int error)
{
	uint64_t took = end();

	longest = took > longest ? took : longest;
	errors[result < 0 ? (error < ERRNOS ? error : ERRNOS - 1) : 0]++;
	if (result < 0 && (error == EIO || error == ENOSYS || error == ENOTCONN || error >= ERRNOS)) {
		uint64_t *d = progress->details;
		fault("%s: %s; arguments %#llx %#llx %#llx %#llx", name, strerror(error), (unsigned long long)d[0],
			(unsigned long long)d[1], (unsigned long long)d[2], (unsigned long long)d[3]);
		if (error == ENOTCONN)
			exit(1);
	}
}

static void remember(int fd, unsigned is)
{
	if (fd < 0)
		return;
	if (opened == FILES) {
		close(fd);
		return;
	}
	struct file *file = &files[opened++];
	*file = (struct file){.fd = fd, .is = is};
	for (unsigned index = 0; is == DEVICE && index < LENGTH(file->sizes); index++) {
		struct vfio_region_info info = {.argsz = sizeof(info), .index = index};
		if (!ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &info))
			file->sizes[index] = info.size;
	}
}

static struct file *any_file(unsigned is)
{
	struct file *file = &files[below(opened)];

	for (unsigned i = 0; i < opened && !(file->is & is); i++)
		file = &files[i];
	return file;
}

static int descriptor(void)
{
	return chance(35) ? files[below(opened)].fd : stranger();
}

static void *append(void *at, uint64_t value, size_t size)
{
	memcpy(at, &value, size);
	return (char *)at + size;
}

/* The struct of a row in `scratch`; returns its size with what follows it. */
static size_t build(const struct row *row)
{
	unsigned char *at = scratch;
	uint32_t flags = chance(90) ? random64() & row->flags : edge64(), count = chance(85) ? below(9) : edge64();

	for (const char *member = row->members; *member; member++) {
		switch (*member) {
		case 'a':
			at = append(at, 0, 4);
			break;
		case 'f':
			at = append(at, flags, 4);
			break;
		case 'c':
			at = append(at, count, 4);
			break;
		case 'i':
			at = append(at, chance(90) ? below(10) : edge64(), 4);
			break;
		case 'd':
			at = append(at, descriptor(), 4);
			break;
		case 'j':
			at = append(at, chance(90) ? below(6) : edge64(), 4);
			break;
		case 'z':
			at = append(at, chance(97) ? 0 : edge64(), 4);
			break;
		case 'x':
			at = append(at, edge64(), 4);
			break;
		case 'v':
			at = append(at, mappable(), 8);
			break;
		case 'o':
			at = append(at, chance(80) ? below(64) * PAGE : edge64(), 8);
			break;
		case 's':
			at = append(at, map_size(), 8);
			break;
		case 'g':
			at = append(at, chance(80) ? PAGE : edge64(), 8);
			break;
		case 'p':
			at = append(at, (uintptr_t)pointer(NULL, 64), 8);
			break;
		case 'X':
			at = append(at, edge64(), 8);
			break;
		case 'D':
			for (unsigned i = 0; i < 16; i++)
				at = append(at, chance(10) ? -1 : descriptor(), 4);
			break;
		case 'B':
			for (unsigned i = 0; i < 8; i++)
				at = append(at, edge64(), 8);
			break;
		}
	}
	size_t size = at - scratch;
	if (row->members[0] == 'a')
		append(scratch, chance(85) ? size : chance(50) ? below(size + 9) : edge64(), 4);
	return size;
}

static void *argument(const struct row *row)
{
	if (*row->members == '=')
		return (void *)(chance(80) ? below(12) : edge64());
	if (*row->members == 'n') {
		char name[300] = "";
		if (device_count && chance(80))
			strcpy(name, devices[below(device_count)]);
		else
			for (size_t i = below(sizeof(name)); i--;)
				name[i] = 1 + below(255);
		return pointer(name, strlen(name) + 1);
	}
	size_t size = build(row);
	return pointer(scratch, size);
}

/* Numbers of nobody's, and those by which `vfsfuse run` asks for devices. */
static void strange_ioctl(void)
{
	unsigned long number = chance(50) ? (random64() & 0xc03f0000) | 'V' << 8 | below(80) : ';' << 8 | below(256);
	int fd = any_file(ANY)->fd;

	for (unsigned i = 0; i < 64; i++)
		scratch[i] = chance(50) ? 0 : random64();
	void *at = pointer(scratch, 64);
	begin("ioctl of no row", fd, number, (uintptr_t)at, 0);
	int result = ioctl(fd, number, at);
	done("ioctl of no row", result, errno);
}

static void fuzz_ioctl(void)
{
	if (chance(4)) {
		strange_ioctl();
		return;
	}
	const struct row *row = &ROWS[below(LENGTH(ROWS))];
	struct file *file = any_file(chance(95) ? row->files : ANY);
	unsigned long number = ';' << 8 | (100 + row->nr);
	void *at = argument(row);

	begin(row->name, file->fd, (uintptr_t)at, ((uint32_t *)scratch)[0], ((uint32_t *)scratch)[1]);
	int result = ioctl(file->fd, number, at);
	int error = errno;
	done(row->name, result, error);
	if (result >= 0 && *row->members == 'n')
		remember(result, DEVICE);
}

/* ---- regions ---- */

/* An offset at or beside an edge of one of the regions, or anywhere. */
static off_t region_offset(const struct file *file)
{
	unsigned index = below(LENGTH(file->sizes) + 1);
	uint64_t size = index < LENGTH(file->sizes) ? file->sizes[index] : 0;

	if (chance(10))
		return edge64();
	if (chance(30))
		return REGION(index) + (index == VFIO_PCI_CONFIG_REGION_INDEX ? below(0x120) : below(0x1100));
	return REGION(index) + (chance(50) || !size ? size - below(20) : below(size + 1)) + (chance(10) ? edge64() : 0);
}

static size_t access_size(void)
{
	return chance(70) ? 1ull << below(5) : chance(70) ? below(80) : below(MOST);
}

static void fuzz_region(void)
{
	struct file *file = any_file(chance(97) ? DEVICE : ANY);
	off_t offset = region_offset(file);
	size_t size = access_size();
	bool writes = chance(45);
	int64_t result;

	for (unsigned i = 0; i < 16; i++)
		scratch[i] = edge64();
	void *at = pointer(scratch, size < 64 ? size : 64);
	begin(writes ? "pwrite" : "pread", file->fd, offset, size, (uintptr_t)at);
	if (chance(5)) {
		struct iovec parts[] = {{at, size}, {pointer(NULL, 8), below(9)}, {ARENA, below(9)}};
		result = writes ? pwritev(file->fd, parts, 3, offset) : preadv(file->fd, parts, 3, offset);
	} else {
		result = writes ? pwrite(file->fd, at, size, offset) : pread(file->fd, at, size, offset);
	}
	int error = errno;
	done(writes ? "pwrite" : "pread", result, error);
	if (result > (int64_t)(MOST + 18))
		fault("more was moved than asked for: %lld", (long long)result);
}

/* ---- mmap ---- */

static void caught(int number)
{
	if (touching)
		siglongjmp(touched, number);
	printf("fault the fuzzer itself had signal %d\n", number);
	_exit(1);
}

/* Load or store in each of the pages; SIGBUS and SIGSEGV are answers, too. */
static void touch(unsigned char *map, size_t size, bool writes)
{
	for (volatile size_t at = 0; at < size; at += PAGE) {
		touching = 1;
		if (!sigsetjmp(touched, 1)) {
			volatile unsigned char *byte = map + at + below(PAGE);
			if (writes)
				*byte = at;
			else
				(void)*byte;
		}
		touching = 0;
	}
}

/* Device memory (or what else could be mapped) as memory for later calls, in the arena's last pages. */
static void lend(const struct file *file)
{
	void *place = ARENA + LENT_PAGE * PAGE;

	if (mmap(place, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file->fd, REGION(0)) == MAP_FAILED)
		CHECK(mmap(place, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == place);
}

static void fuzz_mmap(void)
{
	static const int prots[] = {PROT_NONE, PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC};
	struct file *file = any_file(chance(90) ? DEVICE : ANY);
	off_t offset = region_offset(file) & -(off_t)(chance(95) ? PAGE : 1);
	size_t size = chance(90) ? (1 + below(32)) * PAGE : edge64() >> 20;
	int prot = prots[below(LENGTH(prots))], flags = chance(85) ? MAP_SHARED : MAP_PRIVATE;

	if (chance(10)) {
		lend(file);
		return;
	}
	begin("mmap", file->fd, offset, size, prot);
	unsigned char *map = mmap(NULL, size, prot, flags, file->fd, offset);
	int error = errno;
	done("mmap", map == MAP_FAILED ? -1 : 0, error);
	if (map == MAP_FAILED)
		return;
	size_t seen = size < 32 * PAGE ? size : 32 * PAGE;
	begin("load and store", file->fd, offset, seen, prot);
	touch(map, seen, prot & PROT_WRITE && flags == MAP_SHARED);
	if (chance(30) && seen >= 16 * PAGE)
		mprotect(map + below(8) * PAGE, PAGE * (1 + below(8)), prots[below(LENGTH(prots))]);
	if (chance(30))
		madvise(map, seen, chance(50) ? MADV_DONTNEED : MADV_WILLNEED);
	if (chance(30) && seen >= 2 * PAGE)
		munmap(map + PAGE, PAGE);
	touch(map, seen, false);
	munmap(map, size);
	done("load and store", 0, 0);
}

/* ---- sessions ---- */

static void open_some(void)
{
	look_round();
	remember(open_vfio(root, "vfio"), CONTAINER);
	if (group_count) {
		struct opened o;
		const char *group = groups[below(group_count)];
		remember(open_vfio(root, group), GROUP);
		if (device_count && chance(85) && open_device(root, group, devices[below(device_count)], &o)) {
			be_master(o.device);
			remember(o.container, CONTAINER);
			remember(o.group, GROUP);
			remember(o.device, DEVICE);
		}
	}
	if (cdev_count && opened < FILES) {
		char path[64];
		struct opened o;
		snprintf(path, sizeof(path), "devices/%s", cdevs[below(cdev_count)]);
		if (chance(25)) {
			remember(open_vfio(root, path), DEVICE);
			remember(open_below(root, "dev/iommu", O_RDWR), IOMMUFD);
		} else if (open_bound(root, path, &o)) {
			be_master(o.device);
			remember(o.device, DEVICE);
			remember(o.iommufd, IOMMUFD);
		}
	}
	if (opened < FILES && chance(10))
		remember(open_vfio(root, ".devices"), ANY);
}

static void close_all(void)
{
	while (opened)
		close(files[--opened].fd);
}

int main(int argc, char **argv)
{
	void (*kinds[3])(void);
	unsigned count = 0;

	CHECK(argc >= 6);
	open_progress(argv[1]);
	root = argv[2];
	random_state = strtoull(argv[4], NULL, 0);
	uint64_t calls = strtoull(argv[5], NULL, 0);
	protected_names = argv + 6;
	if (strstr(argv[3], "ioctl"))
		kinds[count++] = fuzz_ioctl;
	if (strstr(argv[3], "region"))
		kinds[count++] = fuzz_region;
	if (strstr(argv[3], "mmap"))
		kinds[count++] = fuzz_mmap;
	CHECK(count);
	make_arena();
	make_strangers();
	signal(SIGBUS, caught);
	signal(SIGSEGV, caught);
	while (progress->calls < calls) {
		for (unsigned tries = 0; !opened && tries < OPEN_TRIES; tries++) {
			if (tries)
				usleep(1000);
			open_some();
		}
		if (!opened) {
			fault("nothing of %s/dev/vfio can be opened: %s", root, strerror(errno));
			return 1;
		}
		for (unsigned i = 0; i < SESSION && progress->calls < calls; i++)
			kinds[below(count)]();
		close_all();
	}
	for (unsigned i = 0; i < ERRNOS; i++)
		if (errors[i])
			printf("count %s %llu\n", i ? strerrorname_np(i) : "good", (unsigned long long)errors[i]);
	printf("most own %llu\n", (unsigned long long)longest / 1000);
	return 0;
}
