/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The hot calls from the pump into Python, by CPython's own interface.  A call through cffi costs a
 * microsecond more, for the objects that it makes of its arguments.  Runs on the pump thread, which takes the
 * GIL here and for nothing else.
 *
 * The callables are borrowed references: ioctl_shim/lane.py keeps them while the file is open, or the process
 * runs.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <string.h>

#include "pump.h"

static struct lane_python python;
static int attended; /* who attends to calls: LANE_OBSERVED, LANE_STEERED */

void lane_set_python(const struct lane_python *called)
{
	python = *called;
}

/* Any thread.  A request that a pump has begun may still be answered as before. */
void lane_attend(int who)
{
	__atomic_store_n(&attended, who, __ATOMIC_RELEASE);
}

int is_attended(void)
{
	return __builtin_expect(__atomic_load_n(&attended, __ATOMIC_RELAXED), 0);
}

/* A thread that Python did not start has a thread state only within PyGILState_Ensure() and its release, and
 * making one costs more than a call.  So such a pump keeps one, without the GIL. */
struct attached {
	PyGILState_STATE gil;
	PyThreadState *state;
};

void *call_attach(void)
{
	static __thread struct attached attached;

	attached.gil = PyGILState_Ensure();
	attached.state = PyEval_SaveThread();
	return &attached;
}

void call_detach(void *attached)
{
	PyEval_RestoreThread(((struct attached *)attached)->state);
	PyGILState_Release(((struct attached *)attached)->gil);
}

/* The negative errno of the exception that has been raised.  Clears the exception. */
static int64_t failure(void)
{
	PyObject *kind, *error, *trace, *answer = NULL;
	int64_t result = -EIO;

	PyErr_Fetch(&kind, &error, &trace);
	PyErr_NormalizeException(&kind, &error, &trace);
	if (trace)
		PyException_SetTraceback(error, trace);
	if (error)
		answer = PyObject_CallOneArg(python.failed, error);
	if (answer)
		result = PyLong_AsLongLong(answer);
	if (PyErr_Occurred()) {
		PyErr_WriteUnraisable(python.failed);
		result = -EIO;
	}
	Py_XDECREF(answer);
	Py_XDECREF(kind);
	Py_XDECREF(error);
	Py_XDECREF(trace);
	return result;
}

/* Calls with the arguments `first` (borrowed; left out if NULL), `count` numbers, and `last` (stolen; left
 * out if NULL). Returns a new reference, or NULL when the call raised. */
static PyObject *call(void *what, PyObject *first, const uint64_t *numbers, size_t count, PyObject *last)
{
	PyObject *arguments[8] = {NULL}, *result = NULL; /* [0] is room for a method's `self` */
	size_t n = 1, made = 1 + !!first + count;
	int complete;

	if (first)
		arguments[n++] = Py_NewRef(first);
	for (; n < made; n++)
		if (!(arguments[n] = PyLong_FromUnsignedLongLong(numbers[n - 1 - !!first])))
			break;
	complete = n == made;
	if (last)
		arguments[n++] = last;
	if (complete)
		result = PyObject_Vectorcall(what, arguments + 1, (n - 1) | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
	while (--n)
		Py_DECREF(arguments[n]);
	return result;
}

/* Copies `data` to `out`: its size, LANE_DEFERRED for None, or a negative errno.  Steals `data`. */
static int64_t take_bytes(PyObject *data, char *out, uint32_t size)
{
	int64_t result = LANE_DEFERRED;

	if (!data)
		return failure();
	if (PyBytes_Check(data) && PyBytes_GET_SIZE(data) <= (Py_ssize_t)size) {
		result = PyBytes_GET_SIZE(data);
		memcpy(out, PyBytes_AS_STRING(data), (size_t)result);
	} else if (data != Py_None) {
		PyErr_Format(PyExc_RuntimeError, "a read of %u bytes returned %R", size, Py_TYPE(data));
		result = failure();
	}
	Py_DECREF(data);
	return result;
}

/* The number, LANE_DEFERRED for None, or a negative errno.  Steals `number`. */
static int64_t take_number(PyObject *number)
{
	int64_t result = LANE_DEFERRED;

	if (!number)
		return failure();
	if (number != Py_None) {
		result = PyLong_AsLongLong(number);
		if (PyErr_Occurred())
			result = failure();
	}
	Py_DECREF(number);
	return result;
}

/* For calls that have to answer at once: None is a mistake there. */
static int64_t not_none(int64_t result)
{
	if (result != LANE_DEFERRED)
		return result;
	PyErr_SetString(PyExc_RuntimeError, "a read or write returned None");
	return failure();
}

/* Puts the fields of `tuple` (ioctl_shim.lanefile.InodeAttr) into `name`: 0, LANE_DEFERRED for None, or a
 * negative errno. Steals `tuple`. */
static int64_t take_name(PyObject *tuple, struct lane_name *name)
{
	uint64_t *field = (uint64_t *)name;
	int64_t result = tuple == Py_None ? LANE_DEFERRED : 0;

	if (!tuple)
		return failure();
	for (size_t i = 0; !result && i < sizeof(*name) / sizeof(*field); i++) {
		PyObject *number = PySequence_GetItem(tuple, (Py_ssize_t)i);

		field[i] = number ? PyLong_AsUnsignedLongLong(number) : 0;
		Py_XDECREF(number);
		if (PyErr_Occurred()) /* nothing of Python may be called while it is pending */
			result = failure();
	}
	Py_DECREF(tuple);
	return result;
}

/* The place of an access as arguments: region and offset for a file of a whole device, else the offset in the
 * file. */
static size_t place(const struct lane_file *file, uint64_t offset, uint64_t *numbers)
{
	if (file->region != LANE_WHOLE || !file->by_region) {
		numbers[0] = offset;
		return 1;
	}
	numbers[0] = offset >> LANE_REGION_SHIFT;
	numbers[1] = offset & LANE_OFFSET_MASK;
	return 2;
}

int64_t call_read(const struct lane_file *file, uint64_t offset, uint32_t size, char *out)
{
	uint64_t numbers[3];
	size_t count = place(file, offset, numbers);
	PyGILState_STATE gil = PyGILState_Ensure();

	numbers[count++] = size;
	int64_t result = not_none(take_bytes(call(file->read, NULL, numbers, count, NULL), out, size));
	PyGILState_Release(gil);
	return result;
}

int64_t call_write(const struct lane_file *file, uint64_t offset, const void *in, uint32_t size)
{
	uint64_t numbers[2];
	size_t count = place(file, offset, numbers);
	PyGILState_STATE gil = PyGILState_Ensure();
	PyObject *data = PyBytes_FromStringAndSize(in, size);
	int64_t result = data ? not_none(take_number(call(file->write, NULL, numbers, count, data))) : failure();

	PyGILState_Release(gil);
	return result;
}

/* An exception of the hook stays raised.  Under the device's lock. */
static void read_register(const struct lane_region *region, const struct lane_register *r, uint64_t *value)
{
	PyObject *answer;

	if (!r->on_read) {
		*value = load_register(region->stored + r->offset, r->width);
		return;
	}
	answer = PyObject_CallOneArg(r->on_read, region->owner);
	if (answer)
		*value = PyLong_AsUnsignedLongLongMask(answer);
	Py_XDECREF(answer);
}

/* Does what Registers.write() does. */
static void write_register(const struct lane_region *region, const struct lane_register *r, uint64_t written)
{
	char *at = region->stored + r->offset;
	uint64_t value = (load_register(at, r->width) & ~r->changed) | (written & r->changed);

	value &= ~(written & r->cleared);
	store_register(at, r->width, value);
	if (r->on_write)
		Py_XDECREF(call(r->on_write, region->owner, &value, 1, NULL));
}

/* Takes the device's lock: 0, or -1 when an exception is raised. */
static int acquire(const struct lane_memory *m)
{
	PyObject *answer = PyObject_CallNoArgs(m->acquire);

	Py_XDECREF(answer);
	return answer ? 0 : -1;
}

/* Releases the device's lock.  An exception of a hook stays raised, but is not pending during the call. */
static void release(const struct lane_memory *m)
{
	PyObject *kind, *error, *trace, *answer;

	PyErr_Fetch(&kind, &error, &trace);
	answer = PyObject_CallNoArgs(m->release);
	Py_XDECREF(answer);
	if (!answer && kind)
		PyErr_WriteUnraisable(m->release);
	if (kind)
		PyErr_Restore(kind, error, trace);
}

/* Reads or writes a whole register: 0, a negative errno, or LANE_DEFERRED when the region is not shown any
 * more. */
int64_t call_register(const struct lane_place *place, uint64_t *value, int write)
{
	const struct lane_memory *m = place->memory;
	const struct lane_region *region = &m->region[place->region];
	PyGILState_STATE gil = PyGILState_Ensure();
	int64_t result = 0;

	if (!acquire(m)) {
		if (!is_shown(m, place->region)) /* it may have changed before we had the lock */
			result = LANE_DEFERRED;
		else if (write)
			write_register(region, place->found, *value);
		else
			read_register(region, place->found, value);
		release(m);
	}
	if (PyErr_Occurred())
		result = failure();
	PyGILState_Release(gil);
	return result;
}

/* What the pump gives for a read that is told: bytes, or a negative errno as a number.  None where it calls Python
 * also when nobody observes: the access is made there.  So an access is made in the same way, without a lock, whether
 * somebody observes or not.  NULL when Python raised.  With the GIL, so that nothing is told between this and the
 * call. */
static PyObject *read_unasked(const struct lane_file *file, uint64_t offset, uint32_t size)
{
	uint64_t value = 0;

	if (!file->memory || is_shut(file))
		return Py_NewRef(Py_None);
	if (read_plain(file, offset, size, &value))
		return PyBytes_FromStringAndSize((const char *)&value, size);
	PyObject *data = PyBytes_FromStringAndSize(NULL, size);
	if (!data)
		return NULL;
	int64_t got = read_memory(file, offset, PyBytes_AS_STRING(data), size);

	if (got >= 0)
		return data;
	Py_DECREF(data);
	return got == LANE_DEFERRED ? Py_NewRef(Py_None) : PyLong_FromLongLong(got);
}

/* The same for a write: the bytes written, or a negative errno. */
static PyObject *write_unasked(const struct lane_file *file, uint64_t offset, const void *in, uint32_t size)
{
	int64_t put = file->memory && !is_shut(file) ? write_memory(file, offset, in, size) : LANE_DEFERRED;

	return put == LANE_DEFERRED ? Py_NewRef(Py_None) : PyLong_FromLongLong(put);
}

/* Whether the answer of a steered_*() says that Python answers the request.  A negative errno when it raised.
 * Steals `answer`. */
static int64_t is_taken(PyObject *answer)
{
	int64_t result = answer ? answer == Py_True : failure();

	Py_XDECREF(answer);
	return result;
}

static int64_t observe_read(const struct lane_file *file, const struct lane_transfer *read, char *out)
{
	uint64_t numbers[] = {file->token, read->offset, read->size, read->tid};
	PyObject *made = read_unasked(file, read->offset, read->size);
	int64_t result = made ? take_bytes(call(python.observed_read, made, numbers, 4, NULL), out, read->size) : failure();

	Py_XDECREF(made);
	return result;
}

static int64_t observe_write(const struct lane_file *file, const struct lane_transfer *write, PyObject *data)
{
	uint64_t numbers[] = {file->token, write->offset, write->tid};
	PyObject *made = write_unasked(file, write->offset, PyBytes_AS_STRING(data), write->size);
	int64_t result = made ? take_number(call(python.observed_write, made, numbers, 3, Py_NewRef(data))) : failure();

	Py_XDECREF(made);
	return result;
}

/* LANE_DEFERRED leaves the read to the pump, LANE_TAKEN to Python, which answers it.  A read that is steered is not
 * made before Python says so. */
int64_t call_attended_read(const struct lane_file *file, const struct lane_transfer *read, int who, char *out)
{
	uint64_t numbers[] = {file->token, read->unique, read->offset, read->size, read->flags, read->tid};
	PyGILState_STATE gil = PyGILState_Ensure();
	int64_t result = 0;

	if (who & LANE_STEERED)
		result = is_taken(call(python.steered_read, NULL, numbers, 6, NULL));
	if (result == 1)
		result = LANE_TAKEN;
	else if (!result)
		result = who & LANE_OBSERVED ? observe_read(file, read, out) : LANE_DEFERRED;
	PyGILState_Release(gil);
	return result;
}

/* The same for a write. */
int64_t call_attended_write(const struct lane_file *file, const struct lane_transfer *write, int who, const void *in)
{
	uint64_t numbers[] = {file->token, write->unique, write->offset, write->flags, write->tid};
	PyGILState_STATE gil = PyGILState_Ensure();
	PyObject *data = PyBytes_FromStringAndSize(in, write->size);
	int64_t result = data ? 0 : failure();

	if (!result && who & LANE_STEERED)
		result = is_taken(call(python.steered_write, NULL, numbers, 5, Py_NewRef(data)));
	if (result == 1)
		result = LANE_TAKEN;
	else if (!result)
		result = who & LANE_OBSERVED ? observe_write(file, write, data) : LANE_DEFERRED;
	Py_XDECREF(data);
	PyGILState_Release(gil);
	return result;
}

/* LANE_DEFERRED leaves the store to pyfuse3, LANE_TAKEN to Python, which answers it. */
int64_t call_steered_store(uint64_t unique, uint64_t inode, uint32_t tid, const void *in, uint32_t size)
{
	uint64_t numbers[] = {unique, inode, tid};
	PyGILState_STATE gil = PyGILState_Ensure();
	PyObject *data = PyBytes_FromStringAndSize(in, size);
	int64_t result = data ? is_taken(call(python.steered_store, NULL, numbers, 3, data)) : failure();

	PyGILState_Release(gil);
	return result < 0 ? result : result ? LANE_TAKEN : LANE_DEFERRED;
}

int64_t call_ioctl(const struct lane_file *file, uint32_t cmd, uint64_t arg, uint32_t tid, uint32_t slot)
{
	int who = is_attended();
	uint64_t numbers[] = {file->token, cmd, arg, tid, slot};
	PyGILState_STATE gil = PyGILState_Ensure();
	PyObject *answer = who ? call(python.observed_ioctl, NULL, numbers, 5, NULL)
			       : call(file->ioctl, NULL, numbers + 1, 4, NULL);
	int64_t result = take_number(answer);

	PyGILState_Release(gil);
	return result;
}

static int64_t ask_text(void *what, uint64_t inode, char *out, uint32_t size)
{
	PyGILState_STATE gil = PyGILState_Ensure();
	int64_t result = take_bytes(call(what, NULL, &inode, 1, NULL), out, size);

	PyGILState_Release(gil);
	return result;
}

int64_t call_show(uint64_t inode, char *out, uint32_t size)
{
	return ask_text(python.show, inode, out, size);
}

int64_t call_readlink(uint64_t inode, char *out, uint32_t size)
{
	return ask_text(python.readlink, inode, out, size);
}

int64_t call_lookup(uint64_t parent, const char *name, struct lane_name *found)
{
	PyGILState_STATE gil = PyGILState_Ensure();
	PyObject *text = PyBytes_FromString(name);
	int64_t result = text ? take_name(call(python.lookup, NULL, &parent, 1, text), found) : failure();

	PyGILState_Release(gil);
	return result;
}

int64_t call_stat(uint64_t inode, struct lane_name *found)
{
	PyGILState_STATE gil = PyGILState_Ensure();
	int64_t result = take_name(call(python.stat, NULL, &inode, 1, NULL), found);

	PyGILState_Release(gil);
	return result;
}
