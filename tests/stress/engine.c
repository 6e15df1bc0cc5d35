/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random packets for the command engine of a vGPU, with canaries in all memory that no mapping lets it write.
 *
 *	engine PROGRESS ROOT GROUP NAME VIDEO NEIGHBOUR SEED PACKETS
 *
 * VIDEO is the size of the video memory in bytes, NEIGHBOUR a vGPU's file below dev/vfio whose video memory is one
 * canary. Runs under `vfsfuse run`. Mappings come and go while packets are executed: pages of a mapping that has been
 * unmapped are canaries again. Source: docs/vgpu.md.
 */
#include "stress.h"

/* Half of the pages are private memory, half are of a memfd; the first of them are the ring. */
enum { PAGES = 1024, RING_PAGES = 1, RING = PAGE * RING_PAGES, PACKETS = RING / sizeof(struct packet), MAPPINGS = 24 };
enum { READ_ONLY_FROM = 480, READ_ONLY_TO = 512 };
#define MEMORY ((unsigned char *)0x110000000000)
#define RING_IOVA 0x10000000ull
#define LEAST_IOVA 0x20000000ull

struct mapping {
	unsigned first, pages; /* 0 pages: none */
	uint64_t iova;
	bool writable;
};

static struct opened gpu;
static uint64_t video, canaries, unmaps;
static struct mapping mappings[MAPPINGS];
static int neighbour;
static uint64_t counts[8];

/* ---- canaries ---- */

static uint64_t canary(uint64_t address)
{
	return (address + 0x5bd1e995) * 0x9e3779b97f4a7c15u;
}

static void protect(unsigned first, unsigned pages, int prot)
{
	unsigned from = first > READ_ONLY_FROM ? first : READ_ONLY_FROM;
	unsigned to = first + pages < READ_ONLY_TO ? first + pages : READ_ONLY_TO;

	if (from < to)
		CHECK(!mprotect(MEMORY + from * PAGE, (to - from) * PAGE, prot));
}

static void fill_canaries(unsigned first, unsigned pages)
{
	uint64_t *words = (uint64_t *)(MEMORY + first * PAGE);

	protect(first, pages, PROT_READ | PROT_WRITE);
	for (size_t i = 0; i < pages * (PAGE / 8); i++)
		words[i] = canary((uintptr_t)&words[i]);
	protect(first, pages, PROT_READ);
}

/* Pages of private memory that this process itself may only read count as not writable, whatever their mapping says. */
static bool may_change(unsigned page)
{
	if (page < RING_PAGES)
		return true;
	if (page >= READ_ONLY_FROM && page < READ_ONLY_TO)
		return false;
	for (unsigned i = 0; i < MAPPINGS; i++) {
		struct mapping *m = &mappings[i];
		if (page >= m->first && page < m->first + m->pages && m->writable)
			return true;
	}
	return false;
}

static void check_canaries(void)
{
	for (unsigned page = 0; page < PAGES; page++) {
		uint64_t *words = (uint64_t *)(MEMORY + page * PAGE);
		for (unsigned i = 0; !may_change(page) && i < PAGE / 8; i++)
			if (words[i] != canary((uintptr_t)&words[i])) {
				fault("the canary of page %u, byte %u is %#llx", page, i * 8, (unsigned long long)words[i]);
				fill_canaries(page, 1);
			}
	}
	canaries++;
}

static void fill_neighbour(void)
{
	static uint64_t words[PAGE / 8];

	for (uint64_t at = 0; at < video; at += PAGE) {
		for (unsigned i = 0; i < PAGE / 8; i++)
			words[i] = canary(at + i * 8);
		CHECK(pwrite(neighbour, words, PAGE, at) == PAGE);
	}
}

static void check_neighbour(void)
{
	static uint64_t words[PAGE / 8];

	for (uint64_t at = 0; at < video; at += PAGE) {
		CHECK(pread(neighbour, words, PAGE, at) == PAGE);
		for (unsigned i = 0; i < PAGE / 8; i++)
			if (words[i] != canary(at + i * 8)) {
				fault("the video memory of the neighbour is %#llx at %#llx", (unsigned long long)words[i],
					(unsigned long long)(at + i * 8));
				return;
			}
	}
}

/* ---- mappings ---- */

/* A run of pages that no mapping has, with a page before and behind it that no mapping has either. */
static bool free_pages(unsigned first, unsigned pages)
{
	for (unsigned i = 0; i < MAPPINGS; i++)
		if (mappings[i].pages && first <= mappings[i].first + mappings[i].pages &&
		    mappings[i].first <= first + pages)
			return false;
	return first > RING_PAGES && first + pages < PAGES;
}

static void let_go(struct mapping *m)
{
	CHECK(!unmap_dma(gpu.container, m->iova, (uint64_t)m->pages * PAGE));
	unsigned first = m->first, pages = m->pages;
	m->pages = 0;
	unmaps++;
	fill_canaries(first, pages); /* from now on nothing may change them */
}

/* Sometimes the iovas follow those of another mapping, whose pages are elsewhere: runs must not join there. */
static void renew_mapping(void)
{
	struct mapping *m = &mappings[below(MAPPINGS)], *before = &mappings[below(MAPPINGS)];

	if (m->pages) {
		if (chance(30))
			let_go(m);
		return;
	}
	unsigned pages = 1 + below(chance(80) ? 4 : 40), first = below(PAGES);
	uint64_t iova = before->pages && chance(60) ? before->iova + (uint64_t)before->pages * PAGE :
						     LEAST_IOVA + below(4096) * PAGE;
	uint32_t flags = chance(75) ? 3 : chance(70) ? 1 : 2;
	if (!free_pages(first, pages))
		return;
	if (map_dma(gpu.container, iova, MEMORY + first * PAGE, (uint64_t)pages * PAGE, flags)) {
		CHECK(errno == EEXIST || errno == EFAULT);
		return;
	}
	*m = (struct mapping){.first = first, .pages = pages, .iova = iova, .writable = flags & VFIO_DMA_MAP_FLAG_WRITE};
}

static void write_gtt(unsigned index, uint64_t entry)
{
	CHECK(put(gpu.device, GTT + index * 8, entry, 8));
}

/* Entries of a run: those of a mapping and the pages around it, scattered ones, or any. */
static void renew_entries(void)
{
	struct mapping *m = &mappings[below(MAPPINGS)];
	unsigned index = RING_PAGES + below(64), count = 1 + below(12);

	for (unsigned i = 0; i < MAPPINGS && !(m->pages && m->writable); i++)
		m = &mappings[below(MAPPINGS)];
	uint64_t iova = m->pages ? m->iova - PAGE : LEAST_IOVA + below(4096) * PAGE;

	for (unsigned i = 0; i < count; i++) {
		uint64_t flags = chance(90) ? VALID | (chance(85) ? WRITABLE : 0) : below(PAGE);
		if (chance(4))
			iova = edge64() & -(uint64_t)PAGE;
		write_gtt(index + i, iova | flags);
		iova += chance(90) ? PAGE : below(8) * PAGE;
	}
}

/* ---- packets ---- */

static uint64_t graphics_address(void)
{
	switch (below(8)) {
	case 0:
		return below(video);
	case 1:
		return video - below(300);
	case 2:
		return SYSTEM_BASE + (uint64_t)GTT_ENTRIES * PAGE - below(300);
	case 3:
		return edge64();
	default:
		return SYSTEM_BASE + below(78) * PAGE + (chance(50) ? below(PAGE) : PAGE - below(64));
	}
}

static uint64_t graphics_size(void)
{
	return chance(70) ? below(600) : chance(90) ? below(6 * PAGE) : chance(80) ? below(600000) : edge64();
}

static struct packet random_packet(void)
{
	struct packet p = {.opcode = chance(97) ? below(WAIT) : below(9), .flags = chance(97) ? 0 : edge64()};
	uint64_t align = chance(90) ? ~7ull : ~0ull, target = graphics_address(), source = graphics_address();
	uint32_t width = graphics_size(), height = chance(80) ? below(9) : edge64(), pitch = width + below(3000);

	switch (p.opcode) {
	case FILL:
		p.fill.target = target & align, p.fill.pitch = pitch & align, p.fill.width = width & align;
		p.fill.height = height, p.fill.pattern = random64();
		break;
	case COPY:
		p.copy.target = target, p.copy.source = chance(80) ? source : target + below(800) - 400;
		p.copy.size = graphics_size();
		break;
	case BLIT:
		p.blit.target = target, p.blit.source = chance(80) ? source : target + below(800) - 400;
		p.blit.target_pitch = pitch, p.blit.source_pitch = chance(50) ? pitch : width + below(3000);
		p.blit.width = width, p.blit.height = height;
		break;
	case FENCE:
		p.word.address = target & align, p.word.value = edge64();
		break;
	case WAIT: /* seldom for more than there is: each of these costs the engine's timeout */
		p.word.address = target & align, p.word.value = chance(97) ? 0 : edge64();
		break;
	default:
		for (unsigned i = 0; i < LENGTH(p.raw); i++)
			p.raw[i] = edge64();
	}
	return p;
}

/* ---- the ring ---- */

static void restart(void)
{
	write_gtt(0, RING_IOVA | VALID | WRITABLE);
	CHECK(enable_engine(gpu.device, SYSTEM_BASE, RING));
}

/* Wait until the ring stands still; false when it has to be enabled again. */
static bool settle(uint32_t tail)
{
	uint64_t deadline = now_ns() + 20000000000u;
	uint32_t stood = UINT32_MAX;

	for (;;) {
		uint32_t status = get(gpu.device, ENGINE + STATUS, 4), head = get(gpu.device, ENGINE + RING_HEAD, 4);
		if (status & HANG || (status & ERROR && head == stood)) { /* the packet itself cannot be read */
			counts[7]++;
			return false;
		}
		if (status & ERROR) {
			counts[6]++;
			stood = head;
			CHECK(put(gpu.device, ENGINE + STATUS, DONE | ERROR, 4));
		} else if (head == tail) {
			return true;
		}
		if (now_ns() > deadline) {
			fault("the ring stands at %u of %u, status %u", head, tail, status);
			return false;
		}
	}
}

/* All packets that a ring holds, changes meanwhile, and what they left. */
static void batch(void)
{
	static uint32_t tail;
	unsigned count = PACKETS - 1;

	begin("batch", count, 0, 0, 0);
	for (unsigned i = 0; i < count; i++) {
		struct packet p = random_packet();
		memcpy(MEMORY + (tail + i * sizeof(p)) % RING, &p, sizeof(p));
		counts[p.opcode < 6 ? p.opcode : 5]++;
	}
	tail = (tail + count * sizeof(struct packet)) % RING;
	CHECK(put(gpu.device, ENGINE + RING_TAIL, tail, 4));
	while (chance(70)) {
		if (chance(50))
			renew_mapping();
		else
			renew_entries();
	}
	if (chance(2)) {
		CHECK(!ioctl(gpu.device, VFIO_DEVICE_RESET) && be_master(gpu.device));
		restart();
		tail = 0;
	} else if (!settle(tail)) {
		restart();
		tail = 0;
	}
	check_canaries();
	end();
	atomic_fetch_add(&progress->calls, count - 1);
}

static void make_memory(void)
{
	int fd = memfd_create("client", MFD_CLOEXEC);
	size_t half = PAGES / 2 * PAGE;

	CHECK(fd >= 0 && !ftruncate(fd, half));
	CHECK(mmap(MEMORY, half, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MEMORY);
	CHECK(mmap(MEMORY + half, half, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0) == MEMORY + half);
	close(fd);
	fill_canaries(RING_PAGES, PAGES - RING_PAGES);
}

int main(int argc, char **argv)
{
	CHECK(argc == 9);
	open_progress(argv[1]);
	video = strtoull(argv[5], NULL, 0);
	random_state = strtoull(argv[7], NULL, 0);
	uint64_t packets = strtoull(argv[8], NULL, 0);
	CHECK(open_device(argv[2], argv[3], argv[4], &gpu) && be_master(gpu.device));
	struct opened other;
	CHECK(open_bound(argv[2], argv[6], &other) && be_master(neighbour = other.device));
	make_memory();
	fill_neighbour();
	CHECK(!map_dma(gpu.container, RING_IOVA, MEMORY, RING, 3));
	restart();
	for (unsigned i = 0; i < 4 * MAPPINGS; i++) {
		renew_mapping();
		renew_entries();
	}
	while (progress->calls < packets)
		batch();
	for (unsigned i = 0; i < MAPPINGS; i++)
		if (mappings[i].pages)
			let_go(&mappings[i]);
	check_canaries();
	check_neighbour();
	static const char *const names[] = {"nop", "fill", "copy", "blit", "fence", "other", "errors", "restarts"};
	for (unsigned i = 0; i < LENGTH(counts); i++)
		printf("count %s %llu\n", names[i], (unsigned long long)counts[i]);
	printf("count checks %llu\ncount unmaps %llu\n", (unsigned long long)canaries, (unsigned long long)unmaps);
	return 0;
}
