/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory that waits when somebody touches it: mappings of a held file, pages of userfaultfd(2), or memory of a
 * process whose mappings are locked.
 *
 * `memory` is PAGES pages of the kind that was chosen, with a plain page before them.  What is touched waits until
 * held->released; the first page then has what held->content has.  Include this once, after held_file.h.
 * Source: userfaultfd(2), sync_file_range(2), mmap(2).
 */
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

enum { PAGES = 16, MAPPED = PAGES * PAGE, SKIP = 77 };
static char *memory;
static int hostile; /* an open held file */

static void await(atomic_int *flag)
{
	while (!*flag)
		usleep(1000);
}

static void *plain_pages(size_t size)
{
	void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(pages != MAP_FAILED);
	return pages;
}

static void replace_memory(int flags, int fd)
{
	CHECK(mmap(memory, MAPPED, PROT_READ | PROT_WRITE, MAP_FIXED | flags, fd, 0) == memory);
}

static void make_private(void) { replace_memory(MAP_PRIVATE, hostile); }
static void make_shared(void) { replace_memory(MAP_SHARED, hostile); }

static void make_stored(void)
{
	make_shared();
	for (int page = 0; page < PAGES; page++)
		memory[page * PAGE] = 0;
}

static void make_memfd(void)
{
	int fd = memfd_create("memory", MFD_CLOEXEC);

	CHECK(fd >= 0 && !ftruncate(fd, MAPPED));
	replace_memory(MAP_SHARED, fd);
}

/* Pages that can be read.  A write to them waits until the file has stored what was written before. */
static void store(void)
{
	CHECK(!sync_file_range(hostile, 0, 0, SYNC_FILE_RANGE_WRITE));
}

/* The end of a shared mapping waits until the file has stored it, with the lock of all mappings held to write. */
static void *replace_page(void *page)
{
	CHECK(mmap(page, PAGE, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == page);
	return NULL;
}

static char *spare;

static void make_spare(void)
{
	spare = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, hostile, 0);
	CHECK(spare != MAP_FAILED);
	*spare = 0;
}

static void lock_mappings(void)
{
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, replace_page, spare));
	while (!(held->kinds >> FUSE_WRITE & 1))
		usleep(1000);
}

static int faults;

static void *answer_faults(void *unused)
{
	static unsigned char zeros[PAGE];
	struct pollfd ready = {.fd = faults, .events = POLLIN};

	(void)poll(&ready, 1, -1);
	say_held("PAGE", NO_OPCODE);
	await(&held->released);
	for (int page = 0; page < PAGES; page++) {
		struct uffdio_copy copy = {.dst = (uintptr_t)memory + page * PAGE, .len = PAGE,
			.src = (uintptr_t)(page ? zeros : held->content)};

		(void)ioctl(faults, UFFDIO_COPY, &copy);
	}
	return unused;
}

static void make_userfault(void)
{
	struct uffdio_api api = {.api = UFFD_API};
	struct uffdio_register pages = {.range = {(uintptr_t)memory, MAPPED}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	pthread_t thread;

	replace_memory(MAP_PRIVATE | MAP_ANONYMOUS, -1);
	faults = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (faults < 0) {
		printf("userfaultfd(2): %s\n", strerror(errno));
		exit(SKIP);
	}
	CHECK(!ioctl(faults, UFFDIO_API, &api) && !ioctl(faults, UFFDIO_REGISTER, &pages));
	CHECK(!pthread_create(&thread, NULL, answer_faults, NULL));
}

static const struct memory {
	const char *name;
	void (*make)(void), (*arm)(void);
	int from_content; /* whether the first page is held->content */
} memories[] = {
	{.name = "plain"},
	{"memfd", make_memfd, NULL, 0},
	{"private", make_private, NULL, 1},
	{"shared", make_shared, NULL, 1},
	{"stored", make_stored, store, 0},
	{"locked", make_spare, lock_mappings, 0},
	{"userfault", make_userfault, NULL, 1},
	{0},
};

static void make_memory(const struct memory *kind)
{
	memory = (char *)plain_pages(PAGE + MAPPED) + PAGE;
	if (kind->make)
		kind->make();
}

/* From now on whoever touches the memory waits. */
static void arm_memory(const struct memory *kind)
{
	held->armed = 1;
	if (kind->arm)
		kind->arm();
}

/* Put `data` where `plain` bytes of it lie before the held pages; its address. */
static __attribute__((unused)) char *place(const struct memory *kind, const char *data, size_t size, size_t plain)
{
	CHECK(plain <= size && size <= PAGE);
	memcpy(memory - plain, data, plain);
	memcpy(kind->from_content ? (char *)held->content : memory, data + plain, size - plain);
	return memory - plain;
}
