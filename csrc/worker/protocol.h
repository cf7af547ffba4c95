/* What kgen and kgen-worker say to each other, in frames (sys/frames.h) over descriptor 3 of the
 * worker.
 *
 * Every frame is u32 kind, u32 number, then the fields below (base/buf.h's put and get: little
 * endian). The judge asks, the worker answers each request with one frame of the same number:
 * KG_W_OK or KG_W_FAILED. KG_W_FAULT or KG_W_DEVICE_FAULT comes at any time, once, with number 0,
 * from a worker that is about to die. A worker goes through OPEN, then MAP, then LOAD, then any
 * number of RUN, and on a GPU from there to MAP again, which gives back what the last one mapped
 * and LOAD loaded; RATES only after OPEN, and only on a CPU; PING always. A request out of order or
 * malformed is KG_W_FAILED, and the worker goes on. The worker ends when the socket is closed.
 * Neither side believes a length or an index that the other sends. */
#ifndef KG_WORKER_PROTOCOL_H
#define KG_WORKER_PROTOCOL_H

enum { KG_W_FORMAT = 2, KG_W_SOCKET = 3 };

enum kg_wire {
    /* u32 format, u32 device (kg_device: what the worker was started for), u32 index of the GPU,
     * u32 threads, u64 stack bytes a thread (both 0 on a GPU). OK: u32 landlock ABI (0: not there),
     * u32 threads that run, u32 pinned. The files, then most system calls, are locked away before
     * the answer. */
    KG_W_OPEN = 1,
    /* u32 n, then for each: u64 bytes of the mapping, u64 offset of the data in it, u64 bytes of
     * the data, u8 writable; n descriptors: memfds, or of a GPU's allocations. OK: u32 n, u64
     * address of the data each. */
    KG_W_MAP = 2,
    /* u32 entries; on a GPU then for each: str name, u32 threads a block, u32 bytes of dynamic
     * shared memory, u32 blocks a cluster, u32 n and u32 bytes of each argument; one descriptor of
     * the image. Loads it and locks what is left. OK: on a GPU u32 entries, then for each u32
     * registers a thread, u32 bytes of local and u32 of static shared memory, u32 blocks that fit a
     * multiprocessor. FAILED with KG_EIO or KG_EFORMAT: the image does not load. */
    KG_W_LOAD = 3,
    /* u32 split (KG_SPLIT_*), u32 warm, u32 timed, u32 flags (KG_RUN_*), u32 n to clear and that
     * many u32 buffers, bytes of the Programs' arguments, u32 n of tensor maps, each: u32 buffer,
     * u32 dtype, u32 swizzle, u32 L2 promotion, u32 rank, i64 dims and boxes (rank of each, in
     * turn), i64 strides (rank - 1); u32 launches, then for each: u32 entry, on a CPU i64 range,
     * i64 grain; on a GPU i64 grid[3], block[3], cluster[3], shared, u32 KG_LAUNCH_*; u32 args,
     * then for each: u8 kind (KG_WA_*) and its value. Runs warm + timed calls. OK: u32 timed, u64
     * nanoseconds each; on a GPU followed by u64 of the whole window, u64 of the wall clock
     * around it, and u8 whether it was the replay of a graph. */
    KG_W_RUN = 4,
    /* u32 n, u64 working set in bytes each. OK: u32 n, then f64 read, f64 write, f64 copy in bytes
     * a second each. */
    KG_W_RATES = 5,
    KG_W_PING = 6,
    /* A GPU's, after LOAD: one descriptor, of an image with kg_check_scrub(u32 words, u32 pattern).
     * From then on each call finds the shared memory of every multiprocessor filled, but in a RUN
     * with KEEP. FAILED: it is as it was before. */
    KG_W_SCRUB = 7,

    KG_W_OK = 64,
    KG_W_FAILED = 65, /* u32 minus the status, str message */
    /* u32 signal, u32 code, u64 address, u32 access (KG_ACCESS_*), u32 in the guard of a stack, u32
     * number of the system call (SIGSYS) */
    KG_W_FAULT = 66,
    /* u32 stage (KG_STAGE_*), u32 index of the launch or entry (UINT32_MAX: none), u32 result of
     * the driver, str its name, str what was asked. The context is of no use any more. */
    KG_W_DEVICE_FAULT = 67
};

/* How a range is cut into chunks. On a GPU there is no difference. */
enum {
    KG_SPLIT_SERVED, /* as the runtime serves it: 16 chunks a thread, taken in order */
    KG_SPLIT_ODD     /* fewer and other chunks, the last first */
};

/* COLD: the caches are emptied before each timed call; GRAPH: a timed call is a replay of a graph.
 * GPU alone. Before each call but the first, and on a GPU before a timed one that untimed ones
 * precede, the worker writes the buffers' first bytes (8 on a CPU, 4 on a GPU) all over them, as
 * they were before the first (the poison); STALE, of a CPU alone: it swaps their halves instead.
 * Before each call the worker of a CPU cleans its threads (clean.h). KEEP: none of that. */
enum { KG_RUN_COLD = 1, KG_RUN_GRAPH = 2, KG_RUN_STALE = 4, KG_RUN_KEEP = 8 };

enum { KG_LAUNCH_COOPERATIVE = 1, KG_LAUNCH_PDL = 2 };

/* What the driver was asked when it failed: to load the image, to start a kernel, to wait for it.
 */
enum { KG_STAGE_LOAD, KG_STAGE_LAUNCH, KG_STAGE_WAIT };

/* Kinds of argument: u32 buffer (KG_WA_BUFFER), u32 tensor map (KG_WA_MAP), i64, or f64. The worker
 * narrows. */
enum {
    KG_WA_NULL,
    KG_WA_BUFFER,
    KG_WA_I32,
    KG_WA_I64,
    KG_WA_F32,
    KG_WA_F64,
    KG_WA_PROGRAMS,
    KG_WA_MAP
};

enum { KG_ACCESS_UNKNOWN, KG_ACCESS_READ, KG_ACCESS_WRITE, KG_ACCESS_EXECUTE };

enum {
    KG_W_MAX_BUFFERS = 64,
    KG_W_MAX_PROGRAMS = 16 << 10, /* bytes of struct kg_programs */
    KG_W_MAX_TIMED = 4096,        /* calls of one RUN */
    KG_W_GUARD = 2 << 20          /* bytes without access on both sides of a buffer */
};

#endif
