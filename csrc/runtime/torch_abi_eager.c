/* Finds, at run time, where the running torch keeps what torch_abi_eager.h names. It reads torch's
 * objects and never writes to one. */
#include "runtime/torch_abi_eager.h"

#include <dlfcn.h>
#include <malloc.h>
#include <stdatomic.h>
#include <string.h>

#define WORD sizeof(uint64_t)
#define MAX_IMPL 512 /* bytes of a TensorImpl that are looked at; torch's has some 200 */
#define MAX_PLAIN 8

/* C++ of torch's that every build since 2.10 exports. */
static bool (*has_callbacks)(void);          /* a profiler listens */
static bool (*function_mode_on)(void);       /* a TorchFunctionMode */
static void *(*variable_wrap)(const void *); /* PyObject *THPVariable_Wrap(const TensorBase &) */
static bool (*requires_grad)(const void *);  /* of a TensorImpl */
static void *c10;

/* A word's offset that still agrees with every sample; or none, or several. */
typedef struct place {
    size_t candidates[MAX_IMPL / WORD];
    size_t n;
    bool begun;
} place;

/* ---- what was learnt; written before `ready` is, but for the keys admitted later ---- */

static atomic_bool ready;
static size_t tensor_at, keys_at;
static uint64_t plain_threads[MAX_PLAIN][2];
static size_t nplain_threads;
static _Atomic uint64_t plain_keys[MAX_PLAIN];

static int find(const char *library, const char *symbol, void *slot, kg_error *err) {
    void *lib = kg_torch_library(library), *found = lib != NULL ? dlsym(lib, symbol) : NULL;
    if (found == NULL)
        return kg_fail(err, KG_EUNSUPPORTED, "%s has no %s", library, symbol);
    memcpy(slot, &found, sizeof(found));
    return KG_OK;
}

static int find_functions(kg_error *err) {
    int rc = find("libtorch_cpu.so", "_ZN2at12hasCallbacksEv", &has_callbacks, err);
    if (rc == KG_OK)
        rc = find("libtorch_cpu.so", "_ZN2at4impl27torch_function_mode_enabledEv",
                  &function_mode_on, err);
    if (rc == KG_OK)
        rc = find("libtorch_python.so", "_Z16THPVariable_WrapRKN2at10TensorBaseE", &variable_wrap,
                  err);
    if (rc == KG_OK)
        rc = find("libc10.so", "_ZNK3c1010TensorImpl13requires_gradEv", &requires_grad, err);
    c10 = kg_torch_library("libc10.so");
    return rc;
}

/* The thread's two words, included and excluded keys. dlsym gives a thread's variable its address
 * in the thread that asks. */
static const uint64_t *thread_words(void) {
    static _Thread_local const uint64_t *words;
    if (words == NULL) {
        void *found = dlsym(c10, "_ZN3c104impl26raw_local_dispatch_key_setE");
        memcpy(&words, &found, sizeof(words));
    }
    return words;
}

/* Memory of torch's, at an address that torch gave as a number. */
static uint64_t word_at(const void *start, size_t offset) {
    uint64_t v;
    memcpy(&v, (const char *)start + offset, sizeof(v));
    return v;
}

static const void *address(uint64_t v) {
    const void *p;
    uintptr_t a = (uintptr_t)v;
    memcpy(&p, &a, sizeof(p));
    return p;
}

/* ---- learning ---- */

static void narrow(place *p, const void *start, size_t bytes, uint64_t value) {
    size_t n = 0;
    if (bytes > MAX_IMPL)
        bytes = MAX_IMPL;
    if (!p->begun) {
        p->begun = true;
        for (p->n = 0; (p->n + 1) * WORD <= bytes; p->n++)
            p->candidates[p->n] = p->n * WORD;
    }
    for (size_t i = 0; i < p->n; i++)
        if (p->candidates[i] + WORD <= bytes && word_at(start, p->candidates[i]) == value)
            p->candidates[n++] = p->candidates[i];
    p->n = n;
}

static int only(const place *p, const char *what, size_t *out, kg_error *err) {
    if (p->n != 1)
        return kg_fail(err, KG_EUNSUPPORTED, "%zu words of this torch could be %s", p->n, what);
    *out = p->candidates[0];
    return KG_OK;
}

static struct {
    place tensor, keys;
    uint64_t base[2];
    bool begun;
} lesson;

/* The words of a thread are its keys, each set against a constant of torch's; that it is one shows
 * that the words are what they are held for. */
static int learn_thread(const kg_eager_sample *s, const uint64_t *words, kg_error *err) {
    uint64_t base[2] = {s->included ^ words[0], s->excluded ^ words[1]};
    if (!lesson.begun)
        memcpy(lesson.base, base, sizeof(base));
    lesson.begun = true;
    if (memcmp(lesson.base, base, sizeof(base)) != 0)
        return kg_fail(err, KG_EUNSUPPORTED, "this torch has a thread's keys elsewhere");
    for (size_t i = 0; i < nplain_threads; i++)
        if (memcmp(plain_threads[i], words, sizeof(plain_threads[i])) == 0)
            return KG_OK;
    if (!s->plain)
        return KG_OK;
    if (nplain_threads == MAX_PLAIN)
        return kg_fail(err, KG_EOVERFLOW, "too many kinds of plain threads");
    memcpy(plain_threads[nplain_threads++], words, sizeof(plain_threads[0]));
    return KG_OK;
}

static bool keys_are_plain(uint64_t keys) {
    for (size_t i = 0; i < MAX_PLAIN; i++) {
        uint64_t known = atomic_load_explicit(&plain_keys[i], memory_order_relaxed);
        if (known == keys)
            return true;
        if (known == 0)
            return false;
    }
    return false;
}

/* With the GIL, so one at a time. A set of keys is never 0. */
static int add_keys(uint64_t keys, kg_error *err) {
    if (keys == 0 || keys_are_plain(keys))
        return KG_OK;
    for (size_t i = 0; i < MAX_PLAIN; i++)
        if (atomic_load(&plain_keys[i]) == 0) {
            atomic_store(&plain_keys[i], keys);
            return KG_OK;
        }
    return kg_fail(err, KG_EOVERFLOW, "too many kinds of plain tensors");
}

/* As torch's allocation of it says; TensorImpl is made by new and begins there. */
static size_t impl_bytes(const void *impl) {
    void *p;
    memcpy(&p, &impl, sizeof(p));
    return malloc_usable_size(p);
}

int kg_eager_learn(const kg_eager_sample *s, kg_error *err) {
    int rc = lesson.begun ? KG_OK : find_functions(err);
    if (rc != KG_OK)
        return rc;
    const uint64_t *words = thread_words();
    if (words == NULL)
        return kg_fail(err, KG_EUNSUPPORTED, "libc10.so has no keys of a thread");
    narrow(&lesson.tensor, s->object, s->bytes, s->impl);
    narrow(&lesson.keys, address(s->impl), impl_bytes(address(s->impl)), s->keys);
    rc = learn_thread(s, words, err);
    return rc == KG_OK && s->plain ? add_keys(s->keys, err) : rc;
}

int kg_eager_open(kg_error *err) {
    int rc = only(&lesson.tensor, "where an object has its tensor", &tensor_at, err);
    if (rc == KG_OK)
        rc = only(&lesson.keys, "where a tensor has its keys", &keys_at, err);
    if (rc == KG_OK)
        atomic_store(&ready, true);
    return rc;
}

/* ---- calls ---- */

/* 0 for an object without a tensor. */
static uint64_t keys_of(const void *object) {
    const void *impl = address(word_at(object, tensor_at));
    return impl != NULL ? word_at(impl, keys_at) : 0;
}

int kg_eager_admit(const void *object, uint64_t keys, kg_error *err) {
    if (!atomic_load(&ready))
        return kg_fail(err, KG_EUNSUPPORTED, "the quick way is shut");
    if (keys_of(object) != keys)
        return kg_fail(err, KG_EUNSUPPORTED, "this torch has such a tensor's keys elsewhere");
    return add_keys(keys, err);
}

bool kg_eager_thread_is_plain(bool *gradients) {
    if (!atomic_load_explicit(&ready, memory_order_acquire) || has_callbacks() ||
        function_mode_on())
        return false;
    *gradients = kg_th.aoti_torch_grad_mode_is_enabled();
    const uint64_t *words = thread_words();
    for (size_t i = 0; i < nplain_threads; i++)
        if (plain_threads[i][0] == words[0] && plain_threads[i][1] == words[1])
            return true;
    return false;
}

AtenTensorHandle kg_eager_tensor(const void *object) {
    AtenTensorHandle t;
    const char *at = (const char *)object + tensor_at;
    uint64_t keys = keys_of(object);
    if (keys == 0 || !keys_are_plain(keys))
        return NULL;
    memcpy(&t, &at, sizeof(t)); /* a handle is a pointer to the tensor, which is a pointer itself */
    return t;
}

bool kg_eager_requires_grad(AtenTensorHandle t) {
    return requires_grad(address(word_at(t, 0)));
}

void *kg_eager_wrap(AtenTensorHandle t) {
    return variable_wrap(t);
}
