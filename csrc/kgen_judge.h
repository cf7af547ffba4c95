/* The C API of the judge, in libkgen.so: for Python and for anything else that can make inputs and
 * oracles.
 *
 * Texts are UTF-8 and end in NUL; what a call gives back through char ** is freed with kgen_free.
 * Functions return 0, or a negative status (base/error.h) with a message in err (at most nerr
 * bytes; may be NULL). Out parameters are written only on success. One judge is of one thread at a
 * time, but for kgen_judge_prepare. */
#ifndef KGEN_JUDGE_H
#define KGEN_JUDGE_H

#include <stddef.h>
#include <stdint.h>

#include "kgen_tune.h"

typedef struct kg_judge kgen_judge;

/* options_json: an object, or NULL; keys device ("cpu" or "cuda"), index (of the GPU, as torch
 * counts them), threads, arch, worker, timeout_ms, memory (tune/judge.h). */
KGEN_API int kgen_judge_open(const char *op_json, const char *options_json, kgen_judge **out,
                             char *err, size_t nerr);
KGEN_API void kgen_judge_close(kgen_judge *judge);

KGEN_API int kgen_judge_add_case(kgen_judge *judge, const char *case_json, size_t *index, char *err,
                                 size_t nerr);
/* {"hash", "inputs": [{"name", "dtype", "shape", "stride", "bytes", "present"}], "outputs":
 * [{"name", "dtype", "shape", "stride", "optional"}], "bytes", "flops", "reduction"}: what a set
 * must bring. */
KGEN_API int kgen_judge_describe(const kgen_judge *judge, size_t index, char **json, char *err,
                                 size_t nerr);
/* slowest_baseline_ns: for `too_slow`. bytes: that must move, for `implausible`; 0: inputs and
 * outputs. */
KGEN_API int kgen_judge_set_limits(kgen_judge *judge, size_t index, double slowest_baseline_ns,
                                   int64_t bytes, char *err, size_t nerr);

/* set_json: {"name": "uniform", "errors": [[norm, max] or null, ...], "slack": the same,
 * "reference": [{"dtype", "shape"} or null, ...]}, all optional. inputs and oracles as kg_judge_set
 * says: addresses, NULL for what is absent; oracles are double for floating outputs and int64 for
 * integers and bool. Addresses are the host's, or the GPU's that the judge is for. All memory is
 * borrowed until kgen_judge_clear_sets or kgen_judge_close. */
KGEN_API int kgen_judge_add_set(kgen_judge *judge, size_t index, const char *set_json,
                                const void *const *inputs, size_t ninputs,
                                const void *const *oracles, size_t noutputs, char *err,
                                size_t nerr);
KGEN_API int kgen_judge_clear_sets(kgen_judge *judge, size_t index, char *err, size_t nerr);

/* request_json: {"name": "softmax.c", "tunables": {...} or null, "any_size": false, "all_sets":
 * true, "reps": 0}, all optional. record: a Record without version (docs/formats.md); a Candidate
 * that fails is no error. */
KGEN_API int kgen_judge_run(kgen_judge *judge, const char *source, size_t n,
                            const char *request_json, char **record, char *err, size_t nerr);
/* Compiles ahead, into the cache. KG_ENOTFOUND: the plan is for none of the Cases. */
KGEN_API int kgen_judge_prepare(const kgen_judge *judge, const char *source, size_t n,
                                const char *request_json, char *err, size_t nerr);
/* A closed loop's search over this judge asks it about its best Candidate, by id, once each: text
 * (size bytes, empty) gets lines of a list for the next prompts and ends in NUL; not 0: nothing. On
 * the thread that searches. NULL: nobody is asked. */
typedef int (*kgen_profiler)(void *ctx, const char *id, char *text, size_t size);
KGEN_API void kgen_judge_set_profiler(kgen_judge *judge, kgen_profiler profiler, void *ctx);
/* The machine code of a Candidate in words, or why there is none (docs/formats.md): its innermost
 * loops, or all of it; at most `bytes`, 0: about 3000 tokens. */
KGEN_API int kgen_judge_listing(const kgen_judge *judge, const char *source, size_t n,
                                const char *request_json, int whole, size_t bytes, char **text,
                                char *err, size_t nerr);
/* The same of an image: an ELF file of a CPU, or a cubin. KG_EENV: no disassembler is here. */
KGEN_API int kgen_listing(const void *image, size_t n, int whole, size_t bytes, char **text,
                          char *err, size_t nerr);
/* Trivial answers that would pass on every set: a JSON list of {"answer", "output"}; not empty:
 * degenerate. */
KGEN_API int kgen_judge_trivial(const kgen_judge *judge, size_t index, char **json, char *err,
                                size_t nerr);

/* The errors of an output (n elements, dtype by torch's name) against its oracle: *norm and *max in
 * units of the output's scale; *bad counts elements that are not finite where the oracle is, or the
 * other way round. */
KGEN_API int kgen_errors(const char *dtype, const void *out, const void *oracle, size_t n,
                         double *norm, double *max, uint64_t *bad, char *err, size_t nerr);
/* What the two may differ by: *norm and *max from torch's own errors (tune/compare.h). */
KGEN_API int kgen_tolerance(const char *dtype, const char *precision, int64_t reduction,
                            double torch_norm, double torch_max, double scale, double *norm,
                            double *max, char *err, size_t nerr);
/* out: median, p10, p90 of n times. */
KGEN_API int kgen_summary(const double *times, size_t n, double out[3], char *err, size_t nerr);
/* out: median(a) / median(b), and the low and high end of its bootstrap interval over pairs; level
 * is 0.95 for one of 95%. */
KGEN_API int kgen_ratio(const double *a, const double *b, size_t n, double level, uint64_t seed,
                        double out[3], char *err, size_t nerr);
/* {"landlock": its version or 0, "seccomp": true}: what this kernel has to lock a process with that
 * runs Candidates. */
KGEN_API int kgen_protections(char **json, char *err, size_t nerr);
/* The gate's process, once all that it measures against is built and warm: kgen_gate_lock(socket)
 * says where it talks, as JSON lines, then kgen_rt_on_load(kgen_gate_on_load) locks it around the
 * load of the Candidate, for good: a CPU's against files, sockets, programs, processes and signals
 * to others, a GPU's against writing beside /dev and /proc, and all of that but threads. What the
 * kernel lacks is left out. A call that no honest process makes there is answered on the socket, by
 * {"error": ..., "lost": true}, and ends the process. */
KGEN_API int kgen_gate_lock(int socket, char *err, size_t nerr);
KGEN_API int kgen_gate_on_load(int loaded, int device, char *err, size_t nerr);
/* {"landlock": version, "seccomp": bool} of what is in force; null before a Candidate was loaded.
 */
KGEN_API int kgen_gate_locked(char **json, char *err, size_t nerr);

/* A Candidate's text against the lexical rules of CPU Candidates: KG_EUNSUPPORTED with the
 * complaint. */
KGEN_API int kgen_inspect_text(const char *source, size_t n, const char *name, char *err,
                               size_t nerr);

#endif
