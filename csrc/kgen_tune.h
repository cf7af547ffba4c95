/* The public C API of libkgen.so: registry, Candidates, Runs. The judge's part is kgen_judge.h; the
 * runtime's is kgen.h.
 *
 * Texts are UTF-8 and end in NUL; what a call gives back through char ** is freed with kgen_free.
 * Functions return 0, or a negative status (base/error.h) with a message in err (at most nerr
 * bytes; may be NULL). Out parameters are written only on success. Calls on one registry may come
 * from any thread or process. */
#ifndef KGEN_TUNE_H
#define KGEN_TUNE_H

#include <stddef.h>
#include <stdint.h>

#define KGEN_API __attribute__((visibility("default")))

KGEN_API void kgen_free(void *p);

/* A JSON list of objects: op, arch, id, version, ambiguous, path, verdict, created, proposer, pins.
 */
KGEN_API int kgen_registry_list(const char *registry, char **json, char *err, size_t nerr);
/* One such object. name: OP/vN, OP/vN-3fa2, OP/<id prefix>. */
KGEN_API int kgen_registry_find(const char *registry, const char *name, char **json, char *err,
                                size_t nerr);
/* keys: a JSON list of pin keys. task_dir may be NULL. Makes the registry when absent. */
KGEN_API int kgen_registry_promote(const char *registry, const char *op_json, const char *task_dir,
                                   const char *source, size_t n, const char *record_json,
                                   const char *keys, int *version, char *err, size_t nerr);
KGEN_API int kgen_registry_rollback(const char *registry, const char *op, const char *version,
                                    size_t *moved, char *err, size_t nerr);
KGEN_API int kgen_registry_gc(const char *registry, int dry, char **json, char *err, size_t nerr);

/* Warnings of this library (level 2) and errors (3) that no call reports go to sink, on any thread
 * and with no lock held; NULL: to stderr when KGEN_LOG is set. */
KGEN_API void kgen_on_message(void (*sink)(int level, const char *message));

/* A folder to look for NVRTC in: a site-packages, or one that holds the library (sys/nvrtc.h has
 * the order). To be told before anything is compiled; C cannot ask Python where its packages are.
 */
KGEN_API void kgen_nvrtc_search(const char *folder);

/* One timed job on a device at a time, on the whole machine (base/fs.h): gpu is an index as the
 * driver counts, -1 the CPU. KG_EBUSY names the process that holds it; another status: there
 * is nowhere to lock. */
KGEN_API int kgen_lock_device(int gpu, int wait_ms, int *fd, char *err, size_t nerr);
KGEN_API void kgen_unlock_device(int fd);
/* {"sm_mhz", "memory_mhz", "temperature_c", "power_w", "throttle": [NAME], "foreign": ["process
 * 4711 (python3)"]}, less what is not told. KG_EENV: NVML tells nothing here. */
KGEN_API int kgen_gpu_state(int gpu, char **json, char *err, size_t nerr);

/* Derives a registry's index and writes it to index_path. */
KGEN_API int kgen_index_build(const char *registry, const char *index_path, char *err, size_t nerr);
/* The same; what is left out of the index goes to warn, on the caller's thread. */
KGEN_API int kgen_index_build_told(const char *registry, const char *index_path,
                                   void (*warn)(void *ctx, const char *message), void *ctx,
                                   char *err, size_t nerr);

/* {"key": {...}, "hash": "<32 hex>"} of a Case's exact pin. */
KGEN_API int kgen_case_key(const char *op_json, const char *case_json, char **json, char *err,
                           size_t nerr);
/* Checks the plan against the contract: {"op", "target", "min_arch", "tunables": {...}, "holes":
 * [...], "id": "<64 hex>"}; tunables_json NULL takes the defaults, and the id is of that choice. */
KGEN_API int kgen_candidate_check(const char *op_json, const char *source, size_t n,
                                  const char *name, const char *tunables_json, char **json,
                                  char *err, size_t nerr);

/* Compiles into the image cache what a process that serves this Case loads (any_size: as a dynamic
 * pin serves it), for an architecture that need not be this machine's: {"path", "cached": was it
 * there}. KG_ENOTFOUND: `require` does not hold for the Case. */
KGEN_API int kgen_build_image(const char *op_json, const char *case_json, const char *source,
                              size_t n, const char *tunables_json, const char *arch, int any_size,
                              char **json, char *err, size_t nerr);

/* What a Candidate comes to for a Case on a device that need not be here: `unit`, the translation
 * unit (any_size: as a dynamic pin has it), and the bound plan as csrc/tune/instance_json.h says.
 * sms and shared (bytes a block may have; 0: no limit) are the device's. KG_ENOTFOUND: `require`
 * does not hold for the Case. */
KGEN_API int kgen_candidate_unit(const char *op_json, const char *case_json, const char *source,
                                 size_t n, const char *tunables_json, const char *arch, int sms,
                                 int64_t shared, int any_size, char **json, char *err, size_t nerr);

/* Called with each journal entry of a search as canonical JSON. */
typedef void (*kgen_progress)(void *ctx, const char *entry);

/* Searches the templates (and further files) over a judge's Cases; winners' sources go to
 * <run_dir>/candidates. options: {"budget_ms": 60000, "max_candidates": 96, "jobs": 2, "kernels":
 * DIR, "files": [PATH], "loop": {...}}; all but budget_ms may be absent. With "loop" a proposer is
 * asked (tune/loop.h) and nothing else is searched over: {"proposer": "llm" | "files", "strategy",
 * "prompts": DIR of the texts, "task": DIR, "machine", "notes", "knowledge": TEXT, "llm": {...}
 * (tune/llm.h), "cases": [{"floor_ns", "bytes", "flops", "torch_ns"}], "slots", "ideas",
 * "per_idea", "patience", "barren", "target_share", "max_prompt_tokens", "target": "cpu" | "cuda",
 * "stage": one of its stages alone, "evaluate" or "finish"}, and the
 * result has "asked":
 * {"prompts", "answers", "failed", "candidates", "open", "unjudged", "over", "spent": {"calls",
 * "tokens", "nano_usd"}, "clock": {"life_s", "wait_s", "compile_s", "judge_s"}, "ended_by"}. The
 * result: {"sources": [NAME], "winners": [{"case", "id", "source", "file", "tunables", "time_ns",
 * "record"}], "verdicts": {NAME: COUNT}, "judged", "resumed", "dropped", "out_of_time", "spent_s",
 * "stopped"}. judge comes from kgen_judge.h and is borrowed. */
struct kg_judge;
KGEN_API int kgen_search(struct kg_judge *judge, const char *run_dir, const char *options,
                         kgen_progress progress, void *ctx, char **json, char *err, size_t nerr);
/* The same with several judges, one a device (1 to 16), which judge as many Candidates at once.
 * They must be for one Op, one architecture and the same Cases, each with its own input sets;
 * progress comes from several threads, one at a time. */
KGEN_API int kgen_search_over(struct kg_judge *const *judges, size_t njudges, const char *run_dir,
                              const char *options, kgen_progress progress, void *ctx, char **json,
                              char *err, size_t nerr);
/* The stages of a loop that need no device: "stage" of loop is "advance" or "propose". json is
 * "asked" as above. */
KGEN_API int kgen_loop_stage(const char *op_json, const char *run_dir, const char *loop,
                             int64_t budget_ms, kgen_progress progress, void *ctx, char **json,
                             char *err, size_t nerr);
/* What a Run would ask next about an Op; loop as above. KG_ENOTFOUND: nothing. */
KGEN_API int kgen_prompt(const char *op_json, const char *run_dir, const char *loop, char **text,
                         char *err, size_t nerr);
/* Adds one entry to a Run's journal. */
KGEN_API int kgen_journal_add(const char *run_dir, const char *kind, const char *fields, char *err,
                              size_t nerr);
/* The "sum" that a journal's line must have (docs/formats.md), whatever it has. */
KGEN_API int kgen_journal_sum(const char *line, size_t n, char sum[17], char *err, size_t nerr);
/* Asks whatever is under way to wind down (or, with 0, takes that back). Async-signal-safe. */
KGEN_API void kgen_stop(int stop);

#endif
