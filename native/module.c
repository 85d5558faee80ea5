/* Pillow's 8-bit RGB resize, bit for bit, of a window of the result: the Python module latentmill.transforms._resample.
 *
 * What it is called with is checked here; compute.c does the work, without the interpreter's lock. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "decode.h"
#include "digests.h"
#include "draw.h"
#include "processor.h"
#include "reading.h"
#include "resample.h"

#include <string.h>

#define CAPSULE "latentmill.resample.table"

/* What a stage gives: an image of a size, of which a window is there. */
typedef struct {
    int32_t size, low, high;
} Axis;

static int refuse(const char *what) {
    PyErr_Format(PyExc_ValueError, "the tables of a resize must follow one another. Found: %s", what);
    return 0;
}

/* Whether `table` takes what is there; then what it gives is there. */
static int follow(const Table *table, Axis *axis) {
    if (table->size_in != axis->size || table->low < axis->low || table->high > axis->high)
        return refuse("a table that needs other pixels than the one before gives");
    axis->size = table->size_out;
    axis->low = table->first;
    axis->high = table->first + table->count;
    return 1;
}

static const Table *table_of(PyObject *capsule) {
    return PyCapsule_GetPointer(capsule, CAPSULE);
}

static int take_halvings(PyObject *halvings, Job *job, Axis *x, Axis *y) {
    Py_ssize_t count = PyTuple_Size(halvings);
    if (count < 0) return 0;
    if (count > MAX_HALVINGS) return refuse("too many halvings");
    job->count = (int)count;
    for (int h = 0; h < job->count; h++) {
        PyObject *across, *down, *pair = PyTuple_GetItem(halvings, h);
        Halving *halving = &job->halvings[h];
        if (pair == NULL || !PyArg_ParseTuple(pair, "OOp", &across, &down, &halving->down_first)) return 0;
        halving->left = x->low;
        if (!(halving->x = table_of(across)) || !(halving->y = table_of(down))) return 0;
        if (halving->x->longest > MOST_HALVED || halving->y->longest > MOST_HALVED) return refuse("a halving of another filter");
        if (!follow(halving->x, x) || !follow(halving->y, y)) return 0;
    }
    job->before = x->low;
    return 1;
}

static int take_tables(PyObject *across, PyObject *down, Job *job, Axis *x, Axis *y) {
    if (across != Py_None && (!(job->x = table_of(across)) || !follow(job->x, x))) return 0;
    if (down != Py_None && (!(job->y = table_of(down)) || !follow(job->y, y))) return 0;
    int inside = job->left >= x->low && job->left + job->width <= x->high && job->top >= y->low &&
                 job->top + job->height <= y->high;
    int exact = (!job->x || (job->left == x->low && job->width == job->x->count)) &&
                (!job->y || (job->top == y->low && job->height == job->y->count));
    job->down_first = job->down_first && job->x && job->y;
    return inside && exact ? 1 : refuse("a window that the last one does not give");
}

/* RGB bytes of any distance between rows; `rows`: of what is written, contiguous. */
static int take_pixels(PyObject *object, Py_buffer *view, int written) {
    if (PyObject_GetBuffer(object, view, written ? PyBUF_CONTIG : PyBUF_STRIDED_RO) < 0) return 0;
    if (view->ndim == 3 && view->itemsize == 1 && view->shape[2] == CHANNELS && view->shape[0] > 0 &&
        view->shape[1] > 0 && view->shape[0] <= MAX_SIDE && view->shape[1] <= MAX_SIDE &&
        (written || (view->strides[2] == 1 && (view->strides[1] == CHANNELS || view->shape[1] == 1))))
        return 1;
    PyErr_SetString(PyExc_ValueError, "pixels must be bytes of (height, width, 3), each row contiguous, and not empty");
    PyBuffer_Release(view);
    return 0;
}

static PyObject *done(int held) {
    if (!held) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(resize_doc, "resize(pixels, out, halvings, across, down, down_first, top, left): write a "
                         "window of a resized image.");

static PyObject *resize(PyObject *self, PyObject *args) {
    PyObject *pixels, *out, *halvings, *across, *down;
    Py_buffer from, to;
    Job job = {0};
    int held = 0, valid;
    (void)self;
    if (!PyArg_ParseTuple(args, "OOOOOpii", &pixels, &out, &halvings, &across, &down, &job.down_first, &job.top,
                          &job.left))
        return NULL;
    if (!take_pixels(pixels, &from, 0)) return NULL;
    if (!take_pixels(out, &to, 1)) {
        PyBuffer_Release(&from);
        return NULL;
    }
    Axis x = {(int32_t)from.shape[1], 0, (int32_t)from.shape[1]}, y = {(int32_t)from.shape[0], 0, (int32_t)from.shape[0]};
    job.pixels = from.buf;
    job.stride = from.strides[0];
    job.out = to.buf;
    job.height = (int32_t)to.shape[0];
    job.width = (int32_t)to.shape[1];
    valid = job.top >= 0 && job.left >= 0 && job.top <= MAX_SIDE && job.left <= MAX_SIDE ? 1 : refuse("a negative window");
    valid = valid && take_halvings(halvings, &job, &x, &y) && take_tables(across, down, &job, &x, &y);
    if (valid) {
        Py_BEGIN_ALLOW_THREADS
        held = run_job(&job);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&from);
    PyBuffer_Release(&to);
    return valid ? done(held) : NULL;
}

static void free_capsule(PyObject *capsule) {
    table_free(PyCapsule_GetPointer(capsule, CAPSULE));
}

PyDoc_STRVAR(table_doc, "table(size_in, size_out, filter, first, last) -> (table, low, high): the weights of a part of "
                        "the outputs, and the inputs that they need.");

static PyObject *table(PyObject *self, PyObject *args) {
    int size_in, size_out, filter, first, last;
    Table *made;
    (void)self;
    if (!PyArg_ParseTuple(args, "iiiii", &size_in, &size_out, &filter, &first, &last)) return NULL;
    if (size_in < 1 || size_out < 1 || size_in > MAX_SIDE || size_out > MAX_SIDE || filter < 0 || filter >= FILTERS ||
        first < 0 || first >= last || last > size_out)
        return PyErr_Format(PyExc_ValueError, "a table must be of sizes from 1 to %d, a known filter and a part that is "
                            "not empty. Found: %d to %d, filter %d, %d to %d", MAX_SIDE, size_in, size_out, filter,
                            first, last);
    Py_BEGIN_ALLOW_THREADS
    made = table_new(size_in, size_out, filter, first, last);
    Py_END_ALLOW_THREADS
    if (made == NULL) return PyErr_NoMemory();
    PyObject *capsule = PyCapsule_New(made, CAPSULE, free_capsule);
    if (capsule == NULL) {
        table_free(made);
        return NULL;
    }
    return Py_BuildValue("Nii", capsule, made->low, made->high);
}

/* Rows of `pixels` to rows of `out`, by either of the kernels that move bytes. */
typedef void Move(const Py_buffer *from, const Py_buffer *to);

static void move_to_planes(const Py_buffer *from, const Py_buffer *to) {
    size_t width = (size_t)from->shape[1], plane = (size_t)from->shape[0] * width;
    for (Py_ssize_t y = 0; y < from->shape[0]; y++) {
        uint8_t *out = (uint8_t *)to->buf + (size_t)y * width;
        kernels->split((const uint8_t *)from->buf + y * from->strides[0], out, out + plane, out + 2 * plane, width);
    }
}

static void move_mirrored(const Py_buffer *from, const Py_buffer *to) {
    size_t width = (size_t)from->shape[1];
    for (Py_ssize_t y = 0; y < from->shape[0]; y++)
        kernels->mirror((const uint8_t *)from->buf + y * from->strides[0],
                        (uint8_t *)to->buf + (size_t)y * width * CHANNELS, width);
}

static PyObject *move(PyObject *args, Move *each) {
    PyObject *pixels, *out;
    Py_buffer from, to;
    if (!PyArg_ParseTuple(args, "OO", &pixels, &out) || !take_pixels(pixels, &from, 0)) return NULL;
    if (PyObject_GetBuffer(out, &to, PyBUF_CONTIG) < 0) {
        PyBuffer_Release(&from);
        return NULL;
    }
    int fits = to.len == from.shape[0] * from.shape[1] * CHANNELS;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        each(&from, &to);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "what is written must have as many bytes as the pixels");
    }
    PyBuffer_Release(&from);
    PyBuffer_Release(&to);
    return fits ? done(1) : NULL;
}

PyDoc_STRVAR(planes_doc, "planes(pixels, out): (height, width, 3) to (3, height, width).");

static PyObject *planes(PyObject *self, PyObject *args) {
    (void)self;
    return move(args, move_to_planes);
}

PyDoc_STRVAR(mirrored_doc, "mirrored(pixels, out): left and right exchanged.");

static PyObject *mirrored(PyObject *self, PyObject *args) {
    (void)self;
    return move(args, move_mirrored);
}

PyDoc_STRVAR(stored_planes_doc, "stored_planes(blocks, out) -> bool: the stored blocks of a PNG's rows to (3, height, "
                                "width); whether they are such blocks, and no row has a filter.");

static PyObject *stored_planes_of(PyObject *self, PyObject *args) {
    PyObject *blocks, *out;
    Py_buffer from, to;
    int found = 0, fits;
    (void)self;
    if (!PyArg_ParseTuple(args, "OO", &blocks, &out) || PyObject_GetBuffer(blocks, &from, PyBUF_SIMPLE) < 0) return NULL;
    if (PyObject_GetBuffer(out, &to, PyBUF_CONTIG) < 0) {
        PyBuffer_Release(&from);
        return NULL;
    }
    fits = to.ndim == 3 && to.itemsize == 1 && to.shape[0] == CHANNELS && to.shape[1] > 0 && to.shape[2] > 0 &&
           to.shape[1] <= MAX_SIDE && to.shape[2] <= MAX_SIDE &&
           stored_length((uint64_t)to.shape[1], (uint64_t)to.shape[2]) == (uint64_t)from.len;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        found = stored_planes(from.buf, (uint64_t)to.shape[1], (uint64_t)to.shape[2], to.buf);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_SetString(PyExc_ValueError, "what is written must be bytes of (3, height, width), and the blocks as long as "
                                          "its rows take");
    }
    PyBuffer_Release(&from);
    PyBuffer_Release(&to);
    if (!fits) return NULL;
    return found < 0 ? PyErr_NoMemory() : PyBool_FromLong(found);
}

PyDoc_STRVAR(in_use_doc, "in_use() -> tuple: the inner loops of the resampler, of KERNELS, and likewise of the JPEG "
                         "decoder, empty without one.");

static PyObject *in_use(PyObject *self, PyObject *none) {
    const char *pixels = "";
    (void)self;
    (void)none;
#ifdef HAS_JPEG
    pixels = pixels_here()->name;
#endif
    return Py_BuildValue("ss", kernels->name, pixels);
}

PyDoc_STRVAR(use_doc, "use(name): choose the inner loops, one of KERNELS; the JPEG decoder, which has no plain ones, takes "
                      "AVX2's in their place. For tests; not while others resize or decode.");

static PyObject *use(PyObject *self, PyObject *args) {
    const char *name;
    (void)self;
    if (!PyArg_ParseTuple(args, "s", &name)) return NULL;
    for (const Kernels *const *each = kernels_here(); *each; each++)
        if (strcmp((*each)->name, name) == 0) {
            kernels = *each;
#ifdef HAS_JPEG
            pixels_use(strcmp(name, "avx512") == 0);
#endif
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "kernels must be among KERNELS. Found: %s", name);
}

#define INTERFACE 5 /* as compiled.py has it: one more whenever a function takes or gives something else */

static PyMethodDef METHODS[] = {
    {"resize", resize, METH_VARARGS, resize_doc},
    {"table", table, METH_VARARGS, table_doc},
    {"planes", planes, METH_VARARGS, planes_doc},
    {"stored_planes", stored_planes_of, METH_VARARGS, stored_planes_doc},
    {"normals", normals, METH_VARARGS, normals_doc},
    {"draw", draw, METH_VARARGS, draw_doc},
    {"mirrored", mirrored, METH_VARARGS, mirrored_doc},
#ifdef CAN_READ
    {"read_file", read_file, METH_VARARGS, read_file_doc},
    {"read_part", read_part, METH_VARARGS, read_part_doc},
#endif
#ifdef HAS_JPEG
    {"decode_jpeg", decode, METH_VARARGS, decode_doc},
#endif
#ifdef HAS_SHA256
    {"sha256", digests, METH_VARARGS, digests_doc},
#endif
    {"in_use", in_use, METH_NOARGS, in_use_doc},
    {"use", use, METH_VARARGS, use_doc},
    {NULL, NULL, 0, NULL},
};

static int set_up(PyObject *module) {
    Py_ssize_t count = 0;
    kernels = *kernels_here();
    while (kernels_here()[count]) count++;
    PyObject *names = PyTuple_New(count);
    for (Py_ssize_t k = 0; names && k < count; k++)
        if (PyTuple_SetItem(names, k, PyUnicode_FromString(kernels_here()[k]->name)) < 0) return -1;
    if (names == NULL) return -1;
    int failed = PyModule_AddObjectRef(module, "KERNELS", names);
    Py_DECREF(names);
    if (failed < 0) return failed;
#ifdef HAS_JPEG
    int decodes = can_decode();
    pixels_use(1);
#else
    int decodes = 0;
#endif
#ifdef HAS_SHA256
    int hashes = has_sha256();
#else
    int hashes = 0;
#endif
    if (PyModule_AddIntConstant(module, "DECODES_JPEG", decodes) < 0) return -1;
    if (PyModule_AddIntConstant(module, "HASHES", hashes) < 0) return -1;
    return PyModule_AddIntConstant(module, "INTERFACE", INTERFACE);
}

static PyModuleDef_Slot SLOTS[] = {
    {Py_mod_exec, set_up},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "_resample", "Exact resizes of 8-bit RGB pixels, and what readers do with each sample.", 0, METHODS, SLOTS, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__resample(void) {
    return PyModuleDef_Init(&MODULE);
}
