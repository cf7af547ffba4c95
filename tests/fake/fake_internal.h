/* What the files of the stand-in share. */
#ifndef KG_FAKE_INTERNAL_H
#define KG_FAKE_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "fake_cuda.h"
#include "sys/cuda_abi.h"

#define FAKE __attribute__((visibility("default")))

/* What is exported, held against the table's types. */
#define KG_X(required, name, params) FAKE int name params;
KG_CUDA_SYMS(KG_X)
#undef KG_X

typedef struct fake_config {
    int devices, arch, sms, driver, shared, clusters, clusters_fit;
    size_t memory;
} fake_config;
extern fake_config fake_conf;
extern pthread_mutex_t fake_lock; /* over everything below fake_begin */

/* Every call begins here: counts it, gives the failure that was asked for, the poison, or
 * "invalid context" when it needs one and there is none. The caller returns it when it is not 0. */
enum { FAKE_PLAIN = 0, FAKE_CONTEXT = 1, FAKE_NO_CAPTURE = 2 };
int fake_begin(const char *symbol, int needs);
/* For calls that wait: a fault that a launch left behind comes out, or it hangs. */
int fake_wait(void);
int fake_current_device(void);

/* A piece of work of a stream. */
typedef enum fake_kind { FAKE_LAUNCH, FAKE_SET8, FAKE_SET32, FAKE_COPY } fake_kind;
typedef struct fake_op {
    fake_kind kind;
    fake_launch *launch; /* owned */
    uintptr_t to, from;
    size_t n;
    unsigned value;
    struct fake_op *next;
} fake_op;
/* Does it, or records it when the stream captures. Takes the op. */
int fake_submit(kg_cu_stream stream, fake_op op);
/* Under no lock: what the launch does. */
void fake_run_launch(fake_launch *l);
bool fake_thread_captures(void);
extern size_t fake_live;

#endif
