/* The registry on disk: generated/ (docs/formats.md, "Pin" and "Record"; DESIGN.md, "The
 * registry").
 *
 * Promotion, rollback and gc hold the registry's lock (<registry>/.lock) and change one file at a
 * time by rename, so that a reader, or a crash at any point, sees the registry before or after and
 * nothing between. Every version stays until gc is asked to remove it. A bad entry is skipped with
 * a warning that names it. */
#ifndef KG_TUNE_REGISTRY_H
#define KG_TUNE_REGISTRY_H

#include "tune/contract.h"

typedef struct kg_registry kg_registry;

/* One promoted (or staged) Candidate. Strings are owned by the registry. */
typedef struct kg_kernel {
    const char *op, *arch, *id; /* id: 64 hex */
    int version;                /* vN within its Op; 0 never */
    bool ambiguous;             /* another Kernel of the Op has the same number after a merge */
    const char *path;           /* folder */
    const char *verdict, *created, *proposer;
    size_t pins; /* Cases that it is active for */
} kg_kernel;

/* Reads the folder names and records; create: makes an empty registry where none is. */
int kg_registry_open(const char *path, bool create, kg_registry **out, kg_error *err);
void kg_registry_close(kg_registry *r);
size_t kg_registry_kernels(const kg_registry *r,
                           const kg_kernel **out); /* sorted by op, version, id */

/* "softmax/v3", "softmax/v3-3fa2", "softmax/9b1c" (an id prefix of at least 4 digits).
 * KG_EAMBIGUOUS names the candidates. */
int kg_registry_find(const kg_registry *r, const char *name, const kg_kernel **out, kg_error *err);

/* Writes op.json when absent (an op.json that differs is KG_EEXIST), the Candidate's folder with
 * the next version, then the pin. task_dir may be NULL (canonical Ops). key: canonical JSON. The
 * Record gets its version. */
int kg_registry_promote(kg_registry *r, const char *op_json, const char *task_dir,
                        const char *source, size_t n, const char *record_json,
                        const char *const *keys, size_t nkeys, int *version, kg_error *err);
/* Points every pin that this version was promoted for back at it; what they pointed to becomes
 * `replaced`. moved counts the pins that changed. */
int kg_registry_rollback(kg_registry *r, const char *op, const char *version, size_t *moved,
                         kg_error *err);
/* Removes Candidates that no pin names or has replaced; nothing while a pin cannot be read or names
 * a Kernel that is not there. dry: only lists. report: a JSON list of what was (or would be)
 * removed, with bytes. */
int kg_registry_gc(kg_registry *r, bool dry, kg_buf *report, kg_error *err);

/* Derives the index of a registry (100 ms for 1,000 Kernels) and writes it atomically. */
int kg_index_build(const char *registry, const char *index_path, kg_error *err);
/* The same; warn is called, on the caller's thread, with what was left out and why, in place of the
 * log. */
typedef void (*kg_index_warn)(void *ctx, const char *message);
int kg_index_build_told(const char *registry, const char *index_path, kg_index_warn warn, void *ctx,
                        kg_error *err);

#endif
