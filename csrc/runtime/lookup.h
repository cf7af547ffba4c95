/* Which Kernel serves a call, and making it ready: the slow path, once for each call class. Reads
 * the registries' indexes, the Kernel's source and the image cache; may run the compiler. */
#ifndef KG_RUNTIME_LOOKUP_H
#define KG_RUNTIME_LOOKUP_H

#include "runtime/snapshot.h"

/* What the process is, for evidence to be held against. */
typedef struct kg_here {
    char torch[64];   /* without what follows '+' */
    char device[128]; /* the CPU's name */
    int level;        /* x86-64-vN; 0 elsewhere */
    int has_amx;
} kg_here;

void kg_here_fill(kg_here *here, const char *torch_version);

/* What a call's device is, for evidence and expressions. */
typedef struct kg_place {
    const char *device; /* its name, as in Records */
    char compiler[128]; /* "NVRTC 13.0"; "" on the CPU, where the compiler is asked when needed */
    const char *driver; /* "" on the CPU */
    int64_t arch;       /* ARCH; of a CPU the level */
    int64_t sms, max_shared;
} kg_place;

/* KG_EENV and others: the device cannot be used; the message says why. */
int kg_place_of(const kg_here *here, int device, int32_t index, kg_place *out, kg_error *err);

/* Looks in s for what serves the call and makes it ready. A class of kind FALLBACK when nothing
 * does (never an error); KG_ENOMEM else. notes (may be NULL) gets one line for each pin that was
 * not taken, and why. Holds the writers' lock: images are shared. recording: nothing may be built
 * or loaded; KG_EBUSY, which is raised, when a Kernel would have to be. KG_EDEVICE: the device is
 * lost. */
int kg_lookup(const kg_snapshot *s, const kg_here *here, const kg_rt_op *op, const kg_call *call,
              int threads, bool recording, const void *signature, size_t nsignature, uint64_t hash,
              kg_buf *notes, kg_class **out, kg_error *err);

/* The pin that comes closest to the call: a Kernel's name and the first field of the key that
 * differs, "" when none does and it was refused for another reason. False when no registry has the
 * Op at all. */
bool kg_lookup_nearest(const kg_snapshot *s, const kg_rt_op *op, const kg_call *call,
                       char kernel[128], char differs[256]);

/* "softmax/v3", or "softmax/v3-3fa2" when the number is ambiguous. */
void kg_kernel_name(const kg_index_op *block, const kg_index_kernel *k, char out[128]);
/* Whether the evidence is of this environment; why (may be NULL, 256 bytes) says what differs. Runs
 * the compiler once to ask its version. */
bool kg_kernel_verified(const kg_here *here, const kg_call *call, const kg_index_kernel *k,
                        char *why);

/* Remembers that a Kernel was right with a Program, in the process and in the cache folder; and
 * asks. */
void kg_trust_store(const kg_class *c);
bool kg_trust_known(const char *kernel_id, kg_hash128 image);

#endif
