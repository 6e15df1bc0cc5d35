/* SPDX-License-Identifier: Apache-2.0 */
/* Declarations that the parts of the pump share: session.c, files.c, names.c, regions.c, call.c, interpose.c,
 * watchers.c and pump.c. */
#ifndef VFSFUSE_PUMP_H
#define VFSFUSE_PUMP_H

#include <semaphore.h>

#include "fuse_abi.h"
#include "lane.h"

#define MAX_DATA (1u << 20)
#define IDENTIFY _IO('V', 0x41)
#define LANE_OFFSET_MASK ((1ull << LANE_REGION_SHIFT) - 1)

/* A thread that reads requests and answers them.  `state` is odd (PUMP_SERVES) while it serves one, and changes
 * with each request. */
struct pump {
	struct pump *next;
	uint64_t state;
	uint64_t unique;    /* of the request it serves, or served last */
	uint32_t client;    /* the thread whose ioctl it answers, 0 outside of ioctls */
	int tid;	    /* 0 until the thread runs */
	int in_client;	    /* a touch of a client's memory is under way */
	int was_held;	    /* such a touch took so long that this pump was retired */
	const struct lane_memory *memory; /* it copies from or to a region of this; NULL for none */
	int interrupted;    /* an INTERRUPT came for `unique` after this pump was retired */
	int is_late;	    /* it was retired while it released a file */
	uint32_t slot;	    /* its lane_argument, counted from 1; 0 when there was none left */
	sem_t go;	    /* it may begin */
	char *in, *out;
};
#define PUMP_SERVES 1ull
#define PUMP_RETIRED (1ull << 63)

struct request {
	const struct fuse_in_header *header;
	const void *body;
	size_t size; /* of body */
	char *out;   /* MAX_DATA bytes */
};

/* pump.c */
struct pump *own_pump(void); /* of the calling thread; NULL when it is no pump */
struct pump *current_pump(void);
int lane_pump_ended(void);
void prepare_pump(void);
void replace_pump(struct pump *pump, uint64_t state);

int lane_pumps_retired(void); /* how many have not ended */

/* watch.c */
void wake_watchdog(void);
int is_wary(void);

/* session.c */
int session_fuse(void);
void session_end(void);
void session_close(void);
int send_data(uint64_t unique, int error, const void *body, size_t size, const void *data, size_t more);
int send_open(uint64_t unique, const struct vfs_open_out *out);
void send_error(uint64_t unique, int64_t error);
void send_ioctl(uint64_t unique, int64_t result, const void *out, uint32_t out_size);
void send_read(const struct request *r, int64_t got);
int hand_on(const struct request *r);

/* files.c */
void on_open(const struct request *r);
void on_release(const struct request *r);
void on_read(const struct request *r);
void on_write(const struct request *r);
void on_ioctl(const struct request *r);
void on_poll(const struct request *r);
void on_fsync(const struct request *r);
void on_fallocate(const struct request *r);
int is_shut(const struct lane_file *file); /* whether reads and writes are refused for now */

/* names.c */
void on_attr_open(const struct request *r);
void on_attr_release(const struct request *r);
void on_attr_read(const struct request *r);
void on_attr_poll(const struct request *r);
void on_attr_write(const struct request *r);
int answer_shown(const struct fuse_out_header *header, const void *text); /* whether it was a read of an attribute */
void on_lookup(const struct request *r);
void on_getattr(const struct request *r);
void on_readlink(const struct request *r);
void send_entry(const struct request *r, const struct lane_name *found);

/* watchers.c */
int answer_watchers(const struct request *r); /* whether it was a request of its thread, and is answered */

/* A register of an open device; `found` is NULL when there is none. */
struct lane_place {
	const struct lane_memory *memory;
	uint64_t region;
	const struct lane_register *found;
};

/* regions.c */
char *find_memory(const struct lane_file *file, uint64_t offset, uint64_t size);
void leave_memory(void);
int64_t read_memory(const struct lane_file *file, uint64_t offset, void *to, uint32_t size);
int64_t write_memory(const struct lane_file *file, uint64_t offset, const void *from, uint32_t size);
int read_plain(const struct lane_file *file, uint64_t offset, uint64_t size, void *value);
struct lane_place find_register(const struct lane_file *file, uint64_t offset, uint64_t size);
int is_shown(const struct lane_memory *m, uint64_t index);

/* call.c: these return a number of bytes, a result or 0; a negative errno; or LANE_DEFERRED when Python
 * returns None. */
int64_t call_read(const struct lane_file *file, uint64_t offset, uint32_t size, char *out);
int64_t call_write(const struct lane_file *file, uint64_t offset, const void *in, uint32_t size);
int64_t call_register(const struct lane_place *place, uint64_t *value, int write);
int64_t call_ioctl(const struct lane_file *file, uint32_t cmd, uint64_t arg, uint32_t tid, uint32_t slot);
int is_attended(void); /* who attends to calls on open files, which Python makes then; one load */
int64_t call_attended_read(const struct lane_file *file, const struct lane_transfer *read, int who, char *out);
int64_t call_steered_store(uint64_t unique, uint64_t inode, uint32_t tid, const void *in, uint32_t size);
int64_t call_attended_write(const struct lane_file *file, const struct lane_transfer *write, int who, const void *in);
void *call_attach(void); /* makes this thread one that calls Python cheaply, until call_detach(its result) */
void call_detach(void *attached);
int64_t call_lookup(uint64_t parent, const char *name, struct lane_name *found);
int64_t call_stat(uint64_t inode, struct lane_name *found);
int64_t call_readlink(uint64_t inode, char *out, uint32_t size);
int64_t call_show(uint64_t inode, char *out, uint32_t size);

/* One load or store, atomic against accesses of other threads, as a processor's is; `width` is 1, 2, 4 or 8
 * bytes. */
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

#endif
