/* The C interface, function by function, for tests in Python; and threads of C that use it while Python does its worst.
 * A word of a test object, 8 bytes, is its own number, or 0 where the object was truncated and grew again. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pagecache.h>
#include <pthread.h>
#include <string.h>

#define NR_THREADS_MAX 8

static pagecache_object *object_of(PyObject *capsule) { return PyCapsule_GetPointer(capsule, "object"); }

static PyObject *acquire(PyObject *self, PyObject *file) {
    pagecache_object *object = pagecache_acquire(file);
    return object ? PyCapsule_New(object, "object", NULL) : NULL;
}

static PyObject *release(PyObject *self, PyObject *capsule) {
    pagecache_object *object = object_of(capsule);
    if (!object || pagecache_release(object) < 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *size(PyObject *self, PyObject *capsule) {
    return PyLong_FromUnsignedLongLong(pagecache_size(object_of(capsule)));
}

static PyObject *is_cached(PyObject *self, PyObject *args) {
    PyObject *capsule;
    unsigned long long nbytes, offset;
    if (!PyArg_ParseTuple(args, "OKK", &capsule, &nbytes, &offset)) return NULL;
    return PyBool_FromLong(pagecache_is_cached(object_of(capsule), nbytes, offset));
}

static PyObject *read_bytes(PyObject *self, PyObject *args) {
    PyObject *capsule, *result;
    unsigned long long nbytes, offset;
    if (!PyArg_ParseTuple(args, "OKK", &capsule, &nbytes, &offset)) return NULL;
    char *target = PyMem_RawMalloc(nbytes + 1);
    int64_t got;
    Py_BEGIN_ALLOW_THREADS
    got = pagecache_read(object_of(capsule), target, nbytes, offset);
    Py_END_ALLOW_THREADS
    result = got < 0 ? PyLong_FromLongLong(got) : PyBytes_FromStringAndSize(target, (Py_ssize_t)got);
    PyMem_RawFree(target);
    return result;
}

/* The pin as a capsule, or what refused it. */
static PyObject *pin(PyObject *self, PyObject *args) {
    PyObject *capsule;
    unsigned long long offset;
    if (!PyArg_ParseTuple(args, "OK", &capsule, &offset)) return NULL;
    pagecache_pin_t *made = PyMem_RawMalloc(sizeof *made);
    int r = pagecache_pin(object_of(capsule), offset, made);
    if (r == 0) return PyCapsule_New(made, "pin", NULL);
    int is_empty = !made->data && !made->nbytes && !made->folio;
    PyMem_RawFree(made);
    if (!is_empty) return PyErr_Format(PyExc_AssertionError, "a pin that was refused is not empty");
    return PyLong_FromLong(r);
}

static PyObject *pinned(PyObject *self, PyObject *capsule) {
    pagecache_pin_t *held = PyCapsule_GetPointer(capsule, "pin");
    return PyBytes_FromStringAndSize(held->data, (Py_ssize_t)held->nbytes);
}

static PyObject *unpin(PyObject *self, PyObject *capsule) {
    pagecache_unpin(PyCapsule_GetPointer(capsule, "pin"));
    Py_RETURN_NONE;
}

static PyObject *counter(PyObject *self, PyObject *args) {
    PyObject *capsule;
    int number;
    if (!PyArg_ParseTuple(args, "Oi", &capsule, &number)) return NULL;
    return PyLong_FromLongLong(pagecache_counter(object_of(capsule), number));
}

/* -- threads -------------------------------------------------------------------------------------------------------- */

typedef struct {
    pthread_t id;
    pagecache_object *object;
    uint64_t seed, nbytes;
    uint64_t nr_pinned, nr_read, nr_absent, nr_wrong, nr_changed;
} reader;

static reader readers[NR_THREADS_MAX];
static int nr_readers;
static int ending;

static uint64_t next_random(uint64_t *seed) {
    *seed ^= *seed << 13; *seed ^= *seed >> 7; *seed ^= *seed << 17;
    return *seed;
}

static uint64_t nr_wrong_words(const char *data, uint64_t nbytes, uint64_t offset) {
    uint64_t wrong = 0, word;
    for (uint64_t at = 0; at + 8 <= nbytes; at += 8) {
        memcpy(&word, data + at, 8);
        wrong += word != 0 && word != (offset + at) / 8;
    }
    return wrong;
}

static uint64_t sum_of(const char *data, uint64_t nbytes) {
    uint64_t sum = 0;
    for (uint64_t at = 0; at < nbytes; at++) sum = sum * 31 + (unsigned char)data[at];
    return sum;
}

static void add(uint64_t *to, uint64_t by) { __atomic_fetch_add(to, by, __ATOMIC_RELAXED); }

static void *read_for_long(void *argument) {
    reader *me = argument;
    char block[9000];
    while (!__atomic_load_n(&ending, __ATOMIC_ACQUIRE)) {
        uint64_t offset = next_random(&me->seed) % me->nbytes & ~(uint64_t)7;
        pagecache_pin_t held;
        int64_t got = pagecache_read(me->object, block, next_random(&me->seed) % sizeof block, offset);
        if (got > 0) {
            add(&me->nr_read, 1);
            add(&me->nr_wrong, nr_wrong_words(block, (uint64_t)got, offset));
        }
        if (pagecache_pin(me->object, offset, &held) == 0) {
            uint64_t before = sum_of(held.data, held.nbytes);
            add(&me->nr_wrong, nr_wrong_words(held.data, held.nbytes, offset));
            for (int i = 0; i < 20; i++) sched_yield();
            add(&me->nr_changed, sum_of(held.data, held.nbytes) != before);
            pagecache_unpin(&held);
            add(&me->nr_pinned, 1);
        } else {
            add(&me->nr_absent, 1);
        }
    }
    return NULL;
}

/* start(object, nbytes, threads, seed): threads that read the first nbytes at random until `stop`. */
static PyObject *start(PyObject *self, PyObject *args) {
    PyObject *capsule;
    unsigned long long nbytes, seed;
    int nr;
    if (!PyArg_ParseTuple(args, "OKiK", &capsule, &nbytes, &nr, &seed)) return NULL;
    memset(readers, 0, sizeof readers);
    ending = 0;
    for (nr_readers = 0; nr_readers < nr; nr_readers++) {
        reader *one = &readers[nr_readers];
        one->object = object_of(capsule);
        one->nbytes = nbytes;
        one->seed = (seed + 1) * 2654435761u * (uint64_t)(nr_readers + 1) | 1;
        if (pthread_create(&one->id, NULL, read_for_long, one)) return PyErr_Format(PyExc_OSError, "no thread");
    }
    Py_RETURN_NONE;
}

/* What the threads have done so far: pinned, read, absent, wrong words, pins that changed; all added up, and the pins of
 * the thread that has fewest. */
static PyObject *progress(PyObject *self, PyObject *unused) {
    unsigned long long total[5] = {0}, fewest = ~0ull;
    for (int i = 0; i < nr_readers; i++) {
        uint64_t *counts = &readers[i].nr_pinned;
        for (int k = 0; k < 5; k++) total[k] += __atomic_load_n(&counts[k], __ATOMIC_RELAXED);
        if (readers[i].nr_pinned < fewest) fewest = readers[i].nr_pinned;
    }
    return Py_BuildValue("{sKsKsKsKsKsK}", "pinned", total[0], "read", total[1], "absent", total[2], "wrong", total[3],
                         "changed", total[4], "fewest", fewest);
}

static PyObject *stop(PyObject *self, PyObject *unused) {
    __atomic_store_n(&ending, 1, __ATOMIC_RELEASE);
    Py_BEGIN_ALLOW_THREADS
    for (int i = 0; i < nr_readers; i++) pthread_join(readers[i].id, NULL);
    Py_END_ALLOW_THREADS
    return progress(self, unused);
}

static PyMethodDef methods[] = {
    {"acquire", acquire, METH_O, NULL},     {"release", release, METH_O, NULL},
    {"size", size, METH_O, NULL},           {"is_cached", is_cached, METH_VARARGS, NULL},
    {"read", read_bytes, METH_VARARGS, NULL}, {"pin", pin, METH_VARARGS, NULL},
    {"pinned", pinned, METH_O, NULL},       {"unpin", unpin, METH_O, NULL},
    {"counter", counter, METH_VARARGS, NULL}, {"start", start, METH_VARARGS, NULL},
    {"progress", progress, METH_NOARGS, NULL}, {"stop", stop, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module) { return pagecache_import(); }

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "c_api_probe", NULL, 0, methods, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_c_api_probe(void) { return PyModuleDef_Init(&definition); }
