/* What kgen and kgen-worker say to each other, in frames (sys/frames.h) over descriptor 3 of the
 * worker.
 *
 * Every frame is u32 kind, u32 number, then the fields below (base/buf.h's put and get: little
 * endian). The judge asks, the worker answers each request with one frame of the same number:
 * KG_W_OK or KG_W_FAILED. KG_W_FAULT comes at any time, once, with number 0, from a worker that is
 * about to die. A worker goes through OPEN, then MAP, then LOAD, then any number of RUN; RATES only
 * after OPEN; PING always. A request out of order or malformed is KG_W_FAILED, and the worker goes
 * on. The worker ends when the socket is closed. Neither side believes a length or an index that
 * the other sends. */
#ifndef KG_WORKER_PROTOCOL_H
#define KG_WORKER_PROTOCOL_H

enum { KG_W_FORMAT = 1, KG_W_SOCKET = 3 };

enum kg_wire {
    /* u32 format, u32 threads, u64 stack bytes a thread. OK: u32 landlock ABI (0: not there), u32
     * threads that run, u32 pinned. The files, then most system calls, are locked away before the
     * answer. */
    KG_W_OPEN = 1,
    /* u32 n, then for each: u64 bytes of the mapping, u64 offset of the data in it, u64 bytes of
     * the data, u8 writable; n descriptors. OK: u32 n, u64 address of the data each. */
    KG_W_MAP = 2,
    /* u32 entries; one descriptor of the image. Loads it and locks what is left. OK: nothing.
     * FAILED with KG_EIO or KG_EFORMAT: the image does not load. */
    KG_W_LOAD = 3,
    /* u32 split (KG_SPLIT_*), u32 warm, u32 timed, u32 n to clear and that many u32 buffers, bytes
     * of the Programs' arguments, u32 launches, then for each: u32 entry, i64 range, i64 grain, u32
     * args, then for each: u8 kind (KG_WA_*) and its value. Runs warm + timed calls. OK: u32 timed,
     * u64 nanoseconds each. */
    KG_W_RUN = 4,
    /* u32 n, u64 working set in bytes each. OK: u32 n, then f64 read, f64 write, f64 copy in bytes
     * a second each. */
    KG_W_RATES = 5,
    KG_W_PING = 6,

    KG_W_OK = 64,
    KG_W_FAILED = 65, /* u32 minus the status, str message */
    /* u32 signal, u32 code, u64 address, u32 access (KG_ACCESS_*), u32 in the guard of a stack, u32
     * number of the system call (SIGSYS) */
    KG_W_FAULT = 66
};

/* How a range is cut into chunks. */
enum {
    KG_SPLIT_SERVED, /* as the runtime serves it: 16 chunks a thread, taken in order */
    KG_SPLIT_ODD     /* fewer and other chunks, the last first */
};

/* Kinds of argument: u32 buffer (KG_WA_BUFFER), i64, or f64. The worker narrows. */
enum { KG_WA_NULL, KG_WA_BUFFER, KG_WA_I32, KG_WA_I64, KG_WA_F32, KG_WA_F64, KG_WA_PROGRAMS };

enum { KG_ACCESS_UNKNOWN, KG_ACCESS_READ, KG_ACCESS_WRITE, KG_ACCESS_EXECUTE };

enum {
    KG_W_MAX_BUFFERS = 64,
    KG_W_MAX_PROGRAMS = 16 << 10, /* bytes of struct kg_programs */
    KG_W_MAX_TIMED = 4096,        /* calls of one RUN */
    KG_W_GUARD = 2 << 20          /* bytes without access on both sides of a buffer */
};

#endif
