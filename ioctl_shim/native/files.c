/* SPDX-License-Identifier: Apache-2.0 */
/* Requests on device inodes: memory and stored registers are answered here, for all else Python is called.
 * Pump thread, except lane_open_file(). */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pump.h"

/* cffi defines these (callbacks.cdef). */
int lane_on_open(struct lane_open *open);
int64_t lane_on_read(const struct lane_transfer *read, void *out);
int64_t lane_on_write(const struct lane_transfer *write, const void *in);
int64_t lane_on_ioctl(struct lane_ioctl *call);
uint32_t lane_on_poll(uint64_t token, uint64_t handle);
void lane_on_release(uint64_t token);

#define VFIO_FIRST (';' << 8 | 100) /* _IO(VFIO_TYPE, VFIO_BASE) */

static struct lane_file *file_of(uint64_t fh)
{
	return (struct lane_file *)(uintptr_t)fh; /* only the kernel hands it back: a client cannot forge it */
}

static struct lane_file *file_get(uint64_t fh)
{
	struct lane_file *file = file_of(fh);

	__atomic_add_fetch(&file->refs, 1, __ATOMIC_ACQ_REL);
	return file;
}

/* Gives a reference back; the last one releases the file.  Any thread. */
void lane_file_put(uint64_t fh)
{
	struct lane_file *file = file_of(fh);

	if (__atomic_sub_fetch(&file->refs, 1, __ATOMIC_ACQ_REL))
		return;
	lane_on_release(file->token);
	lane_memory_put(file->memory);
	free(file);
}

/* Has Python open a file, and answers.  When Python leaves that to a thread that may wait, this is called again
 * there, with a copy of `open`. */
void lane_open_file(struct lane_open *open)
{
	struct lane_file *file = calloc(1, sizeof(*file));
	/* a write that is held up does not hold up other writes to a region's own file */
	uint32_t flags = FOPEN_DIRECT_IO | VFS_FOPEN_NOFLUSH | VFS_FOPEN_PARALLEL_WRITES;
	struct vfs_open_out out = {.fh = (uintptr_t)file, .open_flags = flags}, unmappable = out;
	int error = file ? lane_forbid_mapping(&unmappable) : -ENOMEM;

	if (!error)
		error = lane_on_open(open);
	if (error) {
		free(file);
		/* Not ENOSYS: after that the kernel would make all opens itself, and none would be known here. */
		if (error != LANE_DEFERRED)
			send_error(open->unique, error == -ENOSYS ? -EIO : error);
		return;
	}
	*file = (struct lane_file){.refs = 1, .token = open->token, .memory = open->memory /* with the reference Python took */,
		.region = open->region, .by_region = open->by_region, .read = open->read, .write = open->write,
		.ioctl = open->ioctl, .rows = open->rows, .shut = open->shut};
	if (open->stream) {
		/* a stream cannot have a backing file; a mapping of it is harmless: its size is 0, so all is
		 * SIGBUS */
		out.open_flags |= VFS_FOPEN_STREAM;
	} else if (open->backing_id > 0) {
		out.open_flags |= VFS_FOPEN_PASSTHROUGH;
		out.backing_id = open->backing_id;
	} else
		out = unmappable;
	if (send_open(open->unique, &out))
		lane_file_put(out.fh); /* the kernel does not have it, and so will not release it */
}

void on_open(const struct request *r)
{
	const struct fuse_open_in *in = r->body;
	struct lane_open open = {.unique = r->header->unique, .nodeid = r->header->nodeid, .flags = in->flags,
		.tid = r->header->pid, .uid = r->header->uid, .gid = r->header->gid,
		.leads = (uint32_t)shim_leads_process(r->header->pid), .on_pump = 1, .region = LANE_WHOLE};

	lane_open_file(&open);
}

void on_release(const struct request *r)
{
	const struct fuse_release_in *in = r->body;

	lane_file_put(in->fh);
	send_error(r->header->unique, 0);
}

int is_shut(const struct lane_file *file)
{
	return file->shut && __atomic_load_n(file->shut, __ATOMIC_ACQUIRE);
}

void on_read(const struct request *r)
{
	const struct fuse_read_in *in = r->body;
	const struct lane_file *file = file_of(in->fh);
	uint32_t size = in->size > MAX_DATA ? MAX_DATA : in->size;
	struct lane_transfer read = {r->header->unique, file->token, in->offset, size, in->flags, r->header->pid};
	uint64_t value = 0;
	int who = is_attended();

	if (who && file->read) {
		int64_t told = call_attended_read(file, &read, who, r->out);

		if (told == LANE_TAKEN)
			return;
		if (told != LANE_DEFERRED)
			return send_read(r, told);
	}
	if (is_shut(file))
		return send_error(r->header->unique, -EINVAL);
	const char *memory = find_memory(file, in->offset, size);
	if (memory) {
		/* the kernel copies from the region itself; this fails when it has no page left for a hole in
		 * it */
		int error = send_data(r->header->unique, 0, memory, size, NULL, 0);

		leave_memory();
		if (error)
			send_error(r->header->unique, -EIO);
		return;
	}
	if (read_plain(file, in->offset, size, &value)) {
		send_data(r->header->unique, 0, &value, size, NULL, 0);
		return;
	}
	struct lane_place place = find_register(file, in->offset, size);
	if (place.found) {
		int64_t error = call_register(&place, &value, 0);

		memcpy(r->out, &value, size);
		if (error != LANE_DEFERRED)
			return send_read(r, error ? error : size);
	}
	if (file->read)
		return send_read(r, call_read(file, in->offset, size, r->out));
	int64_t got = lane_on_read(&read, r->out);
	if (got != LANE_DEFERRED)
		send_read(r, got);
}

/* The bytes written, a negative errno, or LANE_DEFERRED when Python answers the request itself. */
static int64_t take_write(const struct request *r, const struct fuse_write_in *in)
{
	const struct lane_file *file = file_of(in->fh);
	const void *data = in + 1;
	struct lane_transfer write = {r->header->unique, file->token, in->offset, in->size, in->flags, r->header->pid};
	uint64_t value = 0;

	if (in->size > r->size - sizeof(*in))
		return -EIO;
	int who = is_attended();

	if (who && file->write) {
		int64_t told = call_attended_write(file, &write, who, data);

		if (told == LANE_TAKEN)
			return LANE_DEFERRED;
		if (told != LANE_DEFERRED)
			return told;
	}
	if (is_shut(file))
		return -EINVAL;
	int64_t stored = write_memory(file, in->offset, data, in->size);
	if (stored != LANE_DEFERRED)
		return stored;
	struct lane_place place = find_register(file, in->offset, in->size);
	if (place.found) {
		memcpy(&value, data, in->size);
		int64_t error = call_register(&place, &value, 1);
		if (error != LANE_DEFERRED)
			return error ? error : in->size;
	}
	return file->write ? call_write(file, in->offset, data, in->size) : lane_on_write(&write, data);
}

void on_write(const struct request *r)
{
	const struct fuse_write_in *in = r->body;
	int64_t put = take_write(r, in);

	if (put == LANE_DEFERRED)
		return;
	if (put < 0) {
		send_error(r->header->unique, put);
		return;
	}
	struct fuse_write_out out = {.size = (uint32_t)put};
	send_data(r->header->unique, 0, &out, sizeof(out), NULL, 0);
}

static int is_own_thread(uint32_t tid)
{
	return !syscall(SYS_tgkill, getpid(), tid, 0);
}

struct lane_argument *lane_argument(uint32_t slot)
{
	static struct lane_argument arguments[LANE_SLOTS];

	return slot && slot <= LANE_SLOTS ? &arguments[slot - 1] : NULL;
}

/* Reads what the struct of an ioctl of iommufd has behind its least size.  0 when that takes a thread that may
 * wait: the client's struct is longer than ours, and as long as it likes, or shorter than the least, so that not
 * all of it could be read. */
static int fetch_rest(struct lane_argument *argument, uint64_t arg, uint32_t tid, uint32_t least, uint32_t whole)
{
	uint32_t given = *(const uint32_t *)argument->data;

	if (argument->error || given > whole)
		return 0;
	if (given > least)
		argument->error = (int32_t)shim_peek(tid, arg + least, argument->data + least, given - least);
	return 1;
}

/* Reads the struct behind the ioctl's argument, as its row says, because Python looks at it first.  0 when it is
 * not for the pump to read. */
static int fetch_argument(struct lane_argument *argument, const struct lane_file *file,
			  const struct fuse_ioctl_in *in, uint32_t tid)
{
	const struct lane_rows *rows = file->rows;
	uint32_t row = in->cmd - VFIO_FIRST;

	argument->reply = 0;
	if (!rows || row >= LANE_ROWS || !rows->minsz[row])
		return 1;
	memset(argument->data, 0, rows->size[row]);
	argument->error = (int32_t)shim_peek(tid, in->arg, argument->data, rows->minsz[row]);
	return !(rows->checked >> row & 1) || fetch_rest(argument, in->arg, tid, rows->minsz[row], rows->size[row]);
}

/* Answers an ioctl whose number has no size, as all of VFIO's and iommufd's, and gives the reference to its file
 * back.  0 when it is left to another thread: Python wants that, or its struct does, or a client has held up a pump,
 * just now or through this file, or it has to wait for a release, or this pump has no argument. */
static int answer_ioctl(const struct request *r)
{
	const struct fuse_ioctl_in *in = r->body;
	struct lane_file *file = file_of(in->fh);
	struct pump *pump = own_pump();
	struct lane_argument *argument = lane_argument(pump->slot);
	uint32_t tid = r->header->pid;
	int64_t result = LANE_DEFERRED, error = 0;

	if (file->slow || !argument || is_wary() || lane_release_is_late())
		return 0;
	__atomic_store_n(&pump->client, tid, __ATOMIC_RELAXED);
	if (fetch_argument(argument, file, in, tid))
		result = call_ioctl(file, in->cmd, in->arg, tid, pump->slot);
	if (result != LANE_DEFERRED && argument->reply) /* an error has an answer, too: ENOSPC says how much room it needs */
		error = shim_poke(tid, in->arg, argument->data, argument->reply);
	__atomic_store_n(&pump->client, 0, __ATOMIC_RELAXED);
	if (pump->was_held)
		file->slow = 1;
	if (result == LANE_DEFERRED)
		return 0;
	lane_file_put(in->fh);
	send_ioctl(r->header->unique, error ? error : result, NULL, 0);
	return 1;
}

/* The file stays as long as an ioctl on it is under way: a client that is killed gets its answer, and closes
 * the file, before the ioctl has ended here. Any other client has its answer only when the file is no longer in use
 * here: a close(2) that follows releases it before any other call, also if this pump has been retired meanwhile. */
void on_ioctl(const struct request *r)
{
	const struct fuse_ioctl_in *in = r->body;
	const struct lane_file *file = file_get(in->fh);
	struct lane_ioctl call = {.unique = r->header->unique, .token = file->token, .handle = in->fh, .arg = in->arg,
		.cmd = in->cmd, .tid = r->header->pid, .data = in + 1, .data_size = in->in_size,
		.out_size = in->out_size, .out = r->out};
	int64_t result;

	if (in->cmd == IDENTIFY && is_own_thread(call.tid)) {
		lane_file_put(in->fh);
		return send_ioctl(call.unique, (int64_t)(call.token & 0x7fffffff), NULL, 0);
	}
	if (file->ioctl && !in->in_size && !in->out_size && answer_ioctl(r))
		return;
	if (in->in_size > r->size - sizeof(*in) || in->out_size > MAX_DATA)
		result = -EIO;
	else
		result = lane_on_ioctl(&call);
	if (result == LANE_DEFERRED)
		return; /* with the reference */
	lane_file_put(in->fh);
	send_ioctl(call.unique, result, r->out, result < 0 ? 0 : call.out_size);
}

void on_poll(const struct request *r)
{
	const struct fuse_poll_in *in = r->body;
	uint64_t handle = in->flags & FUSE_POLL_SCHEDULE_NOTIFY ? in->kh : 0;
	struct fuse_poll_out out = {.revents = lane_on_poll(file_of(in->fh)->token, handle)};

	send_data(r->header->unique, 0, &out, sizeof(out), NULL, 0);
}

/* VFIO's files are character devices, which have neither; binary attributes answer as other attributes. */

void on_fsync(const struct request *r)
{
	const struct fuse_fsync_in *in = r->body;

	send_error(r->header->unique, file_of(in->fh)->rows ? -EINVAL : 0);
}

void on_fallocate(const struct request *r)
{
	const struct fuse_fallocate_in *in = r->body;

	send_error(r->header->unique, file_of(in->fh)->rows ? -ENODEV : -EOPNOTSUPP);
}
