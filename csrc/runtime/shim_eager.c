/* The quick way in: torch.ops.kgen.softmax and torch.ops.kgen.attention called from eager Python
 * without Python code and without torch's dispatcher between the call and the Kernel, which
 * together cost more than a small softmax does. It serves plain tensors in plain threads
 * (torch_abi_eager.h). A call to be differentiated goes to the second callable that it was made
 * with, the apply of an autograd.Function with the backend's arguments, every other one to the
 * first.
 *
 * Python's functions are found in the running process, as torch's are: one binary for every
 * Python 3, which need not be there (kgen_rt_start serves a process without). All of them are of
 * its stable ABI or, in older versions, exported under the same name. */
#include <dlfcn.h>
#include <string.h>
#include <sys/types.h>

#include "kgen.h"
#include "runtime/shim.h"
#include "runtime/torch_abi_eager.h"

typedef struct py_object py_object; /* Python's own; never looked into but by torch_abi_eager.c */
typedef py_object *(*py_fastcall)(py_object *, py_object *const *, ssize_t, py_object *);

/* PyMethodDef, frozen by the stable ABI. */
typedef struct py_method {
    const char *name;
    void *function;
    int flags;
    const char *doc;
} py_method;
enum { PY_FASTCALL = 0x80, PY_KEYWORDS = 0x02 };

#define PY_SYMS(X)                                                                                 \
    X(py_object *, PyObject_Type, (py_object *))                                                   \
    X(py_object *, PyObject_Vectorcall, (py_object *, py_object *const *, size_t, py_object *))    \
    X(void, Py_IncRef, (py_object *))                                                              \
    X(void, Py_DecRef, (py_object *))                                                              \
    X(long long, PyLong_AsLongLong, (py_object *))                                                 \
    X(py_object *, PyErr_Occurred, (void))                                                         \
    X(void, PyErr_Clear, (void))                                                                   \
    X(void, PyErr_SetString, (py_object *, const char *))                                          \
    X(void *, PyEval_SaveThread, (void))                                                           \
    X(void, PyEval_RestoreThread, (void *))                                                        \
    X(py_object *, PyDict_GetItem, (py_object *, py_object *))                                     \
    X(ssize_t, PyTuple_Size, (py_object *))                                                        \
    X(py_object *, PyTuple_GetItem, (py_object *, ssize_t))                                        \
    X(py_object *, PyUnicode_InternFromString, (const char *))                                     \
    X(py_object *, PyCFunction_NewEx, (py_method *, py_object *, py_object *))

static struct {
#define KG_X(ret, name, params) ret(*name) params;
    PY_SYMS(KG_X)
#undef KG_X
    py_object *int_type, **runtime_error, *yes, *no, *none;
} py;

static struct {
    py_object *tensor_type, *forward_ad, *level; /* torch.Tensor; forward_ad.__dict__ and its key */
    py_object *is_causal;                        /* the name */
} known;

static int find_python(kg_error *err) {
    static const struct {
        const char *name;
        size_t offset;
    } symbols[] = {
#define KG_X(ret, name, params) {#name, offsetof(__typeof__(py), name)},
        PY_SYMS(KG_X)
#undef KG_X
            {"PyLong_Type", offsetof(__typeof__(py), int_type)},
        {"PyExc_RuntimeError", offsetof(__typeof__(py), runtime_error)},
        {"_Py_TrueStruct", offsetof(__typeof__(py), yes)},
        {"_Py_FalseStruct", offsetof(__typeof__(py), no)},
        {"_Py_NoneStruct", offsetof(__typeof__(py), none)},
    };
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        void *found = dlsym(RTLD_DEFAULT, symbols[i].name);
        if (found == NULL)
            return kg_fail(err, KG_EUNSUPPORTED, "this process has no %s", symbols[i].name);
        memcpy((char *)&py + symbols[i].offset, &found, sizeof(found));
    }
    return KG_OK;
}

/* Of exactly that type: a subclass may have a way of its own. */
static bool is_of(py_object *o, const py_object *type) {
    py_object *its = py.PyObject_Type(o);
    py.Py_DecRef(its); /* o holds it */
    return its == type;
}

static bool is_int(py_object *o, int64_t *out) {
    if (!is_of(o, py.int_type))
        return false;
    *out = py.PyLong_AsLongLong(o);
    if (*out == -1 && py.PyErr_Occurred() != NULL) {
        py.PyErr_Clear();
        return false;
    }
    return true;
}

/* Dual numbers live in levels, which Python counts: -1 is none. */
static bool no_dual_numbers(void) {
    int64_t level = 0;
    py_object *value = py.PyDict_GetItem(known.forward_ad, known.level);
    return value != NULL && is_int(value, &level) && level < 0;
}

static AtenTensorHandle plain_tensor(py_object *o) {
    return is_of(o, known.tensor_type) ? kg_eager_tensor(o) : NULL;
}

static bool no_surroundings(bool *gradients) {
    return kg_eager_thread_is_plain(gradients) && no_dual_numbers();
}

/* What a callable was made with. */
enum { OTHERWISE, DIFFERENTIATED };

static py_object *hand_on(py_object *self, ssize_t to, py_object *const *args, ssize_t nargs,
                          py_object *names) {
    return py.PyObject_Vectorcall(py.PyTuple_GetItem(self, to), args, (size_t)nargs, names);
}

/* out is taken when rc is KG_OK. */
static py_object *result_of(int rc, AtenTensorHandle out, const kg_error *e) {
    if (rc != KG_OK) {
        py.PyErr_SetString(*py.runtime_error, e->msg);
        return NULL;
    }
    py_object *result = kg_eager_wrap(out);
    kg_tensor_drop(out);
    return result;
}

static py_object *softmax(py_object *self, py_object *const *args, ssize_t nargs,
                          py_object *names) {
    AtenTensorHandle input = NULL;
    int64_t dim;
    bool gradients;
    if (nargs == 2 && names == NULL && no_surroundings(&gradients) && is_int(args[1], &dim))
        input = plain_tensor(args[0]);
    if (input == NULL)
        return hand_on(self, OTHERWISE, args, nargs, names);
    if (gradients && kg_eager_requires_grad(input))
        return hand_on(self, DIFFERENTIATED, args, nargs, NULL);
    kg_error e;
    void *out = NULL;
    void *thread = py.PyEval_SaveThread();
    int rc = kg_shim_softmax_call(input, dim, &out, &e);
    py.PyEval_RestoreThread(thread);
    return result_of(rc, out, &e);
}

/* Query, key and value, and at most is_causal beside them; its value follows the three. */
static bool attention_args(py_object *const *args, ssize_t nargs, py_object *names,
                           AtenTensorHandle qkv[3], bool *causal) {
    *causal = false;
    if (nargs != 3)
        return false;
    if (names != NULL) {
        if (py.PyTuple_Size(names) != 1 || py.PyTuple_GetItem(names, 0) != known.is_causal ||
            (args[3] != py.yes && args[3] != py.no))
            return false;
        *causal = args[3] == py.yes;
    }
    for (int i = 0; i < 3; i++)
        if ((qkv[i] = plain_tensor(args[i])) == NULL)
            return false;
    return true;
}

/* Whether the autograd.Function is for it: of others torch's own attention is differentiated. */
static bool has_function(AtenTensorHandle query) {
    int64_t dims = 0;
    int32_t code = 0;
    if (kg_th.aoti_torch_get_dim(query, &dims) != 0 || dims != 4 ||
        kg_th.aoti_torch_get_dtype(query, &code) != 0)
        return false;
    int dtype = kg_torch_dtype_of(code);
    return dtype == KG_F32 || dtype == KG_F16 || dtype == KG_BF16;
}

static py_object *attention(py_object *self, py_object *const *args, ssize_t nargs,
                            py_object *names) {
    AtenTensorHandle qkv[3];
    bool causal, gradients;
    if (!attention_args(args, nargs, names, qkv, &causal) || !no_surroundings(&gradients))
        return hand_on(self, OTHERWISE, args, nargs, names);
    if (gradients && (kg_eager_requires_grad(qkv[0]) || kg_eager_requires_grad(qkv[1]) ||
                      kg_eager_requires_grad(qkv[2]))) {
        if (!has_function(qkv[0]))
            return hand_on(self, OTHERWISE, args, nargs, names);
        py_object *all[7] = {args[0], args[1], args[2], py.none, causal ? py.yes : py.no,
                             py.none, py.no}; /* no mask, no scale, no groups */
        return hand_on(self, DIFFERENTIATED, all, 7, NULL);
    }
    kg_error e;
    void *out = NULL;
    void *thread = py.PyEval_SaveThread();
    int rc = kg_shim_attention_call(qkv, causal, &out, &e);
    py.PyEval_RestoreThread(thread);
    return result_of(rc, out, &e);
}

int kgen_rt_eager_learn(const void *tensor, size_t bytes, uint64_t impl, uint64_t keys,
                        uint64_t included, uint64_t excluded, int plain, char *err, size_t nerr) {
    kg_error e;
    kg_eager_sample s = {.object = tensor,
                         .bytes = bytes,
                         .impl = impl,
                         .keys = keys,
                         .included = included,
                         .excluded = excluded,
                         .plain = plain != 0};
    return kg_give(kg_eager_learn(&s, &e), &e, err, nerr);
}

int kgen_rt_eager_open(void *tensor_type, void *forward_ad, char *err, size_t nerr) {
    kg_error e;
    int rc = find_python(&e);
    if (rc == KG_OK) {
        known.tensor_type = tensor_type;
        known.forward_ad = forward_ad;
        known.level = py.PyUnicode_InternFromString("_current_level");
        known.is_causal = py.PyUnicode_InternFromString("is_causal");
        py.Py_IncRef(known.tensor_type);
        py.Py_IncRef(known.forward_ad);
        rc = kg_eager_open(&e);
    }
    return kg_give(rc, &e, err, nerr);
}

int kgen_rt_eager_admit(const void *tensor, uint64_t keys, char *err, size_t nerr) {
    kg_error e;
    return kg_give(kg_eager_admit(tensor, keys, &e), &e, err, nerr);
}

/* A callable; NULL while the way is not open. */
static void *callable(py_method *method, py_fastcall function, void *made_with) {
    if (known.tensor_type == NULL)
        return NULL;
    memcpy(&method->function, &function, sizeof(function));
    method->flags = PY_FASTCALL | PY_KEYWORDS;
    return py.PyCFunction_NewEx(method, made_with, NULL);
}

void *kgen_rt_eager_softmax(void *made_with) {
    static py_method method = {.name = "softmax", .doc = "torch.ops.kgen.softmax(input, dim)"};
    return callable(&method, softmax, made_with);
}

void *kgen_rt_eager_attention(void *made_with) {
    static py_method method = {.name = "attention",
                               .doc = "torch.ops.kgen.attention(query, key, value, ...)"};
    return callable(&method, attention, made_with);
}
