/* The public C API of libkgen_rt.so: what a process that serves kgen's ops calls. Tuning's is
 * kgen_tune.h, the judge's kgen_judge.h.
 *
 * Texts are UTF-8 and end in NUL; what a call gives back through char ** is freed with
 * kgen_rt_free. Functions return 0, or a negative status (base/error.h) with a message in err (at
 * most nerr bytes; may be NULL). Out-parameters are written only on success. Everything is
 * thread-safe. */
#ifndef KGEN_H
#define KGEN_H

#include <stddef.h>
#include <stdint.h>

#ifndef KGEN_API
#define KGEN_API __attribute__((visibility("default")))
#endif

KGEN_API const char *kgen_rt_version(void);
KGEN_API void kgen_rt_free(void *p);

/* Finds torch in this process and defines the canonical ops of the namespace kgen:
 * torch.ops.kgen.attention, attention_mod, attention_mod_output, softmax, layer_norm, rms_norm,
 * linear, matmul and conv2d, served by the reference until a registry is added. libtorch_cpu: the
 * path of the loaded library, or NULL; torch_version: torch.__version__, or NULL. Reads
 * KGEN_POLICY, KGEN_PRECISION and KGEN_DISABLE. Once; later calls return 0. A process without
 * Python calls this after it has loaded libtorch. */
KGEN_API int kgen_rt_start(const char *libtorch_cpu, const char *torch_version, char *err,
                           size_t nerr);

/* Where messages go: level 0 debug, 1 info, 2 warning, 3 error. Called on the thread that a message
 * is about, with no lock of kgen's held; NULL: warnings go through torch, which writes them to
 * stderr. */
KGEN_API void kgen_rt_on_message(void (*sink)(int level, const char *message));

/* Adds a registry before (front != 0) or behind the others, or refreshes it in its place; its index
 * is derived by the libkgen.so beside this library when it is absent or stale. -7: there is no such
 * folder. */
KGEN_API int kgen_rt_add(const char *registry, int front, char *err, size_t nerr);
/* Closes a registry. -7: it is not open. */
KGEN_API int kgen_rt_remove(const char *registry, char *err, size_t nerr);
/* Looks at every registry again. */
KGEN_API int kgen_rt_reload(char *err, size_t nerr);

/* "arch", "strict" or "off"; NULL leaves it. Returns the policy in force through *now (static; may
 * be NULL). */
KGEN_API int kgen_rt_policy(const char *policy, const char **now, char *err, size_t nerr);
/* The precision class of this thread's fp32 calls: 0 native, 1 tf32, 2 bf16; -1 only asks. Returns
 * the one before. */
KGEN_API int kgen_rt_precision(int precision);

/* Defines torch.ops.kgen.NAME for an Op that a registry has; 0 also when it is there already. -7:
 * no registry has it; the message names what there is. */
KGEN_API int kgen_rt_define(const char *name, char *err, size_t nerr);
/* An Op's contract, for fake kernels: JSON {"name", "schema", "registry", "task", "args": [{"name",
 * "type", "shape": [EXPR] or null, "dtype_as": ARG or null}], "dims": [{"name", "expr" or null}],
 * "outputs": [{"name", "dtype" or null, "dtype_as" or null, "like" or null, "shape"}]}. */
KGEN_API int kgen_rt_contract(const char *name, char **json, char *err, size_t nerr);

/* Every open registry: JSON [{"path", "ops": [{"name", "schema", "kernels": [{"id", "version",
 * "arch", "pins": [TEXT]}]
 * }]}]. */
KGEN_API int kgen_rt_describe(char **json, char *err, size_t nerr);

/* Between the two, each call of this thread writes down what served it: JSON [{"op", "kind":
 * "exact" | "dynamic" | "instantiated" | "fallback", "kernel": "softmax/v3" or null, "id", "arch",
 * "registry", "verified": bool, "reason": TEXT, "nearest": ..., "differs": TEXT}]. */
KGEN_API void kgen_rt_explain_begin(void);
KGEN_API int kgen_rt_explain_end(char **json, char *err, size_t nerr);

/* What a kgen::_fallback under way must compute: JSON {"op", "args", "program"}. For the Python
 * side alone. */
KGEN_API int kgen_rt_fallback(int64_t call, char **json, char *err, size_t nerr);

/* For a process that locks itself before a Candidate is in it (kgen_gate_on_load of libkgen.so):
 * called before each image is loaded (loaded 0), when all that compiles has run, and after it
 * (loaded 1), before any of it runs; device 0 is the CPU, 1 CUDA. Not 0: the Kernel is not served,
 * with what was put into err for the reason. Such a process stores no trust in Kernels. NULL: none.
 */
KGEN_API void kgen_rt_on_load(int (*hook)(int loaded, int device, char *err, size_t nerr));
/* The quick way in from eager Python (runtime/torch_abi_eager.h), for the Python side alone, which
 * calls these with the GIL held; objects are PyObject *. learn: a torch.Tensor's object and its
 * size in bytes, and what torch says of it and of this thread; plain != 0: such calls may go the
 * quick way. open, once, after at least three: torch.Tensor and forward_ad.__dict__. admit: one
 * more kind of tensor. softmax, attention: a callable for torch.ops.kgen.softmax, .attention, made
 * with a tuple of two: the callable that has what is not plain, and the one that has what is to be
 * differentiated, with the backend's arguments; NULL before open. A failure, with its reason,
 * leaves the quick way shut. */
KGEN_API int kgen_rt_eager_learn(const void *tensor, size_t bytes, uint64_t impl, uint64_t keys,
                                 uint64_t included, uint64_t excluded, int plain, char *err,
                                 size_t nerr);
KGEN_API int kgen_rt_eager_open(void *tensor_type, void *forward_ad, char *err, size_t nerr);
KGEN_API int kgen_rt_eager_admit(const void *tensor, uint64_t keys, char *err, size_t nerr);
KGEN_API void *kgen_rt_eager_softmax(void *made_with);
KGEN_API void *kgen_rt_eager_attention(void *made_with);

/* Of this process: calls served by Kernels, calls that fell back, call classes resolved, classes
 * now cached. */
KGEN_API void kgen_rt_count(uint64_t out[4]);

#endif
